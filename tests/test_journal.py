"""Runs with a journal: nothing reported is lost, nothing answered is paid for twice."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import llmlab
from llmlab import journal
from llmlab.clock import run_virtual
from llmlab.logbook import JournalBusy, JournalMismatch
from llmlab.sim.faults import Faults
from llmlab.sim.physics import Physics
from llmlab.sim.transport import Simulator


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite"


def instant(**faults: Any) -> Simulator:
    return Simulator(seed=1, physics=Physics.instant(), faults=Faults(**faults))


def prompts(count: int) -> list[str]:
    return [f"Question {n % 70}" for n in range(count)]  # with repetitions: occurrences count


def ask(simulator: Simulator, rows: Any, path: Path, **settings: Any) -> pd.DataFrame:
    lab = llmlab.Lab("openai:m", transport=simulator, seed=1)
    return lab.run_many(rows, journal=path, progress=False, **settings).result()


def test_the_same_call_again_costs_nothing_and_gives_the_same_frame(path: Path) -> None:
    simulator = instant()
    first = ask(simulator, prompts(300), path)
    again = ask(simulator, prompts(300), path)
    assert simulator.requests == 300
    pd.testing.assert_frame_equal(first, again)


def test_only_what_is_not_yet_answered_is_asked(path: Path) -> None:
    simulator = instant()
    ask(simulator, prompts(200), path)
    out = ask(simulator, prompts(500), path)
    assert simulator.requests == 500
    assert (out.status == "ok").all()
    assert out.prompt.tolist() == prompts(500)


def test_rows_may_come_back_in_another_order(path: Path) -> None:
    simulator = instant()
    rows = pd.Series([f"p{n}" for n in range(50)])
    first = ask(simulator, rows, path)
    turned = ask(simulator, rows[::-1], path)
    assert simulator.requests == 50
    assert turned.index.tolist() == rows.index.tolist()[::-1]
    pd.testing.assert_series_equal(first.content, turned.content.sort_index())


def test_failures_are_tried_again(path: Path) -> None:
    broken = instant(rates={"bad_request": 0.3})
    first = ask(broken, prompts(100), path)
    assert 10 < (first.status == "error").sum() < 60
    whole = instant()
    second = ask(whole, prompts(100), path)
    assert (second.status == "ok").all()
    assert whole.requests == (first.status == "error").sum()


def test_a_generators_rows_are_found_again(path: Path) -> None:
    simulator = instant()
    ask(simulator, iter(prompts(1500)), path)
    out = ask(simulator, iter(prompts(1500)), path)
    assert simulator.requests == 1500
    assert (out.status == "ok").all()


def test_other_settings_are_an_error_that_shows_the_difference(path: Path) -> None:
    simulator = instant()
    table = pd.DataFrame({"a": ["x"]})
    ask(simulator, table, path, template="Say {a}")
    with pytest.raises(JournalMismatch, match=r"(?s)template.*Say \{a\}.*Shout \{a\}"):
        ask(simulator, table, path, template="Shout {a}")
    with pytest.raises(JournalMismatch, match="temperature"):
        ask(simulator, table, path, template="Say {a}", temperature=1)
    assert simulator.requests == 1


def test_a_second_job_on_the_same_file_is_told_who_has_it(path: Path) -> None:
    async def main() -> None:
        lab = llmlab.Lab("openai:m", transport=Simulator())
        first = lab.run_many(["a"], journal=path, progress=False)
        await asyncio.sleep(0.05)
        with pytest.raises(JournalBusy):
            await lab.run_many(["a"], journal=path, progress=False)
        await first

    asyncio.run(main())


def test_a_journal_can_be_read_while_the_run_goes_on_and_afterwards(path: Path) -> None:
    async def main() -> pd.DataFrame:
        lab = llmlab.Lab("openai:m", transport=instant())
        job = lab.run_many(prompts(3000), journal=path, progress=False)
        async for outcome in job:
            if outcome.index == 500:
                during = journal.read(path)
                assert outcome.index in during.index, "a row reported is in the file"
                assert set(during.status) == {"ok"}
        return await job

    out = asyncio.run(main())
    read = journal.read(path)
    pd.testing.assert_frame_equal(read, out, check_index_type=False)


def test_every_row_reported_is_in_the_file_at_that_moment(path: Path) -> None:
    async def main() -> None:
        lab = llmlab.Lab("openai:m", transport=instant())
        job = lab.run_many(prompts(400), journal=path, progress=False)
        seen = [outcome.index async for outcome in job]
        assert sorted(seen) == list(range(400))

    reported: list[int] = []
    keep = llmlab.Job._keep

    def check(job: Any, outcome: Any) -> None:
        keep(job, outcome)
        reported.append(outcome.index)
        if len(reported) % 97 == 0:
            assert set(reported) <= set(journal.read(path).index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(llmlab.Job, "_keep", check)
        asyncio.run(main())
    assert len(reported) == 400


def test_a_cancelled_run_keeps_its_rows_and_goes_on_from_them(path: Path) -> None:
    simulator = Simulator(physics=Physics.instant(rtt=0.01))

    async def main() -> pd.DataFrame:
        lab = llmlab.Lab("openai:m", transport=simulator, concurrency=8)
        job = lab.run_many(prompts(400), journal=path, progress=False)
        async for outcome in job:
            if outcome.index >= 100:
                break
        assert lab.last is not None
        return await lab.last.wait() if not lab.last.done else lab.last.frame

    part = asyncio.run(main())
    done = int((part.status == "ok").sum())
    assert 100 <= done < 400
    assert set(part.status) == {"ok", "cancelled"}
    before = simulator.requests
    out = ask(simulator, prompts(400), path)
    assert (out.status == "ok").all()
    assert simulator.requests - before == 400 - len(journal.read(path)[:done])


def test_no_key_is_in_the_file(path: Path) -> None:
    lab = llmlab.Lab("openai:m", api_key="sk-very-secret", transport=instant(rates={"auth": 0.5}))
    lab.run_many(prompts(20), journal=path, progress=False).result()
    assert b"sk-very-secret" not in path.read_bytes()


def test_a_run_in_virtual_time_cannot_have_a_journal(path: Path) -> None:
    async def main() -> None:
        await llmlab.Lab("openai:m", transport=Simulator()).run_many(["a"], journal=path)

    with pytest.raises(RuntimeError, match="no threads"):
        run_virtual(main)


def test_a_folder_that_is_not_there_is_an_error_before_anything_is_sent(tmp_path: Path) -> None:
    simulator = instant()
    with pytest.raises(FileNotFoundError, match="make it first"):
        ask(simulator, ["a"], tmp_path / "no" / "run.sqlite")
    assert simulator.requests == 0


# -- kill -9 ----------------------------------------------------------------------------------------------

VICTIM = """
import sys
import llmlab
from llmlab import lab
lab._told = True
base, path, rows = sys.argv[1], sys.argv[2], int(sys.argv[3])

