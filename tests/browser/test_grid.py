"""The grid of `lab.show` below a cell: panes fill live, scroll, stop one by one, show mere text, and stay readable."""

import json
import re
from typing import TYPE_CHECKING

import pytest

from llmlab.grid import headline
from tests.browser.jupyter import Jupyter, Kernel
from tests.browser.notebook import Notebook, Open

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext

SETUP = """
import llmlab
from llmlab.sim import Physics, Simulator

def make(say, itl=0.02, **settings):
    "A lab whose provider says that, a token every 20 ms."
    physics = Physics(rtt=0.0, ttft=0.1, itl=itl, load=0.0, jitter=0.0, reply_sigma=0.0)
    return llmlab.Lab("openai:small", transport=Simulator(physics=physics, say=say), concurrency=64, **settings)

def words(count):
    return lambda ask: " ".join(f"w{n}" + chr(10) * (n % 10 == 9) for n in range(count))
"""
"""The first cell."""

TEXTS = """(index) => {
    const cell = document.querySelectorAll(".jp-Notebook .jp-Cell")[index];
    return [...cell.querySelectorAll(".llmlab-text")].map((text) => text.textContent);
}"""
STILL = """(index) => {
    const cell = document.querySelectorAll(".jp-Notebook .jp-Cell")[index];
    const texts = [...cell.querySelectorAll(".llmlab-still pre")].map((text) => text.textContent);
    return texts.length ? texts : null;
}"""
EACH_HAS = """([index, panes, least]) => {
    const cell = document.querySelectorAll(".jp-Notebook .jp-Cell")[index];
    const sizes = [...cell.querySelectorAll(".llmlab-text")].map((text) => text.textContent.length);
    return sizes.length === panes && sizes.every((size) => size >= least);
}"""
BELOW = "(text) => text.scrollHeight - text.scrollTop - text.clientHeight"
"""Pixels of a text below what is seen of it."""
FRAMES = """() => {
    window.gaps = [];
    let last = performance.now();
    const frame = (now) => { window.gaps.push(now - last); last = now; requestAnimationFrame(frame); };
    requestAnimationFrame(frame);
}"""


def whole(count: int) -> str:
    return " ".join(f"w{n}" + "\n" * (n % 10 == 9) for n in range(count))


def fills(nb: Notebook, index: int, panes: int, least: int) -> None:
    """Wait until each pane of a cell has so many characters, at least."""
    nb.until(EACH_HAS, [index, panes, least])


def texts(nb: Notebook, index: int) -> list[str]:
    found: list[str] = nb.page.evaluate(TEXTS, index)
    return found


def test_sixteen_panes_at_fifty_tokens_a_second_fill_live_complete_and_in_order(notebook: Open) -> None:
    cell = "out = await make(words(120)).show([f'question {n}' for n in range(16)])\n"
    nb = notebook([SETUP, f"{cell}len(out), set(out.status), set(out.content) == {{words(120)(None)}}"])
    nb.run(0)
    nb.start(1)
    fills(nb, 1, 16, 8)
    assert all(text.startswith("w0 w1") for text in texts(nb, 1)), "a first token was lost"
    nb.page.evaluate(FRAMES)
    fills(nb, 1, 16, 200)
    assert nb.busy, "it was painted only in the end"
    assert all(whole(120).startswith(text) for text in texts(nb, 1))
    figures = nb.cell(1).locator(".llmlab-pane-figures").all_inner_texts()
    speeds = [re.fullmatch(r"streaming, TTFT \d+ ms, (\d+) tok/s", said) for said in figures]
    assert all(speed is not None and 20 < int(speed[1]) < 60 for speed in speeds), figures
    gaps: list[float] = nb.page.evaluate("() => window.gaps")
    print(f"\nframes: {1000 * len(gaps) / sum(gaps):.0f} per second, the longest {max(gaps):.0f} ms")  # noqa: T201  with -s
    assert abs(nb.cell(1).locator(".llmlab-text").first.evaluate(BELOW)) <= 2, "a pane shows its end"
    assert nb.until(STILL, 1) == [whole(120)] * 16
    nb.wait()
    assert nb.value(1) == "(16, {'ok'}, True)"
    assert nb.cell(1).locator(".llmlab-grid").count() == 0


