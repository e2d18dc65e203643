import asyncio
import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import llmlab
from llmlab.clock import run_virtual
from llmlab.errors import RateLimited
from llmlab.rules.adapt import Controller, Decision, Sample
from llmlab.rules.adaptive import Adaptive
from llmlab.rules.classic import AIMD, Fixed
from llmlab.rules.elastic import Elastic
from llmlab.sim.physics import Physics
from llmlab.sim.transport import Simulator


def run(concurrency: object, physics: Physics, rows: int = 3000) -> tuple[pd.DataFrame, float, llmlab.Lab, Simulator]:
    simulator = Simulator(seed=1, physics=physics)

    async def main() -> tuple[pd.DataFrame, float, llmlab.Lab, Simulator]:
        lab = llmlab.Lab("openai:m", transport=simulator, concurrency=concurrency, seed=1)  # type: ignore[arg-type]
        out = await lab.run_many([f"Question {n}" for n in range(rows)])
        return out, asyncio.get_running_loop().time(), lab, simulator

    result: tuple[pd.DataFrame, float, llmlab.Lab, Simulator] = run_virtual(main)
    return result


CAPPED = Physics(slots=48, load=0.0, queue=100_000)


def test_auto_comes_close_to_the_best_number_by_hand_without_queueing_at_the_provider() -> None:
    best, by_hand, _, _ = run(48, CAPPED, rows=8000)
    found, by_itself, _, simulator = run("auto", CAPPED, rows=8000)
    assert (found.status == "ok").all()
    assert by_itself <= by_hand / 0.95
    assert found.latency_ms.median() <= 1.3 * best.latency_ms.median()
    assert simulator.stats()["max_in_flight"] < 3 * 48


def test_under_a_rate_limit_auto_keeps_to_it_and_uses_it() -> None:
    out, ended, _, simulator = run("auto", Physics(slots=1000, rpm=900, burst=10, load=0.0), rows=1500)
    assert (out.status == "ok").all()
    assert simulator.stats()["by_status"].get("429", 0) <= 5
    assert 1500 / (ended / 60) >= 0.9 * 900


def test_each_decision_is_kept_with_its_reason() -> None:
    _, _, lab, _ = run("auto", CAPPED, rows=600)
    rule = lab.strategy.slots
    assert isinstance(rule, Adaptive)
    assert len(rule.controller.decisions) > 3
    assert all(decision.reason for decision in rule.controller.decisions)


def test_controllers_are_values_that_can_be_compared() -> None:
    assert Elastic() == Elastic()
    assert AIMD(initial=5) != AIMD()
    out, _, lab, simulator = run(Fixed(7), CAPPED, rows=100)
    assert (out.status == "ok").all()
    assert lab.concurrency == 7
    assert simulator.stats()["max_in_flight"] == 7


def test_a_number_set_by_hand_holds_while_a_job_runs() -> None:
    simulator = Simulator(physics=CAPPED)

    async def main() -> None:
        lab = llmlab.Lab("openai:m", transport=simulator, concurrency="auto")
        job = lab.run_many([f"Question {n}" for n in range(400)])
        await asyncio.sleep(3)
        lab.concurrency = 5
        await asyncio.sleep(10)
        assert simulator.stats()["in_flight"] == 5
        await job

    run_virtual(main)


def test_no_slot_leaks_when_a_job_is_cancelled() -> None:
    async def main() -> None:
        lab = llmlab.Lab("openai:m", transport=Simulator(), concurrency="auto")
        for _ in range(5):
            job = lab.run_many([f"Question {n}" for n in range(100)])
            await asyncio.sleep(1)
            job.cancel()
            await job
        assert lab.strategy.slots is not None
        assert lab.strategy.slots.in_use == 0

    run_virtual(main)


@pytest.mark.parametrize("wrong", ["much", 0, 2.5, True])
def test_a_senseless_concurrency_is_refused(wrong: object) -> None:
    with pytest.raises((TypeError, ValueError), match="concurrency"):
        llmlab.Lab(concurrency=wrong)  # type: ignore[arg-type]


# The rule by itself


COST = {"requests": 1.0}


@dataclass
class Talkative:
    """Decides at every step as many things as told; what it has decided is handed on to its copies."""

    each: int = 1
    limit: int = 3
    decisions: deque[Decision] = field(default_factory=lambda: deque(maxlen=100))

    def _say(self, now: float, reason: str) -> None:
        for i in range(self.each):
            self.decisions.append(Decision(now, self.limit, f"{reason} {i}"))

    def start(self, now: float) -> int:  # noqa: ARG002
        return 0

    def finish(self, now: float, tag: int, sample: Sample, error: BaseException | None, **_: Any) -> None:  # noqa: ARG002
        self._say(now, "finish")

    def tick(self, now: float) -> float:
        self._say(now, "tick")
        return math.inf

    def pin(self, limit: int, now: float) -> None:
        self.limit = limit
        self._say(now, "pin")

    def unpin(self, now: float) -> None:
        self._say(now, "unpin")


def quiet(*_: object) -> None:
    """Listen to nothing."""


def settle(rule: Adaptive, now: float, error: BaseException | None = None) -> None:
    rule.settle(now, COST, error, None, None, now, 0)


