"""How well a twin foretells attempts that it has not seen: the same fit, without a part of the pilot."""

from typing import Any

import numpy as np

from llmlab.columns import Column
from llmlab.loadfit import Array
from llmlab.pilot import Pilot
from llmlab.pool import BLOCK, make_pool

CALIBRATION: tuple[Column, ...] = (
    Column("run", "Int64", "", "which of the pilot's runs, from 0; missing: all of them"),
    Column("in_flight", "float64", "", "mean in flight of the attempts held out"),
    Column("attempts", "int64", "", "answers held out, of this run"),
    Column("coverage", "float64", "", "share of them within their 80% interval: should be about 0.8"),
    Column("quantile", "float64", "", "which quantile the next two are, 0 to 1"),
    Column("predicted_ms", "float64", "ms", "latency as predicted for their tokens and in-flight"),
    Column("actual_ms", "float64", "ms", "latency as measured"),
)
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
MOST = 1000
"""Residuals and attempts at most that are combined."""
FEWEST = 5


def calibrate(pilot: Pilot, slots: float | None, *, limited: bool, share: float, seed: int) -> list[tuple[Any, ...]]:
    """Fit to a part of a pilot and compare with the rest; gives rows of `CALIBRATION`.

    Args:
        pilot: The attempts.
        slots: The provider's.
        limited: As in `make_pool`.
        share: Of the attempts, held out in blocks of consecutive ones.
        seed: Of the choice.
    """
    rng = np.random.default_rng(seed)
    blocks = np.arange(len(pilot.ok)) // BLOCK
    held = np.isin(blocks, rng.permutation(blocks[-1] + 1)[: max(1, round(share * (blocks[-1] + 1)))])
    seen, unseen = pilot.take(~held), pilot.take(held & pilot.usable)
    pool = make_pool(seen, slots, limited=limited)
    good = seen.take(seen.usable)
    off = good.latency / pool.latency.predict(good.n_in, good.n_out, good.in_flight)
    off = rng.choice(off, min(MOST, len(off)), replace=False)
    rows: list[tuple[Any, ...]] = []
    for run in (None, *np.unique(unseen.run)):
        group = unseen if run is None else unseen.take(unseen.run == run)
        if len(group.ok) >= FEWEST:
            rows += _compare(run, group, pool.latency.predict(group.n_in, group.n_out, group.in_flight), off)
    return rows


def _compare(run: int | None, group: Pilot, expected: Array, off: Array) -> list[tuple[Any, ...]]:
    actual = group.latency
    low, high = np.quantile(off, [0.1, 0.9])
    coverage = float(np.mean((low * expected <= actual) & (actual <= high * expected)))
    predicted = np.quantile(np.outer(expected[:MOST], off), QUANTILES) * 1000
    measured = np.quantile(actual, QUANTILES) * 1000
    head = (run, float(group.in_flight.mean()), len(actual), coverage)
    return [(*head, *each) for each in zip(QUANTILES, predicted.tolist(), measured.tolist(), strict=True)]
