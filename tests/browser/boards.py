"""A job's board on a page, and the cells that its tests begin with."""

import re
from typing import TYPE_CHECKING

from tests.browser.notebook import SOON, Notebook

if TYPE_CHECKING:
    from playwright.sync_api import Locator

LAB = """
import asyncio, os, time
import llmlab
from llmlab.sim import Faults, Physics, Simulator

def make(seconds=0.3, faults="none", kind=llmlab.Lab, **settings):
    "A lab whose provider takes so many seconds for each answer."
    physics = Physics(rtt=0.0, ttft=seconds, itl=0.0001, load=0.0, jitter=0.0, reply_sigma=0.0)
    provider = Simulator(physics=physics, faults=Faults.parse(faults))
    return kind("openai:small", transport=provider, **{"concurrency": 4, "prices": {"small": (1.0, 2.0)}, **settings})

def questions(count):
    return [f"question {number}" for number in range(count)]
"""
"""The first cell: `make(seconds)` a lab, `questions(count)` for it."""

_RECORD = """(selector) => {
    window.seen = [];
    const look = () => {
        const text = document.querySelector(selector)?.textContent;
        if (text && text !== window.seen.at(-1)) window.seen.push(text);
    };
    new MutationObserver(look).observe(document.body, {subtree: true, childList: true, characterData: true});
}"""
_FIGURES = """(cell) => Object.fromEntries([...cell.querySelectorAll(".llmlab-figure")]
    .filter((figure) => !figure.hidden)
    .map((figure) => [...figure.children].map((part) => part.textContent)))"""


class BoardOnPage:
    """The board below a cell.

    Args:
        notebook: The notebook.
        index: The cell's place in it.
    """

    def __init__(self, notebook: Notebook, index: int) -> None:
        self._notebook, self._index = notebook, index

    def __getitem__(self, part: str) -> "Locator":
        """A part of the board: `board["stop"]`, `board["title"]`."""
        return self._notebook.cell(self._index).locator(f".llmlab-{part}")

    def until(self, part: str, pattern: str, *, limit: float = SOON) -> str:
        """Wait until a part's text matches a regular expression (JavaScript's, too): the text."""
        condition = """([index, selector, pattern]) => {
            const cell = document.querySelectorAll(".jp-Notebook .jp-Cell")[index];
            return [...cell.querySelectorAll(selector)].map((found) => found.textContent)
                .find((text) => new RegExp(pattern).test(text)) ?? false;
        }"""
        found = self._notebook.until(condition, [self._index, f".llmlab-{part}", pattern], limit=limit)
        return str(found)

    def until_done(self, rows: int, *, limit: float = SOON) -> None:
        """Wait until so many rows are settled, at least; `limit` in seconds."""
        condition = """([index, rows]) => {
            const cell = document.querySelectorAll(".jp-Notebook .jp-Cell")[index];
            const title = cell.querySelector(".llmlab-title")?.textContent ?? "";
            return Number(title.match(/, ([\\d,]+)/)?.[1].replaceAll(",", "") ?? -1) >= rows;
        }"""
        self._notebook.until(condition, [self._index, rows], limit=limit)

    def until_still(self) -> str:
        """Wait until the still table has replaced the board: the table's text."""
        return self.until("still", "")

    @property
    def done(self) -> int:
        """Rows settled, by the title."""
        found = re.search(r", ([\d,]+)", self["title"].inner_text())
        assert found is not None
        return int(found[1].replace(",", ""))

    @property
    def figures(self) -> dict[str, str]:
        """What it says, by what it says it about."""
        found: dict[str, str] = self._notebook.cell(self._index).evaluate(_FIGURES)
        return found


def record(notebook: Notebook, selector: str) -> None:
    """Keep each text that the first element of a CSS selector shows from now on; see `recorded`."""
    notebook.page.evaluate(_RECORD, selector)


def recorded(notebook: Notebook) -> list[str]:
    """The texts kept since `record`."""
    found: list[str] = notebook.page.evaluate("() => window.seen")
    return found
