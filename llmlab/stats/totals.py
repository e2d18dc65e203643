"""A result summed up in one column of numbers."""

from typing import Any

import pandas as pd

from llmlab.stats.checks import RESULT, hits, needs, stamps, total


def summary(out: pd.DataFrame) -> "pd.Series[Any]":
    """Sum up a result of `run_many`.

    Args:
        out: A frame with the columns of `llmlab.frame.COLUMNS`.

    Returns:
        A Series: `rows`, `success_count`, `error_count`, `cancelled_count`, `attempts` (requests sent);
        `total_time_ms` from the first row's start to the last row's end; `avg_latency_ms`, `p50_latency_ms`,
        `p95_latency_ms`, `p99_latency_ms` over the successful rows that were asked, not found in llmlab's cache
        (linear interpolation; NaN if there is none);
        `rows_per_s` (successful rows) and `tokens_per_s` (their output tokens) over the total time;
        `input_tokens`, `output_tokens` and `cost_usd` of all attempts, those that brought no answer included, as far
        as the provider named tokens and their price is known (NaN if none is); answers from llmlab's cache cost none.

    Raises:
        TypeError: `out` is no DataFrame: perhaps a job that was not awaited.
        ValueError: `out` lacks a column; names it.
    """
    needed = ("status", "latency_ms", "attempts", "input_tokens", "output_tokens", "cost_usd", "cache_hit",
              "started_at", "finished_at")  # fmt: skip
    needs(out, "summary", RESULT, needed)
    ok = out[out["status"] == "ok"]
    asked = ok[~hits(ok)]
    paid = out[((out["status"] == "ok") | out["input_tokens"].notna()) & ~hits(out)]
    seconds = _span_s(out)
    latency = asked["latency_ms"]
    p50, p95, p99 = (latency.quantile(q) for q in (0.5, 0.95, 0.99))
    numbers: dict[str, Any] = {
        "rows": len(out),
        "success_count": len(ok),
        "error_count": int((out["status"] == "error").sum()),
        "cancelled_count": int((out["status"] == "cancelled").sum()),
        "attempts": int(out["attempts"].sum()),
        "total_time_ms": seconds * 1000.0,
        "avg_latency_ms": latency.mean(),
        "p50_latency_ms": p50,
        "p95_latency_ms": p95,
        "p99_latency_ms": p99,
        "rows_per_s": _rate(len(ok), seconds),
        "tokens_per_s": _rate(total(ok["output_tokens"]), seconds),
        "input_tokens": total(paid["input_tokens"]),
        "output_tokens": total(paid["output_tokens"]),
        "cost_usd": out["cost_usd"].sum(min_count=1),
    }
    return pd.Series(numbers, name="summary", dtype=object)


def _span_s(out: pd.DataFrame) -> float:
    span = stamps(out["finished_at"]).max() - stamps(out["started_at"]).min()
    return 0.0 if pd.isna(span) else span.total_seconds()


def _rate(count: float, seconds: float) -> float:
    return count / seconds if seconds > 0 else float("nan")
