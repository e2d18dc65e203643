"""Calls by plan: a server answers first requests by one plan and their copies by another, all in virtual time."""

import asyncio
import contextvars
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.call import Call, Handler, Policy, chain
from llmlab.clock import run_virtual
from llmlab.errors import BadRequest, LLMError, RateLimited, ServerError, TimedOut
from llmlab.events import Admitted, Attempted, Delta
from llmlab.flow import Flow, Hold
from llmlab.policies.admit import Admit
from llmlab.policies.hedge import CAP, CROWD, GRAIN, Hedge
from llmlab.policies.retry import Retry
from llmlab.policies.timeout import Timeout
from llmlab.rules.slots import Slots
from llmlab.types import Prompt, Reply, Usage

INPUT, USD = 10, 0.25
FIRST, STALL, STRAGGLING = 1.0, 0.3, 4.14
"""Seconds after which, as `usual` calls teach, one is late to begin, stalled, straggling."""


@dataclass(frozen=True)
class Plan:
    """One request: seconds before each piece, from the last one to the end, and of cleaning up."""

    pieces: tuple[float, ...] = ()
    rest: float = 0.0
    error: Exception | None = None
    closing: float = 0.0


def usual(n: int = 0) -> Plan:
    return Plan((FIRST - n % 25 / 50, 0.1, 0.1, 0.1, 0.1), 0.18)


NEVER = Plan((1000.0,))


class Server:
    """Answers by plan and keeps the account of a call as a Provider does."""

    def __init__(self, plan: Callable[[Call], Plan]) -> None:
        self.plan = plan
        self.sent: list[tuple[float, str]] = []
        self.open: list[str] = []

    @property
    def copied_at(self) -> list[float]:
        return [at for at, kind in self.sent if kind == "hedge"]

    async def __call__(self, call: Call) -> Reply:
        loop = asyncio.get_running_loop()
        plan, sent, kind = self.plan(call), loop.time(), call.kind
        call.attempts, call.kind, call.sent, call.usage = call.attempts + 1, "retry", sent, Usage(INPUT, 0)
        self.sent.append((sent, kind))
        self.open.append(kind)
        error: LLMError | None = LLMError("given up")
        try:
            try:
                await self._answer(call, plan, kind)
            finally:
                await asyncio.sleep(plan.closing)
            error = None
            return Reply(kind, "stop", "test", "model", call.usage, cost_usd=USD)
        except LLMError as failure:
            error = failure
            raise
        finally:
            self.open.remove(kind)
            if error is not None:
                call.waste(call.usage, USD)
            call.emit(Attempted(call.index, call.attempts, sent, loop.time(), error, call.usage, USD, kind))

    async def _answer(self, call: Call, plan: Plan, kind: str) -> None:
        for pause in plan.pieces:
            await asyncio.sleep(pause)
            if call.hold is not None:
                await call.hold.wait()
            call.usage = (call.usage or Usage()) + Usage(0, 1)
            if call.stream:
                call.emit(Delta(call.index, kind))
        await asyncio.sleep(plan.rest)
        if plan.error is not None:
            raise plan.error


@dataclass
class Row:
    """One call, and what became of it."""

    call: Call
    events: list[Any]
    hedge: Hedge
    server: Server
    result: Any = None
    began: float = 0.0
    took: float = 0.0

    @property
    def pieces(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Delta)]

    @property
    def attempts(self) -> list[tuple[int, str]]:
        return [(event.attempt, event.kind) for event in self.events if isinstance(event, Attempted)]

    @property
    def copied_after(self) -> list[float]:
        return [at - self.began for at in self.server.copied_at]


def a_call(index: int = 0, text: str = "hello", *, stream: bool = True, **fields: Any) -> tuple[Call, list[Any]]:
    events: list[Any] = []
    return Call(index, Prompt.of(text), events.append, random.Random(0), stream, index, **fields), events


async def warm(handler: Handler, server: Server, *, calls: int = 60, stream: bool = True) -> None:
    plan, server.plan = server.plan, lambda call: usual(call.index)
    await asyncio.gather(*(handler(a_call(n, stream=stream)[0]) for n in range(calls)))
    server.plan = plan
    server.sent.clear()


async def _answer(handler: Handler, index: int) -> Reply:
    return await handler(a_call(index, stream=False)[0])


def no_timers() -> bool:
    timers = asyncio.get_running_loop()._scheduled  # type: ignore[attr-defined]
    return all(timer.cancelled() for timer in timers)


def one(
    original: Plan,
    copy: Plan = NEVER,
    *,
    hedge: Hedge | None = None,
    above: tuple[Policy, ...] = (),
    below: tuple[Policy, ...] = (),
    calls: int = 60,
    meanwhile: Callable[["Row", "asyncio.Future[Reply]"], Awaitable[None]] | None = None,
    **fields: Any,
) -> Row:
    """Warm up with usual calls, then make one whose two requests go by these plans."""

    async def main() -> Row:
        server = Server(lambda call: copy if call.kind == "hedge" else original)
        call, events = a_call(**fields)
        row = Row(call, events, hedge or Hedge(samples=10), server)
        handler, loop = chain((*above, row.hedge, *below), server), asyncio.get_running_loop()
        await warm(handler, server, calls=calls)
        row.began = loop.time()
        task = asyncio.ensure_future(handler(call))
        if meanwhile is not None:
            await meanwhile(row, task)
        (row.result,) = await asyncio.gather(task, return_exceptions=True)
        row.took = loop.time() - row.began
        assert server.open == [], "a request was still open when the policy returned"
        assert len(asyncio.all_tasks()) == 1, "a task is left behind"
        assert no_timers(), "a timer is left behind"
        assert not isinstance(call.emit, partial), "the call still speaks through the policy"
        return row

    return run_virtual(main)


