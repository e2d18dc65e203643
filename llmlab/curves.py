"""Throughput against concurrency: four curves, and a robust fit of many data sets at once.

    linear      X = g N
    smooth-min  X = ((g N)^(-1/m) + C^(-1/m))^(-m)      m -> 0: min(g N, C); m = 1: Michaelis-Menten
    USL         X = g N / (1 + a (N-1) + b N (N-1))     Gunther's Universal Scalability Law; b > 0: retrograde
    slots       X = g n / (1 + a (n-1)), n = min(N, s)  a batch that slows down as it fills, and is full at s

    elasticity e = d ln X / d ln N                      knee(e): where it has fallen to e
    linear      1                                       none
    smooth-min  1 / (1 + (g N / C)^(1/m))               (C/g) (1/e - 1)^m; at e = 1/2 it is C/g, Little's knee
    USL         1 - N (a + b (2N-1)) / (1 + a (N-1) + b N (N-1))
                                                        root of b (1+e) N^2 + e (a-b) N - (1-e) (1-a) = 0
    slots       (1 - a) / (1 + a (N-1)), and 0 from s on  1 + ((1-a)/e - 1) / a, at most s

Parameters are logarithms, so that they stay positive; residuals are logarithms, because noise is relative. The fit is
Levenberg-Marquardt from several starts with Huber's weights (delta 1.345 scales), vectorised over data sets, so that a
bootstrap costs a few array operations and no library is needed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]

HUBER = 1.345
"""Residuals beyond so many scales count linearly: 95% efficiency where there are no outliers."""
ROUNDS = 3
"""Times that the weights are renewed."""
STEPS = 60
SETTLED = 1e-9
"""Relative gain of a step below which it was the last."""
STUCK = 1e3
"""Damping above which no step is found any more."""
FLOOR = 1e-4
"""Least scale of the residuals: measurements are not better than a hundredth of a percent."""


@dataclass(frozen=True)
class Curve:
    """One form that throughput may have."""

    name: str
    """As in reports."""
    parameters: tuple[str, ...]
    """Their names; the fit's own are the logarithms of these."""
    low: tuple[float, ...]
    """Least logarithm of each."""
    high: tuple[float, ...]
    """Greatest logarithm of each."""
    log_x: Callable[[Array, Array], Array]
    """(…, p) log parameters and (n,) ln N -> (…, n) ln X."""
    elasticity: Callable[[Array, Array], Array]
    """The same -> (…, n) d ln X / d ln N."""
    knee: Callable[[Array, float], Array]
    """(…, p) log parameters and an elasticity between 0 and 1 -> (…,) N where it is reached; inf: nowhere."""
    starts: Callable[[Array, Array], Array]
    """(n,) ln N and (B, n) ln X -> (B, S, p) log parameters to start from."""


# -- the four curves --------------------------------------------------------------------------------------


def _linear_x(log: Array, ln_n: Array) -> Array:
    return np.asarray(log[..., :1] + ln_n)


def _linear_starts(ln_n: Array, ln_x: Array) -> Array:
    return np.asarray((ln_x - ln_n).mean(axis=1)[:, None, None])


def _smooth_x(log: Array, ln_n: Array) -> Array:
    g, c, m = log[..., :1], log[..., 1:2], np.exp(log[..., 2:3])
    return np.asarray(-m * np.logaddexp(-(g + ln_n) / m, -c / m))


def _smooth_elasticity(log: Array, ln_n: Array) -> Array:
    g, c, m = log[..., :1], log[..., 1:2], np.exp(log[..., 2:3])
    return np.asarray(1 / (1 + np.exp(np.clip((g + ln_n - c) / m, -700, 700))))


def _smooth_knee(log: Array, e: float) -> Array:
    return np.asarray(np.exp(log[..., 1] - log[..., 0] + np.exp(log[..., 2]) * np.log(1 / e - 1)))


def _smooth_starts(ln_n: Array, ln_x: Array) -> Array:
    g, c = (ln_x - ln_n).max(axis=1), ln_x.max(axis=1)
    return np.stack([np.stack([g, c + d, np.full_like(g, np.log(m))], 1) for m in (0.1, 0.5, 1.0) for d in (0, 0.5)], 1)


def _usl_terms(log: Array, ln_n: Array) -> tuple[Array, Array, Array, Array]:
    a, b, n = np.exp(log[..., 1:2]), np.exp(log[..., 2:3]), np.exp(ln_n)
    return a, b, n, 1 + a * (n - 1) + b * n * (n - 1)


def _usl_x(log: Array, ln_n: Array) -> Array:
    return np.asarray(log[..., :1] + ln_n - np.log(np.maximum(_usl_terms(log, ln_n)[3], 1e-300)))


