"""Which concurrency a sweep speaks for, and why: frame in, recommendation out.

the SLO                 numbers at which fewer than `attainment` of the rows kept it are out
the knee is identified  the greatest number measured that is not beyond it, or the knee itself if the SLO leaves it
it is not               the last number that the step to was still worth its price: at least `elasticity` percent
more throughput for 1% more in flight
no number keeps it      the greatest that comes as close as any, and is not beyond the knee
a rate limit binds      more in flight buys nothing; the rate measured at the greatest number is recommended as `rpm`
"""

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from llmlab.fits import Fit, Knee, fit
from llmlab.frame import Frame
from llmlab.steady import gained
from llmlab.strategy import Strategy

ATTAINMENT = 0.95
"""Share of the rows that must keep the SLO."""
BELOW = 0.98
"""Share of the rate at which 429s or the ledger bound it that is recommended: at all of it some are refused."""
MORE = 1.05
"""Times as many in flight that a greater concurrency must bring to count as one."""
DOUBT = 2.0
"""Standard errors within which two shares are taken for the same."""
RATE = "rate limit"
"""What `bound_by` calls it."""


@dataclass(frozen=True)
class Recommendation:
    """A setting, what it promises, and why."""

    concurrency: int
    """Requests in flight at most."""
    rpm: float | None
    """Requests per minute at most; None: no rate limit was met."""
    rows_per_s: float
    """Throughput that was measured there, or at the number measured next to it."""
    p95_ms: float
    """95% quantile of the latency there, milliseconds."""
    within_slo: float | None
    """Share of the rows that kept the SLO there; None without one."""
    keeps_slo: bool
    """Whether that is enough; True without an SLO."""
    elasticity: float
    """Asked for: 1% more in flight is to buy at least so many percent more throughput."""
    knee: Knee | None
    """What the fit says; None: too few points for any."""
    reason: str
    """Why, in words."""
    sweep: Frame = field(repr=False, compare=False)
    """What was measured; see `llmlab.sweep.SWEPT`."""

    def seconds(self, rows: int) -> float:
        """How long a job of so many rows takes at this throughput."""
        return rows / self.rows_per_s if self.rows_per_s > 0 else math.inf

    def strategy(self, **settings: Any) -> Strategy:
        """The default strategy with it; `settings` as `Strategy.default` takes them."""
        return Strategy.default(concurrency=self.concurrency, rpm=self.rpm, **settings)

    def __str__(self) -> str:
        rate = "" if self.rpm is None else f", rpm={self.rpm:.0f}"
        return f"concurrency={self.concurrency}{rate}: {self.reason}"


def recommend(
    sweep: Frame,
    *,
    elasticity: float = 0.2,
    attainment: float = ATTAINMENT,
    seed: int = 0,
    fitted: Fit | None = None,
) -> Recommendation:
    """Say which concurrency a sweep speaks for.

    Args:
        sweep: The frame of `lab.sweep`; one with an SLO has `within_slo`.
        elasticity: 1% more in flight is to buy at least so many percent more throughput, between 0 and 1: 0.1 if only
            throughput counts, 0.2 balanced, 0.5 if latency counts.
        attainment: Share of the rows that must keep the SLO, above 0, 1 at most.
        seed: Of the fit's bootstrap.
        fitted: The sweep's fit, if it is made already.

    Raises:
        ValueError: an argument is out of its range, or no point of the sweep has an answered row.
    """
    check_aims(elasticity, attainment)
    known = sweep[sweep["rows_per_s"] > 0]
    if known.empty:
        raise ValueError("no row was answered, so nothing can be recommended")
    points = _points(known)
    good = [each for each in points if not each["within_slo"] < attainment]
    fitted = fit(sweep, seed=seed) if fitted is None and len(points) > 1 else fitted
    found = None if fitted is None else fitted.knee(elasticity)
    wanted, why = _wanted(points, found, elasticity)
    chosen, concurrency, reason = _choose(points, good, wanted, why, attainment)
    limited = [each for each in points if each["bound_by"] == RATE and each["concurrency"] >= chosen["concurrency"]]
    if limited:
        least, rate = limited[0]["concurrency"], limited[-1]["rows_per_s"] * 60
        reason += f"; a rate limit binds from {least} on, at {rate:.0f} rows a minute"
    within = chosen["within_slo"]
    return Recommendation(
        concurrency,
        limited[-1]["requests_per_s"] * 60 * BELOW if limited else None,
        chosen["rows_per_s"],
        chosen["p95_ms"],
        None if math.isnan(within) else within,
        bool(good),
        elasticity,
        found,
        reason,
        sweep,
    )


