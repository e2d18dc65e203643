"""The tuning below a cell: its curves fill, a knob changes what is recommended, and "Use this" sets it."""

import os
from pathlib import Path

from tests.browser.hostile import TEXTS
from tests.browser.notebook import SOON, Notebook, Open

SETUP = """
import llmlab
from llmlab import Scenario
from llmlab.sim import Physics, Simulator
physics = Physics(slots=200, rtt=0.0, ttft=0.2, itl=0.02, jitter=0.0, load=0.002, reply_tokens=40)
"""

TUNE = """
lab = llmlab.Lab("openai:small", transport=Simulator(physics=physics), prices={"small": (1.0, 2.0)}, progress=False)
tuning = lab.tune([f"question {n}" for n in range(3000)], n=400)
tuning
"""
HOSTILE = """
lab = llmlab.Lab("openai:" + text, api_key="k", transport=Simulator(physics=physics), progress=False)
tuning = lab.tune(["a"] * 9000, n=100, scenario=Scenario(text, physics))
tuning.used = text
tuning
"""
PICTURES = os.environ.get("LLMLAB_PICTURES")
"""A folder for screenshots, for who wants to look at them."""

_KEPT = """(index) => JSON.stringify(
    window.jupyterapp.shell.currentWidget.content.widgets[index].model.sharedModel.toJSON().outputs
).includes("tune: done")"""
"""Whether the table is beside the widget."""
_TEXT = """([index, selector, pattern]) => {
    const cell = document.querySelectorAll(".jp-Notebook .jp-Cell")[index];
    const text = cell.querySelector(selector)?.textContent ?? "";
    return new RegExp(pattern).test(text) ? text : false;
}"""
_TURN = """([index, selector, value]) => {
    const input = document.querySelectorAll(".jp-Notebook .jp-Cell")[index].querySelector(selector);
    input.value = value;
    input.dispatchEvent(new Event("input", {bubbles: true}));
    input.dispatchEvent(new Event("change", {bubbles: true}));
}"""


def said(nb: Notebook, index: int, part: str, pattern: str) -> str:
    """Wait until a part of the view in a cell says something: all that it says."""
    return str(nb.until(_TEXT, [index, f".llmlab-{part}", pattern], limit=2 * SOON))


def turn(nb: Notebook, index: int, name: str, value: object) -> None:
    """Turn a knob: the place of a slider's stop, or a choice."""
    nb.page.evaluate(_TURN, [index, f".llmlab-knobs .llmlab-{name}", str(value)])


def picture(nb: Notebook, index: int, name: str) -> None:
    """Take a picture, if somebody wants to look at it."""
    if PICTURES:
        nb.cell(index).screenshot(path=Path(PICTURES, f"{name}.png"))


def test_the_curves_fill_a_knob_changes_what_is_recommended_and_use_this_sets_it(notebook: Open) -> None:
    nb = notebook([SETUP, TUNE, "lab.concurrency", "lab.target.name, tuning.state"])
    nb.run(0)
    nb.run(1)
    said(nb, 1, "title", r"tune: done, \d+ points")
    more = said(nb, 1, "number", r"concurrency [2-6]\d$")
    assert "3,000 rows would take" in said(nb, 1, "figures-said", "rows/s")
    assert nb.cell(1).locator(".llmlab-chart circle").count() > 14
    picture(nb, 1, "tune")

    turn(nb, 1, "slo", 7)  # 3 s, where an answer takes 1 s alone, and 0.1 s more for each other in flight
    fewer = said(nb, 1, "number", r"concurrency \d$")
    picture(nb, 1, "tune_slo")
    nb.cell(1).locator(".llmlab-use").click()
    said(nb, 1, "said", "Set: lab.concurrency")
    nb.run(2)
    assert f"concurrency {nb.value(2)}" == fewer

    turn(nb, 1, "slo", 0)
    assert said(nb, 1, "number", r"concurrency [2-6]\d$") == more
    turn(nb, 1, "scenario", "live")
    assert "requests to openai:small" in said(nb, 1, "offer", r"\$0\.")
    picture(nb, 1, "tune_offer")
    turn(nb, 1, "scenario", "overload")
    said(nb, 1, "title", "running")
    said(nb, 1, "title", "done")
    picture(nb, 1, "tune_overload")

    nb.cell(1).locator(".llmlab-close").click()
    still = said(nb, 1, "still", "concurrency")
    assert "on overload" in still
    picture(nb, 1, "tune_still")
    assert nb.cell(1).locator(".llmlab-tune").count() == 0
    nb.run(3)
    assert nb.value(3) == "('openai:small', 'done')"
    nb.save()
    nb.reopen_without_kernel()
    assert "on overload" in nb.cell(1).inner_text()


def test_saved_while_the_panel_is_open_it_is_a_table_for_who_reopens_the_notebook_without_a_kernel(
    notebook: Open,
) -> None:
    nb = notebook([SETUP, TUNE])
    nb.run(0)
    nb.run(1)
    said(nb, 1, "title", "done")
    number = said(nb, 1, "number", r"concurrency \d+")
    nb.until(_KEPT, 1)
    nb.save()
    nb.reopen_without_kernel()
    assert number in nb.cell(1).inner_text()


def test_hostile_names_are_text(notebook: Open) -> None:
    text = " ".join(TEXTS.values())
    nb = notebook([f"{SETUP}\ntext = {text!r}", HOSTILE])
    nb.run(0)
    nb.run(1)
    said(nb, 1, "title", "done")
    said(nb, 1, "said", "see <img")
    turn(nb, 1, "scenario", "live")
    said(nb, 1, "offer", "see <img")
    nb.cell(1).locator(".llmlab-close").click()
    said(nb, 1, "still", "see <img")
    assert nb.page.evaluate("() => window.pwned ?? null") is None
    assert nb.cell(1).locator("iframe, form, img, mjx-container, .jp-Notebook style").count() == 0
