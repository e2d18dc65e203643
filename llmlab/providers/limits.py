"""What a provider says about its limits: when to come back.

Headers first, words last: a 429 may carry no header at all, and then its message is the only hint. What is
asked for is a minimum. The result is never negative and never infinite; what cannot be read is None,
because a wrong wait is worse than the policy's own back-off.
"""

import math
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

_MICRO = dict.fromkeys(("us", "µs", "μs"), 1e-6)
UNITS = {"ns": 1e-9, **_MICRO, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
"""Seconds per unit of a Go duration; micro in both of Unicode's spellings."""

_PART = r"\d+(?:\.\d+)?"
_GO = re.compile(rf"({_PART})(ms|us|µs|μs|ns|s|m|h|d)", re.ASCII)
_WHOLE = re.compile(rf"(?:{_GO.pattern})+|{_PART}", re.ASCII)
_WORD = r"(?:milliseconds?|ms|seconds?|secs?|minutes?|mins?|hours?|days?|s|m|h|d)"
_SPOKEN = re.compile(
    rf"(?:try again|retry|wait)(?: (?:in|after|for|at least))* ((?:{_PART} ?{_WORD}(?![a-z])[ ,]*)+)",
    re.IGNORECASE | re.ASCII,
)
_SPOKEN_PART = re.compile(rf"({_PART}) ?(milli|m(?!in)s|[smhd])", re.IGNORECASE | re.ASCII)


def duration(text: str) -> float | None:
    """Read a Go duration (`1m30.5s`, `12ms`) in seconds; a bare number counts as seconds.

    Returns:
        Seconds; None when any part of the text is something else, as a sign, `nan` or a date.
    """
    text = text.strip()
    if not _WHOLE.fullmatch(text):
        return None
    parts = _GO.findall(text)
    return _sane(sum(float(number) * UNITS[unit] for number, unit in parts) if parts else float(text))


def retry_after(headers: Mapping[str, str], message: str = "") -> float | None:
    """Seconds that the provider asks to wait, at least.

    Args:
        headers: The response's headers, names in lower case.
        message: The error's message, asked when no header speaks.

    Returns:
        Seconds; None when nothing readable was said. A date is taken relative to the response's own `Date`.
    """
    asked = duration(headers.get("retry-after-ms", "") + "ms")
    if asked is None and (text := headers.get("retry-after")):
        asked = duration(text)
        if asked is None:
            asked = _until(text, headers.get("date"))
    return spoken(message) if asked is None else asked


def spoken(message: str) -> float | None:
    """Seconds named in a sentence such as "Please try again in 9m38.016s."; None if there is none."""
    found = _SPOKEN.search(message)
    if not found:
        return None
    parts = _SPOKEN_PART.findall(found[1])
    return _sane(sum(float(number) * _unit(word.lower()) for number, word in parts))


def _unit(word: str) -> float:
    return UNITS["ms" if word in {"milli", "ms"} else word]


def _sane(seconds: float) -> float | None:
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _until(text: str, now: str | None) -> float | None:
    then = _timestamp(text)
    if then is None:
        return None
    here = _timestamp(now) if now else None
    return _sane(then - (time.time() if here is None else here))


def _timestamp(text: str) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):  # what email.utils raises differs by version
        return None
