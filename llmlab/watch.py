"""Looks on at one trial of a sweep: when it is known well enough, and what its figures are."""

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from llmlab.events import Admitted, Attempted, Bus, Finished
from llmlab.steady import Span, Window, window


@dataclass(frozen=True)
class Grid:
    """What is swept, and how.

    Raises:
        ValueError: a figure is out of its range.
    """

    concurrency: tuple[int, ...]
    """Requests in flight at most, ascending."""
    repeats: int = 1
    """How often each is measured."""
    most: int | None = None
    """Rows per trial at most. None: 8 times the concurrency, at least 1,000; live 5 times, at least 120."""
    slo: float | None = None
    """Seconds that an answer may take. None: any."""
    slo_ttft: float | None = None
    """Seconds that its first token may take. None: any."""
    seed: int = 0
    """Of the simulated provider, the prompts, the jitter and the order."""

    def __post_init__(self) -> None:
        if isinstance(self.repeats, bool) or not isinstance(self.repeats, int) or self.repeats < 1:
            raise ValueError(f"repeats must be a whole number of at least 1, not {self.repeats!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise TypeError(f"seed must be a whole number, not {self.seed!r}")
        for name in ("slo", "slo_ttft"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float) and 0 < value < math.inf):
                raise ValueError(f"{name} must be a number of seconds above 0, not {value!r}")

    def rows(self, concurrency: int, *, live: bool) -> int:
        """Rows of a trial at most."""
        if self.most is not None:
            return self.most
        return max(120, 5 * concurrency) if live else max(1000, 8 * concurrency)


@dataclass
class _Answer:
    """A row that has ended."""

    at: float
    ok: bool
    latency_s: float = math.nan
    ttft_s: float = math.nan
    tokens: int | None = None


@dataclass
class Watch:
    """Looks on at one trial, and ends it when enough is known or its rows are spent. Made on its loop."""

    most: int
    """Rows from which on the trial ends."""
    every: int
    """Rows after which it is asked whether enough is known."""
    stop: Callable[[], object]
    """Ends the trial."""
    cost: float | None = field(default=None, init=False)
    """Dollars for all requests; None: not known."""
    _began: float = field(init=False)
    _ended: float | None = field(default=None, init=False)
    _spans: list[Span] = field(default_factory=list, init=False)
    _refused: list[float] = field(default_factory=list, init=False)
    _answers: list[_Answer] = field(default_factory=list, init=False)
    _flying: dict[int, float] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._began = asyncio.get_running_loop().time()

    def listen(self, bus: Bus) -> None:
        """Begin to look on."""
        bus.subscribe(self._admitted, Admitted)
        bus.subscribe(self._attempted, Attempted)
        bus.subscribe(self._finished, Finished)

    def _admitted(self, event: Admitted) -> None:
        self._flying[event.index] = event.at

    def _attempted(self, event: Attempted) -> None:
        self._flying.pop(event.index, None)
        self._spans.append((event.sent, event.ended))
        if event.error is not None and event.error.verdict.throttle:
            self._refused.append(event.ended)
        if event.cost_usd is not None:
            self.cost = (self.cost or 0.0) + event.cost_usd

    def _finished(self, event: Finished) -> None:
        outcome, reply = event.outcome, event.outcome.reply
        if outcome.status == "cancelled":
            return
        answer = _Answer(asyncio.get_running_loop().time(), reply is not None)
        if reply is not None:
            answer.latency_s, answer.ttft_s = reply.latency_s, math.nan if reply.ttft_s is None else reply.ttft_s
            answer.tokens = None if reply.usage is None else reply.usage.output_tokens
        self._answers.append(answer)
        if self._ended is None and self._enough(answer.at):
            self._ended = answer.at
            self.stop()

    def _enough(self, at: float) -> bool:
        spent = len(self._answers) >= self.most
        return spent or (len(self._answers) % self.every == 0 and self._now(at).enough)

    def _now(self, at: float) -> Window:
        answered = [each.at for each in self._answers if each.ok]
        return window(self._spans, began=self._began, end=at, flying=tuple(self._flying.values()), answered=answered)

    def figures(self, grid: Grid) -> tuple[Any, ...]:
        """The figures of a point, in the order of SWEPT from `in_flight` to `steady`."""
        seen = self._over()
        inside = [each for each in self._answers if seen.begin < each.at <= seen.end]
        ok = [each for each in inside if each.ok]
        tokens = [each.tokens for each in ok if each.tokens is not None]
        per_s = (lambda count: count / seen.seconds) if seen.seconds > 0 else (lambda _: math.nan)
        good, share = math.nan, math.nan
        if grid.slo is not None or grid.slo_ttft is not None:
            kept = sum(_keeps(each, grid) for each in ok)
            good, share = per_s(kept), kept / len(inside) if inside else math.nan
        return (
            seen.in_flight,
            per_s(len(ok)),
            seen.spread,
            per_s(sum(tokens)) if len(tokens) == len(ok) else None,
            good,
            share,
            *_quantiles([each.latency_s for each in ok], (0.5, 0.95, 0.99)),
            *_quantiles([each.ttft_s for each in ok], (0.5, 0.95)),
            len(ok),
            len(inside) - len(ok),
            sum(seen.begin < at <= seen.end for at in self._refused),
            seen.seconds,
            seen.error,
            seen.steady,
        )

    def _over(self) -> Window:
        last = max((after for _, after in self._spans), default=self._began)
        return self._now(last if self._ended is None else self._ended)


def _keeps(answer: _Answer, grid: Grid) -> bool:
    late = grid.slo is not None and answer.latency_s > grid.slo
    return not late and (grid.slo_ttft is None or answer.ttft_s <= grid.slo_ttft)


def _quantiles(seconds: Sequence[float], at: Sequence[float]) -> list[float]:
    known = [each * 1000.0 for each in seconds if not math.isnan(each)]
    return [float(np.quantile(known, q)) if known else math.nan for q in at]
