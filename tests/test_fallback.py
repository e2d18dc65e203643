import asyncio
import math
from dataclasses import replace

import pandas as pd
import pytest

import llmlab
from llmlab.call import Call, Handler
from llmlab.clock import run_virtual
from llmlab.errors import (
    AuthFailed,
    BadPayload,
    BadRequest,
    BudgetSpent,
    Conflict,
    ConnectFailed,
    ContentBlocked,
    ContextTooLong,
    Dropped,
    LLMError,
    NotFound,
    Overloaded,
    PermissionDenied,
    ProviderDown,
    QueueFull,
    QuotaExhausted,
    RateLimited,
    RequestTooLarge,
    ServerError,
    StreamTruncated,
    TimedOut,
    Unsendable,
    UnsupportedParam,
)
from llmlab.events import Rerouted
from llmlab.policies.fallback import Fallback
from llmlab.policies.retry import Retry
from llmlab.policies.timeout import Timeout
from llmlab.sim.faults import Faults
from llmlab.sim.physics import Physics
from llmlab.sim.transport import Simulator
from llmlab.strategy import Strategy
from llmlab.types import Prompt, Reply
from tests.conftest import Script, reply

GOES_ON = {
    "connection refused": ConnectFailed("no"),
    "connection broken": Dropped("no"),
    "too slow": TimedOut("no", phase="attempt"),
    "a deadline of its own": TimedOut("no", phase="total"),
    "429": RateLimited("no"),
    "no credit": QuotaExhausted("no"),
    "overloaded": Overloaded("no"),
    "5xx": ServerError("no"),
    "bad key": AuthFailed("no"),
    "not allowed": PermissionDenied("no"),
    "no such model": NotFound("no"),
    "prompt too long for it": ContextTooLong("no"),
    "request too large for it": RequestTooLarge("no"),
    "no answer": BadPayload("no"),
    "half an answer": StreamTruncated("no"),
    "down": ProviderDown("no"),
    "its line is full": QueueFull("no"),
}
STANDS = {
    "wrong request": BadRequest("no"),
    "wrong parameter": UnsupportedParam("no"),
    "blocked": ContentBlocked("no"),
    "409": Conflict("no"),
    "cannot be sent": Unsendable("no"),
    "budget spent": BudgetSpent("no"),
}


def policy(*others: Script, retire: float = 60.0) -> Fallback:
    """A Fallback with further targets named b, c, …"""
    made = Fallback(retire)
    made.others = tuple(zip("bcd", others, strict=False))
    return made


async def outcome(fallback: Fallback, call: Call, first: Script) -> Reply | LLMError:
    try:
        return await fallback(call, first)
    except LLMError as error:
        return error


@pytest.mark.parametrize("error", GOES_ON.values(), ids=list(GOES_ON))
def test_what_another_target_may_do_better_goes_to_the_next(make_call, emitted, error: LLMError) -> None:
    first, second, third, call = Script(error), Script(), Script(), make_call()
    assert run_virtual(lambda: policy(second, third)(call, first)) == reply()
    assert [len(each.at) for each in (first, second, third)] == [1, 1, 0]
    assert emitted(call) == [Rerouted(0, error, "b")]
    assert call.kind == "fallback"


@pytest.mark.parametrize("error", STANDS.values(), ids=list(STANDS))
def test_what_is_wrong_everywhere_stands(make_call, emitted, error: LLMError) -> None:
    second, call = Script(), make_call()
    assert run_virtual(lambda: outcome(policy(second), call, Script(error))) is error
    assert (second.at, emitted(call), call.kind) == ([], [], "first")


def test_a_mistake_in_the_code_is_no_reason_to_go_on(make_call) -> None:
    second = Script()
    with pytest.raises(ZeroDivisionError):
        run_virtual(lambda: policy(second)(make_call(), Script(ZeroDivisionError())))
    assert second.at == []


FATAL, FATAL_TOO, PASSING = AuthFailed("key"), QuotaExhausted("credit"), ServerError("boom")


