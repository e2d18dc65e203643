"""`"Classify: {review}"`: a row's columns put into a text.

Only column names stand in braces, with an optional conversion and format (`{price:.2f}`, `{name!r}`); no
attributes, no indexing, so a template can reach nothing but the row. `{{` and `}}` are braces.
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any

from llmlab.types import is_missing

_FORMATTER = Formatter()


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Say which of the known names was perhaps meant, or which there are."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(map(repr, known))}"


@dataclass(frozen=True, slots=True)
class _Field:
    before: str
    column: str | None
    spec: str
    conversion: str | None


class Template:
    """A text with column names in braces.

    Raises:
        TypeError: `text` is no str.
        ValueError: a brace is unbalanced or stands in a format, a field is empty, or a conversion is unknown.
    """

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise TypeError(f"template must be a str with column names in braces, not {type(text).__name__}")
        self.text = text
        try:
            parsed = [_Field(before, name, spec or "", conv) for before, name, spec, conv in _FORMATTER.parse(text)]
        except ValueError as error:
            raise ValueError(f"template {text!r}: {error}; write {{{{ and }}}} for literal braces") from None
        if any(field.column == "" for field in parsed):
            raise ValueError(f"template {text!r}: a pair of braces is empty; put a column's name in it")
        for field in parsed:
            if field.conversion not in (None, "r", "s", "a"):
                raise ValueError(f"template {text!r}: a conversion is !r, !s or !a, not !{field.conversion}")
            if "{" in field.spec:
                raise ValueError(f"template {text!r}: no braces inside the format of column {field.column!r}")
        self._fields = parsed

    @property
    def columns(self) -> tuple[str, ...]:
        """The column names used, each once, in order of appearance."""
        return tuple(dict.fromkeys(field.column for field in self._fields if field.column is not None))

    def check(self, known: Sequence[str]) -> None:
        """Raise ValueError if a column is not among the known ones or none is used."""
        for column in self.columns:
            if column not in known:
                literal = (
                    "" if re.fullmatch(r"[\w .-]+", column) else "; write {{ and }} for literal braces, as of JSON"
                )
                raise ValueError(f"template: no column {column!r}; {did_you_mean(column, known)}{literal}")
        if not self.columns:
            raise ValueError(
                f"template {self.text!r} uses no column, so every row would ask the same; there are: "
                f"{', '.join(map(repr, known))}"
            )

    def fill(self, row: dict[str, Any]) -> str:
        """Put a row's values in.

        Raises:
            ValueError: a value is missing (None or NaN), or does not take its format.
        """
        parts: list[str] = []
        for field in self._fields:
            parts.append(field.before)
            if field.column is not None:
                parts.append(_render(row[field.column], field))
        return "".join(parts)


def _render(value: Any, field: _Field) -> str:
    if is_missing(value):
        raise ValueError(f"template: column {field.column!r} is missing (None or NaN): drop or fill it first")
    if field.conversion is None and not field.spec:
        return str(value)
    try:
        return str(_FORMATTER.format_field(_FORMATTER.convert_field(value, field.conversion), field.spec))
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ValueError(f"template: column {field.column!r} with value {value!r}: {error}") from None
