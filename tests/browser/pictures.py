"""Take the pictures of the board for the documentation: `python -m tests.browser.pictures FOLDER`."""

import sys
import tempfile
from pathlib import Path

from tests.browser.boards import LAB, BoardOnPage
from tests.browser.jupyter import jupyter, kernels
from tests.browser.notebook import Notebook, browser, open_notebook

RUN = """
lab = llmlab.Lab(
    "openai:small",
    transport=Simulator(seed=4, physics=Physics(ttft=0.4, itl=0.012), faults=Faults.parse("cut:0.03,server_error:0.03")),
    concurrency=16,
    prices={"small": (0.15, 0.6)},
)
_ = await lab.run_many(questions(300))
"""


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


def take(nb: Notebook, folder: Path) -> None:
    """Take the pictures of one run."""
    nb.run(0)
    nb.start(1)
    board = BoardOnPage(nb, 1)
    board.until_done(150)
    board["board"].screenshot(path=folder / "board_running.png")
    nb.switch_theme("JupyterLab Dark")
    board["board"].screenshot(path=folder / "board_running_dark.png")
    nb.switch_theme("JupyterLab Light")
    board.until_still()
    nb.wait(60)
    board["still"].screenshot(path=folder / "board_done.png")
    nb.switch_theme("JupyterLab Dark")
    board["still"].screenshot(path=folder / "board_done_dark.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
