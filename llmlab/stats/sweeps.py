"""The curve through a sweep, for who wants to draw or tabulate it."""

import numpy as np
import pandas as pd

from llmlab.fits import Fit, fit
from llmlab.stats.checks import SWEEP, floats, needs

BEYOND = 1.5
"""How far beyond the greatest measured concurrency the curve is continued."""
_COLUMNS = ("in_flight", "value", "low", "high", "elasticity", "measured")


def curve(
    swp: pd.DataFrame, *, throughput: str = "rows_per_s", level: float = 0.8, points: int = 100, seed: int = 0
) -> pd.DataFrame:
    """Give the curve that throughput follows in a sweep, with its band, and a little beyond what was measured.

    Args:
        swp: A result of `lab.sweep`.
        throughput: The column that is fitted, as rows_per_s, tokens_per_s or goodput_per_s.
        level: Of the band: the curve lies in it in this share of the bootstrap fits.
        points: How many, at equal ratios of concurrency.
        seed: Of the bootstrap.

    Returns:
        `in_flight` (requests in flight), `value`, `low`, `high` (throughput and its band), `elasticity` (% of
        throughput that 1% more concurrency buys), `measured` (False beyond the greatest concurrency measured). Empty
        if fewer than two levels were measured.

    Raises:
        TypeError, ValueError: `swp` is no frame, or lacks a column; names it.
    """
    needs(swp, "curve", SWEEP, ["in_flight", throughput])
    return line_of(fit_of(swp, throughput=throughput, seed=seed), level=level, points=points)


def fit_of(swp: pd.DataFrame, *, throughput: str = "rows_per_s", seed: int = 0) -> Fit | None:
    """The fit that `curve` draws; None if fewer than two levels were measured: one has no curve."""
    n, x = floats(swp["in_flight"]), floats(swp[throughput])
    if len(np.unique(n[(n > 0) & (x > 0)])) < 2:  # noqa: PLR2004
        return None
    return fit(swp, throughput=throughput, seed=seed)


def line_of(found: Fit | None, *, level: float = 0.8, points: int = 100) -> pd.DataFrame:
    """What `curve` gives, of a fit that is there already."""
    if found is None:
        return pd.DataFrame(columns=list(_COLUMNS), dtype="float64").astype({"measured": bool})
    at = np.geomspace(found.n.min(), BEYOND * found.n.max(), points)
    low, high = found.band(at, level=level)
    values = (at, found.predict(at), low, high, found.elasticity(at), at <= found.n.max())
    return pd.DataFrame(dict(zip(_COLUMNS, values, strict=True)))
