"""Never pay twice for the same answer: finished ones are kept in a file, those in flight are shared.

    the request                         what becomes of it
    its answer is in the file, fresh    a hit: it costs nothing, and nothing below sees it
    the same is in flight               it follows: it waits, and takes the answer of the one that leads as a hit
    neither                             it leads: it is sent, its answer is kept and given to those that follow
    its leader fails or is cancelled    the first that follows leads, with a try of its own; the others wait on
    it cannot be keyed (no JSON)        it is sent, and nothing is kept

    the answer                          is it kept?
    stop, tool_calls                    yes: it is whole
    length                              yes: the same request would be cut off at the same place
    content_filter, other               no: it is not what the model had to say; asked again, it may be
    neither text nor tool calls         no: there is nothing in it to be used again
    another target's (fallback)         no: the request names the first target, and would get this one's for ever

Two requests are the same if provider, model, messages and all parameters are (`llmlab.identity`). So rows that ask the
same get the same answer, also at temperature 1: who wants a second opinion asks without a cache, or varies `seed`.
"""

import asyncio
import contextlib
import logging
import math
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

from llmlab.answers import Answers, Lease, lease
from llmlab.call import Call, Handler
from llmlab.clock import wall_offset
from llmlab.errors import SchemaMismatch
from llmlab.events import Delta, Following
from llmlab.identity import key_of
from llmlab.types import Reply

KEPT = ("stop", "tool_calls", "length")
"""Finish reasons of answers that are kept."""
RESPITE = 5.0
"""Seconds for which a file that could not be opened is not tried again: a job's rows do not each wait for it."""

_Followers: TypeAlias = "dict[asyncio.Future[Reply | None], None]"  # in order; a reply is a hit, None means: lead

_log = logging.getLogger("llmlab")


