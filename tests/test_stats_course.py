from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.stats import costs, in_flight, mean_in_flight, requests, throughput
from llmlab.stats.course import WINDOWS, round_up
from tests.frames import ZERO, attempts, cancelled, lost, result


def ended(*seconds: float, **fields: Any) -> list[dict[str, Any]]:
    return [{"end": each, **fields} for each in seconds]


# -- throughput -------------------------------------------------------------------------------------------


def test_throughput_by_hand() -> None:
    out = throughput(result(*ended(1, 2, 11, 20, output_tokens=30), lost(end=12)), window=10)
    assert out["at_s"].tolist() == [0, 10]
    assert out["width_s"].tolist() == [10, 10]
    assert (out["ok"].tolist(), out["failed"].tolist()) == ([2, 2], [0, 1])
    assert out["ok_per_s"].tolist() == pytest.approx([0.2, 0.2])
    assert out["failed_per_s"].tolist() == pytest.approx([0, 0.1])
    assert out["tokens_per_s"].tolist() == pytest.approx([6, 6])


def test_a_short_rest_belongs_to_the_window_before() -> None:
    assert throughput(result(*ended(1, 24)), window=10)["width_s"].tolist() == [10, 14]
    assert throughput(result(*ended(1, 26)), window=10)["width_s"].tolist() == [10, 10, 6]


def test_cancelled_rows_are_no_throughput_and_do_not_lengthen_it() -> None:
    out = throughput(result(*ended(1, 2), cancelled(end=100)), window=1)
    assert out["ok"].tolist() == [0, 2]  # what ends at a bound belongs to the window that begins there
    assert out["failed"].sum() == 0


def test_failed_rows_bring_no_tokens() -> None:
    assert throughput(result(lost(end=1, output_tokens=50)))["tokens"].sum() == 0


def test_a_row_that_took_no_time_is_counted_without_a_rate() -> None:
    out = throughput(result({"begin": 0.0, "end": 0.0, "cache_hit": True}))
    assert out["ok"].tolist() == [1]
    assert np.isnan(out["ok_per_s"]).all()


@pytest.mark.parametrize("rows", [[], [cancelled(end=1)]])
def test_of_nothing_settled_there_are_no_windows(rows: list[dict[str, Any]]) -> None:
    out = throughput(result(*rows))
    assert out.empty
    assert "ok_per_s" in out


def test_times_may_be_counted_from_another_moment() -> None:
    out = throughput(result(*ended(3, 4)), since=ZERO - pd.Timedelta(seconds=10), window=1)
    assert out["at_s"].iloc[0] == 10


def test_times_read_again_from_a_csv_are_understood() -> None:
    out = result(*ended(1, 2, 11))
    texts = out.assign(started_at=out["started_at"].astype(str), finished_at=out["finished_at"].astype(str))
    pd.testing.assert_frame_equal(throughput(texts), throughput(out))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.001, 1e5), min_size=1, max_size=40), st.floats(0.5, 1e4))
def test_no_row_is_lost_between_windows(ends: list[float], window: float) -> None:
    ends = [round(end, 6) for end in ends]
    out = throughput(result(*ended(*ends)), window=max(window, max(ends) / 500))
    assert out["ok"].sum() == len(ends)
    assert (out["ok_per_s"] * out["width_s"]).sum() == pytest.approx(len(ends))
    assert out["width_s"].sum() == pytest.approx(max(ends), abs=1e-5)


@given(st.floats(1e-6, 1e9))
def test_windows_are_of_round_length(length: float) -> None:
    rounded = round_up(length)
    assert length * (1 - 1e-6) <= rounded <= 2.5 * length * (1 + 1e-6)
    assert float(f"{rounded:.0e}") == pytest.approx(rounded)
    assert f"{rounded:.0e}"[0] in "125"


def test_there_are_not_too_many_windows() -> None:
    assert 20 <= len(throughput(result(*ended(*range(1, 1000))))) <= WINDOWS


@pytest.mark.parametrize("window", [0, -1, float("nan")])
def test_a_window_that_is_none_is_refused(window: float) -> None:
    with pytest.raises(ValueError, match="window is a number of seconds above 0"):
        throughput(result({}), window=window)


# -- requests ---------------------------------------------------------------------------------------------


def test_requests_are_counted_when_they_were_sent_by_how_they_ended() -> None:
    tried = attempts(
        {"begin": 0.0}, {"begin": 0.5, "status": "error", "http_status": 429}, {"begin": 2.0, "status": "error"},
        {"begin": 2.0, "status": "error", "http_status": 503},
    )  # fmt: skip
    out = requests(tried, window=1)
    assert out["at_s"].tolist() == [0, 1]
    assert (out["ok"].tolist(), out["throttled"].tolist(), out["failed"].tolist()) == ([1, 0], [1, 0], [0, 2])
    assert out["failed_per_s"].tolist() == [0, 2]


