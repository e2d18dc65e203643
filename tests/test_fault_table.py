"""Under every fault no row is lost, misplaced or asked for too often; and the judge who says so can say no."""

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pandas as pd
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from llmlab import errors
from llmlab.call import Call, Handler, Policy
from llmlab.errors import LLMError
from llmlab.policies.retry import Retry
from llmlab.sim.kinds import KINDS
from llmlab.strategy import Strategy
from llmlab.types import Reply
from tests import fault_table
from tests.fault_table import CELLS, FATAL, PLAIN, ROWS, STREAMED, Cell, Evidence, Line, Request, judge, mends, table


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_no_row_is_lost_misplaced_or_asked_for_too_often(cell: Cell) -> None:
    line = judge(fault_table.run(cell))
    assert line.breaches == []
    assert line.ok + line.failed + line.unsent + line.spent == line.rows == ROWS
    assert line.requests == line.ideal - line.spent


@pytest.mark.parametrize("fault", sorted(FATAL))
def test_a_fatal_fault_ends_the_job_with_what_is_in_flight(fault: str) -> None:
    line = judge(run(Cell("openai", fault, "plain")))
    assert line.requests == line.ok + line.failed == 32  # the concurrency of the default stack
    assert line.unsent == ROWS - 32


def test_the_table_has_every_fault_in_both_dialects_plain_and_streamed() -> None:
    assert len(set(CELLS)) == len(CELLS) == 4 * len(KINDS)
    assert {cell.fault for cell in CELLS} == set(KINDS)


def test_what_is_no_answer_has_a_class_and_what_is_one_has_none() -> None:
    assert set(PLAIN) == set(STREAMED) == {name for name, kind in KINDS.items() if not kind.harmless}
    assert {name for name, error in PLAIN.items() if getattr(errors, error).verdict.fatal} == FATAL


def test_a_retry_mends_what_the_simulator_calls_recoverable() -> None:
    assert {name for name, kind in KINDS.items() if kind.recoverable} == {name for name in KINDS if mends(name)}
    assert not mends("")


# -- the judge, before runs that are spoiled on the way -------------------------------------------------------

CUT = Cell("openai", "cut", "streamed")
BAD = Cell("anthropic", "bad_request", "plain")
AUTH = Cell("openai", "auth", "plain")


def around(policy: Any) -> Strategy:
    return Strategy("spoiled", (policy, *Strategy.default().policies))


async def retry_all(call: Call, inner: Handler) -> Reply:
    try:
        return await inner(call)
    except LLMError:
        return await inner(call)


async def ask_twice(call: Call, inner: Handler) -> Reply:
    await inner(call)
    return await inner(call)


async def cut_short(call: Call, inner: Handler) -> Reply:
    reply = await inner(call)
    return replace(reply, content=reply.content[:-1])


async def hear_nothing_fatal(call: Call, inner: Handler) -> Reply:
    try:
        return await inner(call)
    except LLMError as error:
        error.judge(fatal=False)
        raise


def mix_up() -> Policy:
    kept: list[Reply] = []

    async def policy(call: Call, inner: Handler) -> Reply:
        kept.append(await inner(call))
        return kept.pop(0) if len(kept) > 1 else kept[0]

    return policy


@pytest.mark.parametrize(
    ("cell", "strategy", "breach", "least"),
    [
        (CUT, Strategy.bare(), "lost", 5),
        (CUT, Strategy.default(retry=Retry(attempts=2)), "lost", 1),
        (CUT, around(cut_short), "lost", ROWS),
        (CUT, around(mix_up()), "misplaced", ROWS - 5),
        (CUT, around(ask_twice), "wrong_retries", ROWS),
        (BAD, around(retry_all), "wrong_retries", 5),
        (AUTH, around(hear_nothing_fatal), "wrong_retries", ROWS - 32),
    ],
)
def test_a_spoiled_stack_is_found_out(cell: Cell, strategy: Strategy, breach: str, least: int) -> None:
    line = judge(fault_table.run(cell, strategy=strategy))
    assert getattr(line, breach) >= least
    assert any(each.startswith(breach) for each in line.breaches)


# -- the judge, before doctored evidence ----------------------------------------------------------------------

run = cache(fault_table.run)


def position(seen: Evidence, fits: Callable[[list[str]], object]) -> int:
    """The first row whose requests met what fits."""
    return next(n for n, met in enumerate(seen.met.values()) if fits(met))