@dataclass
class Cache:
    """Answer from a file what was answered before. Stands outermost: a hit costs nothing, so nothing below sees it.

    A hit has `cache_hit` set, costs 0 dollars and 0 attempts, and its latency is that of the look-up (of the wait, if
    it followed); its tokens are those of the answer when it was paid for. A streamed hit comes in one piece.

    The file is opened at the first call, made if it is not there, and may be used by many labs and processes at once.
    If it cannot be, calls fail before anything is sent; trouble later costs the caching, not the answers, and is
    logged as a warning. Nothing needs to be closed.

    Raises:
        TypeError: `path` is no path.
        ValueError: `ttl` is not above 0.
    """

    path: str | Path
    """The file, as "answers.sqlite"; made if it is not there, its folder is not."""
    ttl: float | None = None
    """Seconds after which an answer is asked for anew, above 0. None: never. It is the reader's: answers do not leave
    the file for being old, but are replaced by newer ones."""
    _lease: Lease | None = field(default=None, init=False, repr=False, compare=False)
    _refusal: tuple[float, OSError | ValueError] | None = field(default=None, init=False, repr=False, compare=False)
    _flights: dict[bytes, _Followers] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.path, str | Path):
            raise TypeError(f"Cache: path must be a file's name, as 'answers.sqlite', not {self.path!r}")
        number = isinstance(self.ttl, int | float) and not isinstance(self.ttl, bool)
        if self.ttl is not None and not (number and 0 < self.ttl < math.inf):
            raise ValueError(f"Cache: ttl must be a number of seconds above 0, not {self.ttl!r}")
        self.path = Path(self.path).resolve()  # two names of one file must meet, wherever the process goes

    async def __call__(self, call: Call, inner: Handler) -> Reply:
        """Answer the call from the file, by way of one that asks the same, or by `inner`."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        key = _key(call)
        if key is None:
            return await inner(call)
        found = _fitting(self._find(key, began), call)
        while found is None and key in self._flights:
            call.emit(Following(call.index))
            answer = await self._follow(key)
            if answer is None:
                break
            found = _fitting(answer, call)
        if found is None:
            return await self._lead(key, call, inner)
        if call.stream and found.content:
            call.emit(Delta(call.index, found.content))
        return replace(found, cache_hit=True, cost_usd=0.0, latency_s=loop.time() - began, ttft_s=None)

    # -- one for all --------------------------------------------------------------------------------------

    async def _lead(self, key: bytes, call: Call, inner: Handler) -> Reply:
        self._flights.setdefault(key, {})
        target = call.provider, call.model
        try:
            reply = await inner(call)
        except BaseException:
            self._hand_on(key)
            raise
        if _worth_keeping(reply) and (call.provider, call.model) == target:
            self._keep(key, reply)
        for follower in self._flights.pop(key):
            if not follower.done():
                follower.set_result(reply)
        return reply

    async def _follow(self, key: bytes) -> Reply | None:
        """Wait for the answer of the one that leads; None if it is this one's turn to lead."""
        turn: asyncio.Future[Reply | None] = asyncio.get_running_loop().create_future()
        self._flights[key][turn] = None
        try:
            return await turn
        except BaseException:
            if turn.cancelled():
                self._flights.get(key, {}).pop(turn, None)
            elif turn.done() and turn.result() is None:  # cancelled when it was just about to lead
                self._hand_on(key)
            raise

    def _hand_on(self, key: bytes) -> None:
        """Let the first that follows lead; the end of it if nobody does."""
        followers = self._flights[key]
        while followers:
            first = next(iter(followers))
            del followers[first]
            if not first.done():
                first.set_result(None)
                return
        del self._flights[key]

    # -- the file -----------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open the file now instead of at the first call; blocks for some milliseconds.

        Raises:
            ValueError: the file is no cache, or one of a newer llmlab; it is left as it is.
            OSError: the folder is not there, nothing can be written, or another program holds the file.
        """
        self._answers()

    def close(self) -> None:
        """Write what waits and let go of the file; blocks meanwhile. A later call opens it again."""
        held, self._lease = self._lease, None
        if held is not None:
            held.give_back()

    def clear(self) -> None:
        """Remove all answers from the file, for all that use it; blocks until it is done.

        Raises:
            ValueError, OSError: as `open`.
        """
        self._answers().clear()

    def __len__(self) -> int:
        return len(self._answers())

    def __bool__(self) -> bool:
        return True  # an empty cache is a cache: `cache or …` must not pass it over

    def _answers(self) -> Answers:
        if self._lease is None or not self._lease.answers.current:
            self._lease = lease(Path(self.path))
            self._refusal = None
        return self._lease.answers

    def _find(self, key: bytes, now: float) -> Reply | None:
        answers = self._in_use(now)
        if answers is None:
            return None
        return answers.find(key, -math.inf if self.ttl is None else now + wall_offset() - self.ttl)

    def _keep(self, key: bytes, reply: Reply) -> None:
        now = asyncio.get_running_loop().time()
        # Somebody has closed it meanwhile and it cannot be opened again: the next call says so, this answer is paid.
        with contextlib.suppress(OSError, ValueError):
            answers = self._in_use(now)
            if answers is not None:
                answers.put(key, now + wall_offset(), reply)

    def _in_use(self, now: float) -> Answers | None:
        """The open file; None if it was open, has been removed, and cannot be made again.

        Raises:
            ValueError, OSError: as `open`, at first use.
        """
        first = self._lease is None
        if self._refusal is None or not 0 <= now - self._refusal[0] < RESPITE:
            try:
                return self._answers()
            except (OSError, ValueError) as error:
                if not first and (self._refusal is None or str(error) != str(self._refusal[1])):
                    _log.warning("llmlab: answers are neither looked up nor kept. %s", error)
                self._refusal = now, error
        if first:
            raise copy(self._refusal[1])
        return None


def _key(call: Call) -> bytes | None:
    try:
        return key_of(call.prompt, provider=call.provider, model=call.model)
    except (TypeError, ValueError, RecursionError):  # what is no JSON cannot be sent either: whoever sends it says so
        return None


def _fitting(found: Reply | None, call: Call) -> Reply | None:
    """A reply as what the call asks for; None if it does not fit: a type may have changed, its JSON schema not."""
    if found is None or call.reader is None:
        return found
    try:
        return call.reader.read(found)
    except SchemaMismatch:
        return None


def _worth_keeping(reply: Reply) -> bool:
    return reply.finish_reason in KEPT and bool(reply.content or reply.tool_calls)
