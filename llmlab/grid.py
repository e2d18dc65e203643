"""A grid of answers as data: what each pane has heard so far, folded from its job's events. Draws nothing.

    event                    the pane
    Admitted                 is sent: the time to its first token counts from here
    Delta                    streams: its text grows; a piece without text is one of reasoning
    Retrying, Rerouted       waits, and is cleared: the next answer would not go on where this one broke off
    Finished, ok             is done: its text is the answer, whatever its pieces were (a cached answer has none)
    Finished, error          says why; the text that had come stays
    Finished, cancelled      is stopped; likewise

A grid only ever listens, so nobody who looks at it can hold up a stream. All of it lives on the job's loop; the texts
may be read from any thread. Times are milliseconds here, as in the frame.
"""

import asyncio
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from llmlab.events import Admitted, Bus, Delta, Finished, Rerouted, Retrying
from llmlab.pieces import By, Cutter, cutter
from llmlab.types import Outcome, Reply

State: TypeAlias = Literal["waiting", "streaming", "done", "stopped", "error"]

SHORTEST = 0.05
"""Seconds that a speed is measured over at least: pieces that come together say nothing about it."""
TITLE = 60
"""Characters of a prompt that a pane's title shows at most."""


@dataclass
class Pane:
    """One answer on its way."""

    title: str
    """The model's name, or the prompt's first words."""
    state: State = "waiting"
    """waiting (for its turn, its first piece or its next attempt), streaming, done, stopped or error."""
    note: str = ""
    """What a person should know besides: thinking, retrying, cut off. "": nothing."""
    error: str = ""
    """Why there is no answer. "": nothing went wrong so far."""
    ttft_ms: float | None = None
    """Milliseconds from sending to the first piece of text. None: none came yet, or not from a provider."""
    rate: float | None = None
    """Tokens per second after the first: as the provider counts them at the end, pieces of text until then. None: too
    few came yet, or too fast to tell."""
    tokens: int | None = None
    """Output tokens of the answer, reasoning included. None: not known yet."""
    take: int = 0
    """How often the text was begun anew."""
    _parts: list[str] = field(default_factory=list, repr=False)
    _read: int = 0
    _sent: float | None = None
    _first: float | None = None
    _pieces: int = 0

    @property
    def text(self) -> str:
        """What has come so far."""
        return "".join(self._parts)

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self.state in ("done", "stopped", "error")

    def news(self) -> str:
        """The text that came since the last call, or since it was begun anew; for one reader, on the job's loop."""
        new = "".join(self._parts[self._read :])
        if new:
            self._parts[self._read :] = [new]  # in one step: others may be reading the text
            self._read += 1
        return new

    def head(self) -> dict[str, Any]:
        """All but the title and the text, as plain JSON."""
        return {
            "state": self.state,
            "error": clean(self.error),
            "figures": figures(self),
        }

    # -- what happens to it -------------------------------------------------------------------------------

    def sent(self, now: float) -> None:
        """A request for it is on its way; a hedge's second one changes nothing."""
        if self._sent is None:
            self._sent, self.note = now, ""

    def hear(self, now: float, pieces: Iterable[str]) -> None:
        """A piece of its text came; `pieces` is what there is to show of it."""
        self.state, self.note = "streaming", ""
        self._pieces += 1
        if self._first is None:
            self._first = now
            self.ttft_ms = None if self._sent is None else (now - self._sent) * 1000.0
        else:
            self.rate = _speed(self._pieces - 1, now - self._first) or self.rate
        self._parts.extend(pieces)

    def think(self) -> None:
        """A piece of reasoning came."""
        if self.state == "waiting":
            self.note = "thinking"

    def begin_anew(self, note: str) -> None:
        """Clear it; another attempt follows."""
        self.state, self.note, self.ttft_ms, self.rate = "waiting", note, None, None
        self._sent, self._first, self._pieces = None, None, 0
        self._clear()

    def _clear(self) -> None:
        if self._parts:
            self._parts, self._read, self.take = [], 0, self.take + 1

    def end(self, outcome: Outcome, rest: Iterable[str]) -> None:
        """It is settled; `rest` is text that came and was not shown yet."""
        if outcome.reply is not None:
            self._answered(outcome.reply)
            return
        self._parts.extend(rest)
        self.state, self.note = "stopped", ""
        if outcome.status == "error":
            self.state, self.error = "error", f"{type(outcome.error).__name__}: {outcome.error}"

    def _answered(self, reply: Reply) -> None:
        self.state, self.note = "done", _ending(reply)
        shown = self.text
        if not reply.content.startswith(shown):
            self._clear()
            shown = ""
        self._parts.append(reply.content[len(shown) :])
        self.ttft_ms = None if reply.ttft_s is None else reply.ttft_s * 1000.0
        if reply.usage is not None:
            self.tokens = reply.usage.output_tokens
            spoken = self.tokens - reply.usage.reasoning_tokens
            self.rate = None if reply.ttft_s is None else _speed(spoken - 1, reply.latency_s - reply.ttft_s)