def change(seen: Evidence, row: int, **values: Any) -> Evidence:
    """Change cells of the result."""
    frame = seen.frame.copy()
    for name, value in values.items():
        frame.iloc[row, frame.columns.tolist().index(name)] = value
    return replace(seen, frame=frame)


def meet(seen: Evidence, row: int, *faults: str, at: float = 0.0) -> Evidence:
    """Change what the provider's log says of a row."""
    prompt = seen.prompts.iloc[row]
    others = [request for request in seen.requests if request.prompt != prompt]
    return replace(seen, requests=(*others, *(Request(prompt, at, fault, at) for fault in faults)))


def breach(seen: Evidence, **counts: int) -> Line:
    """The doctored evidence is found out, and the right row is blamed."""
    line = judge(seen)
    assert line.breaches
    assert {name: getattr(line, name) for name in counts} == counts
    return line


def test_a_row_without_an_outcome_is_lost() -> None:
    seen = run(CUT)
    breach(replace(seen, frame=seen.frame.drop(index=seen.frame.index[7])), lost=1, misplaced=0)


@given(st.integers(0, 49))
@settings(max_examples=20, deadline=None)
def test_an_answer_that_is_cut_anywhere_is_lost(length: int) -> None:
    seen = run(CUT)
    breach(change(seen, 11, content=seen.frame["content"].iloc[11][:length]), lost=1, ok=ROWS - 1)


@pytest.mark.parametrize("values", [{"content": None}, {"content": "another"}, {"finish_reason": "length"}])
def test_an_answer_that_is_missing_wrong_or_said_to_be_short_is_lost(values: dict[str, object]) -> None:
    breach(change(run(CUT), 3, **values), lost=1, misplaced=0)


@pytest.mark.parametrize("status", ["error", "cancelled"])
def test_a_row_given_up_although_it_was_answered_is_lost(status: str) -> None:
    breach(change(run(CUT), 0, status=status, error_type="Dropped", content=None), lost=1)


@pytest.mark.parametrize(
    ("cell", "error", "times"),
    [(CUT, "Dropped", 6), (Cell("openai", "html_200", "plain"), "BadPayload", 6), (CUT, "BadPayload", math.inf)],
)
def test_a_row_may_be_given_up_when_patience_is_over_and_not_before(cell: Cell, error: str, times: float) -> None:
    failed = change(run(cell), 0, status="error", error_type=error, content=None)
    before = judge(meet(run(cell), 0, "", "")).spent
    for n in range(1, 8):
        line = judge(meet(failed, 0, *[cell.fault] * n))
        assert (line.spent - before, line.lost) == ((1, 0) if n >= times else (0, 1))


@given(st.permutations(range(ROWS)))
@settings(max_examples=10, deadline=None, phases=[Phase.generate])
def test_each_row_with_another_answer_or_in_another_place_is_misplaced(order: list[int]) -> None:
    seen, moved = run(CUT), sum(a != b for a, b in enumerate(order))
    mixed = seen.frame.assign(content=seen.frame["content"].to_numpy()[order])
    for frame in (mixed, seen.frame.iloc[order]):
        assert judge(replace(seen, frame=frame)).misplaced == moved


def test_a_result_with_another_index_other_prompts_or_a_row_twice_is_misplaced() -> None:
    seen = run(CUT)
    breach(replace(seen, frame=seen.frame.reset_index(drop=True)), misplaced=ROWS, lost=ROWS)
    breach(change(seen, 5, prompt=seen.prompts.iloc[6]), misplaced=1)
    breach(replace(seen, frame=pd.concat([seen.frame, seen.frame.tail(1)])), misplaced=1)


@pytest.mark.parametrize("fault", ["bad_request", "not_found", "refused", "crlf", ""])
def test_a_request_after_what_no_retry_mends_or_after_a_good_answer_is_wrong(fault: str) -> None:
    line = breach(meet(run(BAD), 2, fault, ""), wrong_retries=1)
    assert line.ratio > 1
    assert f"requests/ideal: {line.ratio:.3f}" in line.breaches


def test_a_row_sent_after_a_fatal_answer_is_a_wrong_retry() -> None:
    seen = run(AUTH)
    unsent, stop = position(seen, lambda met: not met), min(each.ended for each in seen.requests if each.fault)
    answered = change(
        seen, unsent, status="ok", content=fault_table.answer(seen.prompts.iloc[unsent]), finish_reason="stop"
    )
    assert breach(meet(answered, unsent, "", at=stop + 0.01), wrong_retries=1, lost=0).ratio > 1
    assert judge(meet(answered, unsent, "", at=stop - 0.01)).wrong_retries == 0


