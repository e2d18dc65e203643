"""What became of the rows: where their time went, how often they were tried, what went wrong."""

import numpy as np
import pandas as pd

from llmlab.stats.checks import ATTEMPTS, RESULT, Floats, floats, needs, origin, seconds, stamps

PHASES = ("queue", "wait", "failed", "first token", "stream", "answer")
"""Standing in line; backing off; attempts that failed; to the first piece of text; from there to the end; and a whole
answer that was not streamed."""

_COLUMNS = {"position": "int64", "attempt": "int64", "kind": "string", "phase": "string", "begin_s": "float64",
            "end_s": "float64"}  # fmt: skip


def timeline(frame: pd.DataFrame, *, since: pd.Timestamp | None = None) -> pd.DataFrame:
    """Cut the rows' time into phases.

    Args:
        frame: `job.attempts`, for every attempt where it happened; or a result of `run_many`, which knows how long a
            row stood in line, backed off and tried in vain, but not in which turns: these come in this order before
            the answer.
        since: The moment that is 0 s. None: when the first row was taken up.

    Returns:
        `position`, `attempt` (from 1), `kind` (as in `job.attempts`), `phase` (one of `PHASES`), `begin_s`,
        `end_s`; a row per phase that took time, by position, in the order in which they happened. Rows never taken up
        and answers from llmlab's cache have none. Position counts the frame's rows if it is a result.

    Raises:
        TypeError, ValueError: `frame` is no frame, or lacks a column; names it.
    """
    if isinstance(frame, pd.DataFrame) and "sent_at" in frame:
        return _of_attempts(frame, since)
    return _of_result(frame, since)


def _of_attempts(attempts: pd.DataFrame, since: pd.Timestamp | None) -> pd.DataFrame:
    times = ["wait_ms", "queue_ms", "ttft_ms", "sent_at", "ended_at"]
    needs(attempts, "timeline", ATTEMPTS, ["position", "attempt", "kind", "status", *times])
    zero = origin(since, stamps(attempts["sent_at"]) - pd.to_timedelta(attempts["queue_ms"], unit="ms"))
    sent, ended = seconds(attempts["sent_at"], zero), seconds(attempts["ended_at"], zero)
    joined = sent - floats(attempts["queue_ms"]) / 1000
    failed = (attempts["status"] != "ok").to_numpy(dtype=bool)
    first = np.where(failed, np.nan, sent + floats(attempts["ttft_ms"]) / 1000)
    bounds = {
        "wait": (joined - floats(attempts["wait_ms"]) / 1000, joined),
        "queue": (joined, sent),
        "failed": (sent, np.where(failed, ended, sent)),
        **_answer(sent, first, np.where(failed, np.nan, ended)),
    }
    keys = {name: attempts[name].to_numpy() for name in ("position", "attempt", "kind")}
    return _phases(keys, bounds)


def _of_result(out: pd.DataFrame, since: pd.Timestamp | None) -> pd.DataFrame:
    times = ["latency_ms", "ttft_ms", "queue_ms", "wait_ms", "started_at", "finished_at"]
    needs(out, "timeline", f"{RESULT} or {ATTEMPTS}", ["status", "attempts", *times])
    zero = origin(since, out["started_at"])
    begin, end = seconds(out["started_at"], zero), seconds(out["finished_at"], zero)
    ok = (out["status"] == "ok").to_numpy(dtype=bool)
    sent = np.where(ok, end - floats(out["latency_ms"]) / 1000, end)
    # Clocks are read at different moments: what is known to be short must not come out as less than nothing.
    queued = np.minimum(begin + floats(out["queue_ms"]) / 1000, sent)
    waited = np.minimum(queued + floats(out["wait_ms"]) / 1000, sent)
    again = out["attempts"].to_numpy() > ok
    first = np.where(ok, sent + floats(out["ttft_ms"]) / 1000, np.nan)
    bounds = {
        "queue": (begin, queued),
        "wait": (queued, waited),
        "failed": (waited, np.where(again, sent, waited)),
        **_answer(sent, first, np.where(ok, end, np.nan)),
    }
    kind = np.where(out["attempts"].to_numpy() > 1, "retry", "first")
    keys = {"position": np.arange(len(out)), "attempt": np.maximum(out["attempts"].to_numpy(), 1), "kind": kind}
    return _phases(keys, bounds)


def _answer(sent: Floats, first: Floats, ended: Floats) -> dict[str, tuple[Floats, Floats]]:
    """Phases of an answer, streamed or whole; those of none have a NaN bound."""
    whole = np.where(np.isnan(first), ended, np.nan)
    return {"first token": (sent, first), "stream": (first, ended), "answer": (sent, whole)}


def _phases(keys: dict[str, Floats], bounds: dict[str, tuple[Floats, Floats]]) -> pd.DataFrame:
    parts = [
        pd.DataFrame({**keys, "phase": phase, "begin_s": begin, "end_s": end}) for phase, (begin, end) in bounds.items()
    ]
    every = pd.concat(parts, ignore_index=True)
    took = every["end_s"] - every["begin_s"] > 1e-9  # noqa: PLR2004  a microsecond is the least that a frame tells
    every = every[took].sort_values(["position", "begin_s"], kind="stable", ignore_index=True)
    return every[list(_COLUMNS)].astype(_COLUMNS)


def retries(out: pd.DataFrame) -> pd.DataFrame:
    """Count the rows by how many requests were sent for them.

    Args:
        out: A result of `run_many`. Rows from llmlab's cache and rows cancelled in time have 0.

    Returns:
        `attempts`, and the rows that came to each end: `ok`, `error`, `cancelled`; a row per number of attempts from
        0 or 1 up to the most.

    Raises:
        TypeError, ValueError: `out` is no frame, or lacks a column; names it.
    """
    needs(out, "retries", RESULT, ["status", "attempts"])
    ends = ["ok", "error", "cancelled"]
    tries = out["attempts"].astype("int64")
    least, most = (min(int(tries.min()), 1), int(tries.max())) if len(out) else (1, 0)
    counts = pd.crosstab(tries, out["status"]) if len(out) else pd.DataFrame(dtype="int64")
    counts = counts.reindex(index=range(least, most + 1), columns=ends, fill_value=0).astype("int64")
    counts.index.name, counts.columns.name = "attempts", None
    return counts.reset_index()


def errors(frame: pd.DataFrame) -> pd.DataFrame:
    """Count what went wrong, by class of error.

    Args:
        frame: `job.attempts`, for each request that failed; or a result of `run_many`, for the rows without an answer.

    Returns:
        `error_type`, `count`, and of these `mended` (the row was answered by another attempt) and `lost` (it was not);
        a row per class, the most frequent first. Of a result, none is mended.

    Raises:
        TypeError, ValueError: `frame` is no frame, or lacks a column; names it.
    """
    needs(frame, "errors", f"{RESULT} or {ATTEMPTS}", ["status", "error_type"])
    failed = frame[frame["status"] == "error"]
    kinds = failed["error_type"].astype("string").fillna("(unknown)").astype(object)
    counts = pd.DataFrame({"error_type": kinds, "count": 1, "mended": 0})
    if "position" in frame:
        good = frame.loc[frame["status"] == "ok", "position"]
        counts["mended"] = failed["position"].isin(good).astype("int64")
    table = counts.groupby("error_type", sort=True)[["count", "mended"]].sum().astype("int64")
    table["lost"] = table["count"] - table["mended"]
    return table.sort_values("count", ascending=False, kind="stable").reset_index()
