"""Progress of a job: a fold over its events, and a line of text that is redrawn from it.

`Progress` counts and draws nothing. `TextBar` pulls a snapshot ten times a second (once a second outside of a
terminal, where each line drawn is kept), so that a slow terminal cannot slow the job, and a job in which nothing
finishes still shows its clock running.
"""

import asyncio
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from llmlab.events import Attempted, Bus, Finished, Reported, Retrying
from llmlab.prices import dollars

IN_TERMINAL, ELSEWHERE = 0.1, 1.0
"""Seconds between two drawings."""


@dataclass(slots=True)
class Snapshot:
    """The state of a job at one moment."""

    total: int | None = None
    """Rows in all; None while unknown."""
    done: int = 0
    """Rows settled."""
    errors: int = 0
    """Rows that ended as an error."""
    reported: int = 0
    """Rows of a batch that its provider has worked on, whether or not their results have come."""
    reported_errors: int = 0
    """Those of them that failed there."""
    cancelled: int = 0
    """Rows that were cancelled."""
    retries: int = 0
    """Attempts repeated."""
    input_tokens: int = 0
    """Input tokens of all attempts, failed ones included."""
    output_tokens: int = 0
    """Output tokens of all attempts, failed ones included."""
    cost_usd: float | None = None
    """Dollars for all attempts so far, failed ones included; None while no price is known."""
    kinds: Counter[str] = field(default_factory=Counter)
    """Rows that ended as an error, by its class."""
    retried: Counter[str] = field(default_factory=Counter)
    """Attempts repeated, by the class of the error before."""

    @property
    def reached(self) -> int:
        """How far the job is: rows settled, or worked on elsewhere."""
        return max(self.done, self.reported)

    @property
    def failed(self) -> int:
        """Rows known to have failed, here or elsewhere."""
        return max(self.errors, self.reported_errors)


class Progress:
    """Folds a job's events into a Snapshot. Draws nothing."""

    def __init__(self, bus: Bus, total: int | None) -> None:
        self.now = Snapshot(total)
        bus.subscribe(self._finished, Finished)
        bus.subscribe(self._attempted, Attempted)
        bus.subscribe(self._retrying, Retrying)
        bus.subscribe(self._reported, Reported)

    def _finished(self, event: Finished) -> None:
        self.now.done += 1
        outcome = event.outcome
        if outcome.status != "ok":
            self.now.errors += outcome.status == "error"
            self.now.cancelled += outcome.status == "cancelled"
            if outcome.status == "error":
                self.now.kinds[type(outcome.error).__name__] += 1

    def _reported(self, event: Reported) -> None:
        self.now.reported, self.now.reported_errors = event.done, event.failed

    def _attempted(self, event: Attempted) -> None:
        if event.usage is not None:
            self.now.input_tokens += event.usage.input_tokens
            self.now.output_tokens += event.usage.output_tokens
        if event.cost_usd is not None:
            self.now.cost_usd = (self.now.cost_usd or 0.0) + event.cost_usd

    def _retrying(self, event: Retrying) -> None:
        self.now.retries += 1
        self.now.retried[type(event.error).__name__] += 1


class TextBar:
    """One line of text in a terminal or below a cell, redrawn while the job runs."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._interval = IN_TERMINAL if sys.stderr is not None and sys.stderr.isatty() else ELSEWHERE
        self._bar: tqdm[Any] = tqdm(
            total=progress.now.total,
            unit="row",
            dynamic_ncols=True,
            mininterval=0,
            file=sys.stderr,
            smoothing=0.05,  # the remaining time comes from measured throughput, not from the last row
        )

    def show(self) -> None:
        """It is shown as soon as it is made."""

    async def run(self) -> None:
        """Redraw until cancelled."""
        while True:
            await asyncio.sleep(self._interval)
            self.draw()

    def draw(self) -> None:
        """Redraw from the current snapshot."""
        now = self._progress.now
        self._bar.total = now.total  # of a tree it may turn out to be another one
        self._bar.set_postfix_str(describe(now), refresh=False)
        if now.total != self._bar.total:  # a batch taken up by its id tells how many rows it has
            self._bar.total = now.total
        if now.reached == self._bar.n or not self._bar.update(now.reached - self._bar.n):
            self._bar.refresh()

    def close(self) -> None:
        """Draw the last state and leave it standing."""
        self.draw()
        self._bar.close()


def line_of(job: Any) -> TextBar:
    """The line of text that shows a job."""
    return TextBar(job.progress)


def describe(now: Snapshot) -> str:
    """The counts of a snapshot in words, those that are not zero."""
    tokens = now.input_tokens + now.output_tokens
    parts = (
        _count(now.failed, "error", "errors"),
        _count(now.retries, "retry", "retries"),
        f"{_short(tokens)} tokens" if tokens else "",
        dollars(now.cost_usd) if now.cost_usd is not None else "",
    )
    return ", ".join(filter(None, parts))


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}" if number else ""


def _short(count: int) -> str:
    for size, unit in ((1_000_000, "M"), (10_000, "k")):
        if count >= size:
            return f"{count / (1_000_000 if unit == 'M' else 1_000):.1f}{unit}"
    return str(count)


def say(text: str) -> None:
    """Tell the user one line, without breaking a bar that is being drawn."""
    tqdm.write(text, file=sys.stderr)
