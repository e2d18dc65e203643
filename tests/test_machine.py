"""The provider of a prediction: its attempts take what their in-flight says, whoever comes and goes meanwhile."""

import heapq
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.loadfit import mean_in_flight
from llmlab.machine import Machine, Visit


def run(machine: Machine, arrivals: list[tuple[float, Visit]]) -> dict[Visit, float]:
    """When each has ended."""
    ends: dict[Visit, float] = {}
    waiting = [(at, number, visit) for number, (at, visit) in enumerate(arrivals)]
    heapq.heapify(waiting)
    while len(ends) < len(arrivals):
        now = min(waiting[0][0] if waiting else np.inf, machine.next_end())
        while waiting and waiting[0][0] <= now:
            machine.enter(now, heapq.heappop(waiting)[2])
        while (visit := machine.ended(now)) is not None:
            ends[visit] = now
    return ends


def test_who_is_alone_takes_its_own_time() -> None:
    visit = Visit(2.0, 0.5)
    assert run(Machine(), [(1.0, visit)])[visit] == pytest.approx(3.5)


def test_who_comes_together_slows_each_other() -> None:
    visits = [Visit(2.0, 0.5) for _ in range(10)]
    ends = run(Machine(), [(0.0, visit) for visit in visits])
    assert list(ends.values()) == pytest.approx([7.0] * 10)


@given(st.integers(0, 10_000))
def test_each_takes_what_its_mean_in_flight_says(seed: int) -> None:
    rng = random.Random(seed)
    arrivals = [(rng.uniform(0, 30), Visit(rng.uniform(0.5, 3), rng.uniform(0, 0.3))) for _ in range(60)]
    ends = run(Machine(), arrivals)
    sent, ended = np.array([at for at, _ in arrivals]), np.array([ends[visit] for _, visit in arrivals])
    expected = [v.alone + v.each * n for (_, v), n in zip(arrivals, mean_in_flight(sent, ended), strict=True)]
    assert ended - sent == pytest.approx(np.array(expected), rel=0.08), "a twentieth of N may pass unnoticed"


def test_beyond_its_slots_they_wait_in_the_order_in_which_they_came() -> None:
    visits = [Visit(1.0, 0.0) for _ in range(5)]
    ends = run(Machine(slots=2), [(0.0, visit) for visit in visits])
    assert [ends[visit] for visit in visits] == pytest.approx([1, 1, 2, 2, 3])


def test_who_gives_up_frees_its_slot_and_speeds_up_the_others() -> None:
    machine = Machine(slots=1)
    first, second = Visit(10.0, 0.0), Visit(1.0, 0.0)
    machine.enter(0.0, first)
    machine.enter(0.0, second)
    machine.leave(2.0, first)
    assert machine.next_end() == pytest.approx(3.0)
    assert machine.in_flight == 1
    machine.leave(2.0, first)
    assert machine.in_flight == 1, "a second time does nothing"


def test_attempt_seconds_are_the_integral_of_in_flight() -> None:
    machine = Machine()
    ends = run(machine, [(0.0, Visit(1.0, 0.0)), (0.5, Visit(1.0, 0.0))])
    assert max(ends.values()) == pytest.approx(1.5)
    assert machine.area == pytest.approx(2.0)
