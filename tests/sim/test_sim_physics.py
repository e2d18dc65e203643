"""The machine and the buckets, against slow references and for any history."""

import asyncio
import random
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.clock import run_virtual
from llmlab.sim.buckets import Allowance, Bucket
from llmlab.sim.physics import Engine, Full, Physics

TOLERANCE = 2e-4  # the virtual loop's ticks of 1e-6 s, added up over the passes of a run


@dataclass
class Job:
    arrives: float
    work: float


def reference(jobs: list[Job], physics: Physics, dt: float) -> list[float]:
    """When each job is done, by stepping time in small steps: first come first served, shared speed."""
    left = [job.work for job in jobs]
    done = [0.0] * len(jobs)
    seated: list[int] = []
    line = sorted(range(len(jobs)), key=lambda index: jobs[index].arrives)
    now = 0.0
    while line or seated:
        while line and jobs[line[0]].arrives <= now + dt / 2 and len(seated) < physics.slots:
            seated.append(line.pop(0))
        speed = physics.speed(len(seated))
        for index in list(seated):
            left[index] -= speed * dt
            if left[index] <= 1e-9:
                done[index] = now + dt
                seated.remove(index)
        now += dt
    return done


def simulate(jobs: list[Job], physics: Physics) -> list[float]:
    async def main() -> list[float]:
        engine = Engine(physics)
        loop = asyncio.get_running_loop()

        async def one(job: Job) -> float:
            await asyncio.sleep(job.arrives)
            seat = await engine.sit()
            await seat.reach(job.work)
            seat.leave()
            return loop.time()

        found = await asyncio.gather(*(one(job) for job in jobs))
        assert engine.active == 0
        assert engine.queued == 0
        return found

    return run_virtual(main)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("slots", [1, 3, 100])
def test_processor_sharing_agrees_with_a_simulation_in_small_steps(seed: int, slots: int) -> None:
    rng = random.Random(seed)
    physics = Physics(slots=slots, itl=0.01, load=0.005)
    jobs = [Job(rng.uniform(0, 2), rng.uniform(0.05, 1)) for _ in range(12)]
    dt = 0.0005
    # the reference errs by up to a step per arrival and end of a job, times the change of speed
    assert simulate(jobs, physics) == pytest.approx(reference(jobs, physics, dt), abs=0.01)


def test_two_requests_share_the_machine_exactly() -> None:
    physics = Physics(itl=0.01, load=0.01)  # two active: half speed each
    # alone until 0.5 (0.5 s of work done); together, at half speed, the first needs 1 s more; then the
    # second, alone again, has 0.5 s of work left
    assert simulate([Job(0, 1), Job(0.5, 1)], physics) == pytest.approx([1.5, 2.0], abs=TOLERANCE)


def test_the_line_before_the_slots_is_first_come_first_served() -> None:
    done = simulate([Job(i * 0.001, 1) for i in range(5)], Physics(slots=1, load=0))
    assert done == pytest.approx([1, 2, 3, 4, 5], abs=TOLERANCE)


def test_a_line_that_is_full_refuses() -> None:
    async def main() -> None:
        engine = Engine(Physics(slots=1, queue=1))
        seat = await engine.sit()
        waiting = asyncio.create_task(engine.sit())
        await asyncio.sleep(0)
        with pytest.raises(Full):
            await engine.sit()
        seat.leave()
        (await waiting).leave()

    run_virtual(main)