@given(st.integers(0, 3), st.lists(st.sampled_from(["call", "end", "pin", "unpin"]), max_size=30))
def test_each_decision_is_told_once_in_order_and_at_once(each: int, steps: list[str]) -> None:
    rule = Adaptive(Talkative(each))
    told: list[object] = []
    rule.watch(quiet, told.append)
    for at, step in enumerate(steps):
        if step == "call" and rule.wait(at, COST) == 0:
            rule.take(at, COST)
        elif step == "end" and rule.in_use:
            settle(rule, at)
        elif step == "pin":
            rule.resize(1 + at % 5)
        elif step == "unpin":
            rule.release()
        assert list(map(id, told)) == list(map(id, rule.controller.decisions))


@pytest.mark.parametrize("controller", [Elastic(initial=4), AIMD(initial=4, least=1)], ids=["elastic", "aimd"])
def test_all_that_a_controller_decides_is_told_also_when_it_has_forgotten_some(controller: Controller) -> None:
    rule, told, now = Adaptive(controller), list[Any](), 0.0
    rule.controller.decisions = deque(maxlen=7)
    rule.watch(quiet, told.append)
    line: list[int] = []
    for i in range(6_000):
        while rule.wait(now, COST) == 0:
            line.append(rule.take(now, COST))
        now += 0.1
        error = RateLimited("429") if i % 2_000 == 1_999 else None
        rule.settle(now, COST, error, None, None, now - 1, line.pop(0))
    assert len(told) > 14
    assert told[-7:] == list(rule.controller.decisions)
    assert len(set(map(id, told))) == len(told)
    assert [each.at for each in told] == sorted(each.at for each in told)


def test_a_provider_that_has_gone_silent_is_told_when_somebody_asks() -> None:
    rule, told = Adaptive(Elastic(initial=4)), list[Any]()
    rule.watch(quiet, told.append)
    for _ in range(12):
        rule.take(0.0, COST)
        settle(rule, 0.0)
    while rule.wait(0.0, COST) == 0:
        rule.take(0.0, COST)
    assert rule.wait(100.0, COST) > 0
    assert [(each.at, each.reason) for each in told] == [(100.0, "silence")]


def test_what_was_decided_before_anybody_listened_is_not_told() -> None:
    own = Talkative()
    own.tick(0.0)
    rule, told = Adaptive(own), list[Any]()
    rule.watch(quiet, told.append)
    rule.wait(1.0, COST)
    rule_without = Adaptive(own)
    rule_without.resize(3)
    rule_without.release()
    rule_without.watch(quiet, told.append)
    rule_without.wait(2.0, COST)
    assert [(each.at, each.reason) for each in told] == [(1.0, "tick 0"), (2.0, "tick 0")]


def test_who_listens_finds_the_slot_free_and_the_limit_in_force() -> None:
    rule = Adaptive(Talkative())
    seen: list[tuple[str, int, int]] = []
    rule.watch(quiet, lambda what: seen.append((getattr(what, "reason", ""), rule.in_use, rule.limit)))
    rule.take(0.0, COST)
    settle(rule, 1.0)
    rule.resize(9)
    assert seen == [("finish 0", 0, 3), ("pin 0", 0, 9)]


def test_a_limit_that_a_listener_sets_holds_for_who_asked_and_is_told_last() -> None:
    rule = Adaptive(Talkative(2))
    heard: list[str] = []

    def listen(what: object) -> None:
        heard.append(getattr(what, "reason", ""))
        if heard[-1] == "tick 0":
            rule.resize(1)

    rule.take(0.0, COST)
    rule.watch(quiet, listen)
    assert rule.wait(1.0, COST) == math.inf
    assert heard == ["tick 0", "tick 1", "pin 0", "pin 1"]


def test_a_number_set_by_hand_and_its_release_are_told_before_anybody_is_let_in() -> None:
    rule = Adaptive(AIMD(initial=4, least=1))
    heard: list[str] = []
    rule.watch(lambda: heard.append(f"look {rule.limit}"), lambda what: heard.append(getattr(what, "reason", "")))
    rule.resize(6)
    rule.release()
    assert heard == ["pinned", "look 6", "unpinned", "look 6"]
    for i in range(6):
        rule.take(float(i), COST)
        rule.settle(float(i), COST, None, None, None, 0.0, 0)
    rule.take(9.0, COST)
    settle(rule, 9.0, RateLimited("429"))
    assert rule.limit < 6  # the controller's own word counts again


def test_pins_are_of_the_time_last_seen() -> None:
    rule = Adaptive(
        Talkative(),
    )
    told: list[Any] = []
    for step in (rule.wait, rule.take):
        step(4.0 + len(told), COST)
        rule.watch(quiet, told.append)
        rule.resize(5)
    settle(rule, 8.0)
    rule.release()
    assert [(each.at, each.reason) for each in told] == [
        (4.0, "pin 0"), (5.0, "pin 0"), (8.0, "finish 0"), (8.0, "unpin 0")
    ]  # fmt: skip


def test_the_gauge_shows_the_limit_and_what_is_in_flight() -> None:
    rule = Adaptive(Fixed(7))
    rule.take(0.0, COST)
    assert rule.gauge(0.0) == {"limit": 7, "in_flight": 1}


def test_a_wait_for_a_slot_means_the_provider_once_more_would_buy_nothing() -> None:
    rule = Adaptive(AIMD(initial=20))
    assert rule.binds == "concurrency"
    rule.take(0.0, COST)
    settle(rule, 1.0, RateLimited("429"))
    assert rule.binds == "provider"
    rule.resize(5)
    assert rule.binds == "concurrency"
    rule.release()
    assert rule.binds == "provider"


def test_a_controller_that_does_not_say_whether_it_is_settled_means_concurrency() -> None:
    assert [Adaptive(each).binds for each in (Fixed(3), Talkative())] == ["concurrency", "concurrency"]