@pytest.mark.parametrize(
    ("errors", "last_word"),
    [
        ((PASSING, FATAL), PASSING),  # others of the job's rows may still be answered
        ((FATAL, PASSING), PASSING),
        ((FATAL, PASSING, FATAL_TOO), PASSING),
        ((FATAL, FATAL_TOO), FATAL),
        ((PASSING, RateLimited("wait"), ContextTooLong("long")), None),
    ],
)
def test_the_last_word_is_the_last_error_that_is_not_for_good(make_call, emitted, errors, last_word) -> None:
    call, (first, *others) = make_call(), map(Script, errors)
    assert run_virtual(lambda: outcome(policy(*others), call, first)) is (last_word or errors[-1])
    assert [event.error for event in emitted(call)] == list(errors[:-1])


def test_text_that_was_shown_is_not_answered_anew_and_the_job_goes_on(make_call) -> None:
    """Another answer would not fit to it; but the bad key of one target must not stop a job that others can serve."""
    second, error = Script(), AuthFailed("key")
    call = make_call(committed=True)
    assert run_virtual(lambda: outcome(policy(second), call, Script(error))) is error
    assert second.at == []
    assert not error.verdict.fatal


def test_with_one_target_a_fatal_error_stays_fatal(make_call) -> None:
    error = AuthFailed("key")
    assert run_virtual(lambda: outcome(policy(), make_call(committed=True), Script(error))) is error
    assert error.verdict.fatal


@pytest.mark.parametrize("error", [FATAL, FATAL_TOO], ids=["bad key", "no credit"])
def test_a_target_no_row_can_escape_at_is_passed_over_for_a_while(make_call, emitted, error: LLMError) -> None:
    first, second, calls = Script(error, None, None), Script(), [make_call(i) for i in range(3)]

    async def main() -> None:
        fallback = policy(second, retire=60.0)
        await fallback(calls[0], first)
        await asyncio.sleep(59.9)
        await fallback(calls[1], first)
        await asyncio.sleep(0.2)
        await fallback(calls[2], first)

    run_virtual(main)
    assert (len(first.at), len(second.at)) == (2, 2)
    assert emitted(calls[1]) == [Rerouted(1, error, "b")]
    assert [call.kind for call in calls] == ["fallback", "fallback", "first"]


@pytest.mark.parametrize("error", [ProviderDown("down"), BudgetSpent("spent"), ServerError("boom")], ids=repr)
def test_no_other_error_retires_a_target(make_call, error: LLMError) -> None:
    """A breaker finds out by itself when its provider is back; a job's budget says nothing about the provider."""
    first, fallback = Script(error), policy(Script())

    async def main() -> None:
        await outcome(fallback, make_call(0), first)
        await fallback(make_call(1), first)

    run_virtual(main)
    assert len(first.at) == 2


def test_if_all_are_passed_over_the_first_is_asked(make_call) -> None:
    first, second = Script(FATAL, FATAL, None), Script(FATAL_TOO)

    async def main() -> list[Reply | LLMError]:
        fallback = policy(second)
        return [await outcome(fallback, make_call(i), first) for i in range(3)]

    assert run_virtual(main) == [FATAL, FATAL, reply()]
    assert len(second.at) == 1


def test_a_rows_own_model_holds_for_the_first_target_only(make_call) -> None:
    asked: list[str | None] = []

    async def target(call: Call) -> Reply:
        asked.append(call.prompt.model)
        raise ServerError("boom")

    call = make_call()
    call.prompt = Prompt.of("x", model="big")
    fallback = Fallback()
    fallback.others = (("b", target), ("c", target))
    with pytest.raises(ServerError):
        run_virtual(lambda: fallback(call, target))
    assert asked == ["big", None, None]


def test_each_target_has_the_whole_of_a_deadline_of_its_own(make_call) -> None:
    """Timeout(total=…) below Fallback: the first target's deadline does not forbid the second's retries."""

    def stack(*steps: object) -> Handler:
        return Strategy("t", (Timeout(total=10.0), Retry(jitter="none", base=1.0))).handler(Script(*steps))

    fallback = Fallback()
    fallback.others = (("b", stack(ServerError("boom"), None)),)
    assert run_virtual(lambda: fallback(make_call(deadline=100.0), stack(20.0))) == reply()


@pytest.mark.parametrize("retire", [-1.0, math.nan, True, "60", None])
def test_the_time_of_retirement_must_be_a_number_of_seconds(retire) -> None:
    with pytest.raises(ValueError, match="Fallback: retire must be a number of seconds of at least 0, not"):
        Fallback(retire)