def test_a_request_cancelled_in_line_gives_its_place_to_the_next() -> None:
    async def main() -> None:
        engine = Engine(Physics(slots=1))
        first = await engine.sit()
        waiting = [asyncio.create_task(engine.sit()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.sleep(0)
        assert engine.queued == 2
        first.leave()
        seat = await waiting[1]
        assert not waiting[2].done()
        seat.leave()
        (await waiting[2]).leave()
        assert engine.active == 0

    run_virtual(main)


def test_a_slot_handed_over_in_the_pass_of_a_cancellation_is_not_lost() -> None:
    async def main() -> None:
        engine = Engine(Physics(slots=1))
        first = await engine.sit()
        waiting = asyncio.create_task(engine.sit())
        await asyncio.sleep(0)
        first.leave()  # the slot is the waiting one's from here on
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert engine.active == 0
        (await engine.sit()).leave()

    run_virtual(main)


def test_a_request_cancelled_at_work_speeds_up_the_others() -> None:
    async def main() -> float:
        engine = Engine(Physics(itl=0.01, load=0.01))
        loop = asyncio.get_running_loop()

        async def work() -> None:
            seat = await engine.sit()
            try:
                await seat.reach(10)
            finally:
                seat.leave()

        async with asyncio.timeout(20):
            staying, leaving = asyncio.create_task(work()), asyncio.create_task(work())
            await asyncio.sleep(4)  # 2 s of work done by each
            leaving.cancel()
            await staying
        return loop.time()

    assert run_virtual(main) == pytest.approx(4 + 8, abs=TOLERANCE)


def test_leaving_twice_frees_one_slot() -> None:
    async def main() -> None:
        engine = Engine(Physics(slots=2))
        seats = [await engine.sit(), await engine.sit()]
        seats[0].leave()
        seats[0].leave()
        assert engine.active == 1
        seats[1].leave()

    run_virtual(main)


amounts = st.floats(0.1, 50, allow_nan=False)
steps = st.lists(st.tuples(st.floats(0, 30), amounts), max_size=60)


@given(per_minute=st.floats(1, 6000), burst=st.floats(1, 120), steps=steps)
@settings(max_examples=200, deadline=None)
def test_a_bucket_never_grants_more_than_burst_plus_rate_times_time(
    per_minute: float, burst: float, steps: list[tuple[float, float]]
) -> None:
    bucket = Bucket(per_minute, burst=burst, now=5.0)
    granted: list[tuple[float, float]] = []
    now = 5.0
    for wait, amount in steps:
        now += wait
        if bucket.wait(amount, now) == 0:
            bucket.take(amount, now)
            granted.append((now, amount))
    for index, (since, _) in enumerate(granted):
        for until in range(index, len(granted)):
            total = sum(amount for _, amount in granted[index : until + 1])
            over = max(0.0, granted[until][1] - bucket.capacity)  # one too big may overdraw what comes after it
            span = granted[until][0] - since
            assert total <= bucket.capacity + bucket.rate * span + over + 1e-6 * total


@given(per_minute=st.floats(1, 6000), burst=st.floats(1, 120), amount=amounts, taken=amounts)
def test_a_bucket_grants_exactly_after_the_wait_it_names(
    per_minute: float, burst: float, amount: float, taken: float
) -> None:
    bucket = Bucket(per_minute, burst=burst)
    bucket.take(taken, 0.0)
    wait = bucket.wait(amount, 0.0)
    if wait > 0.01:
        assert bucket.wait(amount, wait - 0.01) > 0
    assert bucket.wait(amount, wait) <= 1e-6


@given(per_minute=st.floats(60, 100_000), spent=st.floats(0.1, 0.9), later=st.floats(0, 40))
def test_the_window_can_be_read_off_the_headers(per_minute: float, spent: float, later: float) -> None:
    bucket = Bucket(per_minute)
    bucket.take(per_minute * spent, 0.0)
    missing = bucket.capacity - bucket.level(later)
    state = bucket.state(later)
    assert 0 <= state.remaining <= state.limit
    assert state.reset == pytest.approx(missing / per_minute * 60)
    assert state.limit - state.remaining == pytest.approx(missing, abs=2)  # whole numbers


def test_an_allowance_takes_from_all_buckets_and_names_the_tightest() -> None:
    allowance = Allowance({"requests": 60, "tokens": 6000, "none": None}, burst=60, now=0)
    costs = {"requests": 1, "tokens": 4000, "none": 5}
    assert allowance.tightest(costs, 0) == ("", 0.0)
    allowance.take(costs, 0)
    name, wait = allowance.tightest(costs, 0)
    assert (name, wait) == ("tokens", 20.0)
    assert allowance.levels(0)["requests"].remaining == 59
    assert allowance.beyond({"requests": 1, "tokens": 6001}) == "tokens"
    assert "none" not in allowance.levels(0)


@pytest.mark.parametrize(
    ("field", "value"),
    [("slots", 0), ("rtt", -1), ("tail", 1.5), ("rpm", 0), ("itl", float("nan")), ("prefill", 0)],
)
def test_impossible_physics_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        Physics(**{field: value})


def test_an_unknown_field_of_instant_physics_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="speed_of_light"):
        Physics.instant(speed_of_light=1.0)


def test_the_tail_makes_its_share_of_first_tokens_late() -> None:
    physics = Physics(ttft=0.1, jitter=0.0, tail=0.25, tail_factor=10, prefill=float("inf"))
    rng = random.Random(1)
    firsts = [physics.first(10, rng) for _ in range(4000)]
    assert set(firsts) == {0.1, 1.0}
    assert firsts.count(1.0) / 4000 == pytest.approx(0.25, abs=0.03)
