"""How sure a fitted throughput curve is: the curves refitted to synthetic data.

Synthetic data are the fitted curve and residuals drawn with replacement, whole runs at a time when four or more runs
cover the same levels (what one run has in common is kept together), else one by one over all levels. Residuals are
widened by sqrt(n / (n - p)) for the p parameters that have been fitted to them. Each synthetic data set chooses its own
curve by AICc, so that the doubt about the form is in the interval, too.
"""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from llmlab.curves import USL, Array, Curve, Fitted, fit_curves

Places: TypeAlias = npt.NDArray[np.intp]

DRAWS = 200
RUNS = 4
"""Runs from which on whole runs are drawn."""
SURE = 0.95
FALL = 0.05
"""Share by which throughput has to fall to be called retrograde."""


@dataclass(frozen=True, eq=False)
class Again:
    """All rivals fitted to B synthetic data sets, and which of them each set prefers."""

    fitted: tuple[Fitted, ...]
    """One per rival."""
    best: Places
    """(B,) index of the rival preferred."""

    def log_x(self, ln_n: Array) -> Array:
        """(B, n) ln X."""
        return np.asarray(np.choose(self.best[:, None], [each.curve.log_x(each.log, ln_n) for each in self.fitted]))

    def knees(self, e: float) -> Array:
        """(B,) where the elasticity is `e`; inf where a linear curve is preferred."""
        return np.asarray(np.choose(self.best, [each.curve.knee(each.log, e) for each in self.fitted]))

    def retrograde(self, greatest: float) -> bool:
        """Whether the USL of nearly all synthetic data sets falls, from a peak below the greatest N, by 5% or more."""
        usl = next(each for each in self.fitted if each.curve is USL)
        last = np.full(len(usl.log), greatest)
        top = np.minimum(peaks(usl.log), last)
        fall = [USL.log_x(usl.log, np.log(n)[:, None])[:, 0] for n in (top, last)]
        return float(np.mean(fall[0] - fall[1] >= FALL)) >= SURE


def peaks(log: Array) -> Array:
    """Where USL's throughput is greatest, sqrt((1 - a) / b); (…, p) -> (…,)."""
    return np.asarray(np.sqrt((1 - np.exp(log[..., 1])) / np.exp(log[..., 2])))


def refit(
    fitted: dict[str, Fitted], chosen: Curve, ln_n: Array, rivals: tuple[Curve, ...], runs: list[Places], seed: int
) -> Again:
    """Fit the rivals to data drawn from the chosen curve.

    Args:
        fitted: The curves fitted to the one real data set.
        chosen: The curve to draw from.
        ln_n: (n,) logarithms of N.
        rivals: The curves that may be preferred.
        runs: The points of each run, levels in one order; empty: runs are not known.
        seed: Of the draws.
    """
    rng = np.random.default_rng(seed)
    own = fitted[chosen.name]
    size, p = len(ln_n), len(chosen.parameters)
    wide = own.residuals[0] * np.sqrt(size / max(1, size - p))
    drawn = chosen.log_x(own.log, ln_n)[0] + _noise(wide, runs, rng)
    again = fit_curves(ln_n, drawn, rivals, {rival.name: fitted[rival.name].log[0] for rival in rivals})
    found = tuple(again[rival.name] for rival in rivals)
    return Again(found, np.argmin([each.aicc for each in found], axis=0))


def _noise(residuals: Array, runs: list[Places], rng: np.random.Generator) -> Array:
    size = len(residuals)
    if len(runs) < RUNS or any(len(run) * len(runs) != size for run in runs):
        return np.asarray((residuals - residuals.mean())[rng.integers(size, size=(DRAWS, size))])
    noise, table = np.empty((DRAWS, size)), residuals[np.stack(runs)]
    for run in runs:
        noise[:, run] = table[rng.integers(len(runs), size=DRAWS)]
    return noise