async def _a_flow() -> Flow:
    return Flow()


def about(seconds: float) -> Any:
    return pytest.approx(seconds, abs=2 * GRAIN)


# -- when a copy is sent ------------------------------------------------------------------------------------------


def test_a_call_in_time_is_left_alone() -> None:
    row = one(usual())
    assert row.result.content == "first"
    assert (row.copied_after, row.hedge.hedged, row.attempts) == ([], 0, [(1, "first")])


def test_a_stream_late_to_begin_is_copied_after_the_p99_of_first_pieces() -> None:
    row = one(Plan((9.0,)), Plan((0.5, 0.1)))
    assert row.copied_after == [about(FIRST)]
    assert (row.result.content, row.took) == ("hedge", about(FIRST + 0.6))
    assert (row.hedge.hedged, row.hedge.won) == (1, 1)


def test_a_stalled_stream_is_copied_after_k_times_the_p999_of_gaps() -> None:
    row = one(Plan((0.9, 0.1, 9.0)), Plan((0.5,)))
    assert row.copied_after == [about(1.0 + STALL)]
    assert row.result.content == "hedge"
    assert one(Plan((0.9, 0.1, 9.0)), hedge=Hedge(samples=10, k=9)).copied_after == [about(1.0 + 3 * STALL)]


def test_a_stream_that_stalls_early_is_not_given_the_time_of_a_late_beginner() -> None:
    assert one(Plan((0.45, 9.0)), Plan((0.5,))).copied_after == [about(0.45 + STALL)]


def test_a_plain_call_is_copied_when_it_straggles_and_nobody_waits() -> None:
    row = one(Plan(rest=9.0), Plan(rest=0.5), stream=False)
    assert row.copied_after == [about(STRAGGLING)]
    assert row.result.content == "hedge"


@pytest.mark.parametrize("free", [0, 1])
def test_nothing_straggles_while_somebody_waits_to_be_sent(free: int) -> None:
    """The second call frees its slot after 6 s; until then a third one waits for it, unless there is one more."""

    async def meanwhile(row: Row, _: object) -> None:
        handler = chain((row.hedge, gate), Server(lambda call: Plan(rest=6.0 if call.index == 1 else 1.0)))
        await asyncio.sleep(0.1)
        others = [asyncio.create_task(_answer(handler, n)) for n in (1, 2)]
        await asyncio.sleep(5.5)
        assert (row.hedge.hedged > 0) == free
        await asyncio.wait(others)

    gate = Admit((Slots(2 + free),))
    row = one(Plan(rest=30.0), Plan(rest=0.5), stream=False, below=(gate,), meanwhile=meanwhile)
    if free:
        assert row.copied_after == [about(STRAGGLING)]
    else:
        assert 6.1 <= row.copied_after[0] <= 6.1 + STRAGGLING / 4 + GRAIN


def test_too_few_successes_teach_nothing() -> None:
    assert one(Plan((9.0,)), hedge=Hedge(samples=61)).hedge.hedged == 0
    assert one(Plan((0.5, 9.0)), hedge=Hedge(samples=25)).copied_after == [about(STRAGGLING)], "240 gaps are too few"


def test_prompts_of_another_length_teach_nothing() -> None:
    assert one(Plan((9.0,)), text="hello " * 50).hedge.hedged == 0


def test_a_success_among_calls_already_under_way_may_be_the_one_that_teaches() -> None:
    async def main() -> list[float]:
        server = Server(lambda call: Plan(rest=60.0 if call.index == 0 and call.kind == "first" else 1.0))
        handler = chain((Hedge(),), server)
        await asyncio.gather(*(handler(a_call(n, stream=False)[0]) for n in range(30)))
        return server.copied_at

    assert run_virtual(main) == [about(3.0)]


@pytest.mark.parametrize("late", [Plan((3.0, 0.1)), Plan((0.5, 3.0))])
def test_a_loser_counts_by_how_long_it_was_waited_for(late: Plan) -> None:
    """Else the slowest would be missing, and less and less would count as late. But it is no quick answer."""

    async def main() -> int:
        server, hedge = Server(lambda _: usual()), Hedge(samples=10, share=1.0)
        handler = chain((hedge,), server)
        await warm(handler, server)
        server.plan = lambda call: Plan((0.1,)) if call.kind == "hedge" else late
        for n in range(100):
            await handler(a_call(n)[0])
        assert hedge._watch.kind(Prompt.of("hello"))[1].limit >= STRAGGLING - GRAIN
        return hedge.hedged

    assert 0 < run_virtual(main) < 100


