import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.call import Call
from llmlab.clock import run_virtual
from llmlab.errors import ServerError
from llmlab.events import Admitted
from llmlab.policies.admit import Admit
from llmlab.policies.retry import Retry
from llmlab.rules.slots import Slots
from llmlab.strategy import Strategy
from llmlab.types import Reply
from tests.conftest import Script, reply


class Busy:
    """Takes some seconds per call and keeps count of calls in flight."""

    def __init__(self, seconds: float = 1.0) -> None:
        self.seconds = seconds
        self.now = self.most = 0
        self.order: list[int] = []

    async def __call__(self, call: Call) -> Reply:
        self.now += 1
        self.most = max(self.most, self.now)
        self.order.append(call.index)
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.now -= 1
        return reply()


@dataclass
class Every:
    """A rule: one call each so many seconds."""

    binds: ClassVar[str] = "rate limit"
    seconds: float
    free_at: float = field(default=0.0, init=False)
    settled: int = field(default=0, init=False)

    def wait(self, now: float, cost: Mapping[str, float]) -> float:  # noqa: ARG002
        return self.free_at - now

    def take(self, now: float, cost: Mapping[str, float]) -> None:  # noqa: ARG002
        self.free_at = now + self.seconds

    def settle(self, *_: object) -> None:
        self.settled += 1

    def refuse(self, now: float) -> None: ...

    def watch(self, changed: object, tell: object) -> None: ...

    def gauge(self, now: float) -> dict[str, float | str]:
        return {"free_at": self.free_at - now}


def slots_of(gate: Admit) -> Slots:
    (rule,) = gate.rules
    assert isinstance(rule, Slots)
    return rule


async def run_all(gate: Admit, calls: list[Call], endpoint: Busy) -> None:
    await asyncio.gather(*(gate(call, endpoint) for call in calls))


def test_no_more_calls_are_in_flight_than_there_are_slots(make_call) -> None:
    endpoint = Busy()
    run_virtual(lambda: run_all(Admit((Slots(3),)), [make_call(i) for i in range(20)], endpoint))
    assert endpoint.most == 3


def test_rows_go_in_order_of_arrival(make_call) -> None:
    endpoint = Busy()
    run_virtual(lambda: run_all(Admit((Slots(2),)), [make_call(i) for i in range(10)], endpoint))
    assert endpoint.order == list(range(10))


def test_a_retried_row_comes_back_to_its_old_place_in_line(make_call) -> None:
    gate = Admit((Slots(1),))
    order: list[int] = []

    async def endpoint(call: Call) -> Reply:
        order.append(call.index)
        call.attempts += 1
        await asyncio.sleep(1)
        if call.index == 0 and call.attempts == 1:
            raise ServerError("boom")
        return reply()

    handler = Strategy("test", (Retry(growth="constant", jitter="none", base=1.5), gate)).handler(endpoint)

    async def main() -> None:
        await asyncio.gather(*(handler(make_call(i)) for i in range(6)))

    run_virtual(main)
    assert order == [0, 1, 2, 0, 3, 4, 5]


def test_a_sleeping_row_holds_no_slot(make_call) -> None:
    gate = Admit((Slots(1),))
    endpoint = Script(ServerError("boom"), 1.0, None)
    handler = Strategy("test", (Retry(growth="constant", jitter="none", base=50.0), gate)).handler(endpoint)

    async def main() -> float:
        first = asyncio.ensure_future(handler(make_call(0)))
        await asyncio.sleep(0)
        await handler(make_call(1))
        second_done = asyncio.get_running_loop().time()
        await first
        return second_done

    assert run_virtual(main) < 2.0


def test_a_wider_limit_lets_waiting_calls_in_at_once(make_call) -> None:
    gate, endpoint = Admit((Slots(1),)), Busy(10.0)

    async def main() -> int:
        running = asyncio.create_task(run_all(gate, [make_call(i) for i in range(8)], endpoint))
        await asyncio.sleep(1)
        slots_of(gate).resize(5)
        await asyncio.sleep(0.1)
        now = endpoint.now
        await running
        return now

    assert run_virtual(main) == 5


def test_a_narrower_limit_interrupts_nobody(make_call) -> None:
    gate, endpoint = Admit((Slots(4),)), Busy(1.0)

    async def main() -> None:
        running = asyncio.create_task(run_all(gate, [make_call(i) for i in range(8)], endpoint))
        await asyncio.sleep(0.5)
        slots_of(gate).resize(1)
        assert endpoint.now == 4
        await asyncio.sleep(1)
        assert endpoint.now == 1
        await running

    run_virtual(main)
    assert sorted(endpoint.order) == list(range(8))


