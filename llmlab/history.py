"""The tidy second and third frame of a job: one row per attempt, and one per thing that happened to it.

`ATTEMPTS` and `EVENTS` are their columns, as `frame.COLUMNS` are those of the first. Kept as plain tuples while the
job runs, so that a hundred thousand attempts weigh little; frames are made when somebody asks.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import pandas as pd

from llmlab.clock import wall_offset
from llmlab.events import Admitted, Attempted, Bus, Rerouted, Retrying, Stopped, Told
from llmlab.frame import Column, Frame, frame_of
from llmlab.rules.adapt import Decision
from llmlab.rules.breaker import Transition
from llmlab.rules.rate import Learned, Pause

ATTEMPTS: tuple[Column, ...] = (
    Column("position", "int64", "", "the row's position in the input, from 0"),
    Column("attempt", "int64", "", "1 for the row's first request"),
    Column("kind", "string", "", "first, packed (with other rows), retry, hedge, fallback or reask (it did not fit)"),
    Column("rows", "int64", "", "rows that shared the request: its tokens and cost are shared out; 1 unless packed"),
    Column("why", "string", "", "first, the error class of the attempt before, or slow (a hedge)"),
    Column("target", "string", "", "where it was sent: provider:model"),
    Column("status", "string", "", "ok or error"),
    Column("error_type", "string", "", "the error's class; missing when ok"),
    Column("error", "string", "", "why it failed, in words; missing when ok"),
    Column("http_status", "Int64", "", "HTTP status of a refusal; missing when none came"),
    Column("retry_after_ms", "float64", "ms", "what the provider asked to wait; missing when it did not"),
    Column("wait_ms", "float64", "ms", "backed off before this attempt"),
    Column("queue_ms", "float64", "ms", "waited for admission before this attempt"),
    Column("waited_for", "string", "", "for what: concurrency, rate limit, provider, budget; missing when not at all"),
    Column("latency_ms", "float64", "ms", "from sending to the complete answer or the failure"),
    Column("ttft_ms", "float64", "ms", "from sending to the first piece of text; missing unless streamed"),
    Column("itl_ms", "float64", "ms", "between two pieces of text, the mean; missing unless there were two"),
    Column("input_tokens", "Int64", "tokens", "input, also of failed attempts, where known"),
    Column("output_tokens", "Int64", "tokens", "output, also of failed attempts, where known"),
    Column("cost_usd", "float64", "USD", "price of those tokens; missing when they or the price are not known"),
    Column("sent_at", "datetime64[us, UTC]", "", "when the request was sent"),
    Column("ended_at", "datetime64[us, UTC]", "", "when its end was known"),
)

EVENTS: tuple[Column, ...] = (
    Column("at", "datetime64[us, UTC]", "", "when"),
    Column("event", "string", "", "retrying, rerouted, breaker, limit, paused, learned or stopped"),
    Column("position", "Int64", "", "the row's position in the input; missing when it is no row's event"),
    Column("target", "string", "", "the provider and model concerned; missing for the job itself and its rows"),
    Column("detail", "string", "", "in words"),
    Column(
        "delay_ms", "float64", "ms", "how long the row, the breaker or the pause waits; missing where nothing waits"
    ),
)


class History:
    """Listens to a job's events and keeps what the frames are made of. Lives on the job's loop."""

    def __init__(self, bus: Bus) -> None:
        self._attempts: list[tuple[Any, ...]] = []
        self._events: list[tuple[Any, ...]] = []
        self._before: dict[int, tuple[str, float]] = {}
        self._queued: dict[int, tuple[float, str | None]] = {}
        self._wall: float | None = None
        bus.subscribe(self._admitted, Admitted)
        bus.subscribe(self._attempted, Attempted)
        bus.subscribe(self._retrying, Retrying)
        bus.subscribe(self._rerouted, Rerouted)
        bus.subscribe(self._told, Told)
        bus.subscribe(self._stopped, Stopped)

    def attempts(self) -> Frame:
        """One row per request that has ended, in that order; see ATTEMPTS."""
        return _frame(ATTEMPTS, self._attempts)

    def events(self) -> Frame:
        """One row per event, oldest first; see EVENTS."""
        return _frame(EVENTS, self._events)

    def _admitted(self, event: Admitted) -> None:
        if event.waited:
            self._queued[event.index] = event.waited, event.held_by

    def _attempted(self, event: Attempted) -> None:
        error, usage = event.error, event.usage
        why, wait = self._before.pop(event.index, ("first", 0.0))
        if event.kind == "hedge":
            why = "slow"
        queued, waited_for = self._queued.pop(event.index, (0.0, None))
        wall = self._wall = wall_offset() if self._wall is None else self._wall
        self._attempts.append(
            (
                event.index,
                event.attempt,
                event.kind,
                event.rows,
                why,
                event.target,
                "ok" if error is None else "error",
                None if error is None else type(error).__name__,
                None if error is None else str(error),
                None if error is None else error.status,
                None if error is None or error.retry_after is None else error.retry_after * 1000.0,
                wait and wait * 1000.0,  # most are 0, and then one and the same object
                queued and queued * 1000.0,
                waited_for,
                (event.ended - event.sent) * 1000.0,
                None if event.ttft_s is None else event.ttft_s * 1000.0,
                None if event.itl_s is None else event.itl_s * 1000.0,
                None if usage is None else usage.input_tokens,
                None if usage is None else usage.output_tokens,
                event.cost_usd,
                event.sent + wall,
                event.ended + wall,
            )
        )

    def _retrying(self, event: Retrying) -> None:
        kind = type(event.error).__name__
        self._before[event.index] = kind, event.delay
        self._note("retrying", f"{kind}: {event.error}", position=event.index, delay=event.delay)

    def _rerouted(self, event: Rerouted) -> None:
        kind = type(event.error).__name__
        self._before[event.index] = kind, 0.0
        self._note("rerouted", f"{kind}: {event.error}", position=event.index, target=event.target)

    def _told(self, event: Told) -> None:
        what = event.what
        if isinstance(what, Transition):
            detail = f"{what.old} -> {what.new}: {what.reason} ({what.failures} of {what.calls} calls had failed)"
            self._note("breaker", detail, target=event.target, delay=what.lasts or None)
        elif isinstance(what, Decision):
            self._note("limit", f"{what.limit}: {what.reason}", target=event.target)
        elif isinstance(what, Pause):
            detail = f"{', '.join(what.dimensions)}: {what.reason}"
            self._note("paused", detail, target=event.target, delay=what.until - what.at)
        elif isinstance(what, Learned):
            self._note("learned", f"{what.rpm:.0f} requests a minute: {what.reason}", target=event.target)

    def _stopped(self, event: Stopped) -> None:
        self._note("stopped", event.reason)

    def _note(
        self,
        event: str,
        detail: str,
        *,
        position: int | None = None,
        target: str | None = None,
        delay: float | None = None,
    ) -> None:
        self._events.append((_now(), event, position, target, detail, None if delay is None else delay * 1000.0))


def _now() -> float:
    return asyncio.get_running_loop().time() + wall_offset()


def _frame(columns: Sequence[Column], rows: list[tuple[Any, ...]]) -> Frame:
    rows = rows.copy()  # the job may run in another thread
    return frame_of(columns, rows, pd.RangeIndex(len(rows)))
