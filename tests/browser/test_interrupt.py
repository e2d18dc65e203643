"""The notebook's own Stop: one press ends the cell with the rows so far, also while the provider is silent."""

import time

from tests.browser.boards import LAB, BoardOnPage
from tests.browser.notebook import Notebook, Open

SILENT = """
import httpx

class Silent(Simulator):
    "Answers the first so many requests at once, and the others never."
    def __init__(self, answers):
        super().__init__(physics=Physics.instant())
        self.answers = answers
    async def handle_async_request(self, request):
        self.answers -= 1
        if self.answers < 0:
            await asyncio.Event().wait()
        return await super().handle_async_request(request)

def silent(**settings):
    return llmlab.Lab("openai:small", transport=Silent(3), concurrency=4, **settings)
"""
LAST = "lab.last.frame.status.value_counts().to_dict(), lab.last.stopped"
AFTER = "(await make(0.01).run_many(['again'], progress=False)).status[0]"


def interrupted(nb: Notebook, index: int) -> float:
    """Press Stop once three rows are there: seconds until the cell was over."""
    BoardOnPage(nb, index).until_done(3)
    began = time.monotonic()
    nb.interrupt()
    nb.wait()
    return time.monotonic() - began


WAYS = {
    "awaited": "lab = silent()\nout = await lab.run_many(questions(50))",
    "awaited on a thread": "lab = silent(loop='thread')\nout = await lab.run_many(questions(50))",
    "result": "lab = silent()\nout = lab.run_many(questions(50)).result()",
}


def test_one_interrupt_ends_a_cell_though_the_provider_is_silent(notebook: Open) -> None:
    cells = [[f"{run}\nout.status.value_counts().to_dict()", LAST, AFTER] for run in WAYS.values()]
    nb = notebook([LAB + SILENT, *(cell for each in cells for cell in each)])
    nb.run(0)
    rows = "{'cancelled': 47, 'ok': 3}"
    for number, way in enumerate(WAYS):
        running, last, after = range(1 + 3 * number, 4 + 3 * number)
        nb.start(running)
        assert interrupted(nb, running) < 10, f"{way}: the provider would be waited for ten minutes"
        assert nb.value(running) == rows, way
        assert "run_many: stopped" in BoardOnPage(nb, running).until_still()
        nb.run(last, after)
        assert nb.value(last) == f"({rows}, 'interrupted')", way
        assert nb.value(after) == "'ok'", way


def test_a_job_in_the_background_survives_the_interrupt_of_another_cell(notebook: Open) -> None:
    other = "try:\n    await asyncio.sleep(60)\nexcept asyncio.CancelledError:\n    asyncio.current_task().uncancel()"
    nb = notebook([LAB, "job = make(0.2).run_many(questions(60))\njob", other, "(await job).status.unique().tolist()"])
    nb.run(0, 1)
    nb.start(2)
    BoardOnPage(nb, 1).until_done(4)
    nb.interrupt()
    nb.wait()
    nb.run(3)
    assert nb.value(3) == "['ok']"