def test_whoever_scrolls_up_is_left_to_read(notebook: Open) -> None:
    nb = notebook([SETUP, "out = await make(words(5000)).show(['a', 'b'])"])
    nb.run(0)
    nb.start(1)
    fills(nb, 1, 2, 500)
    first, second = (nb.cell(1).locator(".llmlab-text").nth(number) for number in (0, 1))
    first.hover()
    nb.page.mouse.wheel(0, -5000)
    nb.until("() => document.querySelector('.llmlab-text')?.scrollTop === 0")
    fills(nb, 1, 2, 700)
    assert first.evaluate("(text) => text.scrollTop") == 0
    assert second.evaluate("(text) => text.scrollTop + text.clientHeight - text.scrollHeight") == pytest.approx(
        0, abs=2
    )
    nb.interrupt()
    nb.wait()


def test_a_stop_ends_its_pane_alone_and_a_second_view_shows_the_whole_text(notebook: Open) -> None:
    cells = [
        "lab = make(words(150))\njob = lab.show(['a', 'b', 'c'])\njob",
        "job",
        "out = await job\nout.status.tolist(), [text == words(150)(None) for text in job.texts]",
    ]
    nb = notebook([SETUP, *cells])
    nb.run(0, 1)
    fills(nb, 1, 3, 20)
    nb.cell(1).get_by_role("button", name="Stop b").click()
    nb.until("() => document.querySelector('.llmlab-pane[data-state=stopped]')?.textContent.includes('w0')")
    nb.run(2)
    fills(nb, 2, 3, 20)
    assert all(text.startswith("w0 w1") for text in texts(nb, 2))
    assert texts(nb, 2)[1] == texts(nb, 1)[1]
    nb.run(3)
    assert nb.value(3) == "(['ok', 'cancelled', 'ok'], [True, False, True])"
    for index in (1, 2):
        still = nb.until(STILL, index)
        assert [still[0], still[2]] == [whole(150)] * 2
        assert whole(150).startswith(still[1])


def test_stop_all_in_an_awaiting_cell_gives_the_partial_frame(notebook: Open, kernel: Kernel) -> None:
    if not kernel.hears_while_awaiting:
        pytest.skip("ipykernel 6 leaves widget messages until the cell is over")
    nb = notebook([SETUP, "out = await make(words(2000)).show(['a', 'b'])\nout.status.tolist()", "1 + 1"])
    nb.run(0)
    nb.start(1)
    fills(nb, 1, 2, 20)
    nb.cell(1).locator(".llmlab-stop-all").click()
    nb.wait()
    assert nb.value(1) == "['cancelled', 'cancelled']"
    assert all(text.startswith("w0 w1") for text in nb.until(STILL, 1))
    nb.run(2)
    assert nb.value(2) == "2"


def test_an_interrupt_ends_the_cell_with_the_partial_frame_and_the_texts_stay(notebook: Open) -> None:
    one = "lambda ask: 'short' if ask.text == 'a' else words(2000)(ask)"
    nb = notebook(
        [SETUP, f"lab = make({one})\nout = await lab.show(['a', 'b'])\nout.status.tolist()", "lab.last.texts[0]"]
    )
    nb.run(0)
    nb.start(1)
    fills(nb, 1, 2, 5)
    nb.until("() => document.querySelector('.llmlab-pane[data-state=done]')")
    nb.interrupt()
    nb.wait()
    assert nb.value(1) == "['ok', 'cancelled']"
    still = nb.until(STILL, 1)
    assert still[0] == "short"
    assert still[1].startswith("w0 w1")
    nb.run(2)
    assert nb.value(2) == "'short'"


