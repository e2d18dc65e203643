"""What the simulator's parts say to each other, in neither dialect.

A dialect reads a request into an `Ask` and writes an `Answer` as a plain body or as `Event`s; what goes wrong
on purpose or by the rules is a `Refusal` (an error answer) or `Broken` (the connection's own end).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from typing import Any, Literal, Protocol

from llmlab.types import JSON


@dataclass(frozen=True, slots=True)
class Ask:
    """One completion request, read and found valid."""

    model: str
    """The model's name as asked for."""
    text: str
    """All text of the request, system prompt included."""
    turns: int = 1
    """Messages in the request."""
    images: int = 0
    """Content parts that are not text."""
    max_tokens: int | None = None
    """Most output tokens. None: the model's own end."""
    stop: tuple[str, ...] = ()
    """Texts before which the answer ends."""
    n: int = 1
    """Answers asked for."""
    stream: bool = False
    """Whether the answer is to come in pieces."""
    usage: bool = True
    """Whether a stream ends with its token counts."""
    pad: bool = True
    """Whether stream chunks carry OpenAI's `obfuscation` field."""
    json: bool = False
    """Whether the answer must be a JSON object."""
    schema: JSON | None = None
    """The JSON schema which the answer must meet."""
    thinks: bool = False
    """Whether the model reasons before it answers."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer text, in tokens."""

    pieces: tuple[str, ...]
    """The text, one piece per token."""
    finish: Literal["stop", "length", "stop_sequence", "content_filter"] = "stop"
    """Why it ends."""
    stopped_by: str | None = None
    """The stop text that was met."""

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(self.pieces)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model says to one Ask."""

    choices: tuple[Choice, ...]
    """One or more answers."""
    input_tokens: int
    """Tokens read."""
    reasoning: tuple[str, ...] = ()
    """The reasoning before the answers, one piece per token."""

    @property
    def output_tokens(self) -> int:
        """Tokens written, reasoning included."""
        return len(self.reasoning) + sum(len(choice.pieces) for choice in self.choices)

    @property
    def steps(self) -> int:
        """Decoding steps: the choices are written side by side."""
        return len(self.reasoning) + max(len(choice.pieces) for choice in self.choices)


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event."""

    after: int
    """Decoding steps that must be done before it may go; 0: at once."""
    data: Any
    """A JSON value, or a str that goes as it is."""
    name: str | None = None
    """The `event:` line."""
    ends: bool = False
    """Whether a client may take the answer as complete from here on."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What distinguishes one answer from another."""

    id: str
    """Twenty-four characters."""
    created: int
    """Unix time, whole seconds."""


@dataclass(frozen=True, slots=True)
class Level:
    """A rate limit as its headers tell it."""

    limit: int
    """Allowance per minute."""
    remaining: int
    """What is left of it now."""
    reset: float
    """Seconds until it is whole again."""


class Refusal(Exception):
    """The request is answered with an error; raised to leave the function that found the fault.

    Args:
        kind: What went wrong, a key of both dialects' error tables.
        message: The error's text. None: the table's own.
        param: The parameter at fault (OpenAI only).
        code: The error's code. None: the table's own.
        wait: Seconds after which a new attempt is welcome.
        hint: How `wait` is told: a way of `llmlab.sim.faults.HINTS`.
        facts: What the table's text has blanks for.
    """

    def __init__(
        self,
        kind: str,
        message: str | None = None,
        *,
        param: str | None = None,
        code: str | None = None,
        wait: float | None = None,
        hint: str = "header",
        facts: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(kind)
        self.kind = kind
        self.message = message
        self.param = param
        self.code = code
        self.wait = wait
        self.hint = hint
        self.facts = facts or {}


class Broken(Exception):
    """The connection ends before the answer does.

    Args:
        how: reset (RST), cut (FIN).
        begun: Whether part of the response had been sent.
    """

    def __init__(self, how: Literal["reset", "cut"], *, begun: bool) -> None:
        super().__init__(how)
        self.how: Literal["reset", "cut"] = how
        self.begun = begun


class Headers(Protocol):
    """Request headers, looked up by name in any case (httpx and aiohttp each have their own)."""

    def get(self, key: str, /) -> str | None:
        """Give the value of a header, None if it was not sent."""
        ...


@dataclass(frozen=True, slots=True)
class Errand:
    """A request that is no completion."""

    method: str
    """HTTP method."""
    path: str
    """Where it goes."""
    query: Mapping[str, str]
    """What stands behind the question mark."""
    headers: Headers
    """Its headers."""
    body: bytes
    """Its body."""
    now: float
    """Unix time in seconds."""
    stamp: Stamp
    """Names what it makes."""


class Wire(Protocol):
    """A dialect: what both dialect modules offer."""

    BUCKETS: tuple[str, ...]
    """The names of its rate limits; `requests` counts requests, the others tokens."""

    def plain(self, ask: Ask, answer: Answer, stamp: Stamp, quirk: str = "") -> JSON:
        """Write an answer as one JSON body."""
        ...

    def stream(self, ask: Ask, answer: Answer, stamp: Stamp, quirk: str = "") -> list[Event]:
        """Write an answer as a stream's events."""
        ...

    def error(self, refusal: Refusal, request_id: str) -> tuple[int, JSON]:
        """Write an error as status and body."""
        ...

    def error_event(self, refusal: Refusal, request_id: str) -> Event:
        """Write an error inside a stream that has begun."""
        ...

    def ids(self, stamp: Stamp, elapsed: float) -> dict[str, str]:
        """Give the headers that identify a response; `elapsed` in seconds."""
        ...

    def hints(self, refusal: Refusal, now: float) -> dict[str, str]:
        """Give the headers by which a refusal asks to wait; `now` is Unix time in seconds."""
        ...

    def costs(self, ask: Ask, input_tokens: int) -> dict[str, int]:
        """Say what a request takes from each allowance when it is let in."""
        ...

    def levels(self, levels: dict[str, Level], now: float) -> dict[str, str]:
        """Give the rate limit headers; `now` is Unix time in seconds."""
        ...

    def models(self, names: tuple[str, ...]) -> JSON:
        """Write the list of models."""
        ...

    def model(self, name: str) -> JSON:
        """Write one model's entry."""
        ...


@lru_cache(maxsize=64)
def http_date(second: int) -> str:
    """Write Unix time as an HTTP `Date`."""
    return formatdate(second, usegmt=True)