def test_what_is_late_follows_the_latest_successes() -> None:
    async def main() -> list[float]:
        server, hedge = Server(lambda call: Plan((3.0 if call.index < 1200 else 1.0,))), Hedge()
        for n in range(24):
            await asyncio.gather(*(hedge(a_call(100 * n + m)[0], server) for m in range(100)))
        server.plan = lambda call: Plan((0.1 if call.kind == "hedge" else 9.0,))
        began = asyncio.get_running_loop().time()
        await hedge(a_call()[0], server)
        return [at - began for at in server.copied_at]

    assert run_virtual(main) == [about(1.0)]


def test_pieces_that_come_all_at_once_make_no_stall_of_a_blink() -> None:
    async def main() -> int:
        server, hedge = Server(lambda _: Plan((0.5, *[0.0] * 30))), Hedge(samples=10)
        await asyncio.gather(*(hedge(a_call(n)[0], server) for n in range(20)))
        server.plan = lambda _: Plan((0.4, *[GRAIN * 0.9] * 5))
        await hedge(a_call()[0], server)
        return hedge.hedged

    assert run_virtual(main) == 0


LONG = "hello " * 50


@pytest.mark.parametrize("budget", [True, False])
def test_a_call_is_copied_in_time_whatever_the_others_wait_for(budget: bool) -> None:
    """A call of a kind that takes 100 s has set the timer. Or a late one waits for the budget, until another ends."""

    async def main() -> list[float]:
        took = {0: 9.0, 1: 200.0, 2: 0.4}
        server, hedge = Server(lambda _: Plan((100.0,))), Hedge(samples=10, share=1.0)
        await asyncio.gather(*(hedge(a_call(n, LONG)[0], server) for n in range(10)))
        server.plan = lambda call: Plan((0.9 + call.index / 100,))
        await asyncio.gather(*(hedge(a_call(n)[0], server) for n in range(11)))
        server.sent.clear()
        server.plan = lambda call: Plan((0.1 if call.kind == "hedge" else took[call.index],))
        loop, tasks = asyncio.get_running_loop(), [asyncio.create_task(hedge(a_call(1, LONG)[0], server))]
        await asyncio.sleep(0.5)
        began = loop.time()
        tasks.append(asyncio.create_task(hedge(a_call(0)[0], server)))
        if not budget:
            hedge._watch._tokens = 0.0
            await asyncio.sleep(2.0)
            tasks.append(asyncio.create_task(hedge(a_call(2)[0], server)))
        await asyncio.sleep(5.0)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        return [at - began for at in server.copied_at]

    assert run_virtual(main) == [about(1.0 if budget else 2.4)]


def test_a_copy_that_was_refused_does_not_wait_to_be_sent() -> None:
    async def refuse(call: Call, inner: Handler) -> Reply:
        if call.kind == "hedge" and call.index == 0:
            raise BadRequest("no")
        return await inner(call)

    async def meanwhile(row: Row, _: object) -> None:
        await asyncio.sleep(1.0)
        handler = chain((row.hedge, refuse), row.server)
        assert (await handler(a_call(1, stream=False)[0])).content == "hedge"

    row = one(Plan(rest=60.0), Plan(rest=0.5), stream=False, below=(refuse,), meanwhile=meanwhile)
    assert row.copied_after == [about(1.0 + STRAGGLING)]


# -- when none is sent --------------------------------------------------------------------------------------------


def test_a_probe_is_never_copied() -> None:
    assert one(Plan((9.0,)), probe=True).hedge.hedged == 0


@pytest.mark.parametrize(
    ("error", "after"),
    [
        (RateLimited("slow"), 10.0),
        (ServerError("boom"), 10.0),
        (TimedOut("late", phase="attempt"), 10.0),
        (BadRequest("no"), FIRST),
    ],
)
def test_no_copy_soon_after_a_429_or_a_failure_of_the_provider(error: LLMError, after: float) -> None:
    async def meanwhile(row: Row, _: object) -> None:
        with pytest.raises(LLMError):
            await row.hedge(a_call(1)[0], Server(lambda _: Plan(error=error)))

    assert one(Plan((60.0,)), Plan((0.5,)), meanwhile=meanwhile).copied_after == [about(after)]


def test_a_429_withdraws_the_copies_that_still_stand_in_line() -> None:
    async def meanwhile(row: Row, _: object) -> None:
        await asyncio.sleep(2.0)
        assert (row.hedge.hedged, gate.waiting) == (1, 1)
        with pytest.raises(RateLimited):
            await row.hedge(a_call(1)[0], Server(lambda _: Plan(error=RateLimited("slow"))))
        await asyncio.sleep(0)
        assert gate.waiting == 0

    gate = Admit((Slots(1),))
    row = one(Plan((9.0,)), below=(gate,), meanwhile=meanwhile)
    assert (row.result.content, row.attempts) == ("first", [(1, "first")])


def test_a_failing_copy_ends_copying_for_a_while() -> None:
    async def meanwhile(row: Row, task: "asyncio.Future[Reply]") -> None:
        await task
        row.server.plan = lambda _: Plan((5.0,))
        assert (await row.hedge(a_call(1)[0], row.server)).content == "first"

    assert len(one(Plan((4.0,)), Plan(error=RateLimited("slow")), meanwhile=meanwhile).copied_after) == 1


