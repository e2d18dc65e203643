"""Numbers from a job's frames: frame in, numbers out.

    of a result of run_many    summary, ecdf, histogram, percentiles, throughput, retries; timeline, errors, costs
    of job.attempts            requests, in_flight; timeline, errors, costs: closer than of a result
    of job.limits              spans, shares, levels
    of lab.compare             strategies
    of lab.sweep               curve

Nothing here draws; `llmlab.plots` draws what these give.
"""

from llmlab.stats.course import costs, in_flight, mean_in_flight, requests, throughput
from llmlab.stats.limits import levels, shares, spans
from llmlab.stats.rows import errors, retries, timeline
from llmlab.stats.spread import ecdf, histogram, percentiles
from llmlab.stats.strategies import strategies
from llmlab.stats.sweeps import curve
from llmlab.stats.totals import summary

__all__ = [
    "costs",
    "curve",
    "ecdf",
    "errors",
    "histogram",
    "in_flight",
    "levels",
    "mean_in_flight",
    "percentiles",
    "requests",
    "retries",
    "shares",
    "spans",
    "strategies",
    "summary",
    "throughput",
    "timeline",
]
