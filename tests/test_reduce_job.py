"""The job of a map-reduce: its trace, its progress, its end."""

import asyncio

import pandas as pd
import pytest

from llmlab.clock import run_virtual
from llmlab.columns import COLUMNS
from llmlab.errors import LabClosed
from llmlab.reduce import TREE, Answer
from tests.echo import Model, lab_on
from tests.reducing import MAP, REDUCE, reduce_on


def test_the_trace_has_a_row_for_every_call() -> None:
    answer, job = reduce_on(Model(), list("abcde"), fan_in=2)
    trace = job.trace
    assert list(trace.columns) == [column.name for column in (*TREE, *COLUMNS)]
    assert {name: str(dtype) for name, dtype in trace.dtypes.items() if name in {c.name for c in TREE}} == {
        column.name: column.dtype for column in TREE
    }
    assert trace[["node", "level", "place"]].to_numpy().tolist() == [
        [0, 0, 0], [1, 0, 1], [2, 0, 2], [3, 0, 3], [4, 0, 4], [5, 1, 0], [6, 1, 1], [7, 2, 0], [8, 3, 0],
    ]  # fmt: skip
    assert trace.parent.fillna(-1).tolist() == [5, 5, 6, 6, 8, 7, 7, 8, -1]
    assert trace.children.tolist() == [(), (), (), (), (), (0, 1), (2, 3), (5, 6), (7, 4)]
    assert trace.content.iloc[-1] == answer.content
    pd.testing.assert_frame_equal(trace[[column.name for column in COLUMNS]], job.frame)
    assert sorted(job.attempts.position) == trace.node.tolist()


def test_progress_knows_how_many_calls_there_will_be() -> None:
    totals: list[int | None] = []

    async def main() -> None:
        job = lab_on(Model(answer=lambda _: "s")).map_reduce([f"i{n}" for n in range(30)], map=MAP, reduce=REDUCE)
        totals.extend([job.look().total async for _ in job])

    run_virtual(main)
    assert totals == [34] * 34


def test_a_total_that_was_too_high_is_set_right_in_the_end() -> None:
    model = Model(bad=("r <m e>",))  # two combinations were to come to a third
    _, job = reduce_on(model, list("abcdef"), fan_in=4)
    assert (job.look().done, job.look().total) == (8, 8)


def test_with_a_limit_of_tokens_the_total_is_set_right_on_the_way() -> None:
    totals: list[int | None] = []

    async def main() -> None:
        items = [f"i{n}" for n in range(30)]
        lab = lab_on(Model(answer=lambda _: "s"), concurrency=4)
        job = lab.map_reduce(items, map=MAP, reduce=REDUCE, max_input_tokens=2000)
        totals.extend([job.look().total async for _ in job])

    run_virtual(main)
    assert totals[0] is not None
    assert totals[0] > 31
    assert totals[-1] == 31


def test_a_cancelled_job_keeps_its_trace_and_leaves_nothing_behind(recwarn: pytest.WarningsRecorder) -> None:
    async def main() -> pd.DataFrame:
        job = lab_on(Model(10), concurrency=4).map_reduce(
            [f"i{n}" for n in range(12)], map=MAP, reduce=REDUCE, fan_in=2
        )
        asyncio.get_running_loop().call_later(35, job.cancel)
        with pytest.raises(asyncio.CancelledError):
            await job
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return job.trace

    trace = run_virtual(main)
    assert trace.groupby("level").status.value_counts().to_dict() == {(0, "ok"): 12, (1, "cancelled"): 6}
    assert not recwarn.list


def test_a_lab_that_is_closed_says_so() -> None:
    async def main() -> None:
        lab = lab_on(Model(10))
        job = lab.map_reduce(["a", "b"], map=MAP, reduce=REDUCE)
        await asyncio.sleep(1)
        await lab.aclose(cancel=True)
        with pytest.raises(LabClosed):
            await job

    run_virtual(main)


def test_a_row_dropped_by_hand_is_left_out() -> None:
    async def main() -> Answer:
        job = lab_on(Model(10)).map_reduce(list("abc"), map=MAP, reduce=REDUCE, separator="+")
        asyncio.get_running_loop().call_later(5, job.drop, 1)
        return await job

    answer = run_virtual(main)
    assert (answer.content, answer.left_out) == ("<r <m a>+<m c>>", 1)


def test_pausing_holds_the_tree_back() -> None:
    async def main() -> float:
        job = lab_on(Model(10)).map_reduce(list("abc"), map=MAP, reduce=REDUCE)
        loop = asyncio.get_running_loop()
        loop.call_later(5, job.pause)
        loop.call_later(100, job.resume)
        await job
        return loop.time()

    assert 109 < run_virtual(main) < 111


def test_it_works_on_a_thread_and_without_await() -> None:
    lab = lab_on(Model(0), loop="thread")
    answer = lab.map_reduce([f"i{n}" for n in range(25)], map=MAP, reduce=REDUCE).result()
    assert answer.calls == 29
    lab.close()