@pytest.mark.parametrize("share", [0.02, 0.1])
def test_extra_load_is_bounded_by_the_share_over_thousands_of_calls(share: float) -> None:
    """Each call takes longer to begin than all before it: every one is late, and is copied if it may be."""

    async def main() -> int:
        server, numbers = Server(lambda call: Plan((0.2 if call.kind == "hedge" else 1.0 + call.index / 100,))), count()
        handler = chain((Hedge(share=share),), server)

        async def work() -> None:
            while (n := next(numbers)) < 3000:
                await handler(a_call(n)[0])

        await asyncio.gather(*(work() for _ in range(50)))
        return len(server.copied_at)

    assert 0.9 * share * 3000 <= run_virtual(main) <= 1 + share * 3000


def test_no_more_than_a_few_copies_are_saved_up() -> None:
    async def main() -> int:
        server = Server(lambda _: Plan((4.0,)))
        handler = chain((Hedge(samples=10),), server)
        await warm(handler, server, calls=3000)
        await asyncio.gather(*(handler(a_call(n)[0]) for n in range(40)))
        return len(server.copied_at)

    assert run_virtual(main) == CAP


def test_one_copy_at_most_per_pass() -> None:
    row = one(Plan((9.0, 9.0)), Plan(error=BadRequest("no")), hedge=Hedge(samples=10, share=1.0))
    assert len(row.copied_after) == 1


@pytest.mark.parametrize(("pieces", "shut"), [((0.5, 0.1, 9.0), (0.55, 20.0)), ((0.5, 9.0), (0.2, 20.0))])
def test_nothing_is_late_while_our_own_reader_is_behind(pieces: tuple[float, ...], shut: tuple[float, float]) -> None:
    """The provider has said something meanwhile, for all we know: its silence counts when the reader is back."""

    async def meanwhile(_: Row, __: object) -> None:
        await asyncio.sleep(shut[0])
        flow.close()
        await asyncio.sleep(shut[1] - shut[0])
        flow.reopen()

    flow = run_virtual(_a_flow)
    row = one(Plan((*pieces, 50.0)), Plan((0.5,)), hold=Hold(flow), meanwhile=meanwhile)
    assert row.copied_after == [about(20.0 + STALL)]
    assert row.hedge._watch.gaps.limit < 3.0, "nor does it count as a gap"


def test_a_copy_has_a_hold_of_its_own() -> None:
    """The deadline of an attempt stands still while its own reading waits, not the other's."""

    async def endpoint(call: Call) -> Reply:
        holds.append(call.hold)
        return await Server(lambda _: Plan((0.5,) if call.kind == "hedge" else (9.0,)))(call)

    async def main() -> None:
        server, hedge = Server(lambda _: usual()), Hedge(samples=10)
        await warm(chain((hedge,), server), server)
        await hedge(a_call(hold=Hold(Flow()))[0], endpoint)

    holds: list[Hold | None] = []
    run_virtual(main)
    mine, theirs = holds
    assert mine is not None
    assert theirs is not None
    assert mine is not theirs
    assert mine._flow is theirs._flow


# -- whose answer -------------------------------------------------------------------------------------------------


def test_only_the_pieces_of_whoever_begins_first_are_shown_and_the_other_is_cancelled_then() -> None:
    row = one(Plan((1.7, 0.1)), Plan((0.5, 0.1, 0.1), 3.0))
    assert row.pieces == ["hedge"] * 3
    ended = {event.kind: event.ended - row.began for event in row.events if isinstance(event, Attempted)}
    assert ended == {"first": about(FIRST + 0.5), "hedge": about(FIRST + 3.7)}
    row = one(Plan((1.2, 0.1, 0.1), 3.0), Plan((0.5,)))
    assert (row.result.content, row.pieces, row.hedge.won) == ("first", ["first"] * 3, 0)
    assert row.attempts == [(2, "hedge"), (1, "first")]


def test_a_copy_that_leads_goes_on_when_its_text_was_shown() -> None:
    async def meanwhile(row: Row, _: object) -> None:
        await asyncio.sleep(FIRST + 0.55)
        row.call.committed = True

    assert one(Plan((9.0,)), Plan((0.5, 0.1, 0.1)), meanwhile=meanwhile).pieces == ["hedge"] * 3


def test_pieces_of_a_copy_of_what_has_begun_are_dropped_and_its_reply_counts() -> None:
    row = one(Plan((0.9, 9.0)), Plan((0.5, 0.1, 0.1)))
    assert (row.result.content, row.pieces) == ("hedge", ["first"])


def test_nothing_is_heard_of_a_copy_after_the_originals_answer() -> None:
    async def talks_on(call: Call, inner: Handler) -> Reply:
        try:
            return await inner(call)
        except asyncio.CancelledError:
            call.emit(Delta(call.index, "last words"))
            raise

    row = one(Plan(rest=1.5), Plan((9.0,)), below=(talks_on,))
    assert (row.result.content, row.call.attempts, row.pieces) == ("first", 2, [])


def test_a_stalled_stream_that_goes_on_and_ends_first_is_the_answer() -> None:
    row = one(Plan((0.9, 1.0, 0.1)), Plan((0.5, 0.1), 9.0))
    assert (row.result.content, row.pieces, row.hedge.hedged) == ("first", ["first"] * 3, 1)


