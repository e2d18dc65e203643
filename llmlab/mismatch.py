"""Two runs that do not belong into one journal, and what tells them apart, side by side."""

import json
from collections.abc import Mapping

_WIDTH = 48
"""Characters of a setting shown when two differ."""


class JournalMismatch(ValueError):
    """The file is the journal of a run with other settings.

    Args:
        path: The journal.
        differing: The settings that differ: name to (in the file, now) as JSON; None where there is none.
    """

    def __init__(self, path: str, differing: Mapping[str, tuple[str | None, str | None]]) -> None:
        super().__init__(path, differing)
        self.path = path
        self.differing = dict(differing)

    def __str__(self) -> str:
        rows = [("", "in the file", "now")]
        rows += [(name, *_side_by_side(*map(_readable, pair))) for name, pair in sorted(self.differing.items())]
        first, second = (max(len(row[column]) for row in rows) for column in (0, 1))
        table = "\n".join(f"  {name:{first}}  {there:{second}}  {here}" for name, there, here in rows)
        return (
            f"{self.path} is the journal of a run with other settings; "
            f"use those again, or give this run a journal of its own:\n{table}"
        )


def _readable(text: str | None) -> str | None:
    return None if text is None else json.dumps(json.loads(text), ensure_ascii=False)


def _side_by_side(there: str | None, here: str | None) -> tuple[str, str]:
    """Two settings cut to a width at which their difference shows."""
    if there is None or here is None:
        return _cut(there, 0), _cut(here, 0)
    at = next((n for n, (a, b) in enumerate(zip(there, here, strict=False)) if a != b), min(len(there), len(here)))
    return _cut(there, at), _cut(here, at)


def _cut(text: str | None, at: int) -> str:
    """The text around the place `at`."""
    if text is None:
        return "(not set)"
    begin = 0 if len(text) <= _WIDTH else max(0, at - _WIDTH // 2)
    end = begin + _WIDTH
    return ("…" if begin else "") + text[begin:end] + ("…" if end < len(text) else "")
