"""A second opinion on the knee: two straight lines that meet, as guidellm 0.8 looks for it.

Both axes are scaled to 0..1, the points are split by N into a first part of at least three levels and a tail of at
least two, each gets a line by least squares, and the split with the least error wins. Where its lines meet counts as a
knee when the tail rises at a quarter of the first line's slope at most, two lines at least halve the error of one, and
throughput at the knee is at least 85% of the greatest. It knows no noise model and gives no interval: that is why it is
only the second opinion.
"""

from dataclasses import dataclass

import numpy as np

from llmlab.curves import Array

FIRST, TAIL = 3, 2
"""Fewest levels on either side."""
FLATTER, SHORTER, HIGH = 0.25, 0.5, 0.85
SAME = 1.1
"""N up to so much above the least of a level belong to it."""


@dataclass(frozen=True)
class Break:
    """Where two straight lines meet, if they do."""

    n: float | None
    """Where; None: there is no such place to speak of."""
    reason: str
    """In words, why there is one or none."""


def levels_of(n: Array) -> Array:
    """The least N of each level: measured means of one setting differ a little, and are one level."""
    found: list[float] = []
    for value in np.sort(n):
        if not found or value > SAME * found[-1]:
            found.append(float(value))
    return np.array(found)


def find_break(n: Array, x: Array) -> Break:
    """Look for the break of a throughput curve.

    Args:
        n: Concurrency, repeats as they stand.
        x: Throughput.
    """
    levels = levels_of(n)
    if len(levels) < FIRST + TAIL:
        return Break(None, f"two lines need {FIRST + TAIL} different N, there are {len(levels)}")
    u, y = (n - n.min()) / np.ptp(n), (x - x.min()) / max(np.ptp(x), 1e-300)
    splits = (levels[FIRST:-1] - n.min()) / np.ptp(n)
    pairs = [(_line(u[u < split], y[u < split]), _line(u[u >= split], y[u >= split])) for split in splits]
    (error, start, slope), (tail_error, tail_start, tail) = min(pairs, key=lambda pair: pair[0][0] + pair[1][0])
    if slope <= 0 or tail > FLATTER * slope:
        return Break(None, "the second line is not much flatter than the first")
    if error + tail_error > SHORTER * _line(u, y)[0]:
        return Break(None, "two lines fit hardly better than one")
    place = (tail_start - start) / (slope - tail)
    if not 0 < place < 1 or x.min() + (start + slope * place) * np.ptp(x) < HIGH * x.max():
        return Break(None, f"the lines meet outside the range or below {HIGH:.0%} of the greatest throughput")
    return Break(float(n.min() + place * np.ptp(n)), "two lines fit, and the second is flat")


def _line(u: Array, y: Array) -> tuple[float, float, float]:
    """Squared error, start and slope."""
    slope, start = np.polyfit(u, y, 1)
    return float(np.square(y - start - slope * u).sum()), float(start), float(slope)