def check_aims(elasticity: float, attainment: float) -> None:
    """Complain about aims that make no sense.

    Raises:
        ValueError: one is out of its range.
    """
    if not 0 < elasticity < 1:
        raise ValueError(f"elasticity must be between 0 and 1, not {elasticity!r}")
    if not 0 < attainment <= 1:
        raise ValueError(f"attainment must be above 0 and 1 at most, not {attainment!r}")


def _points(known: Frame) -> list[dict[str, Any]]:
    """One point per concurrency, repeats averaged, ascending."""
    numbers = ["in_flight", "rows_per_s", "p95_ms", "within_slo"]
    points = []
    for concurrency, rows in known.groupby("concurrency", sort=True):
        point: dict[str, Any] = {name: float(rows[name].astype("float64").mean()) for name in numbers}
        point["concurrency"] = int(str(concurrency))
        sent = rows["ok"] + rows["failed"] + rows["throttled"]
        point["rows"] = float((rows["ok"] + rows["failed"]).sum())
        point["requests_per_s"] = float(sent.sum() / rows["window_s"].sum())
        point["bound_by"] = next(iter(rows["bound_by"].mode()), None)
        points.append(point)
    return points


def _wanted(points: list[dict[str, Any]], found: Knee | None, elasticity: float) -> tuple[float, str]:
    """How many in flight throughput alone speaks for, and why."""
    if found is not None and found.n is not None:
        return found.n, f"the knee is at {found.n:.3g} in flight ({found.low:.3g} to {found.high:.3g}): {found.reason}"
    doubt = "only one number was measured" if found is None else f"the knee is not identified ({found.reason})"
    worth = points[0]
    for before, after in pairwise(points):
        if _same(before, after) or gained(_place(before), _place(after)) < elasticity:
            return worth["concurrency"], f"{doubt}; beyond {worth['concurrency']} a step buys too little"
        worth = after
    return worth["concurrency"], f"{doubt}; each step up to the greatest measured was worth it"


def _same(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether something else than the concurrency says how many are in flight: a rate limit, mostly."""
    return bool(after["in_flight"] < MORE * before["in_flight"])


def _place(point: dict[str, Any]) -> tuple[float, float]:
    return point["in_flight"], point["rows_per_s"]


def _closest(points: list[dict[str, Any]], wanted: float) -> dict[str, Any]:
    """The greatest number, as far as more of it is wanted, whose share of rows within the SLO is as good as any."""
    best = max(points, key=lambda each: each["within_slo"])
    share = best["within_slo"]
    doubt = DOUBT * math.sqrt(max(share * (1 - share), 0.0) / max(best["rows"], 1.0))
    alike = [each for each in points if each["within_slo"] >= share - doubt and each["concurrency"] <= wanted]
    return alike[-1] if alike else best


def _choose(
    points: list[dict[str, Any]], good: list[dict[str, Any]], wanted: float, why: str, attainment: float
) -> tuple[dict[str, Any], int, str]:
    """The point to go by, the number to recommend, and the reason."""
    if not good:
        best = _closest(points, wanted)
        share = f"{best['within_slo']:.0%}"
        words = f"no number keeps the SLO for {attainment:.0%} of the rows; none comes closer than this one ({share})"
        return best, best["concurrency"], words
    most = good[-1]["concurrency"]
    if wanted > most and most < points[-1]["concurrency"]:
        return good[-1], most, f"beyond it too many rows miss the SLO; without it: {why}"
    concurrency = max(1, round(wanted))
    nearest = min(good, key=lambda each: abs(math.log(each["concurrency"] / concurrency)))
    return nearest, concurrency, why
