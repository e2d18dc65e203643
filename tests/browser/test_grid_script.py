"""The grid's script by itself, on an empty page with a model of the test's own."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import llmlab

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

STATIC = Path(llmlab.__file__).parent / "static"

LOAD = """async ([script, style]) => {
    document.head.append(Object.assign(document.createElement("style"), { textContent: style }));
    const url = URL.createObjectURL(new Blob([script], { type: "text/javascript" }));
    window.grid = (await import(url)).default;
    window.sent = [];
}"""
BEGIN = """(panes) => {
    const listeners = [];
    const state = { uid: "u", columns: 2, panes };
    window.model = {
        get: (name) => state[name],
        on: (event, listener) => event === "msg:custom" && listeners.push(listener),
        off: () => {},
        send: (message) => window.sent.push(message),
    };
    window.say = (message) => listeners.forEach((listener) => listener(message));
    window.end = window.grid.initialize({ model: window.model });
}"""
RENDER = """() => {
    const el = document.createElement("div");
    document.body.append(el);
    return void window.grid.render({ model: window.model, el });
}"""
PAINTED = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done())))"


def head(state: str = "streaming", figures: str = "", error: str = "") -> dict[str, str]:
    return {"state": state, "figures": figures, "error": error}


class Script:
    """The script at work on a page."""

    def __init__(self, page: "Page") -> None:
        self.page = page
        self.page.evaluate(LOAD, [(STATIC / "grid.js").read_text(), (STATIC / "grid.css").read_text()])

    def begin(self, *texts: str, title: str = "t") -> None:
        panes = [{"title": title, "take": 0, "text": text, "head": head("waiting")} for text in texts]
        self.page.evaluate(BEGIN, panes)

    def render(self) -> None:
        self.page.evaluate(RENDER)
        self.page.evaluate(PAINTED)

    def say(self, *texts: list[Any], heads: list[Any] | None = None) -> None:
        self.page.evaluate("(m) => window.say(m)", {"kind": "news", "texts": list(texts), "heads": heads or []})
        self.page.evaluate(PAINTED)

    def texts(self) -> list[str]:
        return self.page.locator(".llmlab-text").evaluate_all("(all) => all.map((text) => text.textContent)")  # type: ignore[no-any-return]

    def sent(self) -> list[dict[str, Any]]:
        return self.page.evaluate("() => window.sent")  # type: ignore[no-any-return]

    def of_first(self, expression: str) -> Any:
        return self.page.locator(".llmlab-text").first.evaluate(f"(text) => {expression}")


@pytest.fixture
def script(chrome: "BrowserContext") -> Iterator[Script]:
    page = chrome.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield Script(page)
    page.close()
    assert errors == []


def test_what_came_before_the_first_view_is_in_every_view(script: Script) -> None:
    script.begin("", "")
    script.say([0, 0, 0, "One"], [1, 0, 0, "Eins"])
    script.render()
    script.say([0, 0, 3, " two"])
    script.render()
    assert script.texts() == ["One two", "Eins"] * 2


def test_a_model_made_late_begins_with_the_text_that_there_is(script: Script) -> None:
    script.begin("One two")
    script.render()
    script.say([0, 0, 4, "two three"])
    assert script.texts() == ["One two three"]


def test_characters_that_are_two_to_javascript_stay_in_place(script: Script) -> None:
    script.begin("")
    script.render()
    script.say([0, 0, 0, "a\U0001f600"])
    script.say([0, 0, 3, "b"])
    assert script.texts() == ["a\U0001f600b"]
    assert script.sent() == []


def test_after_a_gap_the_whole_is_asked_for_once_and_nothing_wrong_is_shown(script: Script) -> None:
    script.begin("")
    script.render()
    script.say([0, 0, 0, "One"])
    script.say([0, 0, 7, " three"])
    script.say([0, 0, 13, " four"])
    assert script.texts() == ["One"]
    assert script.sent() == [{"kind": "whole"}]
    panes = [{"title": "t", "take": 0, "text": "One two three four", "head": head()}]
    script.page.evaluate("(panes) => window.say({ kind: 'whole', panes })", panes)
    script.say([0, 0, 18, " five"])
    assert script.texts() == ["One two three four five"]


def test_another_attempt_clears_the_pane_and_what_is_late_of_the_first_is_dropped(script: Script) -> None:
    script.begin("Half")
    script.render()
    script.say([0, 1, 0, ""])
    assert script.texts() == [""]
    script.say([0, 0, 0, "Half"])
    script.say([0, 0, 4, " of"])
    assert script.texts() == [""]
    script.say([0, 1, 0, "Whole"])
    assert script.texts() == ["Whole"]
    assert script.sent() == []


def test_an_attempt_that_has_said_more_before_it_is_painted_replaces_the_first(script: Script) -> None:
    script.begin("Half")
    script.render()
    script.say([0, 1, 0, "A whole answer"])
    assert script.texts() == ["A whole answer"]


def test_a_new_attempt_whose_beginning_was_missed_is_a_gap(script: Script) -> None:
    script.begin("Half")
    script.render()
    script.say([0, 1, 3, "le"])
    assert script.texts() == ["Half"]
    assert script.sent() == [{"kind": "whole"}]


def test_a_long_text_is_in_blocks_of_which_only_the_last_is_touched(script: Script) -> None:
    line = "x" * 99 + "\n"
    script.begin("")
    script.render()
    for number in range(40):
        script.say([0, 0, 1000 * number, line * 10])
        if number == 20:
            script.page.evaluate("""() => {
                window.changed = [];
                const early = document.querySelector(".llmlab-block");
                const note = () => window.changed.push(1);
                new MutationObserver(note).observe(early, { characterData: true, subtree: true });
            }""")
    assert script.texts() == [line * 400]
    assert 4 <= script.of_first("text.children.length") <= 6
    assert script.of_first("[...text.children].every((block) => block.textContent.endsWith('\\n'))")
    assert script.page.evaluate("() => window.changed") == []
    assert script.of_first("text.clientHeight") == 150, "it scrolls"


def test_one_endless_line_is_never_broken(script: Script) -> None:
    script.begin("x" * 30_000)
    script.render()
    script.say([0, 0, 30_000, "y" * 10])
    assert script.of_first("text.children.length") == 1
    script.say([0, 0, 30_010, "z\nnext"])
    assert script.of_first("[...text.children].map((block) => block.textContent.length)") == [30_012, 4]


def test_blocks_look_as_one_text(script: Script) -> None:
    lines = "".join(f"line {number}\n" + "\n" * (number % 7 == 0) for number in range(3000))
    script.begin(lines, lines[:8000])
    script.render()
    assert script.of_first("text.children.length") > 3
    heights = script.page.evaluate("""() => [...document.querySelectorAll(".llmlab-text")].map(
        (text) => text.scrollHeight / text.textContent.split("\\n").length)""")
    assert heights[0] == pytest.approx(heights[1], rel=0.01)


def test_a_pane_follows_its_text_unless_somebody_has_scrolled_up(script: Script) -> None:
    text = "line\n" * 100
    script.begin(text)
    script.render()
    at_end = "Math.abs(text.scrollHeight - text.scrollTop - text.clientHeight) < 2"
    assert script.of_first(at_end)
    script.say([0, 0, 500, text])
    assert script.of_first(at_end)
    script.of_first("text.scrollTop = 40")
    script.page.evaluate(PAINTED)
    script.say([0, 0, 1000, text])
    assert script.of_first("text.scrollTop") == 40
    script.of_first("text.scrollTop = text.scrollHeight")
    script.page.evaluate(PAINTED)
    script.say([0, 0, 1500, text])
    assert script.of_first(at_end)


def test_nothing_that_comes_is_more_than_text(script: Script) -> None:
    hostile = "<img src=x onerror='window.owned=1'><script>window.owned=2</script>"
    script.begin("", title=hostile)
    script.render()
    script.say([0, 0, 0, hostile], heads=[[0, head("error", hostile, hostile)]])
    page = script.page
    assert page.locator("img, script, a, iframe").count() == 0
    assert page.evaluate("() => window.owned") is None
    assert page.locator(".llmlab-pane-title").inner_text() == hostile
    assert page.locator(".llmlab-pane-error").inner_text() == hostile
    assert page.locator(".llmlab-pane-figures").inner_text() == f"error, {hostile}"


def test_an_error_takes_no_more_room_than_the_text_leaves_it(script: Script) -> None:
    script.begin("line\n" * 100, "")
    script.render()
    height = script.page.locator(".llmlab-grid").evaluate("(grid) => grid.clientHeight")
    script.say(heads=[[number, head("error", error="why " * 100)] for number in (0, 1)])
    assert script.page.locator(".llmlab-grid").evaluate("(grid) => grid.clientHeight") == height
    assert 40 < script.of_first("text.clientHeight") < 100
    errors = script.page.locator(".llmlab-pane-error")
    assert errors.nth(1).evaluate("(error) => error.offsetTop") < errors.nth(0).evaluate("(error) => error.offsetTop")


def test_stops_are_sent_once_and_are_gone_when_there_is_nothing_to_stop(script: Script) -> None:
    script.begin("", "")
    script.render()
    page = script.page
    page.locator(".llmlab-pane-stop").nth(1).click()
    assert page.locator(".llmlab-pane-stop").nth(1).is_disabled()
    assert script.sent() == [{"kind": "stop", "pane": 1}]
    script.say(heads=[[1, head("stopped")]])
    assert page.locator(".llmlab-pane-stop").nth(0).is_visible()
    assert not page.locator(".llmlab-pane-stop").nth(1).is_visible()
    assert page.locator(".llmlab-title").inner_text() == "show: 1 of 2 ended"
    page.locator(".llmlab-stop-all").click()
    assert script.sent()[1:] == [{"kind": "stop"}]
    script.say(heads=[[0, head("error", error="why")]])
    assert not page.locator(".llmlab-stop-all").is_visible()
    assert page.locator(".llmlab-title").inner_text() == "show: 2 of 2 ended, 1 with an error"
    assert page.locator(".llmlab-pane-error").nth(0).is_visible()
    assert not page.locator(".llmlab-pane-error").nth(1).is_visible()


def test_a_model_that_is_gone_leaves_nothing_behind(script: Script) -> None:
    script.begin("old")
    script.page.evaluate("() => window.end()")
    script.begin("new")
    script.render()
    assert script.texts() == ["new"]
