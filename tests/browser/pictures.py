"""Take the pictures of the board and the tuning for the documentation: `python -m tests.browser.pictures FOLDER`."""

import sys
import tempfile
from pathlib import Path

from tests.browser.boards import LAB, BoardOnPage
from tests.browser.jupyter import jupyter, kernels
from tests.browser.notebook import Notebook, browser, open_notebook
from tests.browser.test_tune import SETUP, TUNE, said, turn

RUN = """
faults = Faults.parse("cut:0.03,server_error:0.03")
lab = llmlab.Lab(
    "openai:small",
    transport=Simulator(seed=4, physics=Physics(ttft=0.4, itl=0.012), faults=faults),
    concurrency=16,
    prices={"small": (0.15, 0.6)},
)
_ = await lab.run_many(questions(300))
"""
MARGIN = 8
"""Pixels around the table."""


def main(folder: Path) -> None:
    """Take them, in the light and in the dark."""
    kernel = kernels()[0]
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as scratch,
        jupyter(Path(scratch, "jupyter"), [kernel]) as server,
        browser(Path(scratch, "profile")) as context,
    ):
        take(open_notebook(context, server, "pictures.ipynb", [LAB, RUN], kernel), folder)
        take_tune(open_notebook(context, server, "tune.ipynb", [SETUP, TUNE], kernel), folder)


def take(nb: Notebook, folder: Path) -> None:
    """Take the pictures of one run."""
    nb.run(0)
    nb.start(1)
    board = BoardOnPage(nb, 1)
    board.until_done(150, limit=60)
    board["board"].screenshot(path=folder / "board_running.png")
    nb.switch_theme("JupyterLab Dark")
    board["board"].screenshot(path=folder / "board_running_dark.png")
    nb.switch_theme("JupyterLab Light")
    nb.wait(60)
    take_table(nb, board, folder / "board_done.png")
    nb.switch_theme("JupyterLab Dark")
    take_table(nb, board, folder / "board_done_dark.png")


def take_tune(nb: Notebook, folder: Path) -> None:
    """Take the panel of a tuning, whose answers are to take 3 s at most."""
    nb.switch_theme("JupyterLab Light")
    nb.run(0)
    nb.run(1)
    said(nb, 1, "title", "done")
    turn(nb, 1, "slo", 7)
    said(nb, 1, "number", r"concurrency \d$")
    nb.cell(1).locator(".llmlab-tune").screenshot(path=folder / "tune.png")


def take_table(nb: Notebook, board: BoardOnPage, path: Path) -> None:
    """Take the table alone: what it stands in is as wide as the notebook."""
    whole, table = board["still"].bounding_box(), board["still"].locator("table").bounding_box()
    assert whole is not None
    assert table is not None
    width, height = table["width"] + 2 * MARGIN, whole["height"] + 2 * MARGIN
    nb.page.screenshot(
        path=path, clip={"x": whole["x"] - MARGIN, "y": whole["y"] - MARGIN, "width": width, "height": height}
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
