"""What a grid leaves behind, and how it is shown where there are no widgets."""

import asyncio
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import llmlab
from llmlab import places
from llmlab.clock import run_virtual
from llmlab.grid import Grid
from llmlab.gridhtml import LIVE, GridHtml, as_html, bundle, columns, summary
from llmlab.show import Show
from llmlab.sim import Physics, Simulator

KEY = "sk-very-secret-key"
HOSTILE = '<img src=x onerror=alert(1)><script>x</script></pre></div>"\' onload="x" & $x^2$ [a](javascript:b)'


class Cell:
    """A notebook's cell: keeps what is displayed in it, and what takes its place."""

    def __init__(self) -> None:
        self.shown: list[Any] = []
        self.updates: list[dict[str, str]] = []

    @classmethod
    def of(cls, monkeypatch: pytest.MonkeyPatch) -> "Cell":
        made = cls()
        monkeypatch.setattr(places, "display", made.display)
        return made

    def display(self, what: object, *, raw: bool = False, display_id: bool) -> "Cell":
        assert display_id
        self.display_id = f"d{len(self.shown)}"
        assert raw == isinstance(what, dict)
        self.shown.append(what)
        return self

    def update(self, what: dict[str, str], *, raw: bool) -> None:
        assert raw
        self.updates.append(what)


def show_of(*prompts: str, say: str | None = None) -> Show:
    physics = Physics(rtt=0.0, ttft=0.1, itl=0.02, load=0.0, jitter=0.0, reply_sigma=0.0)
    transport = Simulator(physics=physics, say=None if say is None else lambda _: say)
    return llmlab.Lab("openai:m", api_key=KEY, transport=transport, seed=1).show(prompts)


class Reader(HTMLParser):
    """The tags, attributes and texts of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.names: set[str] = set()
        self.pres: list[str] = []
        self._inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.names |= {name for name, _ in attrs}
        self._inside = tag == "pre"
        if self._inside:
            self.pres.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "pre"

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.pres[-1] += data


def grid_of(*texts: str, title: str = "t") -> Grid:
    grid = Grid([title] * len(texts))
    for pane, text in zip(grid.panes, texts, strict=True):
        pane.hear(0.0, [text])
    return grid


def test_hostile_words_are_text_wherever_they_stand() -> None:
    grid = grid_of(HOSTILE, title=HOSTILE)
    grid.panes[0].error = grid.panes[0].note = HOSTILE
    page = as_html(grid)
    read = Reader(page)
    assert read.tags == {"div", "strong", "span", "pre"}
    assert read.names == {"class", "style", "title"}
    assert read.pres == [HOSTILE]
    assert 'class="llmlab-still tex2jax_ignore mathjax_ignore"' in page


@example('\nA line break first, and <two> at the end & "done".\n\n')
@given(st.text(st.characters(exclude_categories=["Cc"], include_characters="\n\t"), max_size=30))
def test_a_pre_keeps_the_text_to_the_letter(text: str) -> None:
    page = as_html(grid_of(text))
    assert Reader(page).pres == [text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")]
    assert "<pre" in page
    assert "\n" not in page, "a line break after <pre> would be the tag's own"


def test_the_bundle_says_all_in_both_ways_and_can_be_sent() -> None:
    still = bundle(grid_of("one\ud83d", "two"))
    assert still["text/plain"] == "t: streaming\none\ufffd\n\nt: streaming\ntwo"
    assert Reader(still["text/html"]).pres == ["one\ufffd", "two"]


def test_the_summary_counts_the_states_that_there_are() -> None:
    grid = grid_of("a", "b", "c")
    grid.panes[0].state, grid.panes[1].state = "done", "error"
    assert summary(grid) == "3 panes, 1 done, 1 error, 1 streaming"


@pytest.mark.parametrize(
    ("panes", "beside"), [(0, 1), (1, 1), (2, 2), (3, 3), (4, 2), (6, 3), (9, 3), (16, 4), (100, 4)]
)
def test_panes_stand_in_a_square_of_four_columns_at_most(panes: int, beside: int) -> None:
    assert columns(panes) == beside


def test_without_widgets_one_output_is_redrawn_with_the_texts_ends_and_whole_in_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cell = Cell.of(monkeypatch)
    long = "word " * 1000

    async def main() -> tuple[float, Show]:
        show = show_of("a", say=long)
        view = GridHtml(show)
        view.show()
        drawing = asyncio.create_task(view.run())
        await show
        drawing.cancel()
        view.close()
        return asyncio.get_running_loop().time(), show

    seconds, show = run_virtual(main)
    assert len(cell.shown) == 1
    assert len(cell.updates) <= 2 * seconds + 1
    live = [Reader(each["text/html"]).pres[0] for each in cell.updates[:-1]]
    assert max(map(len, live)) == LIVE + 1
    assert live[-1].startswith("…")
    assert cell.updates[-1] == bundle(show.grid)
    assert Reader(cell.updates[-1]["text/html"]).pres == [long]
