"""Jobs that run while other cells do: shown below the cell that displays them, on the kernel's loop or a thread's."""

from tests.browser.boards import LAB, BoardOnPage, record, recorded
from tests.browser.notebook import Open

ENOUGH = "job.cancel()\nout = await job\nlen(out)"
COUNTS = "out = await job\nout.status.value_counts().to_dict()"


def test_a_job_runs_below_its_cell_while_other_cells_run_and_is_stopped_there(notebook: Open) -> None:
    nb = notebook([LAB, "lab = make(0.3)\njob = lab.run_many(questions(400))\njob", "6 * 7", COUNTS])
    nb.run(0, 1)
    board = BoardOnPage(nb, 1)
    board.until_done(4)
    before = board.done
    nb.run(2)
    assert nb.value(2) == "42"
    board.until_done(before + 4)
    assert nb.page.locator(".llmlab-board").count() == 1
    board["stop"].click()
    assert "run_many: stopped" in board.until_still()
    nb.run(3)
    counts = eval(nb.value(3))  # noqa: S307  a dict's repr
    assert counts["ok"] >= before + 4
    assert counts["cancelled"] == 400 - counts["ok"]
    assert len(nb.outputs(3)) == 1, "the board belongs to the cell that displayed the job"


def test_a_job_displayed_twice_has_two_boards_and_both_become_still(notebook: Open) -> None:
    nb = notebook([LAB, "job = make(0.3).run_many(questions(400))\njob", "job", ENOUGH, "job"])
    nb.run(0, 1, 2)
    boards = BoardOnPage(nb, 1), BoardOnPage(nb, 2)
    for board in boards:
        board.until_done(4)
    nb.run(3)
    assert nb.value(3) == "400"
    stills = [board.until_still() for board in boards]
    assert stills[0] == stills[1]
    nb.run(4)
    assert BoardOnPage(nb, 4).until_still() == stills[0]
    assert nb.page.locator(".llmlab-board").count() == 0


def test_a_lab_on_a_thread_goes_on_and_is_painted_while_a_cell_computes(notebook: Open) -> None:
    job = "job = make(0.2, loop='thread').run_many(questions(60))\njob"
    nb = notebook([LAB, job, "then = job.progress.now.done\ntime.sleep(1.5)\njob.progress.now.done - then", COUNTS])
    nb.run(0, 1)
    BoardOnPage(nb, 1).until_done(1)
    record(nb, ".llmlab-title")
    nb.start(2)
    nb.wait()
    assert int(nb.value(2)) > 4
    assert len(recorded(nb)) >= 4
    nb.run(3)
    assert nb.value(3) == "{'ok': 60}"
    BoardOnPage(nb, 1).until_still()
    assert nb.page.locator(".llmlab-still").count() == 1
    assert nb.page.locator(".llmlab-board").count() == 0


def test_a_job_that_has_shown_itself_is_shown_once_below_each_cell_that_displays_it(notebook: Open) -> None:
    begun = "lab = make(0.2, loop='thread')\njob = lab.run_many(questions(400))\ntime.sleep(0.3)\njob"
    nb = notebook([LAB, begun, "job", f"{ENOUGH}\njob"])
    nb.run(0, 1, 2)
    for index in (1, 2):
        BoardOnPage(nb, index).until_done(4)
        assert BoardOnPage(nb, index)["board"].count() == 1
    nb.run(3)
    stills = [BoardOnPage(nb, index).until_still() for index in (1, 2, 3)]
    assert len(set(stills)) == 1
    assert [nb.cell(index).locator(".llmlab-still").count() for index in (1, 2, 3)] == [1, 1, 1]


def test_result_in_a_cell_paints_while_it_waits(notebook: Open) -> None:
    result = "lab.run_many(questions(30)).result().status.value_counts().to_dict()"
    again = "(await lab.run_many(['b'], progress=False)).status[0]"
    bound = "lab = make(0.2)\nawait lab.run_many(['a'], progress=False)"  # to the kernel's own loop
    nb = notebook([LAB, "lab = make(0.2)", result, again, bound, result, again])
    for first in (1, 4):
        nb.run(0, first)
        record(nb, ".llmlab-title")
        nb.run(first + 1)
        assert nb.value(first + 1) == "{'ok': 30}"
        assert "30 of 30" in BoardOnPage(nb, first + 1).until_still()
        assert recorded(nb)[0] == "run_many: running, 0 of 30 rows"
        assert len(recorded(nb)) >= 4
        nb.run(first + 2)
        assert nb.value(first + 2) == "'ok'"
