"""Fits of a sweep: which curve throughput follows, and from which concurrency on more of it buys little.

`fit` chooses among the curves of `llmlab.curves` by AICc. A line and a smooth-min claim nothing special; USL, that
throughput falls again, and slots, a wall, must lead by 3, and be seen: a fall in the data and in nearly all bootstrap
fits; a wall with three levels before and one behind it, and eight points in all. `knee` gives the concurrency at which
1% more of it buys only `elasticity` percent more throughput, with its interval, or says in words why the data do not
tell: it never gives a number then. How sure that is: `llmlab.bootstrap`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from llmlab.bootstrap import FALL, Again, Places, peaks, refit
from llmlab.curves import CURVES, LINEAR, SLOTS, SMOOTH_MIN, USL, Array, Curve, Fitted, fit_curves
from llmlab.frame import Frame
from llmlab.measured import floats, positive
from llmlab.segmented import SAME, Break, find_break, levels_of

__all__ = ["Break", "Candidate", "Fit", "Knee", "fit", "knee"]

LEVELS, POINTS = 5, 7
"""Fewest different N, and points, for a knee: with fewer, AICc hardly ever dares a bend."""
RANGE = 4.0
"""Least ratio of the greatest to the least N."""
STRAY = 0.1
"""Share of bootstrap fits that may have no knee in reach before it counts as not identified."""
BEYOND = 2.0
"""A knee within so many times the greatest N measured is in reach."""
LEAD = 3.0
"""By so much must the AICc of a curve lead that claims more than a bend: a fall, or a wall."""
WALL_POINTS, WALL_LEVELS = 8, 3
UNSURE = "that throughput falls again is not"
WIDE = 4.0
"""Ratio of the interval's ends above which the knee counts as not identified."""
KEPT = 0.95
"""Share of rows keeping the SLO below which nobody is sent on to measure more."""
NEAR = 1.5
"""A second opinion within this factor of the knee, but outside its interval, is compatible."""


@dataclass(frozen=True)
class Candidate:
    """One curve, as it fits."""

    model: str
    """linear, smooth-min, usl or slots."""
    parameters: dict[str, float]
    """g: throughput per request in flight, at the start; C: capacity; m: softness of the bend; a, b: see curves."""
    aicc: float
    """Akaike's criterion, corrected for few points; less is better. inf: too few points for it."""
    rms: float
    """Root mean square of the log residuals: about the relative error."""


@dataclass(frozen=True)
class Knee:
    """Where throughput stops to be worth more concurrency, or why that is not known."""

    n: float | None
    """Concurrency (mean in flight) at which the elasticity has fallen to `elasticity`; None: not identified."""
    low: float | None
    """Lower end of its interval."""
    high: float | None
    """Upper end of its interval."""
    level: float
    """Share of the bootstrap fits whose knee lies in the interval."""
    elasticity: float
    """1% more concurrency buys this many percent more throughput there."""
    model: str
    """The curve chosen: linear, smooth-min, usl or slots."""
    reason: str
    """In words: how it was found, or why the data do not tell."""
    second: Break
    """The segmented knee, a second opinion."""
    verdict: str
    """What it says of the first: corroborated, compatible, disagreement or none."""
    candidates: tuple[Candidate, ...]
    """All curves, the best AICc first."""

    def __bool__(self) -> bool:
        return self.n is not None


