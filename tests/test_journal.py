"""Runs with a journal: nothing reported is lost, nothing answered is paid for twice."""

import asyncio
import os
import random
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
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
from tests import kill_moments
from tests.kill_moments import DELAYS, Kill, Life, Report, Trial, Victim, fate, kill_often, plan, question, read_log


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


def test_kill_9_at_random_moments_loses_no_reported_row_and_pays_only_for_what_was_in_flight(tmp_path: Path) -> None:
    seed = int(os.environ.get("KILL_SEED", "1"))
    report = kill_often(tmp_path, moments=6, rows=250, seed=seed, faults="mixed:0.02")
    assert len(report.kills) == 6
    assert 0 <= report.beyond <= report.total("out")
    last = journal.read(tmp_path / "trial-1.sqlite")
    assert last.index.tolist() == list(range(250))
    assert (last.status == "ok").all()


def test_a_report_adds_up_what_the_kills_met() -> None:
    some, none = frozenset({1, 2}), frozenset[int]()
    kills = [Kill("start", 3, some, some | {3, 4, 5}, "with log"), Kill("end", 250, none, none, "plain")]
    report = Report(rows=250, received=270, faults=14, kills=[*kills, Kill("start", 9, frozenset({1}), some, "empty")])
    assert report.beyond == 6
    assert (report.total("flying"), report.total("out"), report.total("out", {"end"})) == (3, 7, 0)
    assert re.search(r"^start +2 +3\.\.9 +3 +7  1 with log, 1 empty$", str(report), re.MULTILINE)
    assert "270 requests = 250 rows + 14 faults + 6 beyond the ideal" in str(report)


@pytest.mark.parametrize("moments", [1, 2, 6, 10])
def test_a_trial_is_killed_from_its_start_to_its_end(moments: int) -> None:
    kinds = [kind for kind, _, _ in plan(random.Random(0), moments)]
    assert len(kinds) == moments
    assert kinds[0] == "start"
    assert moments < 6 or {*kinds} == {*DELAYS}
    assert moments < 6 or kinds[-1] == "end"


@pytest.fixture
def trial(path: Path) -> Trial:
    """A trial of 20 rows that are all answered, reported and checked."""
    simulator, log = instant(), path.with_name("requests.log")
    asks = [question(1, index) for index in range(20)]
    out = ask(simulator, asks, path)
    log.write_text("".join(f"\t{each}\n" for each in asks))
    trial = Trial(1, 20, "", path, log)
    trial.check({index: fate("ok", content) for index, content in enumerate(out.content)})
    trial.check_requests()
    return trial


TWICE = """
DROP INDEX row_identity;
INSERT INTO row (key, occ, status, position) SELECT key, occ, 'ok', 99 FROM row WHERE position = 3;
"""


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        ("DELETE FROM row WHERE position = 3", "reported that are not in the file"),
        ("UPDATE row SET content = 'another' WHERE position = 3", "that the file has otherwise"),
        ("UPDATE row SET status = 'error' WHERE position = 3", "that the file has otherwise"),
        ("UPDATE row SET position = 4 WHERE position = 3", "places that stand in the file twice"),
        (TWICE, "keys that stand in the file twice"),
    ],
)
def test_the_check_after_a_kill_sees_what_is_wrong_in_the_file(
    trial: Trial, path: Path, harm: str, complaint: str
) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.executescript(harm)
    with pytest.raises(AssertionError, match=complaint):
        trial.check({})