def test_a_row_cancelled_in_flight_or_without_a_fatal_fault_is_lost() -> None:
    seen = run(AUTH)
    sent = position(seen, lambda met: met == [""])
    breach(change(seen, sent, status="cancelled", content=None), lost=1)
    breach(change(meet(run(CUT), 4), 4, status="cancelled", content=None), lost=1)
    breach(meet(run(CUT), 4), lost=1)  # an answer to what was never asked


def test_a_failure_of_another_class_is_misread() -> None:
    seen = run(BAD)
    failed = position(seen, lambda met: met == ["bad_request"])
    breach(change(seen, failed, error_type="ServerError"), misread=1, failed=judge(seen).failed - 1, lost=0)
    breach(change(seen, failed, status="ok"), lost=1)


def test_an_attempt_of_another_class_is_misread() -> None:
    seen = run(CUT)
    attempts = seen.attempts.assign(error_type=seen.attempts["error_type"].replace("Dropped", "BadPayload"))
    breach(replace(seen, attempts=attempts), misread=judge(seen).faults, lost=0)


@pytest.mark.parametrize(
    ("fault", "reason", "wrong"), [("empty", "stop", "length"), ("refused", "content_filter", "stop")]
)
def test_an_empty_answer_must_have_been_given_and_say_why_it_is_empty(fault: str, reason: str, wrong: str) -> None:
    seen = run(Cell("anthropic", fault, "streamed"))
    assert judge(seen).breaches == []
    poor, good = (position(seen, lambda met, last=last: met[-1] == last) for last in (fault, ""))  # type: ignore[misc]
    breach(change(seen, poor, finish_reason=wrong), lost=1)
    breach(change(seen, good, content="", finish_reason=reason), lost=1)
    breach(change(seen, poor, content=None), lost=1)


def test_accounts_that_do_not_agree_are_found_out() -> None:
    seen = run(CUT)
    breach(change(seen, 9, attempts=seen.frame["attempts"].iloc[9] + 1), unaccounted=1)
    breach(replace(seen, attempts=seen.attempts.iloc[1:]), unaccounted=1)
    breach(replace(seen, counted=seen.counted - 1), unaccounted=1)
    swapped = change(change(seen, 0, attempts=2), 1, attempts=0)
    breach(meet(meet(swapped, 0, ""), 1, ""), unaccounted=2 + judge(meet(meet(seen, 0, ""), 1, "")).unaccounted)


def test_a_fault_that_never_came_proves_nothing() -> None:
    seen = run(Cell("openai", "crlf", "plain"))
    assert judge(seen).breaches == []
    healthy = tuple(replace(request, fault="") for request in seen.requests)
    assert judge(replace(seen, requests=healthy)).breaches == ["the fault never came"]


def test_the_same_seed_gives_the_same_line_and_another_one_another() -> None:
    assert judge(fault_table.run(CUT)) == judge(run(CUT)) != judge(run(CUT, seed=1))


def test_the_table_is_markdown_with_a_line_of_sums() -> None:
    lines = [judge(run(CUT)), judge(run(AUTH))]
    head, ruler, cut, _, total = ([cell.strip() for cell in row.split("|")[1:-1]] for row in table(lines).splitlines())
    assert len(head) == len(ruler) == len(cut) == len(total)
    assert (
        dict(zip(head, cut, strict=True)).items() >= {"dialect": "openai", "fault": "cut", "mode": "streamed"}.items()
    )
    assert total[head.index("rows")] == str(2 * ROWS)
    assert total[head.index("requests")] == str(lines[0].requests + 32)
    assert total[head.index("requests/ideal")] == "at most 1.000"


def test_the_table_is_printed_with_its_breaches_below(monkeypatch, capsys) -> None:
    monkeypatch.setattr(fault_table, "CELLS", (CUT, AUTH))
    monkeypatch.setattr(sys, "argv", ["fault_table", "0"])
    monkeypatch.setattr(fault_table, "MOST", 0.5)
    fault_table.main()
    told = capsys.readouterr()
    assert told.out.startswith(table([judge(run(CUT)), judge(run(AUTH))]))
    assert "openai-auth-plain: requests/ideal: 1.000" in told.out
    assert told.err == ""
