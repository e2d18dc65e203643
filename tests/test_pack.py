import asyncio
import json
import logging
import math
from collections.abc import Iterator
from typing import Any

import pytest

import llmlab
from llmlab.call import Call, Lane
from llmlab.clock import run_virtual
from llmlab.errors import (
    BadRequest,
    ContentBlocked,
    ContextTooLong,
    PackGarbled,
    ServerError,
)
from llmlab.events import Admitted, Attempted, Retrying
from llmlab.policies.pack import Pack
from llmlab.policies.retry import Retry
from llmlab.prices import Price
from llmlab.types import Message, Prompt, Reply, Usage
from tests.pack_scenarios import answer_to, right, rows_of, run

PRICE = Price(1.0, 2.0)


class Oracle:
    """The stack below: answers packs and single rows after `seconds`; a step that is an error is raised first."""

    def __init__(self, *steps: BaseException | str, seconds: float = 1.0, usage: Usage | None = None) -> None:
        self.steps, self.seconds, self.usage = list(steps), seconds, usage
        self.asked: list[list[str]] = []
        self.calls: list[Call] = []
        self.cancelled = 0

    async def __call__(self, call: Call) -> Reply:
        rows = rows_of(call.prompt.text)
        self.asked.append([text for _, text in rows] or [call.prompt.text])
        self.calls.append(call)
        loop = asyncio.get_running_loop()
        began = loop.time()
        call.attempts, call.sent, kind, call.kind = call.attempts + 1, began, call.kind, "retry"
        call.emit(Admitted(call.index, began, 0.0))
        step = self.steps.pop(0) if self.steps else None
        error = step if isinstance(step, BaseException) else None
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        usage = self.usage if error is None else None
        told, cost = error if isinstance(error, llmlab.LLMError) else None, None if usage is None else PRICE.cost(usage)
        call.emit(Attempted(call.index, call.attempts, began, loop.time(), told, usage, cost, kind, "test:m"))
        if error is not None:
            raise error
        said = [{"id": one, "answer": answer_to(text)} for one, text in reversed(rows)]
        text = step if isinstance(step, str) else json.dumps({"answers": said}) if rows else answer_to(call.prompt.text)
        return Reply(text, "stop", "test", "m", usage, "req", cost_usd=cost)


def ask(index: int, prompt: str | Prompt | None = None, **fields: Any) -> Call:
    events: list[Any] = []
    call = Call(index, Prompt.of(prompt or f"Row {index}"), events.append, seq=index, model="m", price=PRICE, **fields)
    EVENTS[id(call)] = events
    return call


EVENTS: dict[int, list[Any]] = {}


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    EVENTS.clear()


LANE = Lane()


def together(pack: Pack, inner: Oracle, *calls: Call) -> list[Any]:
    async def main() -> list[Any]:
        return await asyncio.gather(*(pack(call, inner) for call in calls), return_exceptions=True)

    return run_virtual(main)


def contents(ends: list[Any]) -> list[Any]:
    return [end.content if isinstance(end, Reply) else end for end in ends]


# -- who shares a request ---------------------------------------------------------------------------------


def test_rows_that_come_together_go_as_one_request_and_each_has_its_answer() -> None:
    pack, inner = Pack(3), Oracle()
    ends = together(pack, inner, *(ask(n) for n in range(7)))
    assert contents(ends) == [answer_to(f"Row {n}") for n in range(7)]
    assert inner.asked == [["Row 0", "Row 1", "Row 2"], ["Row 3", "Row 4", "Row 5"], ["Row 6"]]
    assert (pack.requests, pack.packed, pack.redone) == (2, 6, 0)


def test_a_full_pack_goes_at_once_and_one_that_is_not_waits_for_company() -> None:
    async def main() -> list[float]:
        pack, inner, loop = Pack(2, seconds=0.5), Oracle(), asyncio.get_running_loop()
        full = asyncio.gather(pack(ask(0), inner), pack(ask(1), inner))
        lone = asyncio.create_task(pack(ask(2), inner))
        ends = [loop.time()]
        await full
        ends.append(loop.time())
        await lone
        return [*ends, loop.time()]

    began, full, lone = run_virtual(main)
    assert full - began == pytest.approx(1.0, abs=0.01)
    assert lone - began == pytest.approx(1.5, abs=0.01)


def test_a_row_without_company_is_asked_as_it_is() -> None:
    pack, inner = Pack(5), Oracle()
    together(pack, inner, ask(0, Prompt.of("Alone", system="Be brief")))
    assert inner.asked == [["Alone"]]
    assert inner.calls[0].prompt.messages == (Message("system", "Be brief"), Message("user", "Alone"))
    assert inner.calls[0].kind == "retry", "its own call, first when it was sent"


