"""A map-reduce with a journal goes on where it was."""

import asyncio
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import llmlab
from llmlab.logbook import JournalMismatch
from llmlab.reduce import Answer
from llmlab.sim.physics import Physics
from llmlab.sim.transport import Simulator
from tests.echo import Model, lab_on
from tests.reducing import MAP, REDUCE


def ask(model: Model, path: Path, count: int = 40, **settings: Any) -> Answer:
    lab = lab_on(model, concurrency=8, prices={"m": (1.0, 3.0)})
    items = [f"i{n % 15}" for n in range(count)]  # with repetitions
    settings = {"map": MAP, "reduce": REDUCE, "fan_in": 3, "journal": path, **settings}
    answer: Answer = lab.map_reduce(items, **settings).result()
    return answer


def test_the_same_call_again_costs_nothing(tmp_path: Path) -> None:
    first, again = Model(0), Model(0)
    before, after = ask(first, tmp_path / "run.sqlite"), ask(again, tmp_path / "run.sqlite")
    assert len(first.asked) == before.calls
    assert again.asked == []
    assert before == after


@pytest.mark.parametrize("after", [1, 25, 45, 55, 59])
def test_a_run_stopped_in_the_middle_of_a_level_pays_only_for_what_was_in_flight(tmp_path: Path, after: int) -> None:
    path, first, again = tmp_path / "run.sqlite", Model(0.001), Model(0)
    whole = ask(Model(0), tmp_path / "other.sqlite")

    async def stopped() -> pd.DataFrame:
        items = [f"i{n % 15}" for n in range(40)]
        lab = lab_on(first, concurrency=8, prices={"m": (1.0, 3.0)})
        job = lab.map_reduce(items, map=MAP, reduce=REDUCE, fan_in=3, journal=path)
        seen = 0
        async for _ in job:
            seen += 1
            if seen == after:
                break  # leaving the loop cancels the job
        await asyncio.wait([asyncio.ensure_future(job.ended())])
        return job.trace

    trace = asyncio.run(stopped())
    done = int((trace.status == "ok").sum())
    assert done >= after
    answer = ask(again, path)
    assert answer.content == whole.content
    assert len(again.asked) == answer.calls - done
    assert len(first.asked) - done <= 8, "paid for twice is what was in flight at most"


def test_failures_are_tried_again(tmp_path: Path) -> None:
    first, again = Model(0, bad=("i3", "i7")), Model(0)
    assert ask(first, tmp_path / "run.sqlite", count=15).left_out > 0
    answer = ask(again, tmp_path / "run.sqlite", count=15)
    assert answer.left_out == 0
    assert {"m i3", "m i7"} < set(again.asked)
    assert "m i1" not in again.asked


@pytest.mark.parametrize("other", [{"map": "other {item}"}, {"reduce": "other {mapped_outputs}"}, {"fan_in": 4}])
def test_another_tree_on_the_same_journal_is_an_error(tmp_path: Path, other: dict[str, Any]) -> None:
    ask(Model(0), tmp_path / "run.sqlite")
    with pytest.raises(JournalMismatch):
        ask(Model(0), tmp_path / "run.sqlite", **other)


def test_groups_are_the_same_whatever_was_learned_meanwhile(tmp_path: Path) -> None:
    """A lab that has learned how many tokens a character makes packs as a fresh one does."""
    path, items = tmp_path / "run.sqlite", [f"Question {n}" for n in range(60)]
    simulator = Simulator(seed=1, physics=Physics.instant())
    lab = llmlab.Lab("openai:m", transport=simulator, seed=1, progress=False)
    settings: dict[str, Any] = {"map": MAP, "reduce": REDUCE, "max_input_tokens": 400, "map_max_tokens": 40}
    first = lab.map_reduce(items, journal=path, **settings).result()
    assert lab.map_reduce(items, journal=path, **settings).result() == first
    assert simulator.requests == first.calls
