import asyncio
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.call import Call, Lane
from llmlab.clock import run_virtual
from llmlab.errors import BudgetSpent, ProviderDown, ServerError
from llmlab.estimate import Estimator
from llmlab.events import Admitted
from llmlab.policies.admit import Admit
from llmlab.policies.retry import Retry
from llmlab.rules.adapt import Decision
from llmlab.rules.slots import Slots
from llmlab.rules.spend import Spend
from llmlab.strategy import Strategy
from llmlab.types import Prompt, Reply
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
    def gauge(self, now: float) -> dict[str, float | str]: ...  # type: ignore[empty-body]


def slots_of(gate: Admit) -> Slots:
    return next(rule for rule in gate.rules if isinstance(rule, Slots))


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


@pytest.mark.parametrize(("arrived", "took"), [(None, 180.0), (10.0, 90.0)])  # what it has waited before counts
def test_a_low_call_gets_through_within_three_minutes_while_critical_ones_saturate(make_call, arrived, took) -> None:
    gate, endpoint = Admit((Slots(1),)), Busy(1.0)

    async def main() -> float:
        await asyncio.sleep(100.0)
        critical = [asyncio.create_task(gate(make_call(i, lane=Lane(0)), endpoint)) for i in range(400)]
        await asyncio.sleep(0)
        await gate(low := make_call(1000, lane=Lane(3), arrived=arrived), endpoint)
        for task in critical:
            task.cancel()
        assert low.arrived == pytest.approx(arrived or 100.0, abs=0.01)
        return asyncio.get_running_loop().time() - 100.0

    assert took <= run_virtual(main) <= took + 5.0


def test_a_paused_lane_waits_until_it_is_released_and_holds_nobody(make_call) -> None:
    gate, endpoint, lane = Admit((Slots(9),)), Busy(1.0), Lane(held=True)

    async def main() -> None:
        paused = asyncio.create_task(gate(make_call(0, lane=lane), endpoint))
        await gate(make_call(1), endpoint)
        assert (gate.held_by, gate.waits_for(lane), gate._timer) == ("paused", "paused", None)
        lane.held = False
        gate.pump()
        await paused
        assert (gate.held_by, gate.waits_for(lane), gate.waiting) == (None, None, 0)

    run_virtual(main)
    assert endpoint.order == [1, 0]


@pytest.mark.parametrize("when", ["before it comes", "while it stands in line"])
def test_a_paused_call_holds_up_none_of_those_it_shares_its_turns_with(make_call, when: str) -> None:
    gate, endpoint, shared = Admit((Slots(1),)), Busy(1.0), Lane()
    lanes = [Lane(among=shared) for _ in range(4)]

    async def main() -> None:
        lanes[1].held = when == "before it comes"
        calls = [asyncio.create_task(gate(make_call(n, lane=lanes[n]), endpoint)) for n in range(4)]
        await asyncio.sleep(0.5)
        lanes[1].held = True
        gate.pump()
        assert (gate.waits_for(lanes[1]), gate.waits_for(lanes[2])) == ("paused", "concurrency")
        await asyncio.wait([calls[n] for n in (0, 2, 3)])
        assert (gate.waiting, gate.waits_for(lanes[1])) == (1, "paused")
        await gate(make_call(4, lane=Lane(among=shared)), endpoint)
        lanes[1].held = False
        gate.pump()
        await calls[1]
        assert gate.waiting == 0

    run_virtual(main)
    assert endpoint.order == [0, 2, 3, 4, 1]


def test_a_paused_call_that_is_cancelled_leaves_the_line(make_call) -> None:
    gate, endpoint, lane = Admit((Slots(1),)), Busy(1.0), Lane(among=Lane(), held=True)

    async def main() -> None:
        paused = asyncio.create_task(gate(make_call(0, lane=lane), endpoint))
        await asyncio.sleep(1)
        paused.cancel()
        await asyncio.wait([paused])
        assert (gate.waiting, gate.waits_for(lane)) == (0, None)
        lane.held = False
        await gate(make_call(1, lane=lane), endpoint)

    run_virtual(main)
    assert endpoint.order == [1]


