"""A job on one page."""

from typing import Any, NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from llmlab.frame import Frame
from llmlab.job import Job
from llmlab.plots.canvas import Sheet, dollars, duration, inert, percent, plain
from llmlab.plots.course import cost, in_flight, throughput
from llmlab.plots.latency import latency, streams
from llmlab.plots.ribbons import bound_by, breaker
from llmlab.plots.rows import errors, retries, timeline
from llmlab.stats.checks import origin
from llmlab.stats.limits import shares
from llmlab.stats.totals import summary

SIZE = (12.0, 14.0)
"""Inches of the figure."""


def report(job: Job[Any]) -> Figure:
    """Draw a job on one page: its numbers, what bound it, what came out when, how long answers took, what went wrong.

    Args:
        job: A job of `run_many`, done or still at work: what is settled so far is drawn.

    Returns:
        A figure, which a notebook shows as the value of a cell; `report(job).savefig("job.pdf")` keeps it.

    Raises:
        TypeError: `job` is no Job.
    """
    if not isinstance(job, Job):
        raise TypeError(f"report takes a Job, as lab.run_many(…) gives it, not {type(job).__name__}")
    seen = _Seen(job.frame, job.attempts, job.limits)
    zero = origin(None, seen.out["started_at"], seen.limits["at"])
    figure = Sheet(figsize=SIZE, layout="constrained")
    places = figure.subplot_mosaic(
        [["timeline", "timeline"], ["bound", "bound"], ["breaker", "breaker"], ["rate", "flight"],
         ["latency", "streams"], ["retries", "errors"], ["cost", "cost"]],
        height_ratios=[2.6, 0.45, 0.6, 1.5, 1.5, 1.5, 1.3],
    )  # fmt: skip
    timeline(seen.attempts if len(seen.attempts) else seen.out, ax=places["timeline"], since=zero)
    bound_by(seen.limits, ax=places["bound"], since=zero)
    breaker(seen.limits, ax=places["breaker"], since=zero)
    throughput(seen.out, ax=places["rate"], since=zero)
    in_flight(seen.attempts, ax=places["flight"], limits=seen.limits, since=zero)
    latency(seen.out, ax=places["latency"])
    streams(seen.attempts, ax=places["streams"])
    retries(seen.out, ax=places["retries"])
    errors(seen.attempts, ax=places["errors"])
    cost(seen.attempts, ax=places["cost"], since=zero)
    head = figure.suptitle(_headline(job.name, seen), x=0.01, ha="left", fontsize="large")
    inert(head)
    return figure


class _Seen(NamedTuple):
    """A job's frames, each asked for once."""

    out: Frame
    attempts: Frame
    limits: Frame


def _headline(name: str, seen: _Seen) -> str:
    """The job in two lines."""
    told = summary(seen.out)
    lost = told["error_count"] / told["rows"] if told["rows"] else float("nan")
    counts = [
        f"{plain(name)}: {told['rows']:,} rows",
        f"{told['success_count']:,} answered",
        f"{told['error_count']:,} failed ({percent(lost)})",
        *([f"{told['cancelled_count']:,} cancelled"] if told["cancelled_count"] else []),
        f"{told['attempts']:,} requests",
    ]
    latencies = [f"{name} {duration(told[f'{name}_latency_ms'])}" for name in ("p50", "p95", "p99")]
    cost_usd, bound = told["cost_usd"], shares(seen.limits).head(1)
    figures = [
        f"{told['total_time_ms'] / 1000:,.1f} s",
        f"{told['rows_per_s']:.3g} rows/s",
        f"latency {', '.join(latencies)}",
        "cost not known" if pd.isna(cost_usd) else dollars(cost_usd),
        *(f"bound by: {cause} {percent(share)} of the time" for cause, _, share in bound.itertuples(index=False)),
    ]
    return "  ·  ".join(counts) + "\n" + "  ·  ".join(figures)