@dataclass(frozen=True, eq=False)
class Fit:
    """A throughput curve fitted to a sweep; made by `fit`."""

    n: Array
    """(points,) mean requests in flight."""
    x: Array
    """(points,) throughput."""
    model: str
    """The curve chosen: linear, smooth-min, usl or slots."""
    candidates: tuple[Candidate, ...]
    """All curves, the best AICc first."""
    why: str
    """Why this curve."""
    _curve: Curve = field(repr=False)
    _log: Array = field(repr=False)
    _again: Again = field(repr=False)
    kept: float = 1.0
    """Share of the rows that kept the SLO at the greatest N; 1 without an SLO."""

    def predict(self, n: npt.ArrayLike) -> Array:
        """Throughput at concurrency `n`, in the unit it was measured in; the shape of `n`."""
        ln_n = np.log(positive("n", n))
        return np.asarray(np.exp(self._curve.log_x(self._log, ln_n.ravel()))).reshape(ln_n.shape)

    def elasticity(self, n: npt.ArrayLike) -> Array:
        """Give d ln X / d ln N at concurrency `n`: percent of throughput that 1% more concurrency buys."""
        ln_n = np.log(positive("n", n))
        return self._curve.elasticity(self._log, ln_n.ravel()).reshape(ln_n.shape)

    def band(self, n: npt.ArrayLike, *, level: float = 0.8) -> tuple[Array, Array]:
        """Lower and upper throughput at `n`: the curve lies between them in `level` of the bootstrap fits."""
        _share("level", level)
        ln_n = np.log(positive("n", n))
        drawn = np.exp(self._again.log_x(ln_n.ravel()))
        low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
        return low.reshape(ln_n.shape), high.reshape(ln_n.shape)

    @property
    def peak(self) -> float | None:
        """Concurrency beyond which throughput falls; None unless the retrograde curve was chosen."""
        return float(peaks(self._log)) if self.model == USL.name else None

    @cached_property
    def second(self) -> Break:
        """The segmented knee."""
        return find_break(self.n, self.x)

    def knee(self, elasticity: float = 0.2, *, level: float = 0.9) -> Knee:
        """Give the concurrency at which the elasticity has fallen to `elasticity`; see `llmlab.fits.knee`."""
        _share("elasticity", elasticity)
        _share("level", level)
        told = (level, elasticity, self.model)
        n = float(self._curve.knee(self._log, elasticity))
        low, high = self._interval(elasticity, level)
        if unknown := self._too_little() or self._out_of_reach(n, elasticity) or self._too_noisy(n, low, high):
            if self.kept < KEPT:
                unknown = unknown.removesuffix(", measure there")
                unknown += f"; at the greatest N only {self.kept:.0%} of the rows kept the SLO"
            return Knee(None, None, None, *told, unknown, self.second, "none", self.candidates)
        reason = f"{self.why}; from {_told(n)} on, 1% more concurrency buys less than {elasticity:.2g}% throughput"
        verdict = "none" if self.second.n is None else _verdict(self.second.n, n, low, high)
        return Knee(n, low, high, *told, reason, self.second, verdict, self.candidates)

    def _interval(self, e: float, level: float) -> tuple[float, float]:
        knees = self._again.knees(e)
        if float(np.mean(knees > BEYOND * self.n.max())) > STRAY:
            return float(knees.min()), np.inf
        low, high = np.quantile(knees, [(1 - level) / 2, (1 + level) / 2], method="nearest")
        return float(low), float(high)

    def _out_of_reach(self, n: float, e: float) -> str | None:
        least, greatest = _told(self.n.min()), _told(self.n.max())
        if self.model == LINEAR.name:
            return f"still linear, as far as the noise lets one tell, up to the greatest N measured, {greatest}"
        if n > self.n.max():
            buys = f"1% more concurrency still buys more than {e:.2g}% throughput"
            return f"at the greatest N measured, {greatest}, {buys}: the knee lies beyond, measure there"
        return f"throughput is already flat at the least N measured, {least}" if n < self.n.min() else None

    def _too_noisy(self, n: float, low: float, high: float) -> str | None:
        if high <= WIDE * low:
            return None
        doubt = "many bootstrap fits have none in reach"
        if high < np.inf:
            doubt = f"the data do not tell between {_told(low)} and {_told(high)}"
        return f"too noisy: {self.why}, and its knee would be {_told(n)}, but {doubt}"

    def _too_little(self) -> str | None:
        levels, points = len(levels_of(self.n)), len(self.n)
        if levels < LEVELS or points < POINTS:
            return f"too few measurements: {points} points at {levels} different N; a knee needs {POINTS} at {LEVELS}"
        if self.n.max() < RANGE * self.n.min():
            spread = f"{_told(self.n.min())} to {_told(self.n.max())}"
            return f"the range of N is too small: {spread}; the greatest should be {RANGE:.0f} times the least or more"
        return None