def test_all_other_events_of_both_pass_unchanged() -> None:
    row = one(Plan((9.0,)), Plan((0.5,)), below=(Admit((Slots(60),)),))
    assert [type(event) for event in row.events] == [Admitted, Admitted, Delta, Attempted, Attempted]


def test_text_that_was_shown_forbids_a_copy() -> None:
    assert one(Plan((0.9, 3.0)), committed=True).hedge.hedged == 0


@pytest.mark.parametrize("error", [None, ServerError("boom")])
@pytest.mark.parametrize("at", [1.3, 1.7])
def test_text_shown_meanwhile_makes_the_copy_worthless(at: float, error: Exception | None) -> None:
    """Shown when no further piece comes, the copy ends at 2.1 s in vain; when one does, it is cancelled at once."""

    async def meanwhile(row: Row, _: object) -> None:
        await asyncio.sleep(at)
        row.call.committed = True

    row = one(Plan((0.9, 0.6), 1.0, error), Plan((0.5, 0.1), 0.2), meanwhile=meanwhile)
    assert row.hedge.hedged == 1
    assert row.result is error or row.result.content == "first"
    assert row.took == about(2.5)
    assert row.call.attempts == 2
    copy = next(event for event in row.events if isinstance(event, Attempted) and event.kind == "hedge")
    assert copy.ended - row.began == about(1.5 if at < 1.5 else 2.0)


# -- unhappy paths ------------------------------------------------------------------------------------------------

BOOM, OTHER = ServerError("the original's"), ServerError("the copy's")


@pytest.mark.parametrize(
    ("original", "copy", "result"),
    [
        (Plan((3.0,)), Plan(rest=0.5, error=OTHER), "first"),
        (Plan(rest=1.5, error=BOOM), Plan((1.0, 0.1)), "hedge"),
        (Plan((0.9,), 0.7, error=BOOM), Plan((1.0, 0.1)), "hedge"),
        (Plan(rest=3.0, error=BOOM), Plan(rest=0.5, error=OTHER), BOOM),
        (Plan(rest=1.5, error=BOOM), Plan(rest=3.0, error=OTHER), BOOM),
        (Plan(rest=1.5, error=BOOM), Plan((1.0,), 1.0, error=OTHER), BOOM),
        (Plan((9.0,)), Plan((0.5,), 1.0, error=OTHER), OTHER),
        (Plan((9.0,)), Plan((0.5,), 1.0, error=KeyError("bug")), KeyError),
        (Plan((3.0,)), Plan(rest=0.5, error=KeyError("bug")), "first"),
    ],
)
def test_who_fails_and_what_comes_of_it(original: Plan, copy: Plan, result: Any) -> None:
    row = one(original, copy)
    assert row.result is result or getattr(row.result, "content", type(row.result)) == result
    assert row.call.attempts == 2


def test_a_retry_goes_on_counting_where_both_have_ended() -> None:
    row = one(Plan((9.0,)), Plan((0.5,), error=OTHER), above=(Retry(attempts=2, jitter="none"),))
    assert row.attempts[:2] == [(1, "first"), (2, "hedge")]
    assert [attempt for attempt, _ in row.attempts] == list(range(1, 1 + row.call.attempts))
    assert row.call.attempts >= 3


@pytest.mark.parametrize("at", [0.5, 1.2, 1.7, 2.5])
@pytest.mark.parametrize("closing", [0.0, 2.0])
def test_a_cancellation_cancels_both_and_waits_for_both(at: float, closing: float) -> None:
    async def meanwhile(_: Row, task: "asyncio.Future[Reply]") -> None:
        await asyncio.sleep(at)
        task.cancel()

    gate = Admit((Slots(60),))
    row = one(Plan((9.0,), closing=closing), Plan((0.6,), 1.0, closing=closing), below=(gate,), meanwhile=meanwhile)
    assert isinstance(row.result, asyncio.CancelledError) or at > FIRST + 1.6
    assert in_use(gate) == 0
    assert row.hedge.hedged == (at > FIRST), "what is being cancelled is not copied"
    original = next(event for event in row.events if isinstance(event, Attempted) and event.kind == "first")
    if at < FIRST + 0.6:
        assert original.ended - row.began == about(at + closing), "its cleaning up is not broken into"


def test_a_second_cancellation_does_not_leave_the_copy_behind() -> None:
    async def meanwhile(row: Row, task: "asyncio.Future[Reply]") -> None:
        await asyncio.sleep(1.5)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0.1)
            assert not task.done() or not row.server.open

    row = one(Plan((9.0,)), Plan((9.0,), closing=50.0), meanwhile=meanwhile)
    assert isinstance(row.result, asyncio.CancelledError)
    assert row.took < 3.0, "its cleaning up hears of the second one"
    assert row.call.attempts == 2


def test_an_answer_that_a_cancellation_overtakes_is_wasted() -> None:
    """It came after 1.2 s; then the copy's cleaning up was waited for, when somebody lost patience."""

    async def meanwhile(_: Row, task: "asyncio.Future[Reply]") -> None:
        await asyncio.sleep(2.0)
        task.cancel()

    row = one(Plan((1.2,)), Plan((9.0,), closing=5.0), meanwhile=meanwhile)
    assert isinstance(row.result, asyncio.CancelledError)
    assert row.call.wasted == Usage(2 * INPUT, 1)


