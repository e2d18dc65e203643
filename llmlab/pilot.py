"""What a run has measured, as arrays, one entry per attempt: what a twin is fitted to.

given                   what is used of it
a job, `job.attempts`   every attempt: when it was sent and ended, its tokens, cost, error and Retry-After
`out`, a result frame   the successful attempt of each row, sent `latency_ms` before `finished_at`. Failed attempts are
                        not in it, only their number: they are put before the successful one, as long as the row's
                        time allows, their errors unknown; tokens and cost only of rows with one attempt: they are
                        sums

Each frame is a run of its own: two jobs that ran at the same time belong into one frame (pandas.concat). One of a sweep
or a comparison is as many as there were trials: in virtual time all of them begin at the same moment.
"""

from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd

from llmlab.loadfit import Array, mean_in_flight

Flags: TypeAlias = npt.NDArray[np.bool_]

UNKNOWN = "unknown"
"""Error class of a failed attempt that a result frame only counts."""
TRIALS = (["concurrency", "repeat"], ["strategy", "seed"])
"""Columns that tell trials apart, of a sweep and of a comparison."""
ROWS, SIDE, APART = 50, 15, 1.5
"""Fewest answers; fewest at little and at much load; how far apart these are to be."""


class NotIdentified(ValueError):
    """The data do not determine a twin; says what is missing."""


@dataclass(frozen=True, eq=False)
class Pilot:
    """Attempts of one or several runs, those of a run together and in the order in which they were sent; (n,) each."""

    run: npt.NDArray[np.intp]
    """Which frame."""
    sent: Array
    """Seconds since the run's first attempt."""
    ended: Array
    """Seconds since the run's first attempt."""
    ok: Flags
    """Whether it was answered."""
    n_in: Array
    """Input tokens; NaN: not known."""
    n_out: Array
    """Output tokens; NaN: not known."""
    ttft: Array
    """Seconds to the first piece; NaN: not streamed."""
    cost: Array
    """Dollars; NaN: not known."""
    error: npt.NDArray[np.object_]
    """Error class, "" for none."""
    status: Array
    """HTTP status of a refusal; NaN: none."""
    retry_after: Array
    """Seconds that the provider asked to wait; NaN: it did not."""
    in_flight: Array
    """Mean in flight over its own life."""

    @property
    def latency(self) -> Array:
        """Seconds."""
        return self.ended - self.sent

    @property
    def usable(self) -> Flags:
        """Answered, with known tokens: what latencies are fitted to."""
        return np.asarray(self.ok & np.isfinite(self.n_in) & np.isfinite(self.n_out) & (self.latency > 0))

    def take(self, places: Any) -> "Pilot":
        """The attempts at these places."""
        return Pilot(**{each.name: getattr(self, each.name)[places] for each in fields(self)})


def read_pilot(data: object, target: str | None = None) -> Pilot:
    """Read one or several frames or jobs.

    Args:
        data: A result frame, a frame of attempts, a Job, a Sweep or a Comparison, or a list of them.
        target: "provider:model", when the data have answers of several.

    Raises:
        TypeError: something in it is neither.
        NotIdentified: it does not determine a twin: too few answers, no token counts, one level of load only,
            answers of several targets.
    """
    given = list(data) if isinstance(data, list | tuple) else [data]
    if not given:
        raise NotIdentified("a twin needs at least one frame")
    frames = [run for each in given for run in _runs(_frame(each))]
    _check_targets([_targets(each) for each in frames], target)
    parts = [_read(each, target, run) for run, each in enumerate(frames)]
    pilot = Pilot(**{each.name: np.concatenate([getattr(p, each.name) for p in parts]) for each in fields(Pilot)})
    _check(pilot)
    return pilot


def _frame(given: object) -> pd.DataFrame:
    """A frame of attempts, or of what was asked in a result."""
    frame = given if isinstance(given, pd.DataFrame) else getattr(given, "attempts", None)
    if not isinstance(frame, pd.DataFrame):
        raise TypeError(f"a twin is fitted to result frames, frames of attempts or jobs, not {type(given).__name__}")
    if _tells_attempts(frame):
        if "rows" in frame and (frame["rows"] > 1).any():
            raise NotIdentified(
                "rows shared requests: a twin is of requests of one row each; run a pilot without pack="
            )
        return frame[frame["sent_at"].notna() & frame["ended_at"].notna()]
    if {"latency_ms", "finished_at", "started_at", "status", "attempts", "cache_hit"} <= set(frame):
        return frame[(frame["attempts"] > 0) & ~frame["cache_hit"].astype(bool)]
    raise TypeError("a frame for a twin has the columns of a result (`await job`) or of `job.attempts`")


def _runs(frame: pd.DataFrame) -> list[pd.DataFrame]:
    """The trials of a sweep or a comparison, by what tells them apart; any other frame as it is."""
    for labels in TRIALS:
        if set(labels) <= set(frame):
            return [trial for _, trial in frame.groupby(labels, sort=False)]
    return [frame]


def _tells_attempts(frame: pd.DataFrame) -> bool:
    return {"sent_at", "ended_at", "status", "target"} <= set(frame)


def _targets(frame: pd.DataFrame) -> "pd.Series[Any]":
    """Whom each row is an answer of: "provider:model"; missing when it is none."""
    if _tells_attempts(frame):
        return frame["target"]
    return frame["provider"].astype("string") + ":" + frame["model"].astype("string")


def _check_targets(named: "list[pd.Series[Any]]", target: str | None) -> None:
    answered = sorted({name for each in named for name in each.dropna()})
    if target is not None and target not in answered:
        raise NotIdentified(f"there is no answer of {target!r}; there are some of: {', '.join(answered) or 'nobody'}")
    if target is None and len(answered) > 1:
        several = ", ".join(answered)
        raise NotIdentified(f"answers of several targets, {several}, and a twin is of one: name it by target=")


