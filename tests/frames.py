"""Small frames made by hand, with the columns and dtypes of the real ones, for tests of numbers and pictures."""

from typing import Any

import pandas as pd

from llmlab.columns import COLUMNS
from llmlab.frame import frame_of
from llmlab.gauges import LIMITS
from llmlab.history import ATTEMPTS

START = 1_767_225_600.0
ZERO = pd.Timestamp(START, unit="s", tz="UTC")
RESULT: dict[str, Any] = {
    "prompt": "hi", "content": "a", "status": "ok", "latency_ms": 1000.0, "queue_ms": 0.0, "wait_ms": 0.0,
    "attempts": 1, "model": "m", "provider": "p", "input_tokens": 5, "output_tokens": 10, "cache_hit": False,
    "begin": 0.0, "end": 1.0,
}  # fmt: skip
ATTEMPT: dict[str, Any] = {
    "position": 0, "attempt": 1, "rows": 1, "kind": "first", "why": "first", "target": "p:m", "status": "ok",
    "wait_ms": 0.0, "queue_ms": 0.0, "latency_ms": 1000.0, "input_tokens": 5, "output_tokens": 10, "begin": 0.0,
    "end": 1.0,
}  # fmt: skip
SAMPLE: dict[str, Any] = {
    "target": "p:m", "bound_by": "provider", "limit": 4, "in_flight": 2, "waiting": 0, "breaker": "closed",
    "begin": 0.0,
}  # fmt: skip


def result(*rows: dict[str, Any]) -> pd.DataFrame:
    """A result of run_many; `begin` and `end` in seconds, None for a row that was never taken up."""
    return _made(COLUMNS, [{**RESULT, **row} for row in rows], "started_at", "finished_at")


def attempts(*rows: dict[str, Any]) -> pd.DataFrame:
    """A `job.attempts`; `begin` and `end` in seconds."""
    return _made(ATTEMPTS, [{**ATTEMPT, **row} for row in rows], "sent_at", "ended_at")


def limits(*rows: dict[str, Any]) -> pd.DataFrame:
    """A `job.limits`; `begin` in seconds is when the sample was taken."""
    return _made(LIMITS, [{**SAMPLE, **row} for row in rows], "at", None)


def compared(*rows: tuple[str, int, int, int, float, float]) -> pd.DataFrame:
    """A result of lab.compare, of (strategy, seed, ok, failed, makespan_s, attempts_per_ok)."""
    return pd.DataFrame(rows, columns=["strategy", "seed", "ok", "failed", "makespan_s", "attempts_per_ok"])


def lost(**fields: Any) -> dict[str, Any]:
    """A row without an answer."""
    nothing = {"content": None, "latency_ms": None, "model": None, "provider": None, "output_tokens": None}
    return {**nothing, "input_tokens": None, "status": "error", "error_type": "ServerError", **fields}


def cancelled(**fields: Any) -> dict[str, Any]:
    """A row that was never taken up."""
    return lost(**{"status": "cancelled", "error_type": None, "attempts": 0, "begin": None, **fields})


def _made(columns: Any, rows: list[dict[str, Any]], begin: str, end: str | None) -> pd.DataFrame:
    for row in rows:
        for name, moment in ((end, row.pop("end", None)), (begin, row.pop("begin", None))):
            if name is not None and name not in row:
                row[name] = None if moment is None else START + moment
    records = [tuple(row.get(column.name) for column in columns) for row in rows]
    return frame_of(columns, records, pd.RangeIndex(len(records)))


# -- frames of a whole job, with names from outside ------------------------------------------------------------


def rows(*names: str) -> pd.DataFrame:
    """A result in which rows were answered, retried, lost and cancelled; models by name."""
    good = [{"model": name, "begin": n * 0.5, "end": 1.5 + n, "latency_ms": 900.0 + 50 * n, "cost_usd": 0.01}
            for n, name in enumerate([*names] * 3)]  # fmt: skip
    retried = {"attempts": 3, "begin": 1.0, "end": 6.0, "queue_ms": 500.0, "wait_ms": 1000.0, "ttft_ms": 200.0}
    return result(*good, retried, lost(attempts=4, begin=2.0, end=7.0, cost_usd=0.02), cancelled(end=8.0))