def test_a_cancellation_at_the_moment_of_the_copys_win_is_not_taken_for_our_own() -> None:
    async def meanwhile(row: Row, task: "asyncio.Future[Reply]") -> None:
        def emit(event: Any) -> None:
            row.events.append(event)
            if isinstance(event, Delta):
                task.cancel()

        row.call.emit = emit

    row = one(Plan((9.0,)), Plan((0.5,), 1.0), meanwhile=meanwhile)
    assert isinstance(row.result, asyncio.CancelledError)
    assert row.took == about(FIRST + 0.5)


@pytest.mark.parametrize("below", [True, False])
def test_deadlines_around_the_moment_of_the_copys_win_are_kept(below: bool) -> None:
    """Both cancel the same task. The copy begins at 1.75 s; a deadline below ends the original alone."""
    results = set()
    for n in range(-12, 13):
        deadline = 1.75 + n / 1e6
        timeout = {"below": (Timeout(attempt=deadline),)} if below else {"above": (Timeout(total=deadline),)}
        row = one(Plan((9.0,)), Plan((0.75,)), **timeout)  # type: ignore[arg-type]
        results.add(row.result.content if isinstance(row.result, Reply) else type(row.result).__name__)
    assert results == ({"hedge"} if below else {"TimedOut", "hedge"})


def test_a_loser_that_closes_slowly_is_waited_for_but_not_before_the_answer() -> None:
    assert one(Plan((9.0,), closing=0.4), Plan((0.5,), 1.0)).took == about(FIRST + 1.5)
    assert one(Plan((0.9, 9.0), closing=0.4), Plan((0.5,))).took == about(0.9 + STALL + 0.9)
    assert one(Plan((1.2,), 0.3), Plan((9.0,), closing=2.0)).took == about(1.2 + 2.0), "it is asked to end once"


# -- slots and accounts -------------------------------------------------------------------------------------------


def in_use(gate: Admit) -> int:
    (slots,) = gate.rules
    assert isinstance(slots, Slots)
    return slots.in_use


def test_the_copy_takes_a_slot_of_its_own_and_the_losers_is_free_when_the_answer_comes() -> None:
    async def meanwhile(_: Row, __: object) -> None:
        await asyncio.sleep(1.2)
        seen.append(in_use(gate))

    gate, seen = Admit((Slots(60),)), list[int]()
    one(Plan((9.0,)), Plan((0.5,)), below=(gate,), meanwhile=meanwhile)
    assert (seen, in_use(gate)) == ([2], 0)


def test_without_a_free_slot_the_copy_is_never_sent() -> None:
    gate = Admit((Slots(1),))
    row = one(Plan((5.0,)), Plan((0.5,)), below=(gate,))
    assert (row.hedge.hedged, row.copied_after, row.result.content, row.call.attempts) == (1, [], "first", 1)
    assert (in_use(gate), gate.waiting) == (0, 0)


def test_the_time_in_line_is_the_winners() -> None:
    gate = Admit((Slots(1),))
    row = one(Plan(rest=3.0, error=BadRequest("no")), Plan((0.5,)), below=(gate,), queue_s=7.0)
    assert (row.result.content, row.call.queue_s) == ("hedge", about(7.0 + 3.0 - FIRST))

    async def queues(call: Call, inner: Handler) -> Reply:
        call.queue_s += 0.5 if call.kind == "first" else 0.25
        return await inner(call)

    assert one(Plan((9.0,)), Plan((0.5,)), below=(queues,), queue_s=7.0).call.queue_s == 7.25
    assert one(Plan((1.2,)), Plan((0.5,)), below=(queues,), queue_s=7.0).call.queue_s == 7.5


