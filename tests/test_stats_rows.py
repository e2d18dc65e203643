import io
from typing import Any

import pandas as pd
import pytest

from llmlab.stats import errors, retries, timeline
from tests.frames import attempts, cancelled, lost, result


def phases(frame: pd.DataFrame) -> list[tuple[str, float, float]]:
    rows = timeline(frame)[["phase", "begin_s", "end_s"]].itertuples(index=False)
    return [(str(phase), round(begin, 6), round(end, 6)) for phase, begin, end in rows]


def test_a_row_that_was_retried_by_hand() -> None:
    tried = attempts(
        {"begin": 1.0, "end": 2.0, "queue_ms": 1000.0, "status": "error"},
        {"attempt": 2, "kind": "retry", "begin": 5.5, "end": 8.0, "wait_ms": 3000.0, "queue_ms": 500.0,
         "ttft_ms": 700.0},
    )  # fmt: skip
    assert phases(tried) == [
        ("queue", 0, 1), ("failed", 1, 2), ("wait", 2, 5), ("queue", 5, 5.5), ("first token", 5.5, 6.2),
        ("stream", 6.2, 8),
    ]  # fmt: skip
    assert timeline(tried)["kind"].tolist() == ["first", "first", *["retry"] * 4]


def test_attempts_read_from_a_csv_are_the_same_attempts() -> None:
    tried = attempts({"begin": 1.0, "end": 2.0, "queue_ms": 1000.0})
    assert phases(pd.read_csv(io.StringIO(tried.to_csv(index=False)))) == phases(tried)


def test_an_answer_that_was_not_streamed_is_one_phase() -> None:
    assert phases(attempts({"begin": 0.0, "end": 2.0})) == [("answer", 0, 2)]


def test_a_failed_attempt_that_had_begun_to_stream_is_a_failure() -> None:
    assert phases(attempts({"begin": 0.0, "end": 2.0, "ttft_ms": 500.0, "status": "error"})) == [("failed", 0, 2)]


def test_of_a_result_the_turns_are_told_in_one_order() -> None:
    row = {"begin": 0.0, "end": 10.0, "queue_ms": 1000.0, "wait_ms": 2000.0, "latency_ms": 4000.0, "ttft_ms": 500.0}
    assert phases(result({**row, "attempts": 3})) == [
        ("queue", 0, 1), ("wait", 1, 3), ("failed", 3, 6), ("first token", 6, 6.5), ("stream", 6.5, 10),
    ]  # fmt: skip


def test_of_a_result_a_row_without_an_answer_failed_to_its_end() -> None:
    assert phases(result(lost(attempts=2, begin=0.0, end=5.0, queue_ms=1000.0))) == [("queue", 0, 1), ("failed", 1, 5)]


def test_a_row_answered_at_once_has_not_failed_by_a_rounding() -> None:
    row = {"begin": 0.0, "end": 1.25, "queue_ms": 200.0, "latency_ms": 1000.0}
    assert phases(result(row)) == [("queue", 0, 0.2), ("answer", 0.25, 1.25)]


@pytest.mark.parametrize(
    "frame",
    [
        attempts(),
        result(),
        result(cancelled(end=3)),
        result({"cache_hit": True, "attempts": 0, "latency_ms": 0.0, "begin": 1.0, "end": 1.0}),
    ],
)
def test_what_took_no_time_has_no_phases(frame: pd.DataFrame) -> None:
    out = timeline(frame)
    assert out.empty
    assert list(out) == ["position", "attempt", "kind", "phase", "begin_s", "end_s"]


def test_phases_come_by_row_and_time() -> None:
    out = timeline(attempts({"position": 2, "begin": 0.0, "end": 1.0}, {"position": 1, "begin": 5.0, "end": 6.0}))
    assert out["position"].tolist() == [1, 2]
    assert out["begin_s"].tolist() == [5, 0]


def test_retries_by_hand() -> None:
    out = retries(result({}, {}, {"attempts": 3}, lost(attempts=3)))
    assert out.to_dict("list") == {"attempts": [1, 2, 3], "ok": [2, 0, 1], "error": [0, 0, 1], "cancelled": [0, 0, 0]}


def test_rows_never_sent_are_counted_at_0() -> None:
    out = retries(result({}, cancelled(), {"cache_hit": True, "attempts": 0}))
    assert out.to_dict("list") == {"attempts": [0, 1], "ok": [1, 1], "error": [0, 0], "cancelled": [1, 0]}


def test_of_no_rows_there_are_no_retries() -> None:
    out = retries(result())
    assert out.empty
    assert list(out) == ["attempts", "ok", "error", "cancelled"]


def failed(kind: str | None, position: int = 0) -> dict[str, Any]:
    return {"status": "error", "error_type": kind, "position": position}


def test_errors_by_hand() -> None:
    out = errors(attempts(failed("Dropped"), failed("RateLimited", 1), failed("Dropped", 2), {"position": 0}))
    assert out.to_dict("list") == {
        "error_type": ["Dropped", "RateLimited"], "count": [2, 1], "mended": [1, 0], "lost": [1, 1],
    }  # fmt: skip


def test_of_a_result_every_error_is_a_lost_row() -> None:
    out = errors(result({}, lost(error_type="Dropped"), cancelled(error_type="Cancelled"), lost(error_type=None)))
    assert out["error_type"].tolist() == ["(unknown)", "Dropped"]
    assert out["lost"].tolist() == out["count"].tolist() == [1, 1]


@pytest.mark.parametrize("frame", [attempts(), attempts({}), result(), result({})])
def test_where_nothing_failed_there_are_no_errors(frame: pd.DataFrame) -> None:
    assert errors(frame).empty
    assert list(errors(frame)) == ["error_type", "count", "mended", "lost"]


def test_labels_that_occur_twice_do_no_harm() -> None:
    out = result({}, lost(), {"attempts": 2}).set_axis(["same"] * 3)
    assert retries(out)["ok"].tolist() == [1, 1]
    assert errors(out)["count"].tolist() == [1]
    assert len(timeline(out)) == 3


@pytest.mark.parametrize(
    ("function", "frame", "column", "what"),
    [
        (timeline, attempts({}), "ttft_ms", "job.attempts"),
        (timeline, result({}), "started_at", "a result of run_many or job.attempts"),
        (retries, result({}), "attempts", "a result of run_many"),
        (errors, result({}), "error_type", "a result of run_many or job.attempts"),
    ],
)
def test_a_frame_that_lacks_a_column_is_refused_with_its_name(function, frame, column, what) -> None:
    with pytest.raises(ValueError, match=f"^{function.__name__} takes {what}; this frame has no column '{column}'$"):
        function(frame.drop(columns=column))
