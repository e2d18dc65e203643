"""A simulated provider that becomes another one while it runs, and what it counts of what was in vain."""

import asyncio
from dataclasses import replace
from typing import Any

import httpx
import orjson
import pytest

from llmlab.clock import run_virtual
from llmlab.sim import Change, Faults, Physics, Simulator
from llmlab.sim.buckets import Allowance
from llmlab.sim.faults import Burst, Outage
from llmlab.sim.physics import Engine

PLAIN = Physics.instant(ttft=1.0, reply_tokens=1, reply_sigma=0)


async def ask(simulator: Simulator, text: str, **fields: Any) -> httpx.Response:
    body = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": text}], **fields})
    request = httpx.Request("POST", "http://sim/v1/chat/completions", content=body)
    response = await simulator.handle_async_request(request)
    await response.aread()
    return response


def now() -> float:
    return asyncio.get_running_loop().time()


def ends(simulator: Simulator, count: int) -> list[float]:
    """When each of `count` requests sent together is answered, rounded to milliseconds."""

    async def one(number: int) -> float:
        await ask(simulator, f"question {number}")
        return round(now(), 2)

    async def main() -> list[float]:
        return sorted(await asyncio.gather(*(one(number) for number in range(count))))

    return run_virtual(main)


def test_new_slots_are_filled_at_once() -> None:
    physics = replace(PLAIN, slots=1)
    simulator = Simulator(physics=physics, changes=[Change(1.5, replace(PLAIN, slots=4))])
    assert ends(simulator, 5) == [1.0, 2.0, 2.5, 2.5, 2.5]


def test_slots_that_go_are_not_filled_again_but_who_sits_there_may_stay() -> None:
    simulator = Simulator(physics=replace(PLAIN, slots=3), changes=[Change(0.5, replace(PLAIN, slots=1))])
    assert ends(simulator, 5) == [1.0, 1.0, 1.0, 2.0, 3.0]


def test_a_slower_machine_is_slower_at_once_for_requests_being_worked_on() -> None:
    simulator = Simulator(physics=PLAIN, changes=[Change(0.5, replace(PLAIN, slowdown=3))])
    assert ends(simulator, 1) == [2.0]


def test_changes_are_timed_from_the_first_request() -> None:
    simulator = Simulator(physics=PLAIN, changes=[Change(0.5, replace(PLAIN, slowdown=3))])

    async def main() -> float:
        await asyncio.sleep(100)
        await ask(simulator, "hi")
        return now() - 100

    assert run_virtual(main) == pytest.approx(2.0, abs=0.01)


def test_a_new_rate_limit_keeps_what_is_left_of_the_old_one() -> None:
    allowance = Allowance({"requests": 600.0, "tokens": None}, burst=60, now=0)
    allowance.take({"requests": 590}, 0)
    allowance.retune({"requests": 60.0, "tokens": 100.0}, burst=60, now=0)
    assert allowance.levels(0)["requests"].remaining == 10
    assert allowance.levels(0)["tokens"].remaining == 100
    allowance.retune({"requests": None}, burst=60, now=0)
    assert allowance.levels(0) == {}


def test_a_rate_limit_can_come_while_it_runs() -> None:
    simulator = Simulator(physics=PLAIN, changes=[Change(5, replace(PLAIN, rpm=60.0, burst=1.0))])

    async def main() -> list[int]:
        first = [(await ask(simulator, f"a{n}")).status_code for n in range(3)]
        await asyncio.sleep(5)
        return first + [(await each).status_code for each in [ask(simulator, "b"), ask(simulator, "c")]]

    async def both() -> list[int]:
        first = await asyncio.gather(*(ask(simulator, f"a{n}") for n in range(3)))
        await asyncio.sleep(5)
        second = await asyncio.gather(*(ask(simulator, f"b{n}") for n in range(3)))
        return [each.status_code for each in (*first, *second)]

    assert run_virtual(main) == [200] * 5
    assert run_virtual(both)[:3] == [200] * 3
    assert sorted(run_virtual(both)[3:]) == [200, 429, 429]