class Grid:
    """The panes of a job whose answers are streamed.

    Args:
        titles: One for each row of the job.
        by: How text is handed to the panes: as it comes, by the sentence, or at least so many characters at a time.

    Raises:
        TypeError, ValueError: `by` is none of these.
    """

    def __init__(self, titles: Iterable[str], by: By = "piece") -> None:
        self.panes = [Pane(title) for title in titles]
        """One for each row, in their order."""
        self._by = by
        cutter(by)  # complains here, before anything is sent
        self._cutters: dict[int, Cutter] = {}

    def listen(self, bus: Bus) -> None:
        """Follow a job's events from now on."""
        bus.subscribe(self._sent, Admitted)
        bus.subscribe(self._heard, Delta)
        bus.subscribe(self._again, Retrying)
        bus.subscribe(self._elsewhere, Rerouted)
        bus.subscribe(self._ended, Finished)

    @property
    def counts(self) -> "Counter[State]":
        """How many panes are in each state."""
        return Counter(pane.state for pane in self.panes)

    def _sent(self, event: Admitted) -> None:
        self.panes[event.index].sent(event.at)

    def _heard(self, event: Delta) -> None:
        pane = self.panes[event.index]
        if not event.text:
            pane.think()
            return
        cut = self._cutters.get(event.index)
        if cut is None:
            cut = self._cutters[event.index] = cutter(self._by)
        pane.hear(asyncio.get_running_loop().time(), cut.feed(event.text))

    def _again(self, event: Retrying) -> None:
        why = type(event.error).__name__
        self._begin_anew(event.index, f"{why}, retrying in {event.delay:.1f} s")

    def _elsewhere(self, event: Rerouted) -> None:
        self._begin_anew(event.index, f"{type(event.error).__name__}, going on to {event.target}")

    def _begin_anew(self, index: int, note: str) -> None:
        self._cutters.pop(index, None)
        self.panes[index].begin_anew(note)

    def _ended(self, event: Finished) -> None:
        held_back = self._cutters.pop(event.outcome.index, None)
        rest = () if held_back is None else held_back.flush()
        self.panes[event.outcome.index].end(event.outcome, rest)


def headline(prompt: str) -> str:
    """The first words of a prompt, in one line."""
    words = " ".join(prompt[: 4 * TITLE].split())
    return words if len(words) <= TITLE else f"{words[: TITLE - 1].rstrip()}…"


def figures(pane: Pane) -> str:
    """What was measured of a pane, and its note, in words."""
    said = [
        f"TTFT {pane.ttft_ms:.0f} ms" if pane.ttft_ms is not None else "",
        f"{pane.rate:.{pane.rate < 10:d}f} tok/s" if pane.rate is not None else "",  # noqa: PLR2004  3.4, but 34
        f"{pane.tokens:,} tokens" if pane.tokens is not None else "",
        pane.note,
    ]
    return ", ".join(filter(None, said))


def as_text(pane: Pane) -> str:
    """A pane in plain text: a line about it, its text, and why there is no more."""
    about = ", ".join(filter(None, (pane.state, figures(pane))))
    return "\n".join(filter(None, (f"{pane.title}: {about}", pane.text, pane.error)))


def clean(text: str) -> str:
    """The text as it can be sent: halves of surrogate pairs are joined, or replaced if the other one is missing."""
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _speed(number: int, seconds: float) -> float | None:
    return number / seconds if number > 0 and seconds >= SHORTEST else None


def _ending(reply: Reply) -> str:
    """What there is to say about an answer's end."""
    if reply.cache_hit:
        return "from the cache"
    return "" if reply.finish_reason == "stop" else f"finish_reason: {reply.finish_reason}"