async def main():
    lab = llmlab.Lab("openai:any", base_url=base, api_key="k", concurrency=16, seed=1)
    job = lab.run_many((f"Row {n}" for n in range(rows)), journal=path, progress=False, max_tokens=8)
    async for outcome in job:
        print(outcome.index, flush=True)
    print("end", flush=True)

import asyncio
asyncio.run(main())
"""


@pytest.fixture
def server() -> Iterator[str]:
    command = [sys.executable, "-m", "llmlab", "simulate", "--port", "0", "--faults", "mixed:0.02"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603
    assert process.stdout is not None
    yield [process.stdout.readline().split()[-1] for _ in range(2)][1]
    process.send_signal(signal.SIGINT)
    process.wait(10)
    process.stdout.close()


def received(server: str) -> int:
    with urllib.request.urlopen(f"{server}/sim/stats") as answer:  # noqa: S310  loopback
        return int(json.load(answer)["by_status"].get("200", 0))


def test_kill_9_at_random_moments_loses_no_reported_row_and_pays_only_for_what_was_in_flight(
    server: str, path: Path
) -> None:
    rows, rng = 250, random.Random(int(os.environ.get("KILL_SEED", "1")))
    reported: set[int] = set()
    kills = 0
    while kills < 6:
        command = [sys.executable, "-c", VICTIM, f"{server}/v1", str(path), str(rows)]
        victim = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603
        assert victim.stdout is not None
        told: list[int] = []
        fresh = rng.randrange(5, 60)
        for line in victim.stdout:
            if line.strip() == "end":
                break
            told.append(int(line))
            if len(set(told) - reported) >= fresh:
                victim.send_signal(signal.SIGKILL)
                kills += 1
        victim.wait(20)
        victim.stdout.close()
        assert len(told) == len(set(told)), "each row is reported once"
        reported |= set(told)
        if path.exists():
            there = journal.read(path)
            assert there.index.is_unique
            assert reported <= set(there.index)
        if victim.returncode == 0:
            break
    final = subprocess.run(  # noqa: S603
        [sys.executable, "-c", VICTIM, f"{server}/v1", str(path), str(rows)], capture_output=True, text=True, check=True
    )
    assert sorted(map(int, final.stdout.split()[:-1])) == list(range(rows))
    there = journal.read(path)
    assert there.index.tolist() == list(range(rows))
    assert (there.status == "ok").all()
    faults_in_a_200 = int(there.attempts.sum()) - rows
    assert received(server) <= rows + kills * (16 + 250) + faults_in_a_200
