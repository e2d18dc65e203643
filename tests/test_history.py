import asyncio
from pathlib import Path

import pandas as pd
import pytest

import llmlab
from llmlab.clock import run_virtual
from llmlab.columns import Column, columns_table
from llmlab.gauges import LIMITS
from llmlab.history import ATTEMPTS, EVENTS
from llmlab.sim.faults import Faults
from llmlab.sim.transport import Simulator


def run(faults: Faults, rows: int = 200) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, Simulator]:
    simulator = Simulator(seed=2, faults=faults)

    async def main() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, Simulator]:
        lab = llmlab.Lab("openai:m", transport=simulator, concurrency=20, seed=1)
        job = lab.run_many([f"Question {n}" for n in range(rows)])
        out = await job
        return out, job.attempts, job.events, simulator

    result: tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, Simulator] = run_virtual(main)
    return result


def test_there_is_a_row_for_every_request_the_provider_has_seen() -> None:
    out, attempts, _, simulator = run(Faults.mixed(0.2))
    assert len(attempts) == simulator.requests == out.attempts.sum() > 220
    counted = attempts.groupby("position").attempt.agg(["count", "max"])
    assert counted["count"].tolist() == counted["max"].tolist() == out.attempts.tolist()


def test_the_waits_and_latencies_of_attempts_add_up_to_the_rows() -> None:
    out, attempts, _, _ = run(Faults.mixed(0.2))
    sums = attempts.groupby("position")[["wait_ms", "queue_ms"]].sum()
    pd.testing.assert_series_equal(sums.queue_ms, out.queue_ms, check_names=False, rtol=1e-6)
    assert ((sums.wait_ms - out.wait_ms).abs() < 1).all()
    last = attempts[attempts.status == "ok"].set_index("position").latency_ms.sort_index()
    assert ((last - out.latency_ms).abs() < 0.1).all()


def test_each_attempt_says_why_it_was_made_and_how_it_ended() -> None:
    _, attempts, events, _ = run(Faults(rates={"rate_limited": 0.3}))
    assert set(attempts.why) == {"first", "RateLimited"}
    failed = attempts[attempts.status == "error"]
    assert set(failed.error_type) == {"RateLimited"}
    assert set(failed.http_status) == {429}
    assert (failed.retry_after_ms > 0).all()
    assert len(failed) == len(events[events.event == "retrying"]) > 20
    assert (events[events.event == "retrying"].delay_ms >= 1000).all()


def test_a_stop_is_an_event() -> None:
    _, _, events, _ = run(Faults(rates={"auth": 0.05}))
    assert events[events.event == "stopped"].detail.str.contains("AuthFailed").tolist() == [True]


def test_dtypes_are_as_documented_with_and_without_rows() -> None:
    async def nothing() -> llmlab.Job[pd.DataFrame]:
        job = llmlab.Lab("openai:m", transport=Simulator()).run_many([])
        await job
        return job

    empty = run_virtual(nothing)
    _, attempts, events, _ = run(Faults.mixed(0.2))
    for columns, frames in ((ATTEMPTS, (empty.attempts, attempts)), (EVENTS, (empty.events, events))):
        for frame in frames:
            assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == {c.name: c.dtype for c in columns}


def test_a_frame_of_attempts_is_there_while_the_job_runs() -> None:
    async def main() -> int:
        job = llmlab.Lab("openai:m", transport=Simulator(), concurrency=4).run_many([str(n) for n in range(40)])
        await asyncio.sleep(3)
        so_far = len(job.attempts)
        await job
        return so_far

    assert 4 <= run_virtual(main) < 40


@pytest.mark.parametrize(("name", "columns"), [("attempts", ATTEMPTS), ("events", EVENTS), ("limits", LIMITS)])
def test_the_readme_shows_the_columns(name: str, columns: tuple[Column, ...]) -> None:
    text = (Path(__file__).parent.parent / "README.md").read_text()
    shown = text.partition(f"<!-- {name} -->")[2].partition(f"<!-- /{name} -->")[0]
    assert shown.strip() == columns_table(columns)
