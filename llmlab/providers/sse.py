"""Server-sent events: bytes in, events out.

Works on bytes, because `str.splitlines` also splits on U+2028 and 0x85, and cuts lines before it decodes
them, because a chunk may end inside a character. Follows the WHATWG text but for two points: an event
whose data is empty is none, and one that lacks only its blank line at the end of the stream still counts
if it is whole (some servers omit the line). `id:` and `retry:` are skipped: nobody resumes a completion.
"""

import json
from dataclasses import dataclass

from llmlab.errors import BadPayload

BOM = b"\xef\xbb\xbf"
DONE = "[DONE]"
_LF = ord("\n")


@dataclass(slots=True)  # not frozen: one is made for each token, and that takes a third of the time
class ServerEvent:
    """One server-sent event."""

    data: str
    """The data lines, joined by newlines; never empty."""
    event: str = ""
    """The event's name; "" when the server gave none."""


class Splitter:
    """Cuts one stream into events, however its bytes are cut into chunks.

    Args:
        limit: Most bytes of one event, field names and comments included.
    """

    def __init__(self, *, limit: int = 16 * 2**20) -> None:
        self._limit = limit
        self._idle = False
        self._head: bytes | None = b""  # the stream's first bytes while they may still be a BOM
        self._after_cr = False
        self._tail: list[bytes] = []  # the unfinished line; joined once, as 2 MB may come in 1 KB pieces
        self._tail_size = 0
        self._data: list[bytes] = []
        self._size = 0
        self._name = ""

    def feed(self, chunk: bytes) -> list[ServerEvent]:
        """Take the next bytes; returns the events that they complete.

        Raises:
            BadPayload: An event is above the limit.
        """
        # The hot path: nothing is pending, and the chunk is one `data: …` line and its blank line.
        size = len(chunk)
        if (
            self._idle
            and chunk[:6] == b"data: "
            and chunk.find(b"\n") == size - 2
            and chunk[-1] == _LF
            and chunk.find(b"\r") < 0
            and 8 < size <= self._limit  # noqa: PLR2004  `data: ` and two newlines
        ):
            return [ServerEvent(str(chunk[6:-2], "utf-8", "replace"))]
        events = self._feed(chunk)
        self._idle = not (self._tail or self._size or self._after_cr) and self._head is None
        return events

    def _feed(self, chunk: bytes) -> list[ServerEvent]:
        if self._head is not None:
            chunk = self._behead(chunk)
        if self._after_cr or b"\r" in chunk:
            chunk = self._unify(chunk)
        cut = chunk.rfind(b"\n") + 1
        if not cut:
            self._keep(chunk)
            return []
        block, rest = chunk[:cut], chunk[cut:]
        if self._tail:
            block = b"".join((*self._tail, block))
            self._tail, self._tail_size = [], 0
        events = self._read_plain(block)
        if events is None:
            events = self._read(block.split(b"\n")[:-1])
        if rest:
            self._keep(rest)
        return events

    def close(self) -> list[ServerEvent]:
        """Take the end of the stream; returns the last event if only its blank line is missing."""
        lines = [b"".join(self._tail), b""]
        self._tail, self._tail_size = [], 0
        return [event for event in self._read(lines) if _is_whole(event.data)]

    def _read_plain(self, block: bytes) -> list[ServerEvent] | None:
        """Read a block of nothing but whole one-line `data: …` events, as most are; None for any other."""
        if self._size or block[:6] != b"data: " or block[-2:] != b"\n\n" or len(block) > self._limit:
            return None
        parts = block[6:-2].split(b"\n\ndata: ")
        if block.count(b"\n") != 2 * len(parts):
            return None
        return [ServerEvent(str(part, "utf-8", "replace")) for part in parts if part]

    def _read(self, lines: list[bytes]) -> list[ServerEvent]:
        events = []
        data, size = self._data, self._size
        for line in lines:
            if line:
                self._field(line)
                size += len(line)
            else:
                if size > self._limit:
                    raise self._too_big()
                if data and (text := b"\n".join(data)):
                    events.append(ServerEvent(str(text, "utf-8", "replace"), self._name))
                data.clear()
                size, self._name = 0, ""
        self._size = size
        return events

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._name = str(value, "utf-8", "replace")

    def _keep(self, piece: bytes) -> None:
        self._tail.append(piece)
        self._tail_size += len(piece)
        if self._size + self._tail_size > self._limit:
            raise self._too_big()

    def _behead(self, chunk: bytes) -> bytes:
        head = (self._head or b"") + chunk
        if BOM.startswith(head):
            self._head = head
            return b""
        self._head = None
        return head.removeprefix(BOM)

    def _unify(self, chunk: bytes) -> bytes:
        # A CR ends its line at once; the LF that may follow it, even in the next chunk, is swallowed.
        if not chunk:
            return chunk
        if self._after_cr:
            chunk = chunk.removeprefix(b"\n")
        self._after_cr = chunk.endswith(b"\r")
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _too_big(self) -> BadPayload:
        return BadPayload(f"one event of the stream is larger than {self._limit:,} bytes")


def _is_whole(data: str) -> bool:
    if data.strip() == DONE:
        return True
    try:
        return isinstance(json.loads(data), dict | list)  # a number may be the beginning of a longer one
    except (ValueError, RecursionError):
        return False
