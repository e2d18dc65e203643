"""The board below a cell that awaits its job: it moves, it says what goes on, its controls work."""

import re

import pytest

from tests.browser.boards import LAB, BoardOnPage, record, recorded
from tests.browser.jupyter import Kernel
from tests.browser.notebook import Open

MANY = "out = await lab.run_many(questions({rows}))\nout.status.value_counts().to_dict()"


@pytest.fixture
def hearing(kernel: Kernel) -> None:
    if not kernel.hears_while_awaiting:
        pytest.skip("ipykernel 6 leaves widget messages until the cell is over")


def test_the_board_moves_while_its_cell_awaits_and_a_still_table_takes_its_place(notebook: Open) -> None:
    nb = notebook([LAB, f"lab = make(0.5)\n{MANY.format(rows=24)}"])
    nb.run(0)
    record(nb, ".llmlab-title")
    nb.start(1)
    board = BoardOnPage(nb, 1)
    board.until_done(8)
    assert nb.busy
    figures = board.figures
    assert figures["in flight"] == "4 of 4"
    assert re.fullmatch(r"\d+", figures["waiting"])
    assert float(figures["rows/s"]) > 0
    assert re.fullmatch(r"\d+ / \d+", figures["tokens in / out"])
    assert re.fullmatch(r"0\.0\d+, 0\.0\d+ in all", figures["cost, $"])
    assert re.fullmatch(r"\d+ ms / \d+ ms", figures["p50 / p95"])
    assert {"elapsed", "left", "bound by", "breaker"} <= set(figures)
    still = board.until_still()
    nb.wait()

    titles = recorded(nb)
    assert titles[0] == "run_many: running, 0 of 24 rows", "the first look was lost"
    assert len(titles) >= 5, "it was painted only in the end"
    assert "run_many: done" in still
    assert "24 of 24" in still
    assert board["board"].count() == 0
    assert nb.value(1) == "{'ok': 24}"
    seconds = float(re.search(r"([\d.]+) s", still.partition("time")[2])[1])  # type: ignore[index]
    assert 2 * seconds < len(nb.looks) < 11 * seconds + 2


def test_during_an_outage_the_board_says_that_the_line_is_parked(notebook: Open) -> None:
    nb = notebook(
        [
            LAB,
            "from llmlab import Breaker, Strategy\n"
            "patient = Strategy.default(concurrency=4, breaker=Breaker(open_for=2.0))\n"
            "lab = make(0.1, 'outage:0.5+1', concurrency=None, strategy=patient)\n" + MANY.format(rows=60),
        ]
    )
    nb.run(0)
    nb.start(1)
    board = BoardOnPage(nb, 1)
    board.until("notes", r"parked [123] s: the provider is down, \d+ of \d+ calls failed")
    assert board.figures["breaker"] == "open"
    assert board.figures["bound by"] == "provider"
    assert board.figures["in flight"] == "0 of 4"
    assert board.figures["retries"].partition("(")[2].startswith("Overloaded")
    nb.wait(30)
    assert nb.value(1) == "{'ok': 60}", "an outage costs no row"


@pytest.mark.usefixtures("hearing")
def test_stop_ends_the_cell_at_once_with_the_rows_so_far(notebook: Open) -> None:
    nb = notebook([LAB, f"lab = make(0.3)\n{MANY.format(rows=400)}", "(await lab.run_many(['again'])).status[0]"])
    nb.run(0)
    nb.start(1)
    board = BoardOnPage(nb, 1)
    board.until_done(4)
    board["stop"].click()
    nb.wait()  # all rows would take half a minute
    counts = eval(nb.value(1))  # noqa: S307  a dict's repr
    assert counts["ok"] >= 4
    assert counts["cancelled"] == 400 - counts["ok"]
    still = board.until_still()
    assert "run_many: stopped" in still
    assert f"{counts['cancelled']} cancelled" in still
    nb.run(2)
    assert nb.value(2) == "'ok'"


NOTING = """
class Noting(llmlab.Lab):
    asked = []
    @property
    def concurrency(self):
        return super().concurrency
    @concurrency.setter
    def concurrency(self, limit):
        self.asked.append(limit)
        llmlab.Lab.concurrency.fset(self, limit)
"""


@pytest.mark.usefixtures("hearing")
def test_the_slider_retunes_a_cell_that_awaits_as_often_as_it_is_moved(notebook: Open) -> None:
    run = f"lab = make(0.3, kind=Noting)\n{MANY.format(rows=400)}"
    nb = notebook([LAB + NOTING, run, "lab.asked, lab.concurrency"])
    nb.run(0)
    nb.start(1)
    board = BoardOnPage(nb, 1)
    board.until_done(1)
    for limit in (5, 6, 7, 8):
        board["concurrency"].fill(str(limit))
    board.until("value", "^8 of 8$")
    board["concurrency"].press("ArrowRight")
    board.until("value", "^9 of 9$")
    board["stop"].click()
    nb.wait()
    nb.run(2)
    assert nb.value(2) == "([5, 6, 7, 8, 9], 9)"


@pytest.mark.usefixtures("hearing")
def test_a_paused_job_sends_nothing_until_it_is_resumed(notebook: Open) -> None:
    nb = notebook([LAB, f"lab = make(0.1)\n{MANY.format(rows=60)}"])
    nb.run(0)
    nb.start(1)
    board = BoardOnPage(nb, 1)
    board.until_done(4)
    board["pause"].click()
    board.until("title", "run_many: paused")
    board.until("value", "^0 of 4$")
    board.until("pause", "^Resume$")
    done = board.done
    nb.until_looks(15)
    assert board.done == done
    assert board["notes"].inner_text() == "", "the kernel has heard it"
    board["pause"].click()
    board.until("title", "run_many: running")
    nb.wait(30)
    assert nb.value(1) == "{'ok': 60}"


def test_the_board_says_so_when_the_kernel_does_not_hear_its_controls(notebook: Open, kernel: Kernel) -> None:
    if kernel.hears_while_computing:
        pytest.skip("JupyterLab has ipykernel 7.0 to 7.3 hear on a thread of its own, whatever its cells do")
    awaiting = "lab = make(0.3)\nout = await lab.run_many(questions(4000))\nlab.last.stopped"
    computing = "job = make(0.3, loop='thread').run_many(questions(4000))\njob"
    later = "while True:\n    try:\n        time.sleep(0.1)\n    except KeyboardInterrupt:\n        break"
    nb = notebook([LAB, *([computing, later] if kernel.hears_while_awaiting else [awaiting])])
    nb.run(0)
    board = BoardOnPage(nb, 1)
    if kernel.hears_while_awaiting:
        nb.run(1)
        nb.start(2)
    else:
        nb.start(1)
    board.until_done(4)
    board["stop"].click()
    board.until("notes", "hears this when the cell is over")
    assert nb.busy
    nb.interrupt()
    assert "run_many: stopped" in board.until_still()
    nb.wait()
