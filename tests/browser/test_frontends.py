"""What is left of a board elsewhere: saved, reopened, converted, without a browser, without widgets, in the dark."""

import json
from collections.abc import Iterator
from typing import Any

import nbformat
import pytest

from tests.browser.boards import LAB, BoardOnPage, record, recorded
from tests.browser.jupyter import KEY, Jupyter, Kernel
from tests.browser.notebook import Notebook, Open, write

SECRET = "sk-arg-5s8fk2lq0wm1"
"""A key that is given as `api_key=`, made up."""
KEYED = f"lab = make(0.05, api_key='{SECRET[:6]}' + '{SECRET[6:]}')"
WAITED = "out = await lab.run_many(questions(8))\nout"
REFUSED = (
    "strict = llmlab.Lab('openai:small', transport=Simulator(keys=['another']))\n"
    "refused = await strict.run_many(['a'])\nassert refused.error_type[0] == 'AuthFailed'\nrefused"
)
DOM_WIDGET = {"layout", "tabbable", "tooltip"}
COUNT = "out.status.value_counts().to_dict()"


def displays(cells: list[Any]) -> Iterator[dict[str, Any]]:
    """The data of what cells displayed."""
    for cell in cells:
        yield from (output["data"] for output in cell.outputs if output["output_type"] == "display_data")


def test_a_saved_notebook_shows_the_table_without_a_kernel_and_holds_no_key(notebook: Open, jupyter: Jupyter) -> None:
    job = "job = lab.run_many(questions(3))\njob"
    nb = notebook([LAB, KEYED, WAITED, job, "await job\nlab, lab.last", REFUSED])
    nb.run(0, 1, 2, 3, 4, 5)
    for index in (2, 3, 5):
        BoardOnPage(nb, index).until_still()
    text = nb.save()

    saved = nbformat.reads(text, as_version=4)
    boards = list(displays(saved.cells))
    assert len(boards) == 3
    assert all(set(data) == {"text/html", "text/plain"} for data in boards)
    assert "widgets" not in saved.metadata
    assert "widget-view" not in text
    assert KEY not in text
    assert SECRET not in text

    nb.reopen_without_kernel()
    stills = nb.page.locator(".llmlab-still")
    stills.nth(2).wait_for()
    assert "8 of 8" in stills.first.inner_text()
    assert "model not found" not in nb.page.locator(".jp-Notebook").inner_text()

    jupyter.run("nbconvert", "--to", "html", nb.path.name)
    page = nb.path.with_suffix(".html").read_text()
    assert page.count('class="llmlab-still') == 3
    assert "widget-view" not in page
    assert KEY not in page
    assert SECRET not in page


def test_a_notebook_saved_while_its_job_runs_holds_a_table_beside_the_widget(notebook: Open) -> None:
    nb = notebook([LAB, "job = make(30).run_many(questions(8))\njob", "job.cancel()"])
    nb.run(0, 1)
    BoardOnPage(nb, 1)["board"].wait_for()
    (data,) = displays(nbformat.reads(nb.save(), as_version=4).cells)
    assert "llmlab-still" in data["text/html"]
    assert data["text/plain"].startswith("llmlab run_many: ")
    nb.run(2)


def test_llmlab_ui_and_a_missing_anywidget_fall_back(notebook: Open) -> None:
    def run(setting: str, seconds: float = 0.3) -> str:
        return f"{setting}\nout = await make({seconds}).run_many(questions(24))\n{COUNT}"

    html, missing, text, none = (
        run("os.environ['LLMLAB_UI'] = 'html'"),
        run("import sys; del os.environ['LLMLAB_UI']; sys.modules['anywidget'] = None"),
        run("os.environ['LLMLAB_UI'] = 'text'", 0.05),
        run("os.environ['LLMLAB_UI'] = 'none'", 0.05),
    )
    nb = notebook([LAB, html, missing, text, none])
    nb.run(0)
    for index in (1, 2):
        record(nb, f".jp-Cell:nth-of-type({index + 1}) .llmlab-still")
        nb.run(index)
        still = BoardOnPage(nb, index).until("still", "run_many: done")
        assert "24 of 24" in still
        assert len(recorded(nb)) >= 4, "it is redrawn while the job runs"
        (data,) = displays([nbformat.from_dict({"outputs": nb.outputs(index)})])
        assert set(data) == {"text/html", "text/plain"}
    nb.run(3, 4)
    assert nb.page.locator(".llmlab-board").count() == 0
    kinds = [[output["output_type"] for output in nb.outputs(index)] for index in (3, 4)]
    assert kinds == [["stream", "execute_result"], ["execute_result"]]
    assert "24/24" in nb.text(3)
    assert [nb.value(index) for index in (1, 2, 3, 4)] == ["{'ok': 24}"] * 4


