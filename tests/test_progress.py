import asyncio
import io
import re
import sys
from collections.abc import Callable
from typing import TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.clock import run_virtual
from llmlab.errors import ServerError
from llmlab.events import Attempted, Bus, Delta, Event, Finished, Retrying
from llmlab.progress import ELSEWHERE, IN_TERMINAL, Progress, Snapshot, TextBar, describe, say
from llmlab.types import Outcome, Reply, Status, Usage

BOOM = ServerError("boom")


class Screen(io.StringIO):
    """What stderr has been given; `tty` says whether it calls itself a terminal."""

    def __init__(self, *, tty: bool = False) -> None:
        super().__init__()
        self.tty = tty

    def isatty(self) -> bool:
        return self.tty

    @property
    def drawn(self) -> list[str]:
        """The line as it was drawn each time, oldest first."""
        return [line.rstrip() for line in re.split(r"[\r\n]+", self.getvalue()) if line.strip()]


Show: TypeAlias = Callable[..., Screen]


@pytest.fixture
def show(monkeypatch: pytest.MonkeyPatch) -> Show:
    """Put a screen in stderr's place; called inside a test, as pytest changes stderr between its phases."""

    def put(*, tty: bool = False) -> Screen:
        screen = Screen(tty=tty)
        monkeypatch.setattr(sys, "stderr", screen)
        return screen

    return put


def finished(status: Status = "ok") -> Finished:
    reply = Reply("a", "stop", "p", "m") if status == "ok" else None
    return Finished(Outcome(0, None, status, reply, None if status == "ok" else BOOM))


def attempted(usage: Usage | None, error: ServerError | None = None, cost: float | None = None) -> Attempted:
    return Attempted(0, 1, 0.0, 1.0, error, usage, cost)


def folded(*events: Event, total: int | None = 10) -> Snapshot:
    bus = Bus()
    progress = Progress(bus, total)
    for event in events:
        bus.emit(event)
    return progress.now


# -- the fold ---------------------------------------------------------------------------------------------


def test_a_job_begins_with_nothing_done() -> None:
    assert folded(total=7) == Snapshot(total=7)
    assert folded(total=None) == Snapshot(total=None)


@given(st.lists(st.sampled_from(["ok", "error", "cancelled"])))
def test_every_settled_row_is_done_and_only_errors_are_errors(statuses: list[Status]) -> None:
    now = folded(*(finished(status) for status in statuses))
    assert now.done == len(statuses)
    assert now.errors == statuses.count("error")


def test_every_retry_is_counted() -> None:
    assert folded(Retrying(0, 1, 0.5, BOOM), Retrying(1, 1, 0.5, BOOM)).retries == 2


def test_tokens_of_failed_attempts_are_counted_too() -> None:
    now = folded(attempted(Usage(10, 20)), attempted(Usage(1, 2), BOOM), attempted(None, BOOM))
    assert (now.input_tokens, now.output_tokens) == (11, 22)


def test_costs_are_added_where_they_are_known_of_failed_attempts_too() -> None:
    use = Usage(10, 20)
    assert folded(attempted(use, cost=0.25), attempted(use), attempted(use, BOOM, cost=0.5)).cost_usd == 0.75
    assert folded(attempted(use), attempted(None, BOOM), finished("error")).cost_usd is None
    assert folded(attempted(use, cost=0.0)).cost_usd == 0.0


def test_other_events_change_nothing() -> None:
    assert folded(Delta(0, "text")) == folded()