def test_a_copy_has_the_settings_and_none_of_the_state(make_call) -> None:
    fallback = policy(Script())
    run_virtual(lambda: fallback(make_call(), Script(FATAL)))
    copy = replace(fallback)
    assert copy == Fallback(60.0)
    assert (copy.others, copy._retired) == ((), {})


# -- in a lab ---------------------------------------------------------------------------------------------


def lab(first: Simulator, second: Simulator, **named: object) -> llmlab.Lab:
    other = llmlab.Lab("anthropic:b", transport=second, seed=2, prices={"b": (3.0, 15.0)}, **named)  # type: ignore[arg-type]
    strategy = Strategy.default(retry=Retry(attempts=2))
    return llmlab.Lab("openai:a", transport=first, fallback=other, strategy=strategy, seed=1, prices={"a": (1.0, 2.0)})


@pytest.mark.parametrize("stream", [False, True])
def test_attempts_and_money_of_all_targets_are_on_the_rows_account(stream: bool) -> None:
    first, second = (
        Simulator(faults=Faults.only("unavailable", 0.6)),
        Simulator(faults=Faults.only("server_error", 0.2)),
    )

    async def main() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
        job = lab(first, second).run_many([f"Question {n}" for n in range(60)], stream=stream)
        return await job, job.attempts, job.events

    out, attempts, events = run_virtual(main)
    rerouted = set(events[events.event == "rerouted"].position)
    sent = attempts.groupby("position").size()
    assert attempts.target.value_counts().to_dict() == {"openai:a": first.requests, "anthropic:b": second.requests}
    assert out.attempts.tolist() == sent.tolist()
    assert (
        set(attempts[attempts.kind == "fallback"].position)
        == rerouted
        == set(attempts[attempts.target == "anthropic:b"].position)
    )
    assert out.cost_usd.sum() == pytest.approx(attempts.cost_usd.sum())
    ok = out[out.status == "ok"]
    assert set(ok[ok.index.isin(rerouted)].provider) == {"anthropic"}
    assert set(ok[~ok.index.isin(rerouted)].model) == {"a"}
    if stream:
        assert ok.ttft_ms.notna().all()


def test_a_bad_key_of_one_target_costs_no_row_and_only_the_requests_under_way() -> None:
    first, second = Simulator(keys=["right"]), Simulator()

    async def main() -> pd.DataFrame:
        return await lab(first, second).run_many([f"Question {n}" for n in range(200)])

    out = run_virtual(main)
    assert out.status.eq("ok").all()
    assert first.requests <= 2 * 32  # in flight and next in line when the first came back
    assert second.requests == 200


def test_each_target_keeps_to_limits_of_its_own() -> None:
    second = Simulator(physics=Physics(rtt=1.0))

    async def main() -> tuple[float, pd.DataFrame]:
        job = lab(Simulator(keys=["right"]), second, concurrency=3).run_many([f"Question {n}" for n in range(30)])
        await job
        return asyncio.get_running_loop().time(), job.limits

    took, limits = run_virtual(main)
    assert took > 30 / 3 * 1.0
    ours, theirs = (limits[limits.target == name] for name in ("openai:a", "anthropic:b"))
    assert (set(ours.limit), set(theirs.limit)) == ({32}, {3})
    assert theirs.in_flight.max() == 3


def test_rows_do_not_wait_for_a_target_that_is_down_while_another_is_left() -> None:
    first, second = Simulator(faults=Faults.outage(0.0, 300.0)), Simulator()
    other = llmlab.Lab("anthropic:b", transport=second)
    one = llmlab.Lab("openai:a", transport=first, fallback=other, seed=1)

    async def main() -> float:
        out = await one.run_many([f"Question {n}" for n in range(300)])
        assert out.status.eq("ok").all()
        return asyncio.get_running_loop().time()

    assert run_virtual(main) < 30
    assert first.requests < 100


def test_the_last_target_is_waited_for() -> None:
    down = Faults.outage(0.0, 120.0)
    other = llmlab.Lab("anthropic:b", transport=Simulator(faults=down))
    one = llmlab.Lab("openai:a", transport=Simulator(faults=down), fallback=other, seed=1)

    async def main() -> pd.DataFrame:
        return await one.run_many([f"Question {n}" for n in range(50)])

    assert run_virtual(main).status.eq("ok").all()