PARTS = [{"type": "text", "text": "See"}]
OTHERS = {
    "another system prompt": Prompt.of("Other", system="S"),
    "another model": Prompt.of("Other", model="n"),
    "another temperature": Prompt.of("Other", temperature=1.0),
    "another max_tokens": Prompt.of("Other", max_tokens=9),
    "another field": Prompt.of("Other", extra={"seed": 1}),
    "a field that ends answers": Prompt.of("Other", extra={"stop": ["."]}),
    "a response format": Prompt.of("Other", extra={"response_format": {"type": "json_object"}}),
    "tools": Prompt.of("Other", extra={"tools": [{}]}),
    "a conversation": Prompt.of([{"role": "assistant", "content": "Hi"}, {"role": "user", "content": "Other"}]),
    "content parts": Prompt.of([{"role": "user", "content": PARTS}]),
    "a long text": Prompt.of("long " * 9000),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())
def test_what_is_not_alike_shares_no_request(other: Prompt) -> None:
    pack, inner = Pack(3), Oracle()
    calls = [ask(0), ask(1, other), ask(2)]
    calls[1].model = other.model or "m"
    together(pack, inner, *calls)
    assert sorted(map(len, inner.asked)) == [1, 2]


def test_two_lanes_share_no_request_and_the_request_belongs_to_its_rows_lane() -> None:
    pack, inner, urgent = Pack(4), Oracle(), Lane(0, budgets=("a budget",))
    together(pack, inner, *(ask(n, lane=urgent if n % 2 else LANE) for n in range(4)))
    assert [(call.lane, call.seq) for call in inner.calls] == [(LANE, 0), (urgent, 1)]


def test_streams_go_alone_and_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "llmlab"):
        pack, inner = Pack(3), Oracle()
        together(pack, inner, *(ask(n, stream=True) for n in range(3)))
    assert [len(each) for each in inner.asked] == [1, 1, 1]
    assert [record.message for record in caplog.records] == [
        "llmlab: pack: streamed answers are not packed: each is asked by itself"
    ]


def test_a_pack_is_no_larger_than_its_tokens_and_max_tokens_grows_with_it() -> None:
    pack, inner = Pack(100, tokens=1000), Oracle()
    together(pack, inner, *(ask(n, Prompt.of(f"Row {n}", max_tokens=100)) for n in range(20)))
    assert max(map(len, inner.asked)) == 9
    assert sum(map(len, inner.asked)) == 20
    for call, rows in zip(inner.calls, inner.asked, strict=True):
        if len(rows) > 1:
            assert call.prompt.max_tokens is not None
            assert call.prompt.max_tokens >= 125 * len(rows)


def test_one_row_a_pack_is_none() -> None:
    pack, inner = Pack(1), Oracle()
    together(pack, inner, ask(0), ask(1))
    assert inner.asked == [["Row 0"], ["Row 1"]]


@pytest.mark.parametrize("wrong", [{"rows": 0}, {"rows": 2.5}, {"seconds": -1}, {"seconds": math.inf}, {"tokens": 0}])
def test_senseless_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"Pack: {next(iter(wrong))}"):
        Pack(**wrong)


# -- what becomes of the answer ---------------------------------------------------------------------------


def test_a_row_that_was_garbled_is_asked_again_alone_and_says_why() -> None:
    pack, inner = Pack(3), Oracle('{"answers": []}')
    calls = [ask(n) for n in range(3)]
    ends = together(pack, inner, *calls)
    assert contents(ends) == [answer_to(f"Row {n}") for n in range(3)]
    assert [len(each) for each in inner.asked] == [3, 1, 1, 1]
    assert [call.attempts for call in calls] == [2, 2, 2]
    attempts = [(e.attempt, e.kind, e.rows) for e in EVENTS[id(calls[1])] if isinstance(e, Attempted)]
    assert attempts == [(1, "packed", 3), (2, "retry", 1)]
    [why] = [event.error for event in EVENTS[id(calls[1])] if isinstance(event, Retrying)]
    assert isinstance(why, PackGarbled)
    assert (pack.packed, pack.redone) == (3, 3)


def test_the_bill_is_shared_out_to_the_last_token_garbled_rows_included() -> None:
    usage = Usage(1001, 503, 77, 13, 31)
    pack, inner = Pack(7), Oracle(usage=usage)
    inner.steps.append("garbled")
    calls = [ask(n, f"Row {n} {'x' * 40 * n}") for n in range(7)]
    ends = together(pack, inner, *calls)
    bill = Usage()
    for end, call in zip(ends, calls, strict=True):
        assert call.wasted is not None
        bill += end.usage + call.wasted
    whole = [usage] * len(inner.asked)
    assert bill == sum(whole[1:], whole[0])
    dollars = [end.cost_usd + call.wasted_usd for end, call in zip(ends, calls, strict=True)]
    assert math.fsum(dollars) == pytest.approx(PRICE.cost(bill))
    seen = Usage()
    for event in (event for call in calls for event in EVENTS[id(call)] if isinstance(event, Attempted)):
        seen += event.usage or Usage()
    assert seen == bill
    assert calls[6].wasted.input_tokens > calls[0].wasted.input_tokens  # type: ignore[union-attr]