def fit(
    sweep: object, x: Sequence[float] | Array | None = None, *, throughput: str = "rows_per_s", seed: int = 0
) -> Fit:
    """Fit throughput against concurrency.

    Args:
        sweep: A sweep's frame: column `in_flight` (measured mean; else `concurrency`), the column named by
            `throughput`, and, if there are several runs, `repeat`. Or the N of plain arrays.
        x: With plain arrays, the throughput at each N.
        throughput: Column of a frame to fit, as rows_per_s or tokens_per_s.
        seed: Of the bootstrap.

    Returns:
        A Fit: `predict`, `band`, `elasticity`, `knee`. Rows without throughput, and those with none, are left out.

    Raises:
        TypeError: `sweep` is neither a frame nor an array, or `x` is missing.
        ValueError: a column is missing, lengths differ, a value is not above 0, or fewer than two points are left.
    """
    n, rates, runs = _read(sweep, x, throughput)
    if len(n) < 2:  # noqa: PLR2004
        raise ValueError(f"a fit needs two points at least, not {len(n)}")
    ln_n, ln_x = np.log(n), np.log(rates)
    fitted = fit_curves(ln_n, ln_x[None])
    order = sorted(CURVES, key=lambda curve: (float(fitted[curve.name].aicc[0]), len(curve.parameters)))
    doubts = {USL: _doubt_fall(fitted, n, ln_x), SLOTS: _doubt_wall(fitted, n)}
    chosen = next(curve for curve in order if not doubts.get(curve))
    again = refit(fitted, chosen, ln_n, _rivals(chosen), runs, seed)
    if chosen is USL and not again.retrograde(float(n.max())):
        doubts[USL] = UNSURE
        chosen = next(curve for curve in order if not doubts.get(curve))
        again = refit(fitted, chosen, ln_n, _rivals(chosen), runs, seed)
    why = f"{chosen.name} fits best (AICc)"
    if said := [doubts[curve] for curve in order[: order.index(chosen)]]:
        why = f"{chosen.name} fits best (AICc) of what is certain: {', '.join(said)}"
    candidates = tuple(_candidate(fitted[curve.name]) for curve in order)
    return Fit(n, rates, chosen.name, candidates, why, chosen, fitted[chosen.name].log[0], again, _kept(sweep))


def knee(
    sweep: object,
    x: Sequence[float] | Array | None = None,
    *,
    elasticity: float = 0.2,
    throughput: str = "rows_per_s",
    level: float = 0.9,
    seed: int = 0,
) -> Knee:
    """Find the concurrency from which on more of it buys little throughput.

    Args:
        sweep: A sweep's frame, or the N of plain arrays; see `fit`.
        x: With plain arrays, the throughput at each N.
        elasticity: The knee is where 1% more concurrency buys this many percent more throughput, between 0 and 1:
            0.1 for batches where only throughput counts, 0.2 balanced, 0.5 where latency counts (Little's knee).
        throughput: Column of a frame to fit.
        level: Of the interval, between 0 and 1.
        seed: Of the bootstrap.

    Returns:
        A Knee. It is false, and its `n` None, when the data do not identify one: fewer than 5 levels or 7 points, N
        over less than a factor of 4, throughput still linear or the knee beyond the measured range, or too much
        noise. Its `reason` says which.

    Raises:
        TypeError, ValueError: as `fit`; or `elasticity` or `level` is not between 0 and 1.
    """
    _share("elasticity", elasticity)
    return fit(sweep, x, throughput=throughput, seed=seed).knee(elasticity, level=level)


def _rivals(chosen: Curve) -> tuple[Curve, ...]:
    """What synthetic data may prefer: the two that claim nothing special, and the one chosen."""
    return (LINEAR, SMOOTH_MIN) if chosen in (LINEAR, SMOOTH_MIN) else (LINEAR, SMOOTH_MIN, chosen)


def _doubt_fall(fitted: dict[str, Fitted], n: Array, ln_x: Array) -> str:
    """Why USL, that throughput falls again, is not believed; "" if it may be.

    Less was measured at the greatest N than at the best: a bend sharper than USL's own looks like a fall to it.
    """
    levels = levels_of(n)
    means = [ln_x[(n >= low) & (n < high)].mean() for low, high in zip(levels, [*levels[1:], np.inf], strict=True)]
    fell = max(means) - means[-1] >= FALL
    return "" if fell and _leads(fitted, USL) > LEAD else UNSURE