def _read(frame: pd.DataFrame, target: str | None, run: int) -> Pilot:
    if target is not None:
        named = _targets(frame)
        frame = frame[(named == target) | named.isna()]
    return _pilot(_of_attempts(frame) if _tells_attempts(frame) else _of_results(frame), run)


def _of_attempts(frame: pd.DataFrame) -> dict[str, Any]:
    return {
        "sent": _seconds(frame["sent_at"]),
        "ended": _seconds(frame["ended_at"]),
        "ok": (frame["status"] == "ok").to_numpy(bool),
        "n_in": _floats(frame, "input_tokens"),
        "n_out": _floats(frame, "output_tokens"),
        "ttft": _floats(frame, "ttft_ms") / 1000,
        "cost": _floats(frame, "cost_usd"),
        "error": _names(frame["error_type"], ""),
        "status": _floats(frame, "http_status"),
        "retry_after": _floats(frame, "retry_after_ms") / 1000,
    }


def _of_results(frame: pd.DataFrame) -> dict[str, Any]:
    ok, hidden = _answered(frame), _hidden(frame)
    return {name: np.concatenate([ok[name], hidden[name]]) for name in ok}


def _answered(frame: pd.DataFrame) -> dict[str, Any]:
    frame = frame[(frame["status"] == "ok") & frame["latency_ms"].notna()]
    ended, once = _seconds(frame["finished_at"]), (frame["attempts"] == 1).to_numpy()
    tokens = {name: np.where(once, _floats(frame, of), np.nan)
              for name, of in (("n_in", "input_tokens"), ("n_out", "output_tokens"), ("cost", "cost_usd"))}  # fmt: skip
    return _entries(ended - _floats(frame, "latency_ms") / 1000, ended, _floats(frame, "ttft_ms") / 1000, "", tokens)


def _hidden(frame: pd.DataFrame) -> dict[str, Any]:
    """Failed attempts of a result, one after the other from the row's start on, in the time that is left for them."""
    ok = (frame["status"] == "ok").to_numpy()
    failed = frame["attempts"].to_numpy("int64") - ok
    begun = _seconds(frame["started_at"])
    spent = (
        _floats(frame, "queue_ms") + _floats(frame, "wait_ms") + np.nan_to_num(_floats(frame, "latency_ms"))
    ) / 1000
    each = np.maximum(_seconds(frame["finished_at"]) - begun - spent, 0.0) / np.maximum(failed, 1)
    rows = np.repeat(np.arange(len(frame)), failed)
    nth = np.arange(len(rows)) - np.repeat(np.cumsum(failed) - failed, failed)
    sent = begun[rows] + _floats(frame, "queue_ms")[rows] / 1000 + nth * each[rows]
    error = np.where(ok, UNKNOWN, _names(frame["error_type"], UNKNOWN))[rows]
    nothing = np.full(len(rows), np.nan)
    return _entries(sent, sent + each[rows], nothing, error, {"n_in": nothing, "n_out": nothing, "cost": nothing})


def _entries(sent: Array, ended: Array, ttft: Array, error: Any, tokens: dict[str, Array]) -> dict[str, Any]:
    nothing = np.full(len(sent), np.nan)
    errors = np.broadcast_to(np.asarray(error, object), len(sent))
    times = {"sent": sent, "ended": ended, "ttft": ttft, "ok": errors == "", "error": errors}
    return times | tokens | {"status": nothing, "retry_after": nothing}


def _pilot(columns: dict[str, Any], run: int) -> Pilot:
    order = np.argsort(columns["sent"], kind="stable")
    columns = {name: values[order] for name, values in columns.items()}
    first = columns["sent"].min() if len(order) else 0.0
    columns["sent"], columns["ended"] = columns["sent"] - first, columns["ended"] - first
    in_flight = mean_in_flight(columns["sent"], columns["ended"]) if len(order) else np.empty(0)
    return Pilot(run=np.full(len(order), run), in_flight=in_flight, **columns)


def _seconds(stamps: "pd.Series[Any]") -> Array:
    times = pd.to_datetime(stamps, utc=True)  # read again from a CSV, times are texts
    return np.asarray((times - pd.Timestamp(0, tz="UTC")).dt.total_seconds(), dtype="float64")


def _names(names: "pd.Series[Any]", missing: str) -> npt.NDArray[np.object_]:
    return names.astype(object).where(names.notna(), missing).to_numpy(object)


def _floats(frame: pd.DataFrame, name: str) -> Array:
    return pd.to_numeric(frame[name]).to_numpy("float64", na_value=np.nan)


def _check(pilot: Pilot) -> None:
    answers, usable = int(pilot.ok.sum()), int(pilot.usable.sum())
    if answers < ROWS:
        raise NotIdentified(f"too few answers: {answers}; a twin needs {ROWS} or more, at two levels of load")
    if usable < ROWS:
        raise NotIdentified(
            f"only {usable} answers have token counts of their own, and a twin needs {ROWS}: latency depends on them. "
            "Does the provider name usage? Of rows with retries, `job.attempts` knows more than the result"
        )
    load = pilot.in_flight[pilot.usable]
    much = float(np.quantile(load, 0.95))
    little = load < much / APART
    if min(int(little.sum()), int((~little).sum())) < SIDE:
        raise NotIdentified(
            f"one level of load only, about {much:.3g} in flight: how latency grows with concurrency is not known. Run "
            f"some rows at another one as well, with Lab(concurrency={round(much / 4) or 8}) say, and give both: "
            "Twin.fit([out, other])"
        )
