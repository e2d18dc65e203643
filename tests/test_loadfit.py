"""Latency by tokens and in-flight: known coefficients come back, and in-flight is counted right."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.loadfit import Latency, find_slots, fit_latency, mean_in_flight

TRUE = {"a": 0.15, "c": 1e-4, "f": 0.003, "b": 0.01, "d": 3e-4}


def measured(seed: int, *, sigma: float = 0.1, slots: float | None = None, rows: int = 900) -> tuple[np.ndarray, ...]:
    """Input and output tokens, in-flight, latency."""
    rng = np.random.default_rng(seed)
    n_in, n_out = rng.uniform(20, 2000, rows), np.exp(rng.normal(4.2, 0.5, rows))
    load = rng.choice([8.0, 24.0, 48.0], rows) * rng.uniform(0.95, 1.0, rows)
    latency = Latency(tuple(TRUE.values()), streamed=False, slots=slots).predict(n_in, n_out, load)
    return n_in, n_out, load, latency * np.exp(rng.normal(0, sigma, rows))


@given(st.lists(st.tuples(st.floats(0, 50), st.floats(0.01, 20)), min_size=1, max_size=12))
def test_mean_in_flight_is_the_overlap_with_all_others(spans: list[tuple[float, float]]) -> None:
    sent = np.array([start for start, _ in spans])
    ended = sent + np.array([length for _, length in spans])
    overlap = [np.clip(np.minimum(ended, e) - np.maximum(sent, s), 0, None).sum() / (e - s)
               for s, e in zip(sent, ended, strict=True)]  # fmt: skip
    assert mean_in_flight(sent, ended) == pytest.approx(np.array(overlap), rel=1e-6, abs=1e-6)


def test_an_attempt_that_took_no_time_was_in_flight_itself() -> None:
    assert mean_in_flight(np.array([1.0]), np.array([1.0])).tolist() == [1.0]


@pytest.mark.parametrize("seed", range(5))
def test_known_coefficients_come_back(seed: int) -> None:
    n_in, n_out, load, latency = measured(seed)
    found = fit_latency(n_in, n_out, load, latency, None, None)
    assert found.whole[3] + 24 * found.whole[4] == pytest.approx(TRUE["b"] + 24 * TRUE["d"], rel=0.03), (
        "s per token at 24"
    )
    assert found.whole[4] == pytest.approx(TRUE["d"], rel=0.15)
    assert found.whole[1] == pytest.approx(TRUE["c"], rel=0.15)
    off = np.log(
        found.predict(n_in, n_out, load)
        / Latency(tuple(TRUE.values()), streamed=False, slots=None).predict(n_in, n_out, load)
    )
    assert abs(off.mean()) < 0.01
    assert off.std() < 0.015


def test_outliers_are_borne_with() -> None:
    n_in, n_out, load, latency = measured(1)
    latency[::25] *= 8  # 4% of them stalled
    found = fit_latency(n_in, n_out, load, latency, None, None)
    assert found.whole[3] + 24 * found.whole[4] == pytest.approx(TRUE["b"] + 24 * TRUE["d"], rel=0.05)


def test_no_coefficient_is_below_0() -> None:
    """Faster under load, as a cold provider may seem: that is no slope to go on with."""
    n_in, n_out, load, latency = measured(2)
    found = fit_latency(n_in, n_out, load, latency / load**0.3, None, None)
    assert min(found.whole) >= 0


def test_streams_are_fitted_in_two_parts() -> None:
    rng = np.random.default_rng(4)
    n_in, n_out, load, _ = measured(4)
    ttft = (0.15 + 1e-4 * n_in + 0.003 * load) * np.exp(rng.normal(0, 0.3, len(load)))
    latency = ttft + (n_out - 1) * (0.01 + 3e-4 * load) * np.exp(rng.normal(0, 0.03, len(load)))
    found = fit_latency(n_in, n_out, load, latency, ttft, None)
    assert found.streamed
    assert found.whole[3:] == pytest.approx((0.01, 3e-4), rel=0.03)
    assert found.whole[2] == pytest.approx(0.003, rel=0.3)


@pytest.mark.parametrize("seed", range(3))
def test_slots_are_found_when_they_were_met_and_only_then(seed: int) -> None:
    assert find_slots(*measured(seed, slots=30)) == pytest.approx(30, rel=0.2)
    assert find_slots(*measured(seed)) is None
