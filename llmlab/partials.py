"""One typed answer while it is written: what it holds so far, again and again, as it grows."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from llmlab.job import Job
from llmlab.lenient import so_far
from llmlab.schemas import VALUE
from llmlab.streams import Closing, Stream
from llmlab.types import Reply

_NOTHING = object()


class Partials(Closing):
    """One typed answer: `async for partial in …`. Made by `lab.stream(…, schema=…)`.

    A partial is plain and not validated: a dict with the fields that have begun to come, in which texts and lists
    grow; of a bare value (a list, a text, a number) it is that. Each is an object of its own. The last one holds what
    the answer holds, which is `reply.parsed` once the loop has ended, validated and in its type.

    What is handed out cannot be taken back: an answer that does not fit in the end is not asked for again, but raises
    SchemaMismatch after its last partial.

    Args:
        stream: The answer's text.
        bare: Whether it is a bare value, which comes wrapped in an object.
    """

    def __init__(self, stream: Stream, *, bare: bool) -> None:
        self._stream, self._bare = stream, bare

    async def __aiter__(self) -> AsyncGenerator[Any, None]:
        text, last = "", _NOTHING
        async with aclosing(aiter(self._stream)) as pieces:
            async for piece in pieces:
                text += piece
                found = self._found(text)
                if found is not _NOTHING and found != last:
                    yield found
                    last = self._found(text)  # a copy: the reader may have changed the one it was given

    def _found(self, text: str) -> Any:
        found = so_far(text)
        if not isinstance(found, dict):
            return _NOTHING
        return found.get(VALUE, _NOTHING) if self._bare else found

    async def aclose(self) -> None:
        """Close the connection and end the loop that reads, if there is one. A second call does nothing."""
        await self._stream.aclose()

    @property
    def reply(self) -> Reply:
        """The whole answer, with its `parsed`, its text as `content`, its usage and its times.

        Raises:
            LLMError: the answer failed; SchemaMismatch: it does not fit, and is the error's `reply`.
            RuntimeError: the stream was not read to its end.
        """
        return self._stream.reply

    @property
    def job(self) -> Job[Any]:
        """The job at work; see `Streams.job`."""
        return self._stream.job