def test_a_provider_need_not_say_anything_of_its_limits() -> None:
    simulator = Simulator(physics=replace(PLAIN, rpm=60.0, burst=1.0, hint="none"))

    async def main() -> list[httpx.Response]:
        return [await each for each in [ask(simulator, "a"), ask(simulator, "b")]]

    async def together() -> list[httpx.Response]:
        return list(await asyncio.gather(ask(simulator, "c"), ask(simulator, "d")))

    answers = [*run_virtual(main), *run_virtual(together)]
    assert 429 in {each.status_code for each in answers}
    for each in answers:
        assert not [name for name in each.headers if name.startswith("x-ratelimit") or "retry" in name]


@pytest.mark.parametrize("wrong", [{"slowdown": 0}, {"hint": "smoke"}])
def test_what_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Physics(**wrong)
    with pytest.raises(ValueError, match="0 s or later"):
        Change(-1, PLAIN)


def test_the_machine_calls_as_many_as_it_has_new_slots_and_skips_who_has_left() -> None:
    async def main() -> int:
        engine = Engine(replace(PLAIN, slots=1))
        await engine.sit()
        waiting = [asyncio.create_task(engine.sit()) for _ in range(4)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.sleep(0)
        engine.become(replace(PLAIN, slots=3))
        await asyncio.sleep(0)
        assert [task.done() for task in waiting] == [True, True, True, False]
        waiting[3].cancel()
        return engine.active

    assert run_virtual(main) == 3


# -- what was in vain -------------------------------------------------------------------------------------


def wasted(simulator: Simulator, **fields: Any) -> tuple[dict[str, int], dict[str, int]]:
    async def main() -> None:
        for number in range(20):
            try:
                await ask(simulator, f"question {number}", **fields)
            except httpx.TransportError:
                continue

    run_virtual(main)
    stats = simulator.stats()
    return stats["wasted"], stats["tokens"]


@pytest.mark.parametrize("stream", [False, True])
def test_nothing_is_wasted_where_nothing_fails(stream: bool) -> None:
    lost, tokens = wasted(Simulator(), stream=stream)
    assert lost == {"input": 0, "output": 0}
    assert tokens["output"] > 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", ["cut", "cut_silent", "reset_midway", "malformed", "html_200", "error_in_stream"])
def test_all_tokens_of_answers_that_were_none_are_wasted(fault: str, stream: bool) -> None:
    lost, tokens = wasted(Simulator(faults=Faults.only(fault)), stream=stream)
    assert lost == tokens
    assert lost["input"] > 0


def test_a_refusal_wastes_nothing() -> None:
    lost, _ = wasted(Simulator(faults=Faults.only("server_error")))
    assert lost == {"input": 0, "output": 0}


def test_who_leaves_in_the_middle_has_wasted_what_was_written_by_then() -> None:
    physics = Physics.instant(ttft=1.0, itl=0.1, reply_tokens=50, reply_sigma=0)
    simulator = Simulator(physics=physics)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2.95):
                await ask(simulator, "a question")

    run_virtual(main)
    assert simulator.stats()["wasted"]["output"] == pytest.approx(20, abs=1)


def test_requests_that_come_in_an_outage_are_counted() -> None:
    simulator = Simulator(physics=PLAIN, faults=Faults(windows=(Outage(2.5, 3, rate=0.5), Burst(1, 1))))

    async def main() -> None:
        for number in range(10):
            waiting = asyncio.create_task(ask(simulator, f"{number}"))
            await asyncio.sleep(1)
            waiting.cancel()

    run_virtual(main)
    assert simulator.stats()["in_outage"] == 3


def test_a_fresh_one_has_the_same_settings_and_no_past() -> None:
    simulator = Simulator(seed=3, physics=PLAIN, faults=Faults.mixed(0.5), changes=[Change(1, PLAIN)])
    run_virtual(lambda: ask(Simulator(), "x"))
    other = simulator.fresh()
    assert other.requests == 0
    assert (other.world.seed, other.world.physics, other.world.changes) == (3, PLAIN, (Change(1, PLAIN),))
    assert other.world.faults == simulator.world.faults
    assert simulator.fresh(seed=9).world.seed == 9