def test_a_request_too_long_is_halved_until_it_fits() -> None:
    pack, inner = Pack(8), Oracle(ContextTooLong("too long"), ContextTooLong("too long"))
    calls = [ask(n) for n in range(8)]
    ends = together(pack, inner, *calls)
    assert contents(ends) == [answer_to(f"Row {n}") for n in range(8)]
    assert sorted(map(len, inner.asked), reverse=True) == [8, 4, 4, 2, 2]
    assert {call.attempts for call in calls} == {2, 3}


@pytest.mark.parametrize("refusal", [ContentBlocked("bad words"), BadRequest("no"), TypeError("not JSON")])
def test_one_bad_row_does_not_take_the_others_with_it(refusal: Exception) -> None:
    pack, inner = Pack(3), Oracle(refusal, refusal)
    ends = together(pack, inner, *(ask(n) for n in range(3)))
    assert [type(end).__name__ for end in ends] == [type(refusal).__name__, "Reply", "Reply"]
    assert [len(each) for each in inner.asked] == [3, 1, 1, 1]


def test_any_other_failure_is_each_rows_with_an_error_of_its_own() -> None:
    pack, inner = Pack(3), Oracle(ServerError("boom", status=500))
    ends = together(pack, inner, *(ask(n) for n in range(3)))
    assert [(type(end), str(end)) for end in ends] == [(ServerError, "HTTP 500: boom")] * 3
    assert len({id(end) for end in ends}) == 3
    assert len(inner.asked) == 1


def test_a_retry_below_is_one_for_all_and_counts_for_each() -> None:
    pack, inner = Pack(3), Oracle(ServerError("boom"))
    calls = [ask(n) for n in range(3)]

    async def stack(call: Call) -> Reply:
        return await Retry()(call, inner)

    ends = together(pack, stack, *calls)  # type: ignore[arg-type]
    assert all(isinstance(end, Reply) for end in ends)
    assert [len(each) for each in inner.asked] == [3, 3]
    for call in calls:
        assert call.attempts == 2
        assert call.wait_s > 0
        kinds = [type(event).__name__ for event in EVENTS[id(call)]]
        assert kinds == ["Admitted", "Attempted", "Retrying", "Admitted", "Attempted"]
        assert {event.index for event in EVENTS[id(call)]} == {call.index}


def test_a_model_that_cannot_do_it_is_found_out(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "llmlab"):
        done = run(rows=300, pack=Pack(5), share=1.0)
    assert right(done)
    assert done.pack is not None
    assert 10 <= done.pack.requests < 40, "those that stood in line then still went"
    assert sum("go one by one" in record.message for record in caplog.records) == 1


# -- leaving ----------------------------------------------------------------------------------------------


def test_a_row_that_is_cancelled_leaves_the_others_alone() -> None:
    usage = Usage(100, 50)
    calls, inner = [ask(n) for n in range(3)], Oracle(usage=usage)

    async def main() -> list[Any]:
        pack = Pack(3)
        tasks = [asyncio.ensure_future(pack(call, inner)) for call in calls]
        await asyncio.sleep(0.5)
        tasks[1].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    ends = run_virtual(main)
    assert [type(end).__name__ for end in ends] == ["Reply", "CancelledError", "Reply"]
    assert ends[0].usage + ends[2].usage == usage
    gone = [event for event in EVENTS[id(calls[1])] if isinstance(event, Attempted)]
    assert [(event.usage, event.rows) for event in gone] == [(None, 3)], "nothing of it is in flight any more"
    assert calls[1].attempts == 1


def test_when_nobody_is_left_the_request_is_given_up() -> None:
    async def main() -> tuple[int, int]:
        pack, inner = Pack(3), Oracle(seconds=100.0)
        tasks = [asyncio.ensure_future(pack(ask(n), inner)) for n in range(3)]
        await asyncio.sleep(1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0.01)
        return inner.cancelled, len(asyncio.all_tasks()) - 1

    assert run_virtual(main) == (1, 0)


def test_who_leaves_before_it_is_sent_is_not_in_it() -> None:
    async def main() -> list[list[str]]:
        pack, inner = Pack(4), Oracle()
        tasks = [asyncio.ensure_future(pack(ask(n), inner)) for n in range(3)]
        await asyncio.sleep(0.01)
        tasks[0].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return inner.asked

    assert run_virtual(main) == [["Row 1", "Row 2"]]


def test_the_row_that_waits_longest_decides_until_when_it_is_worth_trying() -> None:
    pack, inner = Pack(2), Oracle()
    together(pack, inner, ask(0, deadline=50.0), ask(1, deadline=70.0))
    together(Pack(2), inner, ask(0, deadline=50.0), ask(1))
    assert [call.deadline for call in inner.calls] == [70.0, None]