def tried(*names: str) -> pd.DataFrame:
    """Attempts, some failed, of which one row is lost; targets and error types by name."""
    good = [{"position": n, "target": name, "begin": 0.5 * n, "end": 2.0 + n, "ttft_ms": 300.0, "itl_ms": 11.0 + n,
             "cost_usd": 0.01} for n, name in enumerate(names)]  # fmt: skip
    bad = [{"position": n, "begin": 0.1, "end": 0.4, "status": "error", "error_type": name, "http_status": 429,
            "cost_usd": 0.001} for n, name in enumerate(names)]  # fmt: skip
    again = {
        "position": 90,
        "attempt": 2,
        "kind": "retry",
        "begin": 3.0,
        "end": 4.0,
        "wait_ms": 900.0,
        "queue_ms": 100.0,
    }
    gone = {"position": 91, "begin": 1.0, "end": 2.0, "status": "error", "error_type": "Lost", "target": names[0]}
    return attempts(*good, *bad, again, gone)


def sampled(*names: str) -> pd.DataFrame:
    """Samples of limits; targets and causes by name."""
    return limits(
        *({"target": name, "bound_by": cause, "begin": at, "breaker": state, "in_flight": at, "requests_limit": 600.0,
           "requests_level": 10.0 - at, "paused_ms": 500.0 if at == 2 else None}
          for at, (state, cause) in enumerate([("closed", "rate limit"), ("open", names[0]), ("half_open", "provider"),
                                               ("closed", "provider")])
          for name in names)
    )  # fmt: skip


def runs(*names: str) -> pd.DataFrame:
    """A comparison of strategies by name, two seeds each."""
    return compared(
        *((name, seed, 90 - n, 10 + n, 50.0 + n + seed, 1.0 + n) for n, name in enumerate(names) for seed in (1, 2))
    )


def swept(*_: str) -> pd.DataFrame:
    """A sweep whose throughput is min(N, 16) / 2 s, with a little noise; rows fail beyond 16."""
    noise = [0.01, -0.02, 0.015, -0.005, 0.02, -0.01, 0.0]
    levels = [(n, repeat, n * 0.95) for n in (1, 2, 4, 8, 16, 32, 64) for repeat in (0, 1)]
    rows = []
    for i, (n, repeat, flying) in enumerate(levels):
        x = min(flying, 16) / 2 * (1 + noise[(i * 3) % 7])
        lost = int(n > 16)
        rows.append((n, repeat, flying, x, 20 * x, 0.5 * x, 2000.0, 2500.0, 3000.0, 0.1 if n == 64 else 0.01,
                     100 - lost, lost))  # fmt: skip
    names = ["concurrency", "repeat", "in_flight", "rows_per_s", "tokens_per_s", "goodput_per_s", "p50_ms", "p95_ms",
             "p99_ms", "little_error", "ok", "failed"]  # fmt: skip
    return pd.DataFrame(rows, columns=names)


def predicted(*names: str) -> pd.DataFrame:
    """What a twin predicts for 1,000 rows, strategies by name; from 64 in flight on it is outside."""
    rows = []
    for name in names:
        for n in (8, 16, 32, 64):
            line: dict[str, Any] = {
                "strategy": name,
                "concurrency": n,
                "rows": 1000,
                "failed": float(n),
                "in_flight": n,
            }
            figures = {"makespan": ("s", 800.0 / n), "p50": ("ms", 900.0), "p95": ("ms", 1500.0), "p99": ("ms", 2000.0),
                       "cost": ("usd", 3.0)}  # fmt: skip
            for figure, (unit, value) in figures.items():
                for end, factor in (("_low", 0.9), ("", 1.0), ("_high", 1.2)):
                    line[f"{figure}{end}_{unit}"] = factor * value
            rows.append({**line, "outside": n > 32})
    return pd.DataFrame(rows).astype({"concurrency": "Int64", "strategy": "string"})


def calibrated(*_: str) -> pd.DataFrame:
    """A calibration over all runs and for two of them."""
    rows = [
        (run, 8.0, 50, 0.78, q, 1000 * (1 + q), 1010 * (1 + q)) for run in (None, 0, 1) for q in (0.1, 0.5, 0.9, 0.99)
    ]
    names = ["run", "in_flight", "attempts", "coverage", "quantile", "predicted_ms", "actual_ms"]
    return pd.DataFrame(rows, columns=names).astype({"run": "Int64"})
