from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.errors import ServerError
from llmlab.frame import record, to_frame
from llmlab.stats import summary
from llmlab.types import Outcome, Prompt, Reply, Usage

HI = Prompt.of("hi")
START = 1_767_225_600.0


def ok(latency: float = 1.0, *, begun: float = 0.0, tokens: int = 10, cost: float | None = None) -> Outcome:
    answer = Reply("a", "stop", "p", "m", Usage(5, tokens), latency_s=latency, cost_usd=cost)
    return Outcome(0, HI, "ok", answer, None, 1, 0.0, 0.0, START + begun, START + begun + latency)


def failed(attempts: int = 3, *, begun: float = 0.0, took: float = 1.0) -> Outcome:
    error = ServerError("boom")
    return Outcome(0, HI, "error", None, error, attempts, 0.0, 0.0, START + begun, START + begun + took)


def cancelled() -> Outcome:
    return Outcome(0, HI, "cancelled", None, None, 0, 0.0, 0.0, 0.0, START)


def numbers(*outcomes: Outcome) -> "pd.Series[Any]":
    return summary(to_frame([record(outcome) for outcome in outcomes]))


NAMES = [
    "rows", "success_count", "error_count", "cancelled_count", "attempts", "total_time_ms", "avg_latency_ms",
    "p50_latency_ms", "p95_latency_ms", "p99_latency_ms", "rows_per_s", "tokens_per_s", "input_tokens",
    "output_tokens", "cost_usd",
]  # fmt: skip


@pytest.mark.parametrize("outcomes", [[], [ok()], [failed()], [cancelled()], [ok(), failed(), cancelled()]])
def test_the_numbers_are_the_same_whatever_came_out(outcomes: list[Outcome]) -> None:
    assert numbers(*outcomes).index.tolist() == NAMES


def test_a_small_job_by_hand() -> None:
    out = numbers(ok(1.0, tokens=10), ok(3.0, begun=1.0, tokens=30), failed(3, took=2.0), cancelled())
    assert out["rows"] == 4
    assert (out["success_count"], out["error_count"], out["cancelled_count"]) == (2, 1, 1)
    assert out["attempts"] == 5
    assert out["total_time_ms"] == pytest.approx(4000)
    assert out["avg_latency_ms"] == pytest.approx(2000)
    assert out["p50_latency_ms"] == pytest.approx(2000)
    assert out["rows_per_s"] == pytest.approx(0.5)
    assert out["tokens_per_s"] == pytest.approx(10)
    assert (out["input_tokens"], out["output_tokens"]) == (10, 40)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=50))
def test_percentiles_are_numpys_with_linear_interpolation(latencies: list[float]) -> None:
    out = numbers(*(ok(latency) for latency in latencies))
    in_ms = np.array(latencies) * 1000
    for q in (50, 95, 99):
        assert out[f"p{q}_latency_ms"] == pytest.approx(np.percentile(in_ms, q))
    assert out["avg_latency_ms"] == pytest.approx(in_ms.mean())


def test_rows_that_failed_have_no_say_in_the_latency() -> None:
    assert numbers(ok(1.0), failed(took=100.0))["p99_latency_ms"] == pytest.approx(1000)


def test_without_an_answer_there_is_no_latency_and_no_cost() -> None:
    out = numbers(failed(), cancelled())
    for name in ("avg_latency_ms", "p50_latency_ms", "p95_latency_ms", "p99_latency_ms", "cost_usd"):
        assert np.isnan(out[name]), name
    assert out["rows_per_s"] == 0
    assert (out["input_tokens"], out["output_tokens"]) == (0, 0)


def test_without_rows_nothing_took_no_time() -> None:
    out = numbers()
    assert (out["rows"], out["attempts"], out["total_time_ms"]) == (0, 0, 0.0)
    assert np.isnan(out["rows_per_s"])
    assert np.isnan(out["tokens_per_s"])


def test_rows_that_were_never_taken_up_do_not_lengthen_the_time() -> None:
    assert numbers(cancelled())["total_time_ms"] == 0.0
    assert numbers(ok(2.0), cancelled())["total_time_ms"] == pytest.approx(2000)


def test_costs_are_added_where_they_are_known() -> None:
    assert numbers(ok(cost=0.25), ok(cost=0.5), ok(cost=None))["cost_usd"] == pytest.approx(0.75)
    assert numbers(ok(cost=0.0))["cost_usd"] == 0.0
    assert np.isnan(numbers(ok(cost=None))["cost_usd"])


def test_tokens_nobody_told_are_unknown_and_not_0() -> None:
    silent = Outcome(0, HI, "ok", Reply("a", "stop", "p", "m"), None, 1, 0.0, 0.0, START, START + 1)
    assert np.isnan(numbers(silent)["output_tokens"])
    assert numbers(silent, ok(tokens=7))["output_tokens"] == 7


def test_counts_are_whole_numbers() -> None:
    out = numbers(ok(), failed())
    for name in ("rows", "success_count", "error_count", "cancelled_count", "attempts", "output_tokens"):
        assert isinstance(out[name], int), name


def test_the_frame_is_left_as_it_was() -> None:
    out = to_frame([record(each) for each in (ok(), failed())])
    before = out.copy(deep=True)
    summary(out)
    pd.testing.assert_frame_equal(out, before)


def test_labels_that_occur_twice_do_no_harm() -> None:
    out = to_frame([record(ok(1.0)), record(ok(3.0))], pd.Index(["same", "same"]))
    assert summary(out)["avg_latency_ms"] == pytest.approx(2000)


@pytest.mark.parametrize(
    "column",
    ["status", "latency_ms", "attempts", "input_tokens", "output_tokens", "cost_usd", "started_at", "finished_at"],
)
def test_a_frame_that_lacks_a_column_is_refused_with_its_name(column: str) -> None:
    with pytest.raises(ValueError, match=f"a result of run_many; this frame has no column '{column}'"):
        summary(to_frame([record(ok())]).drop(columns=column))


@pytest.mark.parametrize("other", [None, [1], {"status": "ok"}, pd.Series(["ok"]), "frame"], ids=repr)
def test_what_is_no_frame_is_refused(other: Any) -> None:
    with pytest.raises(TypeError, match=r"summary takes the DataFrame .*, not"):
        summary(other)
