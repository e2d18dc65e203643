"""How a job's limits stood over time, from the samples in `job.limits`."""

from typing import Literal

import numpy as np
import pandas as pd

from llmlab.stats.checks import LIMITS, needs, origin, seconds

DIMENSIONS = ("requests", "input_tokens", "output_tokens", "total_tokens", "usd")
"""What a rate may be limited in; a limit holds per minute, that of usd per day."""


def spans(
    limits: pd.DataFrame, column: Literal["bound_by", "breaker", "paused"] = "bound_by", *,
    since: pd.Timestamp | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Tell from when to when a column had one value, per target; a sample holds until the target's next one.

    Args:
        limits: `job.limits`.
        column: What to look at: `bound_by`, `breaker`, or `paused`: whether the provider had asked to wait.
        since: The moment that is 0 s. None: the first sample's.

    Returns:
        `target`, `value`, `begin_s`, `end_s`, by target and time. Where there is no value there is no row, as for a
        target without a breaker.

    Raises:
        TypeError, ValueError: `limits` is no frame, or lacks a column; names it.
    """
    source = "paused_ms" if column == "paused" else column
    needs(limits, "spans", LIMITS, ["at", "target", source])
    zero = origin(since, limits["at"])
    parts = [_runs(rows, str(target), source, zero) for target, rows in limits.groupby("target", sort=False)]
    columns = {"target": "string", "value": "string", "begin_s": "float64", "end_s": "float64"}
    every = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(columns))
    return every.dropna(subset="value").astype(columns).reset_index(drop=True)


def _runs(rows: pd.DataFrame, target: str, source: str, zero: pd.Timestamp) -> pd.DataFrame:
    rows = rows.sort_values("at", kind="stable")
    values = rows[source].astype(object).where(rows[source].notna(), None)
    if source == "paused_ms":
        values = values.map(lambda left: "paused" if left else None)
    fresh = (values != values.shift()) & ~(values.isna() & values.shift().isna())
    fresh.iloc[0] = True
    at = seconds(rows["at"], zero)
    begins = at[fresh.to_numpy(dtype=bool)]
    return pd.DataFrame(
        {"target": target, "value": values[fresh].to_numpy(), "begin_s": begins, "end_s": np.append(begins[1:], at[-1])}
    )


def shares(limits: pd.DataFrame) -> pd.DataFrame:
    """Tell for which part of the time the job was bound by what.

    Args:
        limits: `job.limits`.

    Returns:
        `bound_by`, `seconds` and `share` (of all the time; they add up to 1), the largest first.

    Raises:
        TypeError, ValueError: `limits` is no frame, or lacks a column; names it.
    """
    needs(limits, "shares", LIMITS, ["at", "target", "bound_by"])
    every = spans(limits)
    every = every[every["target"] == every["target"].iloc[0]] if len(every) else every  # all targets tell the job's
    took = (every["end_s"] - every["begin_s"]).groupby(every["value"].astype(object)).sum()
    took = took[took > 0].sort_values(ascending=False, kind="stable")
    return pd.DataFrame({"bound_by": took.index, "seconds": took.to_numpy(), "share": (took / took.sum()).to_numpy()})


def levels(limits: pd.DataFrame, *, since: pd.Timestamp | None = None) -> pd.DataFrame:
    """Tell how much of each rate limit might go at once, over time.

    Args:
        limits: `job.limits`.
        since: The moment that is 0 s. None: the first sample's.

    Returns:
        `target`, `dimension` (requests, input_tokens, …), `at_s`, `level` (may go at once; below 0: owed), `limit`
        (per minute; of usd per day), `share` (level / limit); a row per sample and dimension that was limited then.

    Raises:
        TypeError, ValueError: `limits` is no frame, or lacks a column; names it.
    """
    names = [f"{name}_{what}" for name in DIMENSIONS for what in ("limit", "level")]
    needs(limits, "levels", LIMITS, ["at", "target", *names])
    at = seconds(limits["at"], origin(since, limits["at"]))
    parts = [
        pd.DataFrame(
            {"target": limits["target"].astype(object), "dimension": name, "at_s": at,
             "level": limits[f"{name}_level"].astype("float64"), "limit": limits[f"{name}_limit"].astype("float64")}
        )
        for name in DIMENSIONS
    ]  # fmt: skip
    every = pd.concat(parts, ignore_index=True).dropna(subset=["level", "limit"])
    every["share"] = every["level"] / every["limit"]
    return every.sort_values(["target", "dimension", "at_s"], kind="stable", ignore_index=True)