# -- in words ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (Snapshot(), ""),
        (Snapshot(total=5, done=5), ""),
        (Snapshot(errors=1), "1 error"),
        (Snapshot(errors=2), "2 errors"),
        (Snapshot(retries=1), "1 retry"),
        (Snapshot(retries=3), "3 retries"),
        (Snapshot(input_tokens=9000, output_tokens=999), "9999 tokens"),
        (Snapshot(output_tokens=10_000), "10.0k tokens"),
        (Snapshot(input_tokens=123_456), "123.5k tokens"),
        (Snapshot(output_tokens=1_000_000), "1.0M tokens"),
        (Snapshot(output_tokens=2_345_678), "2.3M tokens"),
        (Snapshot(cost_usd=0.0), "$0.00"),
        (Snapshot(cost_usd=1.23456), "$1.23"),
        (Snapshot(errors=2, output_tokens=50, cost_usd=0.5), "2 errors, 50 tokens, $0.50"),
    ],
)
def test_a_snapshot_in_words_says_what_is_not_zero(now: Snapshot, words: str) -> None:
    assert describe(now) == words


# -- the bar ----------------------------------------------------------------------------------------------


def bar_of(total: int | None) -> tuple[Bus, TextBar]:
    bus = Bus()
    return bus, TextBar(Progress(bus, total))


def test_the_bar_shows_how_many_rows_of_how_many_and_what_happened(show: Show) -> None:
    screen = show()
    bus, bar = bar_of(4)
    for event in (finished(), finished("error"), Retrying(0, 1, 0.5, BOOM), attempted(Usage(10, 20))):
        bus.emit(event)
    bar.draw()
    shown = screen.drawn[-1]
    assert "2/4" in shown
    assert "50%" in shown
    assert "1 error, 1 retry, 30 tokens" in shown
    bar.close()


def test_the_bar_of_a_generator_has_no_end_to_show(show: Show) -> None:
    screen = show()
    bus, bar = bar_of(None)
    bus.emit(finished())
    bar.draw()
    assert re.search(r"\b1row", screen.drawn[-1])
    assert "%" not in screen.drawn[-1]
    bar.close()


def test_closing_draws_the_last_state_and_leaves_it_standing(show: Show) -> None:
    screen = show()
    bus, bar = bar_of(3)
    for _ in range(3):
        bus.emit(finished())
    bar.close()
    assert "3/3" in screen.drawn[-1]
    assert screen.getvalue().endswith("\n")


def test_a_job_without_rows_has_a_bar_all_the_same(show: Show) -> None:
    screen = show()
    _, bar = bar_of(0)
    bar.close()
    assert "0" in screen.drawn[-1]


WATCHED = 20
"""Seconds for which a bar is watched."""


@pytest.mark.parametrize(("tty", "interval"), [(True, IN_TERMINAL), (False, ELSEWHERE)])
def test_the_bar_is_redrawn_at_its_own_pace_however_many_rows_end(show: Show, *, tty: bool, interval: float) -> None:
    screen = show(tty=tty)

    async def main() -> None:
        bus, bar = bar_of(20_000)
        ticker = asyncio.create_task(bar.run())
        for _ in range(WATCHED * 100):
            for _ in range(10):
                bus.emit(finished())
            await asyncio.sleep(0.01)
        ticker.cancel()
        bar.close()

    run_virtual(main)
    counts = [int(match[1]) for line in screen.drawn if (match := re.search(r"(\d+)/20000", line))]
    assert counts[-1] == 20_000
    assert len(set(counts)) == pytest.approx(WATCHED / interval, abs=3)


@pytest.mark.parametrize(("tty", "interval"), [(True, IN_TERMINAL), (False, ELSEWHERE)])
def test_the_bar_is_redrawn_when_nothing_ends(show: Show, *, tty: bool, interval: float) -> None:
    screen = show(tty=tty)

    async def main() -> None:
        _, bar = bar_of(5)
        ticker = asyncio.create_task(bar.run())
        await asyncio.sleep(WATCHED)
        ticker.cancel()
        bar.close()

    run_virtual(main)
    assert len([line for line in screen.drawn if "0/5" in line]) == pytest.approx(WATCHED / interval, abs=4)


def test_a_line_said_while_a_bar_is_drawn_stands_alone(show: Show) -> None:
    screen = show()
    bus, bar = bar_of(2)
    bus.emit(finished())
    bar.draw()
    say("llmlab: something to know")
    bar.close()
    assert "llmlab: something to know" in screen.drawn
