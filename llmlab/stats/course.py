"""A job over time: what came out of it, what was sent, what was in flight, and what it had cost by then.

Times are seconds since the frame's first moment, or since `since`, so that several frames of one job share a clock.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from llmlab.stats.checks import ATTEMPTS, RESULT, Floats, floats, groups, needs, origin, seconds, stamps

WINDOWS = 60
"""Windows into which a span is cut if nobody says how long they are."""
NICE = (1, 2, 5, 10)


def throughput(out: pd.DataFrame, *, window: float | None = None, since: pd.Timestamp | None = None) -> pd.DataFrame:
    """Count what was settled in each window of time.

    Args:
        out: A result of `run_many`. Cancelled rows count as nothing.
        window: Seconds. None: a round length that makes at most 60 of them.
        since: The moment that is 0 s. None: the first row's start.

    Returns:
        `at_s` and `width_s` (the window's begin and length; the last one may be up to half as long again, or shorter),
        `ok`, `failed` (rows) and `tokens` (of answers, as far as known), `ok_per_s`, `failed_per_s`, `tokens_per_s`
        (NaN if no time passed). A row per window.

    Raises:
        TypeError, ValueError: `out` is no frame or lacks a column; `window` is not above 0.
    """
    needs(out, "throughput", RESULT, ["status", "output_tokens", "started_at", "finished_at"])
    rows = out[out["status"].isin(["ok", "error"])]
    zero = origin(since, out["started_at"], rows["finished_at"])
    ended, ok = seconds(rows["finished_at"], zero), (rows["status"] == "ok").to_numpy(dtype=bool)
    tokens = np.nan_to_num(floats(rows["output_tokens"])) * ok
    begin = seconds(out["started_at"], zero)
    return _windows(ended, {"ok": ok, "failed": ~ok, "tokens": tokens}, window, _least(begin, ended))


def requests(attempts: pd.DataFrame, *, window: float | None = None, since: pd.Timestamp | None = None) -> pd.DataFrame:
    """Count the requests sent in each window of time, by how they ended.

    Args:
        attempts: `job.attempts`.
        window: Seconds. None: a round length that makes at most 60 of them.
        since: The moment that is 0 s. None: when the first request was sent.

    Returns:
        `at_s` and `width_s` as `throughput`; `ok`, `throttled` (refused with status 429), `failed` (otherwise), and
        each of them per second, as `ok_per_s`.

    Raises:
        TypeError, ValueError: `attempts` is no frame or lacks a column; `window` is not above 0.
    """
    needs(attempts, "requests", ATTEMPTS, ["status", "http_status", "sent_at"])
    sent = seconds(attempts["sent_at"], origin(since, attempts["sent_at"]))
    ok = (attempts["status"] == "ok").to_numpy(dtype=bool)
    throttled = floats(attempts["http_status"]) == 429  # noqa: PLR2004  the status's own name
    share = 1.0 / _rows(attempts)
    marks = {"ok": ok * share, "throttled": (throttled & ~ok) * share, "failed": (~ok & ~throttled) * share}
    return _windows(sent, marks, window, _least(sent))


def in_flight(attempts: pd.DataFrame, *, since: pd.Timestamp | None = None) -> pd.DataFrame:
    """Tell how many requests were under way, from each moment at which that changed, by a sweep line.

    Args:
        attempts: `job.attempts`. Only requests that have ended are in it; one that rows shared counts once.
        since: The moment that is 0 s. None: when the first request was sent.

    Returns:
        `at_s`, `in_flight` (from then until the next row); the last row's is 0.

    Raises:
        TypeError, ValueError: `attempts` is no frame, or lacks a column; names it.
    """
    needs(attempts, "in_flight", ATTEMPTS, ["sent_at", "ended_at"])
    zero = origin(since, attempts["sent_at"])
    known = attempts[stamps(attempts["sent_at"]).notna() & stamps(attempts["ended_at"]).notna()]
    sent, ended = seconds(known["sent_at"], zero), seconds(known["ended_at"], zero)
    share = 1.0 / _rows(known)
    # What begins the moment another ends takes its place: changes of one moment count together.
    step = (
        pd.Series(np.concatenate([share, -share]), index=np.concatenate([sent, ended])).groupby(level=0).sum().round(6)
    )
    step = step[step != 0]
    count = step.cumsum().round().to_numpy("int64")
    return pd.DataFrame({"at_s": step.index.to_numpy("float64"), "in_flight": count})


def _rows(attempts: pd.DataFrame) -> Floats:
    """How many rows shared each request: it stands in the frame once for each of them."""
    return floats(attempts["rows"]) if "rows" in attempts else np.ones(len(attempts))


def mean_in_flight(steps: pd.DataFrame) -> float:
    """The time average of what `in_flight` gives; NaN if no time passed."""
    span = np.diff(steps["at_s"].to_numpy())
    return float(span @ steps["in_flight"].to_numpy()[:-1] / span.sum()) if span.sum() > 0 else float("nan")


def costs(frame: pd.DataFrame, *, by: str | None = None, since: pd.Timestamp | None = None) -> pd.DataFrame:
    """Add up what had been spent by each moment, and how much of it for nothing.

    Args:
        frame: `job.attempts`, where each failed request counts as wasted; or a result of `run_many`, where only the
            rows without an answer do.
        by: A column whose groups are told apart. None: all together.
        since: The moment that is 0 s. None: the frame's first.

    Returns:
        `by` (if given), `at_s`, and the sums up to then: `cost_usd`, `wasted_usd`, `tokens` (input and output),
        `wasted_tokens`. What is not known adds nothing; `unpriced` counts the rows with tokens but no price so far.

    Raises:
        TypeError, ValueError: `frame` is no frame, or lacks a column; names it.
    """
    end = "ended_at" if isinstance(frame, pd.DataFrame) and "ended_at" in frame else "finished_at"
    begin = "sent_at" if end == "ended_at" else "started_at"
    money = ["status", "input_tokens", "output_tokens", "cost_usd", begin, end]
    needs(frame, "costs", f"{RESULT} or {ATTEMPTS}", [*money, *filter(None, [by])])
    zero = origin(since, frame[begin], frame[end])
    parts = [_spent(group, seconds(group[end], zero), by, name) for name, group in groups(frame, by)]
    return pd.concat(parts, ignore_index=True) if parts else _spent(frame, floats(frame[end]), by, "")


def _spent(rows: pd.DataFrame, at: Floats, by: str | None, name: str) -> pd.DataFrame:
    usd, wasted = floats(rows["cost_usd"]), (rows["status"] != "ok").to_numpy(dtype=bool)
    tokens = np.nan_to_num(floats(rows["input_tokens"])) + np.nan_to_num(floats(rows["output_tokens"]))
    spent = pd.DataFrame(
        {
            "at_s": at,
            "cost_usd": np.nan_to_num(usd),
            "wasted_usd": np.nan_to_num(usd) * wasted,
            "tokens": tokens,
            "wasted_tokens": tokens * wasted,
            "unpriced": np.isnan(usd) & (tokens > 0),
        }
    )
    spent = spent.dropna(subset="at_s").sort_values("at_s", kind="stable", ignore_index=True)
    sums = spent.iloc[:, 1:].cumsum().astype({"tokens": "int64", "wasted_tokens": "int64", "unpriced": "int64"})
    spent = pd.concat([spent[["at_s"]], sums], axis=1)
    if by is not None:
        spent.insert(0, by, name)
    return spent


def _least(*times: Floats) -> float:
    known = np.concatenate(times)
    known = known[np.isfinite(known)]
    return float(known.min()) if len(known) else 0.0


def _windows(at: Floats, marks: Mapping[str, npt.NDArray[Any]], window: float | None, begin: float) -> pd.DataFrame:
    """Sums of marks in windows from `begin` to the last moment."""
    if window is not None and not window > 0:
        raise ValueError(f"window is a number of seconds above 0, not {window!r}")
    known = np.isfinite(at)
    edges = _cut(begin, float(at[known].max()), window) if known.any() else np.array([begin])
    place = np.clip(np.searchsorted(edges, at[known], side="right") - 1, 0, max(len(edges) - 2, 0))
    width = np.diff(edges) if len(edges) > 1 else np.zeros(int(known.any()))
    sums = {name: np.bincount(place, each[known], len(width)) for name, each in marks.items()}
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = {f"{name}_per_s": np.where(width > 0, each / width, np.nan) for name, each in sums.items()}
    begins = edges[: len(width)]
    counts = {name: each.round().astype("int64") for name, each in sums.items()}
    return pd.DataFrame({"at_s": begins, "width_s": width, **counts, **rates})


def _cut(begin: float, end: float, window: float | None) -> Floats:
    """The bounds of windows. A short rest goes to the last one: its rate would say nothing."""
    span = end - begin
    if span <= 0:
        return np.array([begin])
    length = window or round_up(span / WINDOWS)
    count = max(1, int(np.floor(span / length + 0.5)))
    return np.append(begin + length * np.arange(count), end)


def round_up(length: float) -> float:
    """The next length of 1, 2 or 5 times a power of ten."""
    power = 10.0 ** np.floor(np.log10(length))
    return float(next(nice for nice in NICE if nice * power >= length * (1 - 1e-9)) * power)