@pytest.mark.parametrize("price", [USD, None])
def test_the_account_holds_the_sum_of_both(price: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.USD", price)
    row = one(Plan((0.9, 0.1, 9.0)), Plan((0.5,)), attempts=3, kind="retry", wasted=Usage(5, 0), wasted_usd=price)
    assert row.attempts == [(5, "hedge"), (4, "retry")]
    assert (row.call.attempts, row.call.wasted) == (5, Usage(5 + INPUT, 2))
    assert row.call.wasted_usd == (None if price is None else 2 * price)
    row = one(Plan((3.0,)), Plan(error=BOOM), wasted=Usage(5, 0), wasted_usd=price)
    assert (row.call.wasted, row.call.wasted_usd) == (Usage(5 + INPUT, 0), None if price is None else 2 * price)
    row = one(Plan((3.0, 0.1, 0.1)), Plan((3.0,)))
    assert (row.result.content, row.call.wasted) == ("first", Usage(INPUT, 0))


def test_the_call_speaks_for_the_winner_afterwards() -> None:
    async def probes(call: Call, inner: Handler) -> Reply:
        call.probe = call.kind == "hedge"
        return await inner(call)

    row = one(Plan((9.0,)), Plan((0.5, 0.1)), below=(probes,))
    assert row.call.usage == row.result.usage
    assert (row.call.sent, row.call.probe) == (row.server.copied_at[0], True)
    row = one(Plan((9.0,)), Plan((0.5,), error=OTHER), below=(probes,))
    assert (row.call.sent, row.call.probe) == (row.server.copied_at[0], True), "also when it fails in the lead"
    assert not one(Plan(rest=3.0), Plan(error=OTHER), below=(probes,)).call.probe


def test_a_complete_answer_that_nobody_needs_is_wasted_too() -> None:
    """The original answers although it was cancelled: the copy leads, and was read."""

    async def stubborn(call: Call) -> Reply:
        if call.kind == "hedge":
            return await Server(lambda _: Plan((0.5,), 1.0))(call)
        call.attempts, call.sent = call.attempts + 1, asyncio.get_running_loop().time()
        try:
            await asyncio.sleep(9.0)
        except asyncio.CancelledError:
            call.emit(Delta(call.index, "first"))
        return Reply("first", "stop", "test", "model", Usage(100, 10), cost_usd=1.0)

    async def main() -> tuple[Reply, Call, list[Any]]:
        server, hedge = Server(lambda _: usual()), Hedge(samples=10)
        await warm(chain((hedge,), server), server)
        call, events = a_call()
        return await hedge(call, stubborn), call, events

    reply, call, events = run_virtual(main)
    assert (reply.content, call.wasted, call.wasted_usd) == ("hedge", Usage(100, 10), 1.0)
    assert [event.text for event in events if isinstance(event, Delta)] == ["hedge"]


seconds = st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.9, 1.0, 1.3, 2.0, 5.0])
errors = st.sampled_from([None, None, None, ServerError("boom"), BadRequest("no"), RateLimited("slow")])
slow = st.sampled_from([0.3, 0.9, 1.3, 5.0])
originals = st.builds(Plan, st.lists(slow, max_size=2).map(tuple), slow, errors, st.sampled_from([0.0, 0.2]))
copies = st.builds(Plan, st.lists(seconds, max_size=4).map(tuple), seconds, errors, st.sampled_from([0.0, 0.2]))


@settings(max_examples=200, deadline=None)
@given(
    original=originals, copy=copies, stream=st.booleans(), slots=st.sampled_from([1, 2, 2, 2]),
    cancelled=st.none() | st.none() | seconds, shown=st.integers(1, 6),
)  # fmt: skip
def test_whatever_happens_the_books_are_right(
    original: Plan, copy: Plan, stream: bool, slots: int, cancelled: float | None, shown: int
) -> None:
    async def meanwhile(row: Row, task: "asyncio.Future[Reply]") -> None:
        def emit(event: Any) -> None:
            row.events.append(event)
            row.call.committed = len(row.pieces) >= shown

        row.call.emit = emit
        if cancelled is not None:
            await asyncio.wait([task], timeout=cancelled)
            task.cancel()

    gate = Admit((Slots(slots),))
    row = one(original, copy, hedge=Hedge(samples=2), calls=6, stream=stream, below=(gate,), meanwhile=meanwhile)
    ended = [event for event in row.events if isinstance(event, Attempted)]
    assert sorted(number for number, _ in row.attempts) == list(range(1, row.call.attempts + 1))
    assert row.call.attempts == len(row.server.sent) <= 2
    used = sum((event.usage for event in ended if event.usage is not None), Usage())
    taken = row.result.usage if isinstance(row.result, Reply) else None
    assert used == (row.call.wasted or Usage()) + (taken or Usage())
    assert len(set(row.pieces)) <= 1
    if row.call.committed and isinstance(row.result, Reply):
        assert row.result.content == row.pieces[0], "what was read is what was answered"
    assert (in_use(gate), gate.waiting) == (0, 0)
    if isinstance(row.result, LLMError):
        assert row.result is original.error or row.result is copy.error
    if cancelled is None:
        assert not isinstance(row.result, asyncio.CancelledError)


# -- as a whole ---------------------------------------------------------------------------------------------------


def tail(hedge: bool, *, seed: int = 1, calls: int = 4000) -> tuple[list[float], int, list[Any]]:
    """Times of streamed calls at 64 slots, most of which begin after some 0.4 s and one in 150 after 5 s and more."""
    rng = random.Random(seed)

    def plan(_: Call) -> Plan:
        stuck = 5.0 * rng.paretovariate(1.1) if rng.random() < 1 / 150 else 0.0
        return Plan((rng.lognormvariate(-1.0, 0.3) + stuck, *(rng.expovariate(20.0) for _ in range(3))))

    async def main() -> tuple[list[float], int, list[Any]]:
        server, gate = Server(plan), Admit((Slots(64),))
        handler = chain((Hedge(), gate) if hedge else (gate,), server)
        rows = [a_call(n) for n in range(calls)]

        async def go(call: Call, events: list[Any]) -> float:
            await handler(call)
            now = asyncio.get_running_loop().time()
            return now - min(event.sent for event in events if isinstance(event, Attempted))

        took = await asyncio.gather(*(go(*row) for row in rows))
        return sorted(took), len(server.sent) - calls, [event for _, events in rows for event in events]

    return run_virtual(main)


