"""Where one thing is shown: once below each cell, and everywhere replaced."""

from typing import Any

import pytest

from llmlab import places
from llmlab.places import Places


class Page:
    """What stands below the cells, by display id, and which cell is at work."""

    def __init__(self) -> None:
        self.shown: dict[str, Any] = {}
        self.cell: str | None = "one"

    def display(self, what: Any, *, display_id: bool, **_: Any) -> "Handle":
        assert display_id
        handle = Handle(f"d{len(self.shown)}", self)
        self.shown[handle.display_id] = what
        return handle


class Handle:
    def __init__(self, display_id: str, page: Page) -> None:
        self.display_id, self._page = display_id, page

    def update(self, what: Any, *, raw: bool) -> None:
        assert raw
        self._page.shown[self.display_id] = what


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Page:
    made = Page()
    monkeypatch.setattr(places, "display", made.display)
    monkeypatch.setattr(places, "cell_at_work", lambda: made.cell)
    return made


def test_each_cell_shows_it_once(page: Page) -> None:
    shown = Places()
    shown.add("board")
    shown.add("board")
    page.cell = "two"
    shown.add("board")
    assert list(page.shown.values()) == ["board", "board"]


def test_where_nobody_knows_the_cell_it_is_rather_shown_twice_than_not_at_all(page: Page) -> None:
    page.cell = None
    shown = Places()
    shown.add("board")
    shown.add("board")
    assert len(page.shown) == 2


def test_it_is_replaced_in_all_cells(page: Page) -> None:
    shown = Places()
    shown.add("board")
    page.cell = "two"
    shown.add("board")
    shown.replace({"text/plain": "table"})
    assert list(page.shown.values()) == [{"text/plain": "table"}] * 2


def test_after_the_end_only_that_is_shown_and_never_twice_in_a_cell(page: Page) -> None:
    shown, end = Places(), {"text/plain": "the end"}
    shown.add("board")
    shown.end(end)
    shown.add("board")
    page.cell = "two"
    shown.add("board")
    assert list(page.shown.values()) == [end, end]