HOSTILE = [
    "<img src=x onerror='window.owned=1'>",
    "<script>window.owned=2</script>",
    "<svg onload='window.owned=3'>",
    "<iframe srcdoc='<script>parent.owned=4</script>'></iframe>",
    "[link](javascript:window.owned=5) <a href='javascript:window.owned=6'>click</a>",
    "</pre></div><style>body{display:none}</style>",
    "cost $5 and $6, $x^2$ and $$y$$",
]


def test_hostile_words_are_shown_as_text_live_in_the_end_and_in_the_saved_notebook(
    notebook: Open, jupyter: Jupyter, chrome: "BrowserContext"
) -> None:
    cells = [
        f"hostile = {HOSTILE!r}\nlab = make(lambda ask: ask.text + ' ' + ' . ' * 40)",
        "out = await lab.show(hostile)",
        "out = await lab.show(hostile[0], models=hostile)",
    ]
    nb = notebook([SETUP, *cells])
    nb.run(0, 1)
    for index, said in ((2, HOSTILE), (3, HOSTILE[:1] * len(HOSTILE))):
        nb.start(index)
        fills(nb, index, len(HOSTILE), len(max(HOSTILE, key=len)))
        live = texts(nb, index)
        assert all(text.startswith(word) for text, word in zip(live, said, strict=True))
        titles = nb.cell(index).locator(".llmlab-pane-title").all_inner_texts()
        assert titles == (HOSTILE if index == 3 else [headline(word) for word in HOSTILE])
        still = nb.until(STILL, index)
        nb.wait()
        assert all(text.startswith(word) for text, word in zip(still, said, strict=True))
    assert nb.page.evaluate("() => window.owned") is None
    saved = json.loads(nb.save())
    assert [sorted(output["data"]) for cell in saved["cells"] for output in cell["outputs"]] == [
        ["text/html", "text/plain"]
    ] * 2
    assert "state" not in saved["metadata"].get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {})
    _look_at_export(nb, jupyter, chrome)


def _look_at_export(nb: Notebook, jupyter: Jupyter, chrome: "BrowserContext") -> None:
    """The notebook as a page of its own, without a kernel."""
    jupyter.run("nbconvert", "--to", "html", nb.path.name)
    page = chrome.new_page()
    page.route("**/*", lambda route: route.continue_() if route.request.url.startswith("file:") else route.abort())
    page.goto(nb.path.with_suffix(".html").as_uri())
    found: list[str] = page.locator(".llmlab-still pre").all_inner_texts()
    owned = page.evaluate("() => window.owned")
    page.close()
    assert len(found) == 2 * len(HOSTILE)
    assert all(text.startswith(word) for text, word in zip(found, HOSTILE, strict=False))
    assert owned is None


def test_without_widgets_one_output_is_redrawn_and_the_text_is_whole_in_the_end(notebook: Open) -> None:
    nb = notebook(
        [SETUP + "import os\nos.environ['LLMLAB_UI'] = 'html'", "out = await make(words(150)).show(['a', 'b'])"]
    )
    nb.run(0)
    nb.start(1)
    nb.until(
        "() => [...document.querySelectorAll('.llmlab-still pre')].some((text) => text.textContent.includes('w20'))"
    )
    assert nb.busy
    nb.wait()
    assert nb.until(STILL, 1) == [whole(150)] * 2


def test_a_lab_on_a_thread_shows_one_grid_and_fills_it_while_a_cell_computes(notebook: Open) -> None:
    job = "lab = make(words(150), loop='thread')\njob = lab.show(['a', 'b'])\njob"
    nb = notebook([SETUP, job, "import time\ntime.sleep(1.5)", "out = await job\nout.status.tolist()"])
    nb.run(0, 1)
    nb.start(2)
    fills(nb, 1, 2, 60)
    assert nb.busy
    nb.wait()
    nb.run(3)
    assert nb.value(3) == "['ok', 'ok']"
    assert nb.until(STILL, 1) == [whole(150)] * 2
