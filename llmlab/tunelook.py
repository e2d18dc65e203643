"""A tuning at one moment: as plain JSON for whatever draws it, in words, and as a still table.

All text that came from outside is escaped in the table, which has no script, no link and no style sheet: it says the
same in JupyterLab, nbconvert, GitHub and a reopened notebook.
"""

import math
from html import escape
from typing import Any

from llmlab.board import seconds
from llmlab.frame import Frame
from llmlab.knobs import JITTERS
from llmlab.recommend import Recommendation
from llmlab.stats.sweeps import line_of
from llmlab.tune import LIVE, UNDECIDED, Tuning

POINTS = 40
"""Of the curve."""
_CELL = "padding:1px 12px 1px 0;text-align:right"
_BAR = "display:inline-block;height:8px;background:#0072b2;vertical-align:middle"


def look_of(tuning: Tuning) -> dict[str, Any]:
    """What there is to see of it now, as plain JSON; from any thread."""
    state = tuning.state  # first: what is over has all its points
    frame, found, fitted = tuning.frame, _found(tuning), tuning.fit
    knee = None if found is None or found.knee is None or found.knee.n is None else found.knee
    line = line_of(fitted, points=POINTS) if fitted is not None else None
    return {
        "state": state,
        "measuring": tuning.at_work_on,
        "points": points_of(frame),
        "before": [] if tuning.before is None else points_of(tuning.before),
        "line": [] if line is None else line[["in_flight", "value", "low", "high", "elasticity"]].to_numpy().tolist(),
        "knee": None if knee is None else {"n": knee.n, "low": knee.low, "high": knee.high},
        "found": None if found is None else _told(found, tuning.ways.rows),
        "aims": {"elasticity": tuning.aims.elasticity, "slo": tuning.aims.slo, "attainment": tuning.aims.attainment},
        "setup": setup_of(tuning),
        "choices": {
            "scenario": [list(each) for each in tuning.ways.scenarios],
            "jitter": list(JITTERS),
            "live": tuning.ways.offer is not None,
        },
        "used": tuning.used,
        "note": tuning.trouble,
    }


def _found(tuning: Tuning) -> Recommendation | None:
    try:
        return tuning.recommendation
    except ValueError:
        return None


def _told(found: Recommendation, rows: int | None) -> dict[str, Any]:
    return {
        "concurrency": found.concurrency,
        "rpm": found.rpm,
        "rows_per_s": found.rows_per_s,
        "p95_ms": _number(found.p95_ms),
        "within": found.within_slo,
        "keeps": found.keeps_slo,
        "reason": found.reason,
        "job": None if rows is None else f"{rows:,} rows would take {seconds(found.seconds(rows))}",
    }


def setup_of(tuning: Tuning) -> dict[str, Any]:
    """What is tried, or is to be tried next."""
    wanted = tuning.wanted
    knobs = wanted.knobs
    return {
        "scenario": wanted.scenario,
        "most": wanted.most,
        "rpm": knobs.rpm,
        "rated": knobs.rated,
        "attempts": knobs.attempts,
        "jitter": knobs.jitter,
    }


def points_of(frame: Frame) -> list[dict[str, Any]]:
    """The points of a sweep as plain JSON."""
    names = {"concurrency": "set", "in_flight": "n", "rows_per_s": "x", "goodput_per_s": "good", "p50_ms": "p50",
             "p95_ms": "p95", "within_slo": "within", "ok": "ok", "failed": "failed", "throttled": "throttled",
             "steady": "steady"}  # fmt: skip
    if frame.empty:
        return []
    rows = frame[list(names)].rename(columns=names).astype(object).to_dict("records")
    return [{str(name): _number(value) for name, value in row.items()} for row in rows]


def _number(value: Any) -> Any:
    """A number that JSON has, or None."""
    return value if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)) else None


# -- in words, and as a still table -------------------------------------------------------------------------


def headline(look: dict[str, Any]) -> str:
    """What it is about, in a line."""
    scenario = look["setup"]["scenario"]
    names = {LIVE: "the live provider", UNDECIDED: "nothing chosen yet", **dict(look["choices"]["scenario"])}
    doing = f", trying {look['measuring']} in flight" if look["measuring"] is not None else ""
    return f"llmlab tune: {look['state']}{doing}, {len(look['points'])} points, on {names.get(scenario, scenario)}"


def lines(look: dict[str, Any]) -> list[str]:
    """What was found, in words."""
    found, said = look["found"], []
    if found is not None:
        rate = "" if found["rpm"] is None else f", rpm {found['rpm']:.0f}"
        said.append(f"concurrency {found['concurrency']}{rate}: {found['rows_per_s']:.3g} rows/s, "
                    f"p95 {(found['p95_ms'] or 0.0) / 1000:.2f} s")  # fmt: skip
        said.append(found["reason"])
        if not found["keeps"]:
            said.append(f"this does not keep the SLO of {look['aims']['slo']:g} s")
    return [*said, *(each for each in ((found or {}).get("job"), _set(look), look["note"]) if each)]


def _set(look: dict[str, Any]) -> str | None:
    return None if look["used"] is None else f"set: {look['used']}"


def as_text(look: dict[str, Any]) -> str:
    """The look in plain text."""
    return "\n".join([headline(look), *(f"  {line}" for line in lines(look))])


def as_html(look: dict[str, Any]) -> str:
    """The look as a table that does nothing."""
    head, *said = [headline(look), *lines(look)]
    words = "".join(f"<div>{escape(line)}</div>" for line in said)
    return (
        f'<div class="llmlab-still tex2jax_ignore mathjax_ignore"><strong>{escape(head)}</strong>{words}'
        f"{_table(look)}</div>"
    )


def _table(look: dict[str, Any]) -> str:
    if not look["points"]:
        return ""
    slo = look["aims"]["slo"]
    names = ["concurrency", "in flight", "rows/s", "", "p95, s", *([f"within {slo:g} s"] if slo else []), "failed"]
    head = "".join(f'<th style="{_CELL}">{escape(name)}</th>' for name in names)
    top = max(point["x"] or 0.0 for point in look["points"]) or 1.0
    chosen = min(look["points"], key=lambda point: abs(point["set"] - (look["found"] or {}).get("concurrency", 0)))
    rows = "".join(_row(point, top, slo=slo, chosen=point is chosen) for point in look["points"])
    style = "border-collapse:collapse;margin:4px 0"
    return f'<table style="{style}"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _row(point: dict[str, Any], top: float, *, slo: float | None, chosen: bool) -> str:
    x, p95, within = point["x"] or 0.0, point["p95"], point["within"]
    bar = f'<span style="{_BAR};width:{100 * x / top:.0f}px"></span>'
    share = [] if not slo else ["" if within is None else f"{within:.0%}"]
    cells = [f"{point['set']:,}", f"{point['n'] or 0.0:.3g}", f"{x:.3g}", bar,
             "" if p95 is None else f"{p95 / 1000:.2f}", *share, str(point["failed"])]  # fmt: skip
    weight = ";font-weight:bold" if chosen else ""
    styles = [f"{_CELL}{';text-align:left' if cell is bar else ''}{weight}" for cell in cells]
    return "<tr>" + "".join(f'<td style="{how}">{cell}</td>' for how, cell in zip(styles, cells, strict=True)) + "</tr>"


def bundle(look: dict[str, Any]) -> dict[str, str]:
    """The look for a notebook's output: both ways to say it."""
    return {"text/plain": as_text(look), "text/html": as_html(look)}