RUNNERS = {
    "nbconvert": ("nbconvert", "--to", "notebook", "--execute", "--output", "batch-done.ipynb", "batch.ipynb"),
    "papermill": ("papermill", "--no-progress-bar", "batch.ipynb", "batch-done.ipynb"),
}


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_run_without_a_browser_leaves_the_table_behind(jupyter: Jupyter, kernel: Kernel, runner: str) -> None:
    cells = [LAB, KEYED, WAITED, "job = lab.run_many(questions(3))\njob", "await asyncio.sleep(0.2)\nout = await job"]
    write(jupyter.root / "batch.ipynb", cells, kernel.name)
    jupyter.run(*RUNNERS[runner])
    text = (jupyter.root / "batch-done.ipynb").read_text()
    boards = list(displays(nbformat.reads(text, as_version=4).cells))
    assert ["run_many: done" in data["text/html"] for data in boards] == [True, True]
    assert all(set(data) == {"text/html", "text/plain"} for data in boards)
    assert KEY not in text
    assert SECRET not in text
    kept = json.loads(text)["metadata"]["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    models = [model["state"] for model in kept.values() if "uid" in model["state"]]
    own = {"uid", "look"}
    assert {name for model in models for name in model if not name.startswith("_")} - DOM_WIDGET == own


CONTRAST = """(selectors) => {
    const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const light = (rgb) => {
        const [r, g, b] = rgb.map((c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const contrast = (node) => {
        let [back, opacity] = [null, 1];
        for (let at = node; at && !back; at = at.parentElement) {
            const [r, g, b, alpha = 1] = numbers(getComputedStyle(at).backgroundColor);
            if (alpha === 1) back = [r, g, b];
            opacity *= Number(getComputedStyle(at).opacity);
        }
        const [r, g, b, alpha = 1] = numbers(getComputedStyle(node).color);
        const seen = [r, g, b].map((c, i) => c * alpha * opacity + back[i] * (1 - alpha * opacity));
        const [low, high] = [light(seen), light(back)].sort((a, b) => a - b);
        return (high + 0.05) / (low + 0.05);
    };
    return Object.fromEntries(selectors.map((selector) => [selector, contrast(document.querySelector(selector))]));
}"""
PARTS = [".llmlab-title", ".llmlab-stop", ".llmlab-label", ".llmlab-what", ".llmlab-value", ".llmlab-notes"]
STILL = [".llmlab-still strong", ".llmlab-still td:first-child", ".llmlab-still td:last-child"]


def contrasts(nb: Notebook, parts: list[str]) -> dict[str, float]:
    """How well texts stand out from what is behind them: 1 to 21; 4.5 is what WCAG asks for."""
    found: dict[str, float] = nb.page.evaluate(CONTRAST, parts)
    return found


def test_the_board_and_the_table_are_readable_in_the_light_and_in_the_dark(notebook: Open) -> None:
    nb = notebook(
        [LAB, "await make(0.01).run_many(['a'])", "job = make(30).run_many(questions(8))\njob", "job.cancel()"]
    )
    nb.run(0, 1, 2)
    BoardOnPage(nb, 2)["value"].first.wait_for()
    seen: dict[tuple[str, str], float] = {}
    for theme in ("JupyterLab Light", "JupyterLab Dark"):
        nb.switch_theme(theme)
        seen |= {(theme, part): contrast for part, contrast in contrasts(nb, PARTS + STILL).items()}
    nb.switch_theme("JupyterLab Light")
    nb.run(3)
    assert {part: contrast for part, contrast in seen.items() if contrast < 4.5} == {}