def _doubt_wall(fitted: dict[str, Fitted], n: Array) -> str:
    """Why slots, a wall, are not believed; "" if they may be: three levels before them, one behind, eight points."""
    levels, wall = levels_of(n), float(np.exp(fitted[SLOTS.name].log[0, 2]))
    seen = len(n) >= WALL_POINTS and (levels < wall).sum() >= WALL_LEVELS and levels[-1] > SAME * wall
    return "" if seen and _leads(fitted, SLOTS) > LEAD else "that it is a wall is not"


def _leads(fitted: dict[str, Fitted], curve: Curve) -> float:
    """By how much its AICc is less than those of the two that claim nothing special."""
    rivals = min(float(fitted[each.name].aicc[0]) for each in (LINEAR, SMOOTH_MIN))
    return rivals - float(fitted[curve.name].aicc[0])


# -- reading and telling ----------------------------------------------------------------------------------


def _read(sweep: object, x: Any, throughput: str) -> tuple[Array, Array, list[Places]]:
    """N, throughput, and the points of each run in the order of their levels."""
    if isinstance(sweep, Frame):
        if x is not None:
            raise TypeError("x belongs to plain arrays; of a frame name the column: throughput='rows_per_s'")
        return _read_frame(sweep, throughput)
    if x is None or isinstance(sweep, str):
        raise TypeError(f"a fit takes a sweep's frame, or N and throughput as two arrays, not {type(sweep).__name__}")
    n, rates = positive("n", sweep).ravel(), positive("x", x).ravel()
    if len(n) != len(rates):
        raise ValueError(f"n and x must have the same length, not {len(n)} and {len(rates)}")
    return n, rates, []


def _read_frame(sweep: Frame, throughput: str) -> tuple[Array, Array, list[Places]]:
    measured = "in_flight" if "in_flight" in sweep else "concurrency"
    for name in (measured, throughput):
        if name not in sweep:
            raise ValueError(f"the sweep has no column {name!r}; it has: {', '.join(map(str, sweep.columns))}")
    columns = sweep.assign(**{name: floats(sweep[name], name) for name in (measured, throughput)})
    known = columns[(columns[measured] > 0) & (columns[throughput] > 0)]
    n, rates = known[measured].to_numpy(), known[throughput].to_numpy()
    settings = (known["concurrency"] if "concurrency" in known else known[measured]).to_numpy()
    if "repeat" not in known:
        return n, rates, []
    runs = [np.asarray(run) for run in known.groupby("repeat").indices.values()]
    return n, rates, [run[np.argsort(settings[run], kind="stable")] for run in runs]


def _kept(sweep: object) -> float:
    """Share of the rows that kept the SLO at the greatest N; 1 without an SLO."""
    if not (isinstance(sweep, Frame) and {"within_slo", "concurrency"} <= set(sweep)):
        return 1.0
    return float(sweep.groupby("concurrency")["within_slo"].mean().astype("float64").fillna(1.0).iloc[-1])


def _share(name: str, value: float) -> None:
    if not isinstance(value, int | float | np.number) or not 0 < value < 1:
        raise ValueError(f"{name} must be between 0 and 1, not {value!r}")


def _candidate(fitted: Fitted) -> Candidate:
    values = {name: float(value) for name, value in zip(fitted.curve.parameters, np.exp(fitted.log[0]), strict=True)}
    rms = float(np.sqrt(np.mean(fitted.residuals[0] ** 2)))
    return Candidate(fitted.curve.name, values, float(fitted.aicc[0]), rms)


def _verdict(second: float, n: float, low: float, high: float) -> str:
    if low <= second <= high:
        return "corroborated"
    return "compatible" if n / NEAR <= second <= n * NEAR else "disagreement"


def _told(n: Any) -> str:
    return f"{float(n):.3g}" if n < 1000 else f"{float(n):.0f}"  # noqa: PLR2004