def test_a_heavy_tail_gets_shorter_for_few_extra_requests() -> None:
    plain, none, _ = tail(hedge=False)
    hedged, extra, _ = tail(hedge=True)
    assert none == 0 < extra <= 1 + 0.02 * 4000
    assert hedged[-5] < plain[-5] / 4, (plain[-5], hedged[-5])  # p99.9
    assert hedged[2000] == pytest.approx(plain[2000], rel=0.05)


def test_the_same_seed_gives_the_same_run() -> None:
    def told(events: list[Any]) -> list[tuple[Any, ...]]:
        return [(e.attempt, e.kind, e.sent, e.ended) for e in events if isinstance(e, Attempted)]

    assert told(tail(hedge=True, calls=500)[2]) == told(tail(hedge=True, calls=500)[2])


def test_waiting_takes_few_timers() -> None:
    async def meanwhile(_: Row, __: object) -> None:
        loop = asyncio.get_running_loop()
        call_at = loop.call_at

        def call_at_counted(when: float, *args: Any, **more: Any) -> asyncio.TimerHandle:
            armed.append(when)
            return call_at(when, *args, **more)

        loop.call_at = call_at_counted  # type: ignore[assignment, method-assign]

    armed: list[float] = []
    one(Plan((0.2, *[0.1] * 999)), hedge=Hedge(samples=10, straggler=1e6), meanwhile=meanwhile)
    assert len(armed) - 1000 <= 100 / STALL + 3, "no more than one each time a stream might have stalled"
    armed.clear()
    one(Plan(rest=1000.0), stream=False, hedge=Hedge(samples=10), meanwhile=meanwhile)
    assert len(armed) <= 5


@pytest.mark.parametrize(("calls", "every"), [(100, GRAIN), (4 * CROWD, 1.5 * GRAIN)])
def test_the_calls_are_looked_at_together_and_not_each_when_it_may_be_due(calls: int, every: float) -> None:
    """They come one by one within 0.5 s, and each begins a moment before it would be late."""

    async def main() -> None:
        server, hedge, loop = Server(lambda _: usual()), Hedge(samples=10), asyncio.get_running_loop()
        await warm(chain((hedge,), server), server)
        server.plan = lambda _: Plan((FIRST - 0.001,))
        call_at = loop.call_at

        def call_at_noted(when: float, callback: Any, *args: Any, **more: Any) -> asyncio.TimerHandle:
            if callback == hedge._watch._look:
                looks.append(when)
            return call_at(when, callback, *args, **more)

        async def later(n: int) -> None:
            await asyncio.sleep(0.5 * n / calls)
            await hedge(a_call(n)[0], server)

        loop.call_at = call_at_noted  # type: ignore[assignment, method-assign]
        await asyncio.gather(*(later(n) for n in range(calls)))

    looks: list[float] = []
    run_virtual(main)
    assert 10 <= len(looks) <= 0.5 / every + 10


def test_a_copy_runs_in_the_context_of_its_row() -> None:
    async def endpoint(call: Call) -> Reply:
        contexts.append((call.index, call.kind, row.get()))
        return await server(call)

    async def go(n: int) -> None:
        row.set(n)
        await hedge(a_call(n, stream=False)[0], endpoint)

    async def main() -> None:
        await warm(chain((hedge,), server), server)
        await asyncio.gather(go(1), go(2))

    row = contextvars.ContextVar("row", default=0)
    hedge, server = Hedge(samples=10), Server(lambda _: Plan(rest=9.0))
    contexts: list[tuple[int, str, int]] = []
    run_virtual(main)
    assert contexts == [(1, "first", 1), (2, "first", 2), (1, "hedge", 1), (2, "hedge", 2)]


def test_a_copy_of_the_policy_is_a_fresh_one_with_the_same_settings() -> None:
    used = one(Plan((9.0,)), Plan((0.5,)), hedge=Hedge(samples=10, share=0.5)).hedge
    fresh = replace(used)
    assert fresh == used == Hedge(samples=10, share=0.5)
    assert (used.won, fresh.won, fresh.hedged) == (1, 0, 0)
    assert one(Plan((9.0,)), Plan((0.5,)), hedge=fresh).hedge.hedged == 1


@pytest.mark.parametrize(
    ("setting", "accepted"),
    [
        ({"share": 0}, "a number above 0 and at most 1"),
        ({"share": 1.1}, "a number above 0 and at most 1"),
        ({"k": 0.9}, "a number of at least 1"),
        ({"straggler": float("nan")}, "a number of at least 1"),
        ({"straggler": float("inf")}, "a number of at least 1"),
        ({"quiet": -1}, "a number of seconds of at least 0"),
        ({"quiet": "10"}, "a number of seconds of at least 0"),
        ({"samples": 0}, "a whole number from 1 to 1000"),
        ({"samples": True}, "a whole number from 1 to 1000"),
        ({"samples": 1001}, "a whole number from 1 to 1000"),
        ({"samples": 20.5}, "a whole number from 1 to 1000"),
    ],
)
def test_a_senseless_setting_is_refused_by_name(setting: dict[str, Any], accepted: str) -> None:
    (name, value), *_ = setting.items()
    with pytest.raises(ValueError, match=f"^Hedge: {name} must be {accepted}, not {value!r}$"):
        Hedge(**setting)
