"""When a closed loop is steady, on loops whose figures are known."""

import math
import random

import pytest

from llmlab.steady import gained, window


def loop(n: int, rows: int, *, sigma: float = 0.0, seed: int = 0) -> list[tuple[float, float]]:
    """`n` workers, each of which sends its next request when the last has ended; requests of one second or so."""
    rng = random.Random(seed)
    free = [0.0] * n
    spans = []
    for _ in range(rows):
        worker = min(range(n), key=free.__getitem__)
        ended = free[worker] + rng.lognormvariate(0.0, sigma)
        spans.append((free[worker], ended))
        free[worker] = ended
    return spans


def test_a_closed_loop_has_as_many_in_flight_as_workers_and_keeps_little_s_law() -> None:
    seen = window(loop(8, 2000, sigma=0.5), began=0.0, end=200.0)
    assert seen.in_flight == pytest.approx(8)
    assert seen.rate == pytest.approx(8 / math.exp(0.5**2 / 2), rel=0.05)
    assert seen.error < 0.02
    assert seen.steady
    assert seen.enough


def test_the_warm_up_is_left_out() -> None:
    assert window(loop(4, 100), began=0.0, end=5.0).begin == 1.0, "one mean latency"
    assert window(loop(4, 400), began=0.0, end=100.0).begin == 10.0, "a tenth of the time"


def test_requests_in_flight_at_the_end_count_for_as_long_as_they_flew() -> None:
    seen = window([(0.0, 1.0)] * 10, began=0.0, end=5.0, flying=(3.0, 4.0))
    assert seen.in_flight == pytest.approx((2 + 1) / 4)


def test_a_loop_that_was_never_full_breaks_little_s_law_and_says_so() -> None:
    """All begin together, and the long ones end together."""
    seen = window([(0.0, 1.0), (0.0, 10.0)] * 100, began=0.0, end=10.5)
    assert seen.error > 0.05
    assert not seen.steady


def test_few_requests_or_a_short_window_are_not_enough() -> None:
    assert not window(loop(1, 50), began=0.0, end=50.0).enough, "50 requests"
    assert not window(loop(100, 300), began=0.0, end=3.0).enough, "two latencies"
    assert not window(loop(4, 200, sigma=1.2), began=0.0, end=60.0).enough, "too noisy"


def test_nothing_is_measured_of_nothing() -> None:
    seen = window([], began=0.0, end=0.0)
    assert (seen.in_flight, seen.rate, seen.answered) == (0.0, 0.0, 0)
    assert math.isnan(seen.error)
    assert not seen.enough


def test_the_interval_covers_the_true_rate_about_as_often_as_it_says() -> None:
    true = 16 / math.exp(0.6**2 / 2)
    hits = 0
    for seed in range(100):
        seen = window(loop(16, 1200, sigma=0.6, seed=seed), began=0.0, end=60.0)
        hits += abs(seen.rate - true) <= seen.spread * seen.rate
    assert hits >= 85


@pytest.mark.parametrize(
    ("before", "after", "elasticity"),
    [((1, 10), (2, 20), 1.0), ((1, 10), (2, 10), 0.0), ((2, 10), (4, 5), -1.0), ((2, 0), (4, 5), math.inf)],
)
def test_what_a_step_has_gained(before: tuple[float, float], after: tuple[float, float], elasticity: float) -> None:
    assert gained(before, after) == pytest.approx(elasticity)