class Chatty(Every):
    """A rule that tells something whenever it is asked."""

    def wait(self, now: float, cost: Mapping[str, float]) -> float:  # noqa: ARG002
        self.tell(Decision(now, 1, "asked"))
        return 0.0

    def watch(self, changed: object, tell: Callable[[object], None]) -> None:  # type: ignore[override]  # noqa: ARG002
        self.tell = tell


@pytest.mark.parametrize("chatty_first", [True, False])
def test_who_listens_to_a_rule_may_change_a_limit_in_the_middle_of_a_decision(make_call, chatty_first: bool) -> None:
    class Strict(Slots):
        def take(self, now: float, cost: Mapping[str, float]) -> None:
            assert self.in_use < self.limit
            super().take(now, cost)

    rules = (Chatty(0.0), Strict(2)) if chatty_first else (Strict(2), Chatty(0.0))
    gate, endpoint = Admit(rules), Busy(1.0)
    limits, at = itertools.cycle([1, 5, 2, 3, 1, 4, 6]), [-1.0]

    def meddle(_: Decision) -> None:
        now = asyncio.get_running_loop().time()
        if gate.waiting and now > at[-1]:  # once a moment: a change is told as well
            at.append(now)
            slots_of(gate).resize(next(limits))

    gate.bus.subscribe(meddle, Decision)
    run_virtual(lambda: run_all(gate, [make_call(i) for i in range(30)], endpoint))
    assert sorted(endpoint.order) == list(range(30))
    assert (slots_of(gate).in_use, gate.waiting) == (0, 0)


def test_who_is_sent_home_by_a_rule_has_an_error_of_his_own_and_his_waiting_on_account(make_call) -> None:
    class Gone(Every):
        def refuse(self, now: float) -> ProviderDown | None:  # type: ignore[override]
            return ProviderDown("gone") if now > 20 else None

    gate = Admit((Gone(30.0),))
    calls = [make_call(i) for i in range(4)]

    async def main() -> list[Reply | BaseException]:
        asyncio.get_running_loop().call_later(25, gate.pump)
        return await asyncio.gather(*(gate(call, Busy(1.0)) for call in calls), return_exceptions=True)

    errors = run_virtual(main)[1:]
    assert len({id(each) for each in errors if isinstance(each, ProviderDown)}) == 3
    assert [call.queue_s for call in calls] == pytest.approx([0, 25, 25, 25], abs=0.01)
    assert (gate.waiting, gate.held_by) == (0, None)


SECONDS = st.floats(0, 6)
ROWS = st.lists(st.tuples(SECONDS, SECONDS, st.booleans(), SECONDS, st.integers(0, 3)), min_size=1, max_size=25)


@settings(max_examples=80, deadline=None)
@given(ROWS, st.integers(1, 4), st.integers(0, 4000))
def test_limits_hold_and_nothing_leaks_whatever_is_cancelled_refused_or_fails(
    rows: list[tuple[float, float, bool, float, int]], limit: int, tokens: int
) -> None:
    gate, budgets = Admit((Slots(limit),), Estimator()), [Spend(tokens=1 + tokens), Spend(tokens=1500)]
    lanes = [Lane(n, budgets=tuple(budgets[: n % 3])) for n in range(4)]

    async def row(index: int) -> None:
        began, takes, *_, lane = rows[index]
        await asyncio.sleep(began)
        call = Call(index, Prompt.of("x"), lambda _: None, seq=index, lane=lanes[lane])
        await gate(call, Script(takes if index % 3 else ServerError("boom")))

    async def main() -> list[object]:
        tasks = [asyncio.create_task(row(i)) for i in range(len(rows))]
        for task, (_, _, cancelled, when, _) in zip(tasks, rows, strict=True):
            if cancelled:
                asyncio.get_running_loop().call_later(when, task.cancel)
        return await asyncio.gather(*tasks, return_exceptions=True)

    out = run_virtual(main)
    assert {type(each) for each in out} <= {type(None), ServerError, BudgetSpent, asyncio.CancelledError}
    assert (slots_of(gate).in_use, gate.waiting, gate.held_by) == (0, 0, None)
    assert [(each.in_use, each.reserved_tokens) for each in budgets] == [(0, 0.0), (0, 0.0)]
