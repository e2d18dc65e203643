"""The grid's notebook side without a notebook: what is sent, what is heard, what is left behind."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import llmlab
from llmlab import views
from llmlab.clock import run_virtual
from llmlab.grid import Grid
from llmlab.gridhtml import bundle
from llmlab.gridview import GridView, GridWidget, News
from llmlab.show import Show
from llmlab.sim import Physics, Simulator
from tests.test_gridhtml import KEY, Cell, show_of


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> Cell:
    return Cell.of(monkeypatch)


def sent_by(view: GridView) -> list[dict[str, Any]]:
    """All messages to the browser from now on."""
    messages: list[dict[str, Any]] = []
    view._widget.send = messages.append
    return messages


class Browser:
    """What grid.js does with the messages, as JavaScript counts characters."""

    def __init__(self, panes: list[dict[str, Any]]) -> None:
        self.take(panes)
        self.gaps = 0

    def take(self, panes: list[dict[str, Any]]) -> None:
        self.texts = [units(pane["text"]) for pane in panes]
        self.takes = [pane["take"] for pane in panes]

    def hear(self, message: dict[str, Any]) -> None:
        for number, take, offset, text in json.loads(json.dumps(message))["texts"]:
            known = self.texts[number] if take == self.takes[number] else b""
            if take < self.takes[number]:
                continue
            if 2 * offset > len(known):
                self.gaps += 1
                continue
            self.texts[number], self.takes[number] = known + units(text)[len(known) - 2 * offset :], take

    def text(self, number: int) -> str:
        return self.texts[number].decode("utf-16-le")


def units(text: str) -> bytes:
    return text.encode("utf-16-le")


# -- messages ---------------------------------------------------------------------------------------------


PIECE = st.text(alphabet=st.sampled_from(["a", "é", "\n", "\U0001f600", "中"]), min_size=1, max_size=6)
STEP = st.one_of(PIECE, st.sampled_from(["CLEAR", "FLUSH", "WHOLE", "RELOAD"]))


@given(st.lists(STEP, max_size=40))
def test_the_browser_has_the_very_text_whatever_comes_and_whenever_it_begins(steps: list[str]) -> None:
    grid = Grid(["t"])
    pane, news, widget = grid.panes[0], News(grid), GridWidget(grid)
    browser = Browser(widget.whole())
    for step in steps:
        if step == "CLEAR":
            pane.begin_anew("retrying")
        elif step == "FLUSH":
            browser.hear(news.take() or {"texts": []})
        elif step == "WHOLE":
            browser.take(widget.whole())
        elif step == "RELOAD":
            browser = Browser(widget.get_state("panes")["panes"])
        else:
            pane.hear(0.0, [step])
    browser.hear(news.take() or {"texts": []})
    assert browser.text(0) == pane.text
    assert browser.gaps == 0
    widget.close()


@given(st.lists(st.tuples(PIECE, st.booleans()), max_size=20))
def test_after_a_lost_message_there_is_a_gap_until_the_whole_comes(steps: list[tuple[str, bool]]) -> None:
    grid = Grid(["t"])
    pane, news, widget = grid.panes[0], News(grid), GridWidget(grid)
    browser = Browser(widget.whole())
    for piece, lost in steps:
        pane.hear(0.0, [piece])
        message = news.take()
        assert message is not None
        if not lost:
            browser.hear(message)
        assert pane.text.startswith(browser.text(0)), "what is shown is never wrong, at most short"
    if browser.gaps:
        browser.take(widget.whole())
        assert browser.text(0) == pane.text
    widget.close()


def test_a_pair_cut_in_two_pieces_keeps_the_offsets_right() -> None:
    grid = Grid(["t"])
    news, browser = News(grid), Browser([{"text": "", "take": 0}])
    for piece in ("a\ud83d", "\ude00b", "c"):
        grid.panes[0].hear(0.0, [piece])
        browser.hear(news.take() or {})
    assert browser.text(0) == "a\ufffd\ufffdbc"
    assert browser.gaps == 0


def test_there_is_no_message_without_news_and_a_cleared_pane_is_news() -> None:
    grid = Grid(["a", "b"])
    news = News(grid)
    first = news.take()
    assert first is not None
    assert [number for number, _ in first["heads"]] == [0, 1]
    assert news.take() is None
    grid.panes[1].hear(0.0, ["x"])
    assert news.take() == {"kind": "news", "texts": [[1, 0, 0, "x"]], "heads": [[1, grid.panes[1].head()]]}
    grid.panes[1].begin_anew("retrying")
    assert news.take() == {"kind": "news", "texts": [[1, 1, 0, ""]], "heads": [[1, grid.panes[1].head()]]}
    assert news.take() is None


def test_ten_messages_a_second_whatever_the_streams_do(cell: Cell) -> None:  # noqa: ARG001
    async def main() -> tuple[float, list[dict[str, Any]], Show]:
        show = show_of(*[f"p{n}" for n in range(16)])
        view = GridView(show)
        messages = sent_by(view)
        drawing = asyncio.create_task(view.run())
        await show
        drawing.cancel()
        view.close()
        return asyncio.get_running_loop().time(), messages, show

    seconds, messages, show = run_virtual(main)
    assert sum(pane.tokens or 0 for pane in show.grid.panes) > 600
    assert len(messages) <= 10 * seconds + 2
    browser = Browser([{"text": "", "take": 0}] * 16)
    for message in messages:
        browser.hear(message)
    assert [browser.text(number) for number in range(16)] == show.texts


# -- the widget -------------------------------------------------------------------------------------------


def test_the_widgets_state_is_the_panes_and_nothing_secret() -> None:
    async def main() -> dict[str, Any]:
        show = show_of("a", "b", say="what was said")
        await show
        state: dict[str, Any] = GridView(show)._widget.get_state()
        return state

    state = run_virtual(main)
    own = {name for name in state if not name.startswith("_")}
    assert own == {"uid", "columns", "panes", "layout", "tabbable", "tooltip"}
    assert [pane["text"] for pane in state["panes"]] == ["what was said"] * 2
    assert KEY not in str(state)


@pytest.fixture
def heard() -> Iterator[tuple[Show, Any, list[dict[str, Any]]]]:
    """A running show, what the browser says to it, and what it is told."""
    loop = asyncio.new_event_loop()

    async def begin() -> tuple[Show, GridView]:
        lab = llmlab.Lab("openai:m", transport=Simulator(physics=Physics(ttft=60.0)), api_key=KEY)
        show = lab.show(["a", "b", "c"])
        await asyncio.sleep(0.01)
        return show, GridView(show)

    show, view = loop.run_until_complete(begin())
    messages = sent_by(view)

    def say(**message: Any) -> list[str]:
        async def hear() -> list[str]:
            await asyncio.to_thread(view._heard, view._widget, message, [])
            await asyncio.sleep(0.01)
            return [pane.state for pane in show.grid.panes]

        return loop.run_until_complete(hear())

    yield show, say, messages
    loop.run_until_complete(_end(show))
    view.close()
    loop.close()


async def _end(show: Show) -> None:
    show.cancel()
    await show


def test_stop_in_a_pane_stops_it_alone_from_any_thread(heard: Any) -> None:
    _, say, _ = heard
    assert say(kind="stop", pane=0) == ["stopped", "waiting", "waiting"]
    assert say(kind="stop", pane=2) == ["stopped", "waiting", "stopped"]


def test_stop_all_ends_the_job(heard: Any) -> None:
    show, say, _ = heard
    assert say(kind="stop") == ["stopped"] * 3
    assert show.stopped == "cancelled"


@pytest.mark.parametrize(
    "message",
    [{}, {"kind": "Stop"}, {"kind": "stop", "pane": "1"}, {"kind": "stop", "pane": True}, {"kind": "stop", "pane": 9},
     {"kind": "stop", "pane": -1}, {"kind": "stop", "pane": [1]}, {"kind": "stop", "pane": 1.0}, {"pane": 1}],
)  # fmt: skip
def test_what_makes_no_sense_is_not_heard(heard: Any, message: dict[str, Any]) -> None:
    _, say, messages = heard
    assert say(**message) == ["waiting"] * 3
    assert messages == []


def test_whoever_asks_for_the_whole_gets_it(heard: Any) -> None:
    show, say, messages = heard
    show.grid.panes[0].hear(0.0, ["text"])
    say(kind="whole")
    assert [message["kind"] for message in messages] == ["whole"]
    assert [pane["text"] for pane in messages[0]["panes"]] == ["text", "", ""]


def test_in_the_end_a_still_picture_takes_the_widgets_place(cell: Cell) -> None:
    async def main() -> Show:
        show = show_of("a", say="said")
        view = GridView(show)
        view.show()
        view.show()
        await show
        view.close()
        view.close()
        view.show()
        assert view._widget.comm is None
        return show

    show = run_virtual(main)
    assert [type(what).__name__ for what in cell.shown] == ["GridWidget", "GridWidget", "dict"]
    assert cell.updates == [bundle(show.grid)] * 4, "two places, and once more for who waited for it"
    assert cell.shown[2] == bundle(show.grid)


def test_a_show_gets_a_grid_where_another_job_gets_a_board() -> None:
    async def main() -> list[str]:
        lab = llmlab.Lab("openai:m", transport=Simulator(physics=Physics.instant()), api_key=KEY)
        jobs = [lab.show("a"), lab.run_many(["a"])]
        made = [type(views.MAKERS[kind](job)).__name__ for kind in ("widget", "html") for job in jobs]
        await asyncio.gather(*jobs)
        return made

    assert run_virtual(main) == ["GridView", "BoardView", "GridHtml", "HtmlView"]