def _usl_elasticity(log: Array, ln_n: Array) -> Array:
    a, b, n, below = _usl_terms(log, ln_n)
    return np.asarray(1 - n * (a + b * (2 * n - 1)) / below)


def _usl_knee(log: Array, e: float) -> Array:
    a, b = np.exp(log[..., 1]), np.exp(log[..., 2])
    square, straight, constant = b * (1 + e), e * (a - b), -(1 - e) * (1 - a)
    root = np.sqrt(np.maximum(straight**2 - 4 * square * constant, 0.0))
    return np.asarray(-2 * constant / (straight + root))  # the form that stays exact as b goes to 0


def _usl_starts(ln_n: Array, ln_x: Array) -> Array:
    g = (ln_x - ln_n).max(axis=1)
    peak = np.exp(ln_n)[ln_x.argmax(axis=1)]
    pairs = [(np.full_like(g, a), np.log(share) - 2 * np.log(peak)) for a in (-5.0, -3.0) for share in (0.9, 0.05)]
    return np.stack([np.stack([g, a, b], 1) for a, b in pairs], 1)


def _slots_x(log: Array, ln_n: Array) -> Array:
    ln_served = np.minimum(ln_n, log[..., 2:3])
    return np.asarray(log[..., :1] + ln_served - np.log1p(np.exp(log[..., 1:2]) * (np.exp(ln_served) - 1)))


def _slots_elasticity(log: Array, ln_n: Array) -> Array:
    a = np.exp(log[..., 1:2])
    return np.asarray(np.where(ln_n < log[..., 2:3], (1 - a) / (1 + a * (np.exp(ln_n) - 1)), 0.0))


def _slots_knee(log: Array, e: float) -> Array:
    a = np.exp(log[..., 1])
    return np.asarray(np.minimum(np.maximum(1 + ((1 - a) / e - 1) / a, 1.0), np.exp(log[..., 2])))


def _slots_starts(ln_n: Array, ln_x: Array) -> Array:
    g = (ln_x - ln_n).max(axis=1)
    walls = ln_n[(ln_x >= ln_x.max(axis=1, keepdims=True) - 0.1).argmax(axis=1)]  # where it is high first
    pairs = [(np.full_like(g, a), walls - back) for a in (-5.0, -3.0) for back in (0.0, 0.3, 0.6)]
    return np.stack([np.stack([g, a, wall], 1) for a, wall in pairs], 1)


LINEAR = Curve(
    "linear", ("g",), (-50.0,), (50.0,), _linear_x, lambda log, ln_n: np.ones((*log.shape[:-1], len(ln_n))),
    lambda log, _: np.full(log.shape[:-1], np.inf), _linear_starts,
)  # fmt: skip
SMOOTH_MIN = Curve(
    "smooth-min", ("g", "C", "m"), (-50.0, -50.0, float(np.log(0.02))), (50.0, 50.0, float(np.log(2.0))),
    _smooth_x, _smooth_elasticity, _smooth_knee, _smooth_starts,
)  # fmt: skip
USL = Curve(
    "usl", ("g", "a", "b"), (-50.0, -25.0, -35.0), (50.0, -1e-3, 0.0),
    _usl_x, _usl_elasticity, _usl_knee, _usl_starts,
)  # fmt: skip
SLOTS = Curve(
    "slots", ("g", "a", "s"), (-50.0, -25.0, 0.0), (50.0, -1e-3, 50.0),
    _slots_x, _slots_elasticity, _slots_knee, _slots_starts,
)  # fmt: skip
CURVES: tuple[Curve, ...] = (LINEAR, SMOOTH_MIN, USL, SLOTS)


# -- the fit ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fitted:
    """One curve, fitted to B data sets."""

    curve: Curve
    """Which."""
    log: Array
    """(B, p) log parameters."""
    loss: Array
    """(B,) weighted sum of the squared log residuals."""
    residuals: Array
    """(B, n) ln X - ln fit."""

    @property
    def aicc(self) -> Array:
        """(B,) Akaike's criterion with Hurvich and Tsai's correction; inf when there are too few points for it."""
        n, k = self.residuals.shape[1], len(self.curve.parameters) + 1  # the noise is a parameter, too
        if n - k - 1 <= 0:
            return np.full(len(self.loss), np.inf)
        return np.asarray(n * np.log(np.maximum(self.loss, n * FLOOR**2) / n) + 2 * k + 2 * k * (k + 1) / (n - k - 1))


