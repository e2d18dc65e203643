"""A job on one page, and the gallery of all plots."""

import asyncio
import re
from typing import Any

import matplotlib.pyplot as plt
import nbformat
import pytest

import llmlab
from llmlab import plots
from llmlab.clock import run_virtual
from llmlab.job import Job
from llmlab.plots.canvas import Sheet
from llmlab.sim.faults import Faults
from llmlab.sim.physics import Physics
from llmlab.sim.transport import Simulator
from tests import gallery
from tests.test_notebooks import execute

STEADY = Physics(rtt=1.0, ttft=0.0, itl=0.0, load=0.0, jitter=0.0)


def done(rows: int, *, faults: Faults | None = None, cancel_at: float | None = None, model: str = "m") -> Job[Any]:
    async def main() -> Job[Any]:
        lab = llmlab.Lab(f"openai:{model}", transport=Simulator(physics=STEADY, faults=faults), concurrency=2, seed=1)
        job = lab.run_many([f"Question {n}" for n in range(rows)])
        if cancel_at is not None:
            await asyncio.sleep(cancel_at)
            job.cancel()
        await job
        return job

    return run_virtual(main)


def headline(job: Job[Any]) -> str:
    figure = plots.report(job)
    figure.canvas.draw()
    return figure.get_suptitle()


def test_the_report_begins_with_the_jobs_numbers() -> None:
    first, second = headline(done(10)).split("\n")
    assert first == "run_many: 10 rows  ·  10 answered  ·  0 failed (0%)  ·  10 requests"
    assert re.match(r"5\.0 s  ·  2 rows/s  ·  latency p50 1,00\d ms, p95 1,00\d ms, p99 1,00\d ms  ·  cost not", second)
    assert "bound by: " in second


def test_failed_and_cancelled_rows_stand_in_the_report() -> None:
    assert "4 failed (100%)" in headline(done(4, faults=Faults.only("bad_request")))
    stopped = headline(done(10, cancel_at=2.5))
    assert "4 answered" in stopped
    assert "6 cancelled" in stopped


@pytest.mark.parametrize("rows", [0, 1])
def test_a_job_of_no_rows_and_of_one_has_a_report(rows: int) -> None:
    assert headline(done(rows)).startswith(f"run_many: {rows} rows")


def test_a_model_with_a_hostile_name_has_a_report() -> None:
    headline(done(3, model=r"$\frac{a$"))


def test_the_report_is_one_figure_that_pyplot_does_not_know() -> None:
    figure = plots.report(done(5))
    assert isinstance(figure, Sheet)
    assert plt.get_fignums() == []
    png, size = figure._repr_png_()
    assert png.startswith(b"\x89PNG")
    assert size == {"width": 1200, "height": 1400}


def test_a_job_at_work_has_a_report_of_what_is_settled() -> None:
    async def main() -> str:
        job = llmlab.Lab("openai:m", transport=Simulator(physics=STEADY), concurrency=2).run_many(["a"] * 6)
        await asyncio.sleep(2.5)
        said = headline(job)
        await job
        return said

    assert run_virtual(main).startswith("run_many: 4 rows  ·  4 answered")


CELLS = {
    "import llmlab\njob = llmlab.Lab(progress=False).run_many(['a'] * 20)\nout = await job": 0,
    "llmlab.plots.latency(out)": 1,
    "ax = llmlab.plots.latency(out)": 0,
    "ax": 1,
    "%matplotlib inline\nimport matplotlib.pyplot as plt\nllmlab.plots.latency(out)": 1,
    "_, (left, right) = plt.subplots(1, 2)\nllmlab.plots.latency(out, ax=left)\nllmlab.plots.cost(out, ax=right)": 1,
    "llmlab.plots.report(job)": 1,
}
"""What is typed, and how many pictures come out."""


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_cell_that_ends_with_a_plot_shows_it_once(tmp_path) -> None:
    cells = [nbformat.v4.new_code_cell(text) for text in CELLS]
    executed = execute(nbformat.v4.new_notebook(cells=cells), tmp_path)
    shown = [[output for output in cell.outputs if "image/png" in output.get("data", {})] for cell in executed.cells]
    assert [len(pictures) for pictures in shown] == list(CELLS.values())


def test_the_report_takes_a_job_only() -> None:
    with pytest.raises(TypeError, match=r"report takes a Job, as lab.run_many.*, not DataFrame"):
        plots.report(done(1).frame)  # type: ignore[arg-type]


def test_the_gallery_has_every_plot(tmp_path) -> None:
    names = [name for name, _ in gallery.pictures(60)]
    assert {name for name in plots.__all__ if not any(each.startswith(name) for each in names)} == set()
    gallery.main(tmp_path, 60)
    assert sorted(path.stem for path in tmp_path.glob("*.png")) == sorted(names)