def test_a_request_that_rows_shared_counts_once() -> None:
    packed = attempts(*({"position": n, "rows": 3, "kind": "packed"} for n in range(3)), {"position": 3})
    assert requests(packed)["ok"].sum() == 2
    assert in_flight(packed)["in_flight"].tolist() == [2, 0]
    assert in_flight(packed.drop(columns="rows"))["in_flight"].tolist() == [4, 0]


def test_of_no_requests_there_are_no_windows() -> None:
    assert requests(attempts()).empty


# -- in flight --------------------------------------------------------------------------------------------


def test_in_flight_by_hand() -> None:
    out = in_flight(attempts({"begin": 0, "end": 4}, {"begin": 1, "end": 3}, {"begin": 3, "end": 5}))
    assert out.to_dict("list") == {"at_s": [0, 1, 4, 5], "in_flight": [1, 2, 1, 0]}
    assert mean_in_flight(out) == pytest.approx((1 * 1 + 2 * 3 + 1 * 1) / 5)


def test_who_begins_when_another_ends_takes_its_place() -> None:
    out = in_flight(attempts({"begin": 0, "end": 1}, {"begin": 1, "end": 2}))
    assert out.to_dict("list") == {"at_s": [0, 2], "in_flight": [1, 0]}


def test_without_requests_nothing_is_in_flight() -> None:
    assert in_flight(attempts()).empty
    assert np.isnan(mean_in_flight(in_flight(attempts())))


def test_a_request_that_took_no_time_was_never_in_flight() -> None:
    assert in_flight(attempts({"begin": 1, "end": 1})).empty


def test_attempts_without_a_time_are_left_out() -> None:
    assert in_flight(attempts({"begin": None, "end": 1}, {"begin": 0, "end": 1}))["in_flight"].tolist() == [1, 0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), min_size=1, max_size=30))
def test_the_mean_in_flight_is_littles_law(spans: list[tuple[int, int]]) -> None:
    """N = X W: the area under the curve is the sum of the latencies."""
    out = in_flight(attempts(*({"begin": at, "end": at + took} for at, took in spans)))
    assert (out["in_flight"] >= 0).all()
    assert out["in_flight"].iloc[-1] == 0
    area = mean_in_flight(out) * (out["at_s"].iloc[-1] - out["at_s"].iloc[0])
    assert area == pytest.approx(sum(took for _, took in spans))


# -- costs ------------------------------------------------------------------------------------------------


def test_costs_by_hand() -> None:
    out = costs(
        attempts(
            {"end": 2, "cost_usd": 0.5},
            {"end": 1, "cost_usd": 0.25, "status": "error", "output_tokens": 1},
            {"end": 3, "cost_usd": None},
            {"end": 4, "cost_usd": None, "status": "error", "input_tokens": None, "output_tokens": None},
        )
    )
    assert out["at_s"].tolist() == [1, 2, 3, 4]
    assert out["cost_usd"].tolist() == [0.25, 0.75, 0.75, 0.75]
    assert out["wasted_usd"].tolist() == [0.25, 0.25, 0.25, 0.25]
    assert out["tokens"].tolist() == [6, 21, 36, 36]
    assert out["wasted_tokens"].tolist() == [6, 6, 6, 6]
    assert out["unpriced"].tolist() == [0, 0, 1, 1]


def test_of_a_result_rows_without_an_answer_are_the_waste() -> None:
    out = costs(result({"cost_usd": 1.0}, lost(cost_usd=0.5, input_tokens=3)))
    assert out.iloc[-1][["cost_usd", "wasted_usd", "tokens", "wasted_tokens"]].tolist() == [1.5, 0.5, 18, 3]


def test_costs_are_summed_by_group() -> None:
    out = costs(
        attempts({"target": "a", "cost_usd": 1.0}, {"target": "b", "cost_usd": 2.0}, {"target": "b"}), by="target"
    )
    assert out.groupby("target")["cost_usd"].max().to_dict() == {"a": 1.0, "b": 2.0}


@pytest.mark.parametrize("frame", [attempts(), result(), result(cancelled(end=None))])
def test_of_nothing_there_are_no_costs(frame: pd.DataFrame) -> None:
    assert costs(frame).empty
    assert costs(frame, by="status").empty


@pytest.mark.parametrize(
    ("function", "frame", "column", "what"),
    [
        (throughput, result({}), "output_tokens", "a result of run_many"),
        (requests, attempts({}), "http_status", "job.attempts"),
        (in_flight, attempts({}), "ended_at", "job.attempts"),
        (costs, attempts({}), "cost_usd", "a result of run_many or job.attempts"),
    ],
)
def test_a_frame_that_lacks_a_column_is_refused_with_its_name(function, frame, column, what) -> None:
    name = function.__name__
    with pytest.raises(ValueError, match=f"^{name} takes {what}; this frame has no column '{column}'$"):
        function(frame.drop(columns=column))
    with pytest.raises(TypeError, match=f"^{name} takes the DataFrame that is {what}, not list$"):
        function([1])
