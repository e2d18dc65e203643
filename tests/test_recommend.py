"""What a sweep speaks for, on frames made by hand."""

from typing import Any

import pandas as pd
import pytest

from llmlab.frame import frame_of
from llmlab.recommend import recommend
from llmlab.sweep import SWEPT


def sweep(*points: dict[str, Any]) -> pd.DataFrame:
    """Points of a sweep; what is not given is as a quiet provider would have it."""
    names = [column.name for column in SWEPT]
    usual = dict.fromkeys(names) | {"repeat": 1, "order": 1, "ok": 200, "failed": 0, "throttled": 0, "window_s": 10.0}
    records = []
    for point in points:
        row = {**usual, "in_flight": float(point["concurrency"]), "p95_ms": 1000.0, "steady": True, **point}
        records.append(tuple(row[name] for name in names))
    return frame_of(SWEPT, records, pd.RangeIndex(len(records)))


def capped(limit: int, grid: tuple[int, ...], **more: Any) -> pd.DataFrame:
    """Throughput that grows with the concurrency up to a limit."""
    return sweep(*({"concurrency": n, "rows_per_s": float(min(n, limit)), **more} for n in grid))


GRID = (1, 2, 4, 8, 16, 32, 64)


def test_a_knee_that_is_identified_is_recommended() -> None:
    found = recommend(capped(16, (*GRID, 12, 20, 24)))
    assert found.knee is not None
    assert found.knee.n == pytest.approx(16, rel=0.1)
    assert found.concurrency == round(found.knee.n or 0)
    assert "the knee is at" in found.reason
    assert found.keeps_slo
    assert found.within_slo is None
    assert found.rpm is None


def test_without_a_knee_the_last_step_that_was_worth_it_counts() -> None:
    found = recommend(capped(8, (1, 4, 16)))
    assert found.knee is not None
    assert not found.knee
    assert found.concurrency == 16
    found = recommend(capped(4, (1, 4, 16)))
    assert found.concurrency == 4
    assert "not identified" in found.reason


def test_a_provider_without_an_end_gets_the_greatest_number_and_is_told_so() -> None:
    found = recommend(capped(10_000, GRID))
    assert found.concurrency == 64
    assert "each step up to the greatest measured was worth it" in found.reason


def test_numbers_that_miss_the_slo_are_out() -> None:
    shares = {1: 1.0, 2: 1.0, 4: 0.99, 8: 0.96, 16: 0.5, 32: 0.1, 64: 0.0}
    points = [{"concurrency": n, "rows_per_s": float(min(n, 32)), "within_slo": share} for n, share in shares.items()]
    found = recommend(sweep(*points))
    assert found.concurrency == 8
    assert found.within_slo == pytest.approx(0.96)
    assert "miss the SLO" in found.reason
    assert recommend(sweep(*points), attainment=0.99).concurrency == 4


def test_when_no_number_keeps_the_slo_the_closest_is_named_as_not_keeping_it() -> None:
    points = [{"concurrency": n, "rows_per_s": float(n), "within_slo": 0.5 / n} for n in GRID]
    found = recommend(sweep(*points))
    assert (found.concurrency, found.keeps_slo) == (1, False)
    assert "no number keeps the SLO" in found.reason


def test_a_rate_limit_that_binds_is_recommended_as_a_rate() -> None:
    points = [
        {"concurrency": n, "rows_per_s": min(n, 8.0), "bound_by": "rate limit" if n > 6 else "concurrency", "ok": 80}
        for n in (*GRID, 6, 12, 24)
    ]
    found = recommend(sweep(*points))
    assert found.rpm == pytest.approx(8 * 60, rel=0.05)
    assert "rate limit" in found.reason
    assert found.strategy().admit is not None


def test_repeats_of_a_number_are_one_point() -> None:
    points = [{"concurrency": n, "rows_per_s": float(min(n, 8)) * f} for n in GRID for f in (0.99, 1.01)]
    frame = sweep(*points)
    frame["repeat"] = frame.groupby("concurrency").cumcount() + 1
    assert recommend(frame).rows_per_s == pytest.approx(8, rel=0.01)


def test_the_time_of_a_job_is_told_by_the_throughput() -> None:
    found = recommend(capped(8, (1, 2, 4, 8)))
    assert found.seconds(800) == pytest.approx(100)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [({"elasticity": 0}, "elasticity"), ({"elasticity": 1}, "elasticity"), ({"attainment": 0}, "attainment")],
)
def test_aims_that_make_no_sense_are_named(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        recommend(capped(8, GRID), **arguments)


def test_nothing_is_recommended_where_nothing_was_answered() -> None:
    with pytest.raises(ValueError, match="no row was answered"):
        recommend(sweep({"concurrency": 1, "rows_per_s": 0.0}))


def test_numbers_that_bring_no_more_in_flight_are_not_recommended() -> None:
    points = [
        {"concurrency": n, "in_flight": min(n, 21 - n / 100), "rows_per_s": min(n, 21.0) * (1 + n / 1000),
         "bound_by": "rate limit" if n > 21 else "concurrency"}
        for n in GRID
    ]  # fmt: skip
    found = recommend(sweep(*points))
    assert found.concurrency in (16, 21, 32)
    assert "a rate limit binds from 32 on" in found.reason


def test_of_numbers_that_miss_the_slo_alike_the_one_with_more_throughput_is_named() -> None:
    shares = {1: 0.89, 2: 0.9, 4: 0.87, 8: 0.89, 16: 0.88, 32: 0.2, 64: 0.0}
    points = [{"concurrency": n, "rows_per_s": float(min(n, 16)), "within_slo": share} for n, share in shares.items()]
    found = recommend(sweep(*points))
    assert (found.concurrency, found.keeps_slo) == (16, False)
