"""A look in words, and as a still picture: what stays below a cell when the job is over.

All text that came from outside (error classes, reasons, model names) is escaped. There is no script and no link, so
that it says the same in JupyterLab, nbconvert, GitHub and a reopened notebook. No dollar sign begins a formula: MathJax
passes over what is of the class tex2jax_ignore (up to its version 2) or mathjax_ignore (from 3 on).
"""

from html import escape

from llmlab.live import Look
from llmlab.prices import dollars

MINUTE, HOUR = 60.0, 3600.0
_CELL = "padding:1px 12px 1px 0;text-align:left;vertical-align:top"


def lines(look: Look) -> list[tuple[str, str]]:
    """What there is to say, as (what, value), both in words."""
    said = [("rows", _rows(look)), ("time", _time(look)), ("throughput", f"{_number(look.rate_overall)} rows/s")]
    if look.p50_ms is not None and look.p95_ms is not None:
        said.append(("latency", f"p50 {milliseconds(look.p50_ms)}, p95 {milliseconds(look.p95_ms)}"))
    if look.retries:
        said.append(("retries", f"{look.retries} ({kinds(look.retried)})"))
    if look.kinds:
        said.append(("errors", kinds(look.kinds)))
    if look.input_tokens or look.output_tokens:
        said.append(("tokens", f"{count(look.input_tokens)} in, {count(look.output_tokens)} out"))
    if look.cost_usd is not None:
        said.append(("cost", dollars(look.cost_usd)))
    if look.bound_by:
        said.append(("bound by", look.bound_by))
    return [*said, *(("note", note) for note in look.notes)]


def as_text(look: Look) -> str:
    """The look in plain text, a line each."""
    head = f"llmlab {look.name}: {look.state}"
    return "\n".join([head, *(f"  {what:<10}  {value}" for what, value in lines(look))])


def as_html(look: Look) -> str:
    """The look as a table without style sheets, scripts or links."""
    rows = "".join(
        f'<tr><td style="{_CELL};opacity:.7">{escape(what)}</td><td style="{_CELL}">{escape(value)}</td></tr>'
        for what, value in lines(look)
    )
    head = f"llmlab {look.name}: {look.state}"
    return (
        f'<div class="llmlab-still tex2jax_ignore mathjax_ignore"><strong>{escape(head)}</strong>'
        f'<table style="border-collapse:collapse;margin:4px 0"><tbody>{rows}</tbody></table></div>'
    )


def bundle(look: Look) -> dict[str, str]:
    """The look for a notebook's output: both ways to say it."""
    return {"text/plain": as_text(look), "text/html": as_html(look)}


def _rows(look: Look) -> str:
    of = "" if look.total is None else f" of {look.total:,}"
    parts = [f"{look.done:,}{of}"]
    if look.errors:
        parts.append(f"{look.errors:,} {'error' if look.errors == 1 else 'errors'}")
    if look.cancelled:
        parts.append(f"{look.cancelled:,} cancelled")
    return ", ".join(parts)


def _time(look: Look) -> str:
    if look.state == "running" and look.eta_s is not None:
        return f"{seconds(look.elapsed_s)}, {seconds(look.eta_s)} left"
    return seconds(look.elapsed_s)


def kinds(counts: list[tuple[str, int]]) -> str:
    """Classes with their counts."""
    return ", ".join(f"{name} {number:,}" for name, number in counts)


def seconds(number: float) -> str:
    """A span of time, as people say it."""
    if number < MINUTE:
        return f"{number:.1f} s" if number < 10 else f"{number:.0f} s"  # noqa: PLR2004
    if number < HOUR:
        return f"{int(number // MINUTE)} min {int(number % MINUTE)} s"
    return f"{int(number // HOUR)} h {int(number % HOUR // MINUTE)} min"


def milliseconds(number: float) -> str:
    """A latency."""
    return f"{number:.0f} ms" if number < 1000 else f"{number / 1000:.1f} s"  # noqa: PLR2004


def count(number: float) -> str:
    """A large count, shortened."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if number >= size:
            return f"{number / (1e3 if unit == 'k' else size):.1f}{unit}"
    return f"{number:.0f}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"  # noqa: PLR2004