def fit_curves(
    ln_n: Array, ln_x: Array, curves: tuple[Curve, ...] = CURVES, near: dict[str, Array] | None = None
) -> dict[str, Fitted]:
    """Fit each curve to each of B data sets that share their N.

    All curves are fitted with the same weights, Huber's for the residuals of the curve that fits best: what is far off
    even for that one is an outlier, while what is far off for another is that one's fault and counts in full.

    Args:
        ln_n: (n,) logarithms of N; repeats stand as they are.
        ln_x: (B, n) logarithms of the throughput.
        curves: Which to fit.
        near: (p,) log parameters by curve to start from: for data sets much like one that is fitted already.
    """
    weight = np.ones_like(ln_x)
    found = [_descend(curve, ln_n, ln_x, weight, _starts(curve, ln_n, ln_x, near)) for curve in curves]
    for _ in range(ROUNDS):
        weight = _weights(curves, ln_n, ln_x, found, weight)
        found = [_descend(curve, ln_n, ln_x, weight, log[:, None]) for curve, log in zip(curves, found, strict=True)]
    fits = (_fitted(curve, ln_n, ln_x, weight, log) for curve, log in zip(curves, found, strict=True))
    return {each.curve.name: each for each in fits}


def _starts(curve: Curve, ln_n: Array, ln_x: Array, near: dict[str, Array] | None) -> Array:
    return curve.starts(ln_n, ln_x) if near is None else np.tile(near[curve.name], (len(ln_x), 1, 1))


def _fitted(curve: Curve, ln_n: Array, ln_x: Array, weight: Array, log: Array) -> Fitted:
    residuals = ln_x - curve.log_x(log, ln_n)
    return Fitted(curve, log, (weight * residuals**2).sum(-1), residuals)


def _weights(curves: tuple[Curve, ...], ln_n: Array, ln_x: Array, found: list[Array], weight: Array) -> Array:
    fits = [_fitted(curve, ln_n, ln_x, weight, log) for curve, log in zip(curves, found, strict=True)]
    best = np.argmin([each.loss for each in fits], axis=0)
    size = np.abs(np.choose(best[:, None], [each.residuals for each in fits]))
    scale = np.choose(best, [_scale(each.residuals, each.curve) for each in fits])[:, None]
    return np.asarray(np.minimum(1.0, HUBER * scale / np.maximum(size, FLOOR**2)))


def _scale(residuals: Array, curve: Curve) -> Array:
    """(B,) scale of the residuals by their median, without the p that a curve with p parameters can make vanish."""
    p = min(len(curve.parameters), residuals.shape[1] - 1)
    return np.asarray(np.maximum(np.median(np.sort(np.abs(residuals))[:, p:], axis=1) / 0.6745, FLOOR))


def _descend(curve: Curve, ln_n: Array, ln_x: Array, weight: Array, starts: Array) -> Array:
    """(B, p): the best of all starts (B, S, p), each brought to its minimum by Levenberg-Marquardt."""
    sets, tries, p = starts.shape
    low, high = np.array(curve.low), np.array(curve.high)
    log = np.clip(starts.reshape(sets * tries, p), low, high)
    wanted, weight = np.repeat(ln_x, tries, axis=0), np.repeat(weight, tries, axis=0)
    damping = np.full(len(log), 1e-3)
    residuals = wanted - curve.log_x(log, ln_n)
    loss = (weight * residuals**2).sum(-1)
    for _ in range(STEPS):
        tried = np.clip(log + _step(curve, ln_n, log, weight, residuals, damping), low, high)
        new = wanted - curve.log_x(tried, ln_n)
        new_loss = (weight * new**2).sum(-1)
        better = new_loss <= loss
        gain = np.where(better, loss - new_loss, 0.0) / (loss + FLOOR**2)
        log[better], residuals[better], loss[better] = tried[better], new[better], new_loss[better]
        damping = np.clip(np.where(better, damping / 5, damping * 5), 1e-9, 1e9)
        if ((gain < SETTLED) & (better | (damping > STUCK))).all():
            break
    best = loss.reshape(sets, tries).argmin(axis=1)
    return np.asarray(log.reshape(sets, tries, p)[np.arange(sets), best])


def _step(curve: Curve, ln_n: Array, log: Array, weight: Array, residuals: Array, damping: Array) -> Array:
    slopes = _slopes(curve, ln_n, log)
    normal = np.einsum("bin,bjn,bn->bij", slopes, slopes, weight)
    pull = np.einsum("bin,bn,bn->bi", slopes, residuals, weight)
    diagonal = np.einsum("bii->bi", normal)
    diagonal += damping[:, None] * diagonal + 1e-12  # a parameter that no longer matters stays where it is
    return np.asarray(np.linalg.solve(normal, pull[..., None])[..., 0])


def _slopes(curve: Curve, ln_n: Array, log: Array) -> Array:
    """(B, p, n) derivatives of ln X by each log parameter."""
    h = 1e-6
    moves = h * np.eye(log.shape[1])
    return np.stack([(curve.log_x(log + d, ln_n) - curve.log_x(log - d, ln_n)) / (2 * h) for d in moves], axis=1)
