"""An answer's body as a script: pieces of bytes, each with the decoding step that comes first, and an ending.

Here the events of either dialect become bytes, in the shape of a quirk if there is one, and here a body is
broken off.
"""

import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, TypeAlias

import orjson

from llmlab.sim.wire import Event

Ending: TypeAlias = Literal["whole", "reset", "cut"]
Framing: TypeAlias = Literal["length", "chunked", "close"]
Piece: TypeAlias = tuple[int, bytes]

BIG = 2_000_000
MIDWAY: dict[str, Ending] = {
    "reset_midway": "reset",
    "cut": "cut",
    "cut_silent": "whole",
    "stall_midway": "cut",
}
"""How a body that is broken off ends, by kind of fault."""

_COMMENTED = ("comments", "pings", "unknown_events")


@dataclass(frozen=True, slots=True)
class Script:
    """A body to be played."""

    pieces: tuple[Piece, ...]
    """(decoding steps that must be done, bytes), in order."""
    framing: Framing
    """How HTTP tells its end: Content-Length, chunks, or the connection's close."""
    ending: Ending = "whole"
    """How it ends."""
    length: int = 0
    """The length that HTTP announces, where it does."""
    stalls: bool = False
    """Whether there is silence before the ending."""


class Body:
    """A body that comes in pieces; closing it, at any moment, gives the request's slot back."""

    def __init__(self, chunks: AsyncGenerator[bytes, None], leave: Callable[[], None]) -> None:
        self._chunks = chunks
        self._leave = leave

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._chunks

    async def aclose(self) -> None:
        """End it; a second call does nothing."""
        self._leave()
        await self._chunks.aclose()


@dataclass(frozen=True, slots=True)
class Response:
    """What the provider answers."""

    status: int
    """HTTP status."""
    headers: dict[str, str]
    """Headers, Content-Length included where the framing is `length`."""
    body: bytes | Body
    """All of it, or its pieces as they come; iterating raises Broken where the connection ends."""
    framing: Framing = "length"
    """How HTTP tells the body's end."""


def whole(status: int, headers: dict[str, str], body: bytes, kind: str) -> Response:
    """Make a response of a body that is there at once; `kind` is its content type."""
    return Response(status, headers | {"content-type": kind, "content-length": str(len(body))}, body)


def of_events(events: list[Event], fault: str, rng: random.Random, *, error: Event) -> Script:
    """Make the script of a stream.

    Args:
        events: The whole stream.
        fault: What goes wrong or looks odd; "" for nothing.
        rng: Says where.
        error: The event to send in case of `error_in_stream`.
    """
    if fault == "empty_body":
        return Script((), "chunked")
    place = rng.randrange(1, 1 + next(index for index, event in enumerate(events) if event.ends))
    if fault == "error_in_stream":
        events = [*events[:place], Event(events[place].after, error.data, error.name)]
    pieces = [(event.after, _encode(event, fault)) for event in events]
    if fault in MIDWAY:
        after, data = pieces[place]
        pieces = [*pieces[:place], (after, data[: rng.randrange(1, len(data) // 2)])]
    if fault == "malformed":
        after, data = pieces[place]
        pieces[place] = (after, data.rstrip(b"\n")[:-2] + b"\n\n")
    framing: Framing = "close" if fault == "cut_silent" else "chunked"
    return Script(_shape(pieces, fault), framing, MIDWAY.get(fault, "whole"), stalls=fault == "stall_midway")


def of_body(body: bytes, fault: str, rng: random.Random) -> Script:
    """Make the script of a plain answer, which goes when all of it is done."""
    if fault == "empty_body":
        body = b""
    elif fault == "malformed":
        body = body[: rng.randrange(1, len(body))]
    elif fault == "blank_lines":
        body = b"\n\n\n" + body
    length = len(body)
    if fault in MIDWAY:
        body = body[: rng.randrange(1, len(body))]
    pieces = tuple((0, bytes((byte,))) for byte in body) if fault == "tiny_chunks" else ((0, body),)
    framing: Framing = "close" if fault == "cut_silent" else "length"
    return Script(pieces, framing, MIDWAY.get(fault, "whole"), length, stalls=fault == "stall_midway")


def _encode(event: Event, quirk: str) -> bytes:
    data = event.data.encode() if isinstance(event.data, str) else orjson.dumps(event.data)
    colon = b":" if quirk == "no_space" else b": "
    lines = [b"data" + colon + data, b"", b""]
    if event.name:
        lines.insert(0, b"event" + colon + event.name.encode())
    if quirk == "id_lines":
        lines[:0] = [b"id: " + str(event.after).encode(), b"retry: 3000"]
    if quirk in _COMMENTED:
        lines[:0] = [b": ping", b""]
    return {"crlf": b"\r\n", "cr": b"\r"}.get(quirk, b"\n").join(lines)


def _shape(pieces: list[Piece], quirk: str) -> tuple[Piece, ...]:
    """Join what goes at the same moment, as a server's buffers do; then do to the bytes what a quirk does."""
    joined = [(after, b"".join(data for _, data in group)) for after, group in groupby(pieces, lambda piece: piece[0])]
    opening = {
        "bom": b"\xef\xbb\xbf",
        "big_line": b": " + b"x" * BIG + b"\n\n" if quirk == "big_line" else b"",
    }
    if start := opening.get(quirk, b"\n\n" if quirk == "blank_lines" else b""):
        joined[0] = (joined[0][0], start + joined[0][1])
    if quirk == "no_final_blank":
        joined[-1] = (joined[-1][0], joined[-1][1].removesuffix(b"\n"))
    if quirk == "tiny_chunks":
        return tuple((after, bytes((byte,))) for after, data in joined for byte in data)
    return tuple(joined)
