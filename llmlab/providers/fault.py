"""What an error body says, in whichever of its many shapes it comes.

OpenAI's object, Anthropic's, Google's (sometimes inside a list), a bare string, flat objects, FastAPI's
list of complaints, HTML from a gateway: all become one Fault. Reading it never fails, also not on JSON nested
a thousand deep; judging it is the taxonomy's.
"""

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

import orjson

Object: TypeAlias = dict[str, object]

LOOKED_AT = 4000
"""Most characters of a message or page that are read: a gateway's page can be long, its news stands first."""

_TAGS = re.compile(r"<(script|style)\b.*?</\1\s*>|<!--.*?-->|<[^>]*>", re.DOTALL | re.IGNORECASE)
_TITLE = re.compile(r"<title[^>]*>(.*?)</title", re.DOTALL | re.IGNORECASE)
_SECRET = re.compile(r"\b(?:sk|gsk|xai)[-_][\w*-]{6,}|\bAIza[\w-]{20,}|(?<=Bearer )\S+")


@dataclass
class Fault:
    """What one error body says."""

    message: str = ""
    """The provider's words."""
    words: tuple[str, ...] = ()
    """Sub-codes, code, type and status words, the most telling first, as the provider spells them."""
    status: int | None = None
    """The HTTP status that the body itself names, 400 to 599."""
    param: str = ""
    """The refused parameter, where a field names it."""
    delay: str = ""
    """Google's `retryDelay`, as it stands: `32s`."""
    request_id: str | None = None
    """The request's id, where the body repeats it."""
    moderated: bool = False
    """Whether moderation is named as the one that refused (OpenRouter)."""
    daily: bool = False
    """Whether a quota per day is named as used up (Google)."""
    known: bool = field(default=False, kw_only=True)
    """Whether the body is an error in one of the known JSON shapes."""


def read(body: bytes) -> Fault:
    """Read an error body; what is not JSON becomes a message."""
    try:
        value: object = orjson.loads(body)
    except orjson.JSONDecodeError:
        return Fault(body[:LOOKED_AT].decode(errors="replace"))
    value = _first(value)
    if isinstance(value, str):
        return Fault(value[:LOOKED_AT])
    return _fault(value) if isinstance(value, dict) else Fault()


def carries_error(value: object) -> bool:
    """Say whether JSON is an error: a filled `error` key, or a flat error object, or either in a list."""
    value = _first(value)
    if not isinstance(value, dict):
        return False
    return bool(value.get("error")) or "error" in (value.get("object"), value.get("type"))


def plain(text: str, most: int) -> str:
    """Make a line of plain text of at most `most` characters: no markup, no control characters, no keys."""
    text = text[:LOOKED_AT]
    if text.lstrip()[:1] == "<":
        title = _TITLE.search(text)
        text = html.unescape(_TAGS.sub(" ", title[1] if title else text))
    if not text.isprintable():
        text = "".join(each if each.isprintable() else " " for each in text)
    text = _SECRET.sub("***", " ".join(text.split()))
    return text if len(text) <= most else text[: most - 1] + "…"


def _first(value: object) -> object:
    if isinstance(value, list):
        return value[0] if value else None
    return value


def _fault(outer: Object) -> Fault:
    inner = _first(outer.get("error"))
    error = inner if isinstance(inner, dict) else outer
    message = inner if isinstance(inner, str) and inner else _message(error)
    metadata = error.get("metadata")
    details = _details(error)
    return Fault(
        message[:LOOKED_AT],
        tuple(dict.fromkeys(_words(error, details))),
        next(filter(None, map(_status, (error.get("code"), error.get("status"), error.get("type")))), None),
        _text(error.get("param")),
        next(filter(None, (_text(each.get("retryDelay")) for each in details)), ""),
        _text(outer.get("request_id")) or None,
        isinstance(metadata, dict) and ("flagged_input" in metadata or "reasons" in metadata),
        any(map(_is_daily, details)),
        known=carries_error(outer) or bool(message),
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _message(error: Object) -> str:
    for key in ("message", "detail", "msg"):
        value = error.get(key)
        if isinstance(value, list):
            value = "; ".join(map(_complaint, value[:5]))
        if isinstance(value, dict):
            value = value.get("message")
        if isinstance(value, str) and value:
            metadata = error.get("metadata")  # OpenRouter: the words of the provider behind it
            raw = _text(metadata.get("raw")) if isinstance(metadata, dict) else ""
            return f"{value}: {raw}" if raw else value
    return ""


def _complaint(item: object) -> str:
    """One of FastAPI's, without its `input`, which repeats the prompt."""
    if not isinstance(item, dict):
        return _text(item)
    place = item.get("loc")
    where = place if isinstance(place, list) else []
    path = ".".join(str(each) for each in where if isinstance(each, str | int))
    return ": ".join(filter(None, (path, _text(item.get("msg")))))


def _words(error: Object, details: list[Object]) -> Iterator[str]:
    inner = error.get("innererror")  # Azure
    for source in (*details, error, inner if isinstance(inner, dict) else {}):
        for key in ("error_code", "reason", "code", "type", "status"):
            word = _text(source.get(key))
            if word and not word.isdigit() and word != "error":
                yield word


def _details(error: Object) -> list[Object]:
    """Anthropic has one object of details, Google a list of them."""
    details = error.get("details")
    return [each for each in (details if isinstance(details, list) else [details]) if isinstance(each, dict)]


def _is_daily(detail: Object) -> bool:
    violations = detail.get("violations")
    return isinstance(violations, list) and any(
        "PerDay" in _text(each.get("quotaId")) for each in violations if isinstance(each, dict)
    )


def _status(value: object) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"[45]\d\d", value, re.ASCII):
        return int(value)
    return value if type(value) is int and 400 <= value <= 599 else None  # noqa: PLR2004  a status, no other number
