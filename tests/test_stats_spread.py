from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from llmlab.stats import ecdf, histogram, percentiles
from tests.frames import attempts, cancelled, lost, result


def latencies(*ms: float) -> list[dict[str, float]]:
    return [{"latency_ms": each} for each in ms]


def test_an_ecdf_by_hand() -> None:
    out = ecdf(result(*latencies(30, 10, 20, 20)))
    assert out.to_dict("list") == {"latency_ms": [10, 20, 20, 30], "share": [0.25, 0.5, 0.75, 1.0]}


def test_failed_rows_keep_an_ecdf_below_1() -> None:
    out = result(*latencies(10, 20), lost(), lost())
    assert ecdf(out)["share"].tolist() == [0.25, 0.5]
    assert ecdf(out, failed=False)["share"].tolist() == [0.5, 1.0]


def test_cache_hits_and_cancelled_rows_have_no_say_in_an_ecdf() -> None:
    out = result(*latencies(10), {"latency_ms": 0.0, "cache_hit": True}, cancelled())
    assert ecdf(out).to_dict("list") == {"latency_ms": [10], "share": [1.0]}


def test_groups_of_an_ecdf_are_counted_apart_the_largest_first() -> None:
    small, large = [{"model": "a", "latency_ms": 5}], [{"model": "b", "latency_ms": ms} for ms in (1, 3)]
    by = ecdf(result(*small, *large, lost()), by="model")
    assert by["model"].tolist() == ["b", "b", "a"]
    assert by["share"].tolist() == [0.5, 1.0, 1.0]


def test_failed_attempts_are_no_answers() -> None:
    tried = attempts({"latency_ms": 7.0, "status": "error"}, {"latency_ms": 9.0})
    assert ecdf(tried).to_dict("list") == {"latency_ms": [9], "share": [0.5]}


def test_without_answers_an_ecdf_and_a_histogram_are_empty() -> None:
    for out in (result(), result(lost()), result(cancelled())):
        assert ecdf(out).empty
        assert list(ecdf(out, by="model")) == ["model", "latency_ms", "share"]
        assert histogram(out)["rows"].sum() == 0


def test_a_histogram_by_hand() -> None:
    out = histogram(result(*latencies(0, 1, 9, 10)), bins=2)
    assert out.to_dict("list") == {"left": [0, 5], "right": [5, 10], "rows": [2, 2]}


def test_a_logarithmic_histogram_has_bins_of_equal_ratio() -> None:
    out = histogram(result(*latencies(1, 5, 50, 100)), bins=2, log=True)
    assert out["right"].tolist() == pytest.approx([10, 100])
    assert out["rows"].tolist() == [2, 2]


def test_groups_of_a_histogram_share_their_bins() -> None:
    rows = [{"model": "a", "latency_ms": 0.0}, {"model": "b", "latency_ms": 10.0}]
    out = histogram(result(*rows), by="model", bins=2)
    assert out["right"].tolist() == [5, 10, 5, 10]
    assert out.groupby("model")["rows"].sum().to_dict() == {"a": 1, "b": 1}


@pytest.mark.parametrize("ms", [0.0, 0.001, 7.5, 1e6])
@pytest.mark.parametrize("log", [False, True])
def test_one_row_is_in_the_histogram(ms: float, log: bool) -> None:
    out = histogram(result(*latencies(ms)), log=log)
    assert out["rows"].sum() == (0 if log and ms == 0 else 1)
    assert np.isfinite(out[["left", "right"]].to_numpy()).all()


def test_percentiles_by_hand() -> None:
    out = percentiles(result(*latencies(*range(101)), lost()))
    assert out.to_dict("list") == {"ok": [101], "failed": [1], "p50": [50], "p95": [95], "p99": [99]}


def test_a_group_without_an_answer_still_counts_its_failures() -> None:
    out = percentiles(result({"model": "a"}, {"model": "a"}, lost()), by="model")
    assert out["model"].tolist() == ["a", "(missing)"]
    assert (out["ok"].tolist(), out["failed"].tolist()) == ([2, 0], [0, 1])
    assert out["p50"].isna().tolist() == [False, True]


def test_rows_without_a_value_are_left_out() -> None:
    assert percentiles(result({"ttft_ms": 5.0}, {}), "ttft_ms")["ok"].tolist() == [1]


@pytest.mark.parametrize("function", [ecdf, histogram, percentiles])
def test_a_column_that_is_not_there_is_named(function: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match="takes a result of run_many; this frame has no column 'colour'"):
        function(result({}), by="colour")
    with pytest.raises(ValueError, match="no column 'status'"):
        function(pd.DataFrame())
