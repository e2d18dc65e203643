"""Several short rows in one request: fewer calls, and instructions that are paid for once.

    rows that share a request      the same model, parameters, system prompt and place in line; one user message of text
    go alone                       conversations, content parts, streams, schemas, tools, `stop`, long texts
    it is sent                     when it is full, or `seconds` after its first row came

    what happens                             what comes of it
    an answer for a row's id                 it is the row's reply, as if it had been asked alone
    none, two or a garbled one               the row is asked again, by itself
    the answer was cut off (length)          rows before the cut have theirs, the others are asked again
    too long for the model                   two requests of half the rows each
    refused otherwise (moderation, …)        each row is asked by itself: one bad row does not take the others with it
    any other failure, retries included      it is each row's
    most rows must be asked again            ten requests are enough to see it: from then on rows go one by one
    a row is cancelled                       the others go on; the request is given up when nobody is left

Tokens, dollars and failed attempts are shared out over the rows that are still there, to the last token.
"""

import asyncio
import logging
import math
from collections.abc import Hashable
from dataclasses import dataclass, field

from llmlab.bundle import Bundle, Seat
from llmlab.call import Call, Handler
from llmlab.estimate import tokens
from llmlab.identity import canonical
from llmlab.rules.checks import Setting, check_all
from llmlab.types import Prompt, Reply

SAMPLING = ("frequency_penalty", "presence_penalty", "reasoning_effort", "seed", "top_k", "top_p")
HARMLESS = frozenset({*SAMPLING, "metadata", "safety_identifier", "service_tier", "store", "user"})
"""Request fields that mean the same for one row and for several."""
TRIAL = 10
"""Requests after which packing ends if more than half of their rows had to be asked again."""

_RANGES: tuple[Setting, ...] = (
    ("rows tokens", lambda value: isinstance(value, int) and value >= 1, "a whole number of at least 1"),
    ("seconds", lambda value: 0 <= value < math.inf, "a number of seconds of at least 0"),
)

_log = logging.getLogger("llmlab")


@dataclass
class Pack:
    """Ask several rows in one request. Stands below Cache, above Fallback, Retry and Admit; off by default.

    Worth it for many short rows whose instructions stand in `system=`. Rows of one pack see each other: do not pack
    what must not. `max_tokens` holds for a pack as a whole then, as many times as it has rows.

    Raises:
        ValueError: a setting is out of its range.
    """

    rows: int = 10
    """Rows per request at most, at least 1 (each alone)."""
    seconds: float = 0.05
    """How long a row waits for company at most."""
    tokens: int = 8000
    """Tokens per request at most: the rows' texts, estimated, and their `max_tokens`; a row beyond them goes alone."""
    requests: int = field(default=0, init=False, repr=False, compare=False)
    """Packed requests answered or failed so far, retries not counted."""
    packed: int = field(default=0, init=False, repr=False, compare=False)
    """Rows that had shared them."""
    redone: int = field(default=0, init=False, repr=False, compare=False)
    """Of these, rows that had to be asked again."""
    _open: "dict[Hashable, tuple[Bundle, asyncio.TimerHandle]]" = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _told: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_all(self, _RANGES)

    async def __call__(self, call: Call, inner: Handler) -> Reply:
        """Answer the call together with others like it, or by itself."""
        key = self._key(call)
        if key is None:
            return await inner(call)
        seat = self._join(key, call, inner)
        try:
            end = await seat.end
        except asyncio.CancelledError:
            seat.bundle.leave(seat)
            raise
        if isinstance(end, Reply):
            return end
        if end is not None:
            raise end
        return await inner(call)

    def count(self, packed: int, redone: int) -> None:
        """Note what a request has come to."""
        self.requests += 1
        self.packed += packed
        self.redone += redone
        if not self._pays:
            self._tell("more than half of the packed rows had to be asked again: rows now go one by one")

    @property
    def _pays(self) -> bool:
        return self.requests < TRIAL or 2 * self.redone <= self.packed

    def _tell(self, what: str) -> None:
        if what not in self._told:
            self._told.add(what)
            _log.warning("llmlab: pack: %s", what)

    def _key(self, call: Call) -> Hashable | None:
        """What must be the same of rows that share a request. None: it goes alone."""
        prompt = call.prompt
        if (
            self.rows == 1
            or call.reader is not None
            or not self._pays
            or not _is_plain(prompt)
            or _size(prompt) > self.tokens
        ):
            return None
        if call.stream:
            self._tell("streamed answers are not packed: each is asked by itself")
            return None
        try:
            extra = canonical(prompt.extra) if prompt.extra else ""
        except (TypeError, ValueError, RecursionError):  # whoever sends it says what is wrong with it
            return None
        return call.lane.turns, call.model, prompt.messages[:-1], prompt.temperature, prompt.max_tokens, extra

    def _join(self, key: Hashable, call: Call, inner: Handler) -> Seat:
        size = _size(call.prompt)
        bundle = self._open[key][0] if key in self._open else None
        if bundle is not None and bundle.size + size > self.tokens:
            self._send(key, bundle)
            bundle = None
        if bundle is None:
            bundle = Bundle(inner, self.count)
            timer = asyncio.get_running_loop().call_later(self.seconds, self._send, key, bundle)
            self._open[key] = bundle, timer
        seat = bundle.join(call, size)
        if len(bundle.present) >= self.rows:
            self._send(key, bundle)
        return seat

    def _send(self, key: Hashable, bundle: Bundle) -> None:
        _, timer = self._open.pop(key)
        timer.cancel()
        bundle.send()


def _is_plain(prompt: Prompt) -> bool:
    """Whether it is instructions and one text, with parameters that mean the same for several."""
    *before, last = prompt.messages
    return (
        last.role == "user"
        and isinstance(last.content, str)
        and all(each.role in ("system", "developer") and isinstance(each.content, str) for each in before)
        and HARMLESS.issuperset(prompt.extra)
        and prompt.schema is None
    )


def _size(prompt: Prompt) -> float:
    """Tokens that a row adds to a request: its text, and the answer that it allows."""
    return tokens(prompt.messages[-1:]) + (prompt.max_tokens or 0)