def test_the_check_after_a_kill_sees_a_damaged_page(trial: Trial, path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        (size,) = db.execute("PRAGMA page_size").fetchone()
        (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'row_identity'").fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * size + 3)
        file.write(bytes(2))  # how many entries the index has
    with pytest.raises(AssertionError, match="damages to the file"):
        trial.check({})


def test_the_check_after_a_kill_sees_an_answer_that_has_changed(trial: Trial) -> None:
    with pytest.raises(AssertionError, match="reported otherwise than before"):
        trial.check({3: fate("ok", "another")})


def test_the_check_after_a_kill_sees_a_row_asked_again(trial: Trial, path: Path) -> None:
    log = path.with_name("requests.log")
    log.write_text(f"{log.read_text()}server_error\t{question(1, 3)}\n")
    assert read_log(log)[1] == {question(1, 3): 1}
    trial.check_requests()  # it was no answer, so nothing is paid for twice
    with pytest.raises(AssertionError, match="asked again"):
        trial.check({})


def test_an_answer_too_many_is_excused_by_a_kill_that_met_its_row_only(trial: Trial, path: Path) -> None:
    log = path.with_name("requests.log")
    log.write_text(f"{log.read_text()}\t{question(1, 3)}\n")
    with pytest.raises(AssertionError, match="answered too often"):
        trial.check_requests()
    trial.kills.append(Kill("start", 0, frozenset({3}), frozenset({4}), "with log"))
    with pytest.raises(AssertionError, match="answered too often"):
        trial.check_requests()
    trial.kills.append(Kill("start", 0, frozenset(), frozenset({3}), "with log"))
    trial.check_requests()


def test_a_question_never_answered_is_seen(trial: Trial, path: Path) -> None:
    path.with_name("requests.log").write_text(f"server_error\t{question(1, 3)}\n")
    with pytest.raises(AssertionError, match="never answered: 18"):  # two of the twenty ask what others ask
        trial.check_requests()


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (lambda life: life.frame.append(life.frame[3]), "not each once"),
        (lambda life: life.frame.reverse(), "not each once"),
        (lambda life: life.frame.__setitem__(3, (3, ("error", "-"))), "without an answer"),
        (lambda life: life.told.pop(3), "not reported as they are"),
        (lambda life: life.take("told 20 ok 0"), "not reported as they are"),
        (lambda life: (life.frame.__setitem__(3, (3, ("ok", "0"))), life.told.update({3: ("ok", "0")})), "in the file"),
    ],
)
def test_the_last_check_sees_what_is_wrong_with_the_frame(
    trial: Trial, path: Path, harm: Callable[[Life], object], complaint: str
) -> None:
    life = Life()
    for index, content in journal.read(path).content.items():
        life.take(f"told {index} {' '.join(fate('ok', content))}")
        life.take(f"row {index} {' '.join(fate('ok', content))}")
    trial.check_frame(life)
    harm(life)
    with pytest.raises(AssertionError, match=complaint):
        trial.check_frame(life)


def test_a_commit_cut_off_halfway_is_told_from_a_whole_one(trial: Trial, path: Path) -> None:
    states = [trial.state(), Trial(1, 20, "", path.with_name("none"), path).state()]
    with closing(sqlite3.connect(path)) as db:
        db.executescript("PRAGMA journal_mode = WAL; UPDATE row SET content = hex(zeroblob(9000)) WHERE position < 3")
        log = Path(f"{path}-wal")
        whole = log.read_bytes()
        for cut in (0, 1, len(whole) // 2, len(whole)):
            log.write_bytes(whole[: len(whole) - cut])
            states.append(trial.state())
        log.write_bytes(whole)
    assert states == ["plain", "not there", "with log", "torn commit", "torn commit", "plain"]


def test_a_row_is_out_from_its_admission_to_its_report_unless_it_backs_off() -> None:
    life = Life()
    for line in ("begin", "go 1", "go 2", "go 3", "go 4", "back 2", "failed 3", "back 4", "told 4 ok 0"):
        life.take(line)
    assert (life.begun, life.flying, life.out, life.told) == (True, {1}, {1, 2}, {4: ("ok", "0")})
    with pytest.raises(AssertionError, match="reported twice"):
        life.take("told 4 ok 0")


def test_a_victim_that_fails_or_is_silent_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        Victim("http://127.0.0.1:9/v1", tmp_path / "no" / "run.sqlite", 1, 5, errors=tmp_path / "errors") as victim,
        pytest.raises(AssertionError, match=r"(?s)victim that failed.*make it first"),
    ):
        victim.end(kill=False)
    monkeypatch.setattr(kill_moments, "PATIENCE", 0.05)
    with (
        Victim("http://127.0.0.1:9/v1", tmp_path / "run.sqlite", 1, 5, errors=tmp_path / "errors") as victim,
        pytest.raises(AssertionError, match="without a word"),
    ):
        victim.wait_for(lambda: False, look_every=0.01)
