"""What a provider's codec is: pure functions between prompts and bytes.

A codec knows one wire format and its dialects. It never sends, waits or retries; `http.py` does the
sending. One `Draft` gathers an answer, whether it comes as one body or in pieces.
"""

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import orjson

from llmlab.errors import BadPayload, LLMError, Unsendable
from llmlab.providers.sse import ServerEvent
from llmlab.types import JSON, Form, Prompt, Reply, Usage


@dataclass(slots=True)
class Draft:
    """An answer as far as it has come."""

    pieces: list[str] = field(default_factory=list)
    """Text so far, in pieces."""
    reasoning: list[str] = field(default_factory=list)
    """Reasoning text so far, in pieces."""
    tool_calls: list[JSON] = field(default_factory=list)
    """Tool calls so far, in the provider's form."""
    finish_reason: str | None = None
    """Normalised: stop, length, tool_calls, content_filter, other; None while unknown."""
    model: str | None = None
    """The model as the provider names it."""
    usage: Usage | None = None
    """Tokens so far; the last word of the provider wins."""
    complete: bool = False
    """The protocol has said that the answer is whole. Token counts may still follow."""
    ended: bool = False
    """The stream has said its last word: nothing after it counts, and reading may stop."""
    open_calls: dict[int, tuple[JSON, list[str]]] = field(default_factory=dict)
    """Tool calls still coming in, by the provider's index: the call and the pieces of its arguments."""

    @property
    def text(self) -> str:
        """The text so far; halves of a surrogate pair that came apart are one character again."""
        return _mended("".join(self.pieces))

    def reply(
        self,
        *,
        provider: str,
        model: str,
        request_id: str | None,
        latency_s: float,
        ttft_s: float | None,
        cost_usd: float | None,
        itl_s: float | None = None,
    ) -> Reply:
        """Make the finished answer."""
        return Reply(
            content=self.text,
            finish_reason=self.finish_reason or "other",
            provider=provider,
            model=self.model or model,
            usage=self.usage,
            request_id=request_id,
            reasoning="".join(self.reasoning),
            tool_calls=tuple(self.tool_calls),
            latency_s=latency_s,
            ttft_s=ttft_s,
            itl_s=itl_s,
            cost_usd=cost_usd,
        )


def _mended(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


class Codec(Protocol):
    """One wire format."""

    path: str
    """Appended to the base URL."""
    request_id_header: str
    """The response header that carries the provider's request id."""
    forms: tuple[Form, ...]
    """How the server can be held to a JSON schema, the best first; telling the model in words is not among them."""

    def headers(self, key: str | None) -> dict[str, str]:
        """Request headers for this key (None: no authentication)."""
        ...

    def encode(self, prompt: Prompt, model: str, *, stream: bool, form: Form | None = None) -> bytes:
        """The request's body; `form` says how to ask for a prompt's schema. None: the best that is known."""
        ...

    def decode(self, body: bytes, draft: Draft) -> None:
        """Read a whole answer into `draft`. Raises the error that a 200 body carries, or BadPayload."""
        ...

    def delta(self, event: ServerEvent, draft: Draft) -> str:
        """Read one event of a stream into `draft`; returns the new text, often "".

        Raises the error that the event carries, or BadPayload.
        """
        ...

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> LLMError:
        """The error that an answer of this status stands for. Never raises."""
        ...


def pack(body: JSON) -> bytes:
    """Write a request's body; numpy scalars and whole-number keys (`logit_bias`) are welcome.

    Raises:
        Unsendable: The body holds what JSON cannot carry, as a half of a surrogate pair.
    """
    try:
        return orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)
    except TypeError as error:
        raise Unsendable(f"the prompt cannot be written as JSON: {error}") from None


def unpack(body: bytes | str) -> object:
    """Read JSON of any kind, also with halves of surrogate pairs (a server may cut an emoji in two).

    Raises:
        BadPayload: It is none; the message shows how it begins.
    """
    if isinstance(body, bytes):
        body = body.removeprefix(b"\xef\xbb\xbf")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        with contextlib.suppress(ValueError, RecursionError):
            return json.loads(body)
        head = body[:800].decode(errors="replace") if isinstance(body, bytes) else body[:200]
        shown = " ".join(head[:200].split()) or "nothing"
        raise BadPayload(f"the answer is not JSON but begins: {shown}") from None


def count(value: object) -> int:
    """Read a number of tokens: what is no whole number of at least 0 counts as none."""
    return value if type(value) is int and value > 0 else 0
