"""Plots of a job's frames: each takes a frame, draws into `ax` or a figure of its own, and returns the axes.

    of a result of run_many    latency, throughput, retries; timeline, errors, cost, streams
    of job.attempts            requests, in_flight; timeline, errors, cost, streams: closer than of a result
    of job.limits              in_flight (as sampled), bound_by, breaker, limiter
    of lab.compare             compare
    of lab.sweep               sweep
    of a Twin                  twin (of predict), calibration (of calibration)
    of a job                   report: all of it on one page

    llmlab.plots.latency(out, by="model")                   # the last line of a cell: shown once
    display(llmlab.plots.latency(out), llmlab.plots.cost(out))   # two in one cell
    ax = llmlab.plots.latency(out); ax.set_xlim(0, 2_000)   # nothing shown; `ax` on the last line shows it
    llmlab.plots.latency(out).figure.savefig("latency.pdf")
    figure, (left, right) = plt.subplots(1, 2); llmlab.plots.latency(out, ax=left); llmlab.plots.cost(out, ax=right)

The numbers behind each picture come from the functions in `llmlab.stats`. Names of models, errors and whatever else
comes from outside are drawn as they stand, never as mathtext or TeX. Needs matplotlib: `pip install "llmlab[plots]"`.
"""

try:
    import matplotlib as mpl  # noqa: F401  only to see whether it is there
except ImportError as error:
    raise ImportError('llmlab.plots needs matplotlib: pip install "llmlab[plots]"') from error

from llmlab.plots.course import cost, in_flight, requests, throughput
from llmlab.plots.latency import latency, streams
from llmlab.plots.report import report
from llmlab.plots.ribbons import bound_by, breaker, limiter
from llmlab.plots.rows import errors, retries, timeline
from llmlab.plots.strategies import compare
from llmlab.plots.sweep import sweep
from llmlab.plots.twin import calibration, twin

__all__ = [
    "bound_by",
    "breaker",
    "calibration",
    "compare",
    "cost",
    "errors",
    "in_flight",
    "latency",
    "limiter",
    "report",
    "requests",
    "retries",
    "streams",
    "sweep",
    "throughput",
    "timeline",
    "twin",
]