def test_a_call_cancelled_in_line_leaves_it_and_the_next_goes(make_call) -> None:
    gate, endpoint = Admit((Slots(1),)), Busy(1.0)

    async def main() -> None:
        tasks = [asyncio.create_task(gate(make_call(i), endpoint)) for i in range(4)]
        await asyncio.sleep(0.1)
        tasks[1].cancel()
        tasks[2].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run_virtual(main)
    assert endpoint.order == [0, 3]
    assert slots_of(gate).in_use == 0
    assert gate.waiting == 0


def test_a_call_cancelled_right_after_its_grant_gives_the_slot_back(make_call) -> None:
    gate, endpoint = Admit((Slots(1),)), Busy(1.0)

    async def main() -> None:
        first = asyncio.create_task(gate(make_call(0), endpoint))
        second = asyncio.create_task(gate(make_call(1), endpoint))
        await asyncio.sleep(0.5)
        first.cancel()
        await asyncio.sleep(0)  # the first is gone and the second's grant is set, but it has not run yet
        assert slots_of(gate).in_use == 1
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        assert slots_of(gate).in_use == 0
        await gate(make_call(2), endpoint)

    run_virtual(main)
    assert endpoint.order == [0, 2]


def test_a_rule_that_names_a_time_is_asked_again_then(make_call) -> None:
    gate, endpoint = Admit((Every(2.0),)), Busy(0.1)

    async def main() -> float:
        await run_all(gate, [make_call(i) for i in range(4)], endpoint)
        return asyncio.get_running_loop().time()

    assert run_virtual(main) == pytest.approx(6.1, abs=0.01)


def test_all_rules_must_agree(make_call) -> None:
    gate, endpoint = Admit((Slots(1), Every(0.5))), Busy(2.0)

    async def main() -> float:
        await run_all(gate, [make_call(i) for i in range(3)], endpoint)
        return asyncio.get_running_loop().time()

    assert run_virtual(main) == pytest.approx(6.0, abs=0.01)


def test_admission_is_an_event_that_says_how_long_it_took(make_call, emitted) -> None:
    gate, endpoint = Admit((Slots(1),)), Busy(3.0)
    calls = [make_call(0), make_call(1)]
    run_virtual(lambda: run_all(gate, calls, endpoint))
    (event,) = emitted(calls[1])
    assert isinstance(event, Admitted)
    assert event.waited == pytest.approx(3.0, abs=1e-3)
    assert calls[1].queue_s == pytest.approx(3.0, abs=1e-3)


def test_a_copy_has_the_settings_and_none_of_the_state(make_call) -> None:
    gate = Admit((Slots(2),))

    async def main() -> None:
        task = asyncio.create_task(gate(make_call(0), Busy()))
        await asyncio.sleep(0.1)
        copy = replace(gate)
        assert copy == Admit((Slots(2),))
        assert slots_of(copy).in_use == 0
        assert slots_of(gate).in_use == 1
        await task

    run_virtual(main)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 5), st.floats(0, 3), st.booleans(), st.floats(0, 6)), min_size=1, max_size=25),
    st.integers(1, 4),
)
def test_the_limit_holds_and_no_slot_leaks_whatever_is_cancelled(
    rows: list[tuple[float, float, bool, float]], limit: int
) -> None:
    gate = Admit((Slots(limit),))
    now = most = 0

    async def endpoint(call: Call) -> Reply:
        nonlocal now, most
        now += 1
        most = max(most, now)
        try:
            await asyncio.sleep(rows[call.index][1])
        finally:
            now -= 1
        if call.index % 3 == 0:
            raise ServerError("boom")
        return reply()

    async def row(index: int) -> None:
        await asyncio.sleep(rows[index][0])
        await gate(Call(index, None, lambda _: None, seq=index), endpoint)  # type: ignore[arg-type]

    async def main() -> None:
        tasks = [asyncio.create_task(row(i)) for i in range(len(rows))]
        loop = asyncio.get_running_loop()
        for task, (_, _, cancelled, when) in zip(tasks, rows, strict=True):
            if cancelled:
                loop.call_later(when, task.cancel)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert slots_of(gate).in_use == 0
        assert gate.waiting == 0

    run_virtual(main)
    assert most <= limit
