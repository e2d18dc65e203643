"""What comes from outside is shown as text, or not at all: nothing of it runs, nothing of it becomes markup."""

from tests.browser.hostile import TEXTS, as_table, look_at
from tests.browser.notebook import Open

SILENT = {"summary"}
"""Surfaces that show nothing that came from outside."""


def test_hostile_texts_stay_texts_on_every_surface(notebook: Open) -> None:
    found = look_at(notebook)
    print(as_table(found))  # noqa: T201  -s shows the table
    for surface, verdicts in found.items():
        assert verdicts == dict.fromkeys(TEXTS, "-" if surface in SILENT else "text"), surface
