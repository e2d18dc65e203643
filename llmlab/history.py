"""The tidy second and third frame of a job: one row per attempt, and one per thing that happened to it.

`ATTEMPTS` and `EVENTS` are their columns, as `frame.COLUMNS` are those of the first. Kept as plain tuples while the
job runs, so that a hundred thousand attempts weigh little; frames are made when somebody asks.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import pandas as pd

from llmlab.clock import wall_offset
from llmlab.events import Admitted, Attempted, Bus, Retrying, Stopped
from llmlab.frame import Column, Frame, frame_of

ATTEMPTS: tuple[Column, ...] = (
    Column("position", "int64", "", "the row's position in the input, from 0"),
    Column("attempt", "int64", "", "1 for the row's first request"),
    Column("why", "string", "", "first, or the error class of the attempt before"),
    Column("status", "string", "", "ok or error"),
    Column("error_type", "string", "", "the error's class; missing when ok"),
    Column("error", "string", "", "why it failed, in words; missing when ok"),
    Column("http_status", "Int64", "", "HTTP status of a refusal; missing when none came"),
    Column("retry_after_ms", "float64", "ms", "what the provider asked to wait; missing when it did not"),
    Column("wait_ms", "float64", "ms", "backed off before this attempt"),
    Column("queue_ms", "float64", "ms", "waited for admission before this attempt"),
    Column("latency_ms", "float64", "ms", "from sending to the complete answer or the failure"),
    Column("input_tokens", "Int64", "tokens", "input, also of failed attempts, where known"),
    Column("output_tokens", "Int64", "tokens", "output, also of failed attempts, where known"),
    Column("sent_at", "datetime64[us, UTC]", "", "when the request was sent"),
    Column("ended_at", "datetime64[us, UTC]", "", "when its end was known"),
)

EVENTS: tuple[Column, ...] = (
    Column("at", "datetime64[us, UTC]", "", "when"),
    Column("event", "string", "", "retrying or stopped"),
    Column("position", "Int64", "", "the row's position in the input; missing for the job itself"),
    Column("detail", "string", "", "in words"),
    Column("delay_ms", "float64", "ms", "how long the row backs off; missing where nothing waits"),
)


class History:
    """Listens to a job's events and keeps what the frames are made of. Lives on the job's loop."""

    def __init__(self, bus: Bus) -> None:
        self._attempts: list[tuple[Any, ...]] = []
        self._events: list[tuple[Any, ...]] = []
        self._before: dict[int, tuple[str, float]] = {}
        self._queued: dict[int, float] = {}
        self._wall: float | None = None
        bus.subscribe(self._admitted, Admitted)
        bus.subscribe(self._attempted, Attempted)
        bus.subscribe(self._retrying, Retrying)
        bus.subscribe(self._stopped, Stopped)

    def attempts(self) -> Frame:
        """One row per request that has ended, in that order; see ATTEMPTS."""
        return _frame(ATTEMPTS, self._attempts)

    def events(self) -> Frame:
        """One row per event, oldest first; see EVENTS."""
        return _frame(EVENTS, self._events)

    def _admitted(self, event: Admitted) -> None:
        self._queued[event.index] = event.waited

    def _attempted(self, event: Attempted) -> None:
        error, usage = event.error, event.usage
        why, wait = self._before.pop(event.index, ("first", 0.0))
        wall = self._wall = wall_offset() if self._wall is None else self._wall
        self._attempts.append(
            (
                event.index,
                event.attempt,
                why,
                "ok" if error is None else "error",
                None if error is None else type(error).__name__,
                None if error is None else str(error),
                None if error is None else error.status,
                None if error is None or error.retry_after is None else error.retry_after * 1000.0,
                wait * 1000.0,
                self._queued.pop(event.index, 0.0) * 1000.0,
                (event.ended - event.sent) * 1000.0,
                None if usage is None else usage.input_tokens,
                None if usage is None else usage.output_tokens,
                event.sent + wall,
                event.ended + wall,
            )
        )

    def _retrying(self, event: Retrying) -> None:
        kind = type(event.error).__name__
        self._before[event.index] = kind, event.delay
        self._note("retrying", event.index, f"{kind}: {event.error}", event.delay * 1000.0)

    def _stopped(self, event: Stopped) -> None:
        self._note("stopped", None, event.reason, None)

    def _note(self, event: str, position: int | None, detail: str, delay_ms: float | None) -> None:
        self._events.append((_now(), event, position, detail, delay_ms))


def _now() -> float:
    return asyncio.get_running_loop().time() + wall_offset()


def _frame(columns: Sequence[Column], rows: list[tuple[Any, ...]]) -> Frame:
    rows = rows.copy()  # the job may run in another thread
    return frame_of(columns, rows, pd.RangeIndex(len(rows)))
