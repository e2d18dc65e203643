"""Notebook 7 is the same front end in another frame: the board, its controls, the grid and what is left of them."""

import nbformat

from tests.browser.boards import LAB, BoardOnPage
from tests.browser.notebook import Open

AWAITED = "lab = make(0.3)\nout = await lab.run_many(questions({rows}))\nout.status.value_counts().to_dict()"
BACKGROUND = "job = make(0.3).run_many(questions(400))\njob"
SHOWN = "shown = await make(0.1).show(['a', 'b'])\nshown.status.tolist()"


def test_the_board_its_controls_and_the_grid_work_in_notebook_7(notebook: Open) -> None:
    nb = notebook([LAB, AWAITED.format(rows=24), BACKGROUND, "out = await job\nlen(out)", SHOWN], app="notebook")
    assert "/notebooks/" in nb.page.url
    nb.run(0)
    nb.start(1)
    BoardOnPage(nb, 1).until_done(4)
    assert nb.busy
    nb.wait()
    assert nb.value(1) == "{'ok': 24}"
    assert "24 of 24" in BoardOnPage(nb, 1).until_still()

    nb.run(2)
    board = BoardOnPage(nb, 2)
    board.until_done(4)
    board["concurrency"].fill("7")
    board.until("value", "^7 of 7$")
    board["stop"].click()
    assert "run_many: stopped" in board.until_still()
    nb.run(3, 4)
    assert nb.value(3) == "400"
    assert nb.value(4) == "['ok', 'ok']"
    assert nb.cell(4).locator(".llmlab-still pre").count() == 2

    saved = nbformat.reads(nb.save(), as_version=4)
    assert "widgets" not in saved.metadata
    assert sum("llmlab-still" in str(cell.outputs) for cell in saved.cells) == 3
