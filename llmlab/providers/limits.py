"""What a provider says about its limits: when to come back, and how much is left.

Headers first, words last: a 429 may carry no header at all, and then its message is the only hint. What is
asked for is a minimum. The result is never negative and never infinite; what cannot be read is None,
because a wrong wait is worse than the policy's own back-off.
"""

import math
import re
import time
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import TypeAlias

Level: TypeAlias = tuple[float, float, float]
"""Limit per minute, what remains of it, seconds until it is whole again (not: until one may come again)."""

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
_COUNT = re.compile(r"\d{1,15}", re.ASCII)
_X_RATELIMIT = {"requests": "requests", "tokens": "total_tokens", "project-tokens": "total_tokens"}
_ANTHROPIC = {
    "requests": "requests",
    "tokens": "total_tokens",
    "input-tokens": "input_tokens",
    "output-tokens": "output_tokens",
}
_SHORT_MINUTE, _LONG_MINUTE = 20.0, 180.0  # seconds
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


@lru_cache(maxsize=16)
def _timestamp(text: str) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, OverflowError, IndexError):  # what email.utils raises differs by version
        return None


def levels(headers: Mapping[str, str]) -> dict[str, Level] | None:
    """Read the state of a provider's rate limits, of the response's headers (names in lower case).

    Returns:
        Dimension (`requests`, `input_tokens`, `output_tokens`, `total_tokens`) -> limit per minute, what remains of
        it, seconds until it is whole again. None: nothing readable was said. What is incomplete, malformed, negative
        or inconsistent is left out, as are limits that are not per minute: a day's allowance is not paced, and who
        has used it up is told so by a 429. Anthropic's `tokens` is left out beside `input-tokens` or
        `output-tokens`, of which it repeats one or the sum.
    """
    return _x_ratelimit(headers) or _anthropic(headers) or None


def _x_ratelimit(headers: Mapping[str, str]) -> dict[str, Level]:
    found: dict[str, Level] = {}
    for name, dimension in _X_RATELIMIT.items():
        if (limit := headers.get(f"x-ratelimit-limit-{name}")) is not None:
            full = duration(headers.get(f"x-ratelimit-reset-{name}", ""))
            level = _level(limit, headers.get(f"x-ratelimit-remaining-{name}", ""), full)
            if level and _may_be_a_minute(level):
                found[dimension] = _tighter(level, found.get(dimension))
    return found


def _anthropic(headers: Mapping[str, str]) -> dict[str, Level]:
    found: dict[str, Level] = {}
    for name, dimension in _ANTHROPIC.items():
        prefix = f"anthropic-ratelimit-{name}"
        if (limit := headers.get(f"{prefix}-limit")) is not None:
            full = _until_full(headers.get(f"{prefix}-reset", ""), headers.get("date", ""))
            if level := _level(limit, headers.get(f"{prefix}-remaining", ""), full):
                found[dimension] = level
    if "input_tokens" in found or "output_tokens" in found:
        found.pop("total_tokens", None)
    return found


def _level(limit: str, remaining: str, full: float | None) -> Level | None:
    if full is None or not _COUNT.fullmatch(limit) or not _COUNT.fullmatch(remaining):
        return None
    most, left = float(limit), float(remaining)
    return (most, left, full) if most > 0 and left <= most else None  # Azure writes 0 and -1 for "not known"


def _may_be_a_minute(level: Level) -> bool:
    """Infer the window, limit * reset / (limit - remaining): 60 s or, for requests on small tiers and Groq, a day.

    Whole seconds may be off by one, and what remains is rounded down. A window of 20 to 180 s passes for a minute:
    the others are far off.
    """
    limit, remaining, full = level
    missing, blur = limit - remaining, 1.0 if full.is_integer() else 0.0
    shortest, longest = (full - blur) * limit, (full + blur) * limit
    return shortest <= _LONG_MINUTE * missing and longest >= _SHORT_MINUTE * (missing - 1)


def _tighter(one: Level, other: Level | None) -> Level:
    """Join two limits on the same thing, as of an organization and of its project."""
    return one if other is None else (min(one[0], other[0]), min(one[1], other[1]), max(one[2], other[2]))


def _until_full(reset: str, date: str) -> float | None:
    now = _timestamp(date)
    try:
        then = datetime.fromisoformat(reset)
    except ValueError:
        return None
    return max(0.0, then.timestamp() - (time.time() if now is None else now)) if then.tzinfo else None
