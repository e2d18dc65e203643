"""Where a sweep should look more closely: around what it speaks for, and where its SLO begins to be missed."""

from llmlab.frame import Frame
from llmlab.recommend import Recommendation

AROUND = (0.6, 1.0, 1.6)
"""Times the knee: numbers tried then."""
BETWEEN = (1 / 3, 2 / 3)
"""Ways from the greatest number that keeps the SLO to the least above it that misses it, on a logarithmic scale."""
NEAR = 1.15
"""Two numbers closer than this are not told apart."""


def closer(frame: Frame, found: Recommendation, *, most: int, attainment: float) -> tuple[int, ...]:
    """Give numbers to be tried next, ascending; none if nothing more is to be learnt.

    Args:
        frame: What was measured.
        found: What it speaks for.
        most: No number is greater.
        attainment: Share of the rows that must keep the SLO.
    """
    tried = frame["concurrency"]
    identified = None if found.knee is None else found.knee.n
    centre = identified if identified is not None else float(found.concurrency)
    wanted = {round(centre * factor) for factor in AROUND}
    if identified is None and found.concurrency >= tried.max():
        wanted = set()  # still worth it at the greatest: around it there is nothing to see
    wanted |= _edge(frame, attainment)
    return tuple(sorted(each for each in wanted - set(tried) if 1 <= each <= most))


def _edge(frame: Frame, attainment: float) -> set[int]:
    shares = frame.groupby("concurrency")["within_slo"].mean().dropna()
    kept = shares.index[shares >= attainment].tolist()
    missed = [n for n in shares.index[shares < attainment].tolist() if kept and n > max(kept)]
    if not missed or min(missed) < NEAR * max(kept):
        return set()
    ratio = min(missed) / max(kept)
    return {round(max(kept) * ratio**way) for way in BETWEEN}
