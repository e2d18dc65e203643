"""The journal has real threads and real files: these tests run on the real clock.

They wait for events, never for time.
"""

import asyncio
import dataclasses
import itertools
import os
import pickle
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from llmlab import logbook as journal_module
from llmlab import runlock, stored, writer
from llmlab.errors import ServerError
from llmlab.logbook import (
    UNREADABLE,
    Attempt,
    Journal,
    JournalBusy,
    JournalMismatch,
    Occurrences,
    Stored,
    key_of,
    read_attempts,
    read_records,
)
from llmlab.runlock import RunLock
from llmlab.types import Message, Outcome, Prompt, Reply, Status, Usage
from tests.logbook_victim import answer_of

ROOT = Path(__file__).parent.parent
SETTINGS = {"model": "sim:small", "template": "Classify: {review}"}
PATIENCE = 30.0
"""Seconds after which a wait has failed; no test takes so long unless it fails."""


def key(n: int) -> bytes:
    return key_of(Prompt.of(f"prompt {n}"), provider="sim", model="small")


def ok(n: int, text: str = "answer", **fields: Any) -> Outcome:
    return Outcome(n, Prompt.of(f"prompt {n}"), "ok", Reply(text, "stop", "sim", "small", **fields), None, 1)


def failed(n: int, message: str, status: Status = "error") -> Outcome:
    return Outcome(n, Prompt.of(f"prompt {n}"), status, None, ServerError(message, status=500), 3)


def put(journal: Journal, outcome: Outcome, **given_fields: Any) -> None:
    fields: dict[str, Any] = {"key": key(outcome.index), "occ": 0, **given_fields}
    journal.append(outcome.index, outcome, **fields)


def keep(path: Path, *outcomes: Outcome, **fields: Any) -> list[Stored]:
    """Write outcomes in one sitting and read the file."""
    journal = opened(path)
    for outcome in outcomes:
        put(journal, outcome, **fields)
    journal.close()
    return list(read_records(path))


def opened(path: Path, **callbacks: Any) -> Journal:
    journal = Journal(path)
    journal.open(SETTINGS, **callbacks)
    return journal


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE):
            await main()

    asyncio.run(bounded())


def start(*arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.logbook_victim", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.sqlite"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    journal = opened(path)
    yield journal
    journal.close()


# -- keys -------------------------------------------------------------------------------------------------

RICH = Prompt(
    (
        Message("system", "Be brief."),
        Message("user", ({"type": "text", "text": "é"}, {"type": "image_url", "url": "u"})),
    ),
    temperature=0.5,
    max_tokens=10,
    extra={"stop": ["\n"], "seed": 3},
)


def test_a_key_never_changes() -> None:
    """A change here means that no journal ever written is resumed: raise KEY_VERSION, and know what it costs."""
    assert key_of(Prompt.of("Hello"), provider="openai", model="m").hex() == "37be91a838919e231a05d751b1355eb7"
    assert key_of(RICH, provider="openai", model="m").hex() == "afac4f5f9234feed7e2492ff12923d24"


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_a_key_is_the_same_in_another_process(hash_seed: str) -> None:
    code = (
        "from llmlab.logbook import key_of; from llmlab.types import Prompt;"
        "p = Prompt.of('Hello', extra={'a': 1, 'b': {'c': 2, 'd': 3}});"
        "print(key_of(p, provider='openai', model='m').hex())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)  # noqa: S603
    prompt = Prompt.of("Hello", extra={"b": {"d": 3, "c": 2}, "a": 1})
    assert done.stdout.strip() == key_of(prompt, provider="openai", model="m").hex()


def test_whatever_may_change_the_answer_changes_the_key() -> None:
    base = Prompt.of("Hello")
    prompts = [
        base,
        Prompt.of("hello"),
        Prompt.of("Hello", system="s"),
        Prompt((Message("assistant", "Hello"),)),
        Prompt((Message("user", ({"type": "text", "text": "Hello"},)),)),
        Prompt((Message("user", ({"type": "text", "text": "Hello", "detail": "low"},)),)),
        dataclasses.replace(base, model="other"),
        dataclasses.replace(base, temperature=0.0),
        dataclasses.replace(base, max_tokens=1),
        dataclasses.replace(base, extra={"seed": 1}),
        dataclasses.replace(base, extra={"seed": True}),
    ]
    keys = {key_of(prompt, provider="openai", model="m") for prompt in prompts}
    keys |= {key_of(base, provider="anthropic", model="m"), key_of(base, provider="openai", model="n")}
    assert len(keys) == len(prompts) + 2


def test_what_is_the_same_request_has_the_same_key() -> None:
    def of(prompt: Prompt, model: str = "m") -> bytes:
        return key_of(prompt, provider="openai", model=model)

    base = Prompt.of("Hello", temperature=0)
    assert of(base) == of(dataclasses.replace(base, temperature=-0.0))
    assert of(base) == of(dataclasses.replace(base, model="m"), model="unused")
    assert of(Prompt.of("a", extra={"seed": 3})) == of(Prompt.of("a", extra={"seed": np.int64(3)}))
    assert of(Prompt.of("a", extra={"logit_bias": {5: 1}})) == of(Prompt.of("a", extra={"logit_bias": {"5": 1}}))


def test_what_cannot_be_sent_has_no_key() -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        key_of(Prompt.of("a", extra={"seed": object()}), provider="openai", model="m")


@given(st.text(st.characters(codec=None)), st.text(st.characters(codec=None)))
def test_different_texts_have_different_keys(one: str, other: str) -> None:
    keys = {key_of(Prompt.of(text), provider="p", model="m") for text in (one, other)}
    # A pair of halves is written in JSON as the one character it stands for.
    assert len(keys) == len({text.encode("utf-16", "surrogatepass") for text in (one, other)})


def test_occurrences_count_each_key_for_itself() -> None:
    count = Occurrences()
    assert [count.next(each) for each in (b"a", b"b", b"a", b"a", b"b")] == [0, 0, 1, 2, 1]


# -- round trips ------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(codec=None), max_size=30) | st.sampled_from(
    ["", "\0", "a\0b", "\ud800", "\udfff\0", "👩‍👩‍👧", "'"]
)
COUNT = st.integers(0, 2**63 - 1)
SECONDS = st.floats(0, 1e9)
USAGE = st.builds(Usage, COUNT, COUNT, COUNT, COUNT, COUNT)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
REPLY = st.builds(
    Reply, TEXT, TEXT, TEXT, TEXT, st.none() | USAGE, st.none() | TEXT, TEXT,
    st.lists(st.dictionaries(TEXT, JSON, max_size=3), max_size=2).map(tuple), SECONDS, st.none() | SECONDS,
    st.none() | SECONDS, st.booleans(),
)  # fmt: skip
ATTEMPT = st.builds(
    Attempt, st.integers(1, 99), st.sampled_from(["first", "retry", "hedge", "fallback"]), st.none() | TEXT, SECONDS,
    SECONDS, SECONDS, SECONDS, st.none() | st.integers(100, 599), st.none() | st.just("ServerError"), st.none() | TEXT,
    st.none() | USAGE, st.none() | SECONDS,
)  # fmt: skip


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TEXT, REPLY, st.lists(ATTEMPT, max_size=3), st.tuples(*[SECONDS] * 4))
@example("x", Reply("y" * 5_000_000, "stop", "p", "m", reasoning="\ud83d" * 1000), [], (0.0,) * 4)
def test_a_reply_comes_back_as_it_was(
    tmp_path: Path, prompt: str, reply: Reply, attempts: list[Attempt], spent: tuple[float, float, float, float]
) -> None:
    path = tmp_path / f"{next(NUMBERS)}.sqlite"
    asked = Prompt.of(prompt)
    outcome = Outcome(7, asked, "ok", reply, None, 4, *spent)
    (row,) = keep(path, outcome, key=b"k" * 16, occ=3, attempts=attempts)
    assert row == Stored(7, b"k" * 16, 3, prompt, "ok", reply, None, None, 4, *spent)
    assert list(read_attempts(path)) == [(7, attempt) for attempt in attempts]
    path.unlink()


NUMBERS = itertools.count()


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(message=TEXT, status=st.sampled_from(["error", "cancelled"]))
def test_an_error_comes_back_in_words(tmp_path: Path, message: str, status: Status) -> None:
    path = tmp_path / f"{next(NUMBERS)}.sqlite"
    outcome = failed(7, message, status)
    (row,) = keep(path, outcome)
    assert (row.status, row.reply, row.error, row.error_type) == (status, None, str(outcome.error), "ServerError")
    assert row.attempts == 3
    path.unlink()


def test_every_field_of_a_reply_has_a_place() -> None:
    """Fails when a field is added to Reply or Usage that the journal does not know: it would be lost."""
    known = {name for table in (stored._ROW_NAMES,) for name in table}
    fields = {field.name for field in dataclasses.fields(Reply)} - {"usage", "parsed"}  # read again
    assert fields | {field.name for field in dataclasses.fields(Usage)} <= known


def test_a_row_that_is_no_prompt_has_a_place() -> None:
    assert len(UNREADABLE) == len(key(1))


@pytest.mark.parametrize(
    ("text", "kind", "length"), [("aéb", "text", 3), ("a\0b", "blob", 3), ("a\ud800", "blob", 4), ("", "text", 0)]
)
def test_other_programs_see_texts_whole(path: Path, text: str, kind: str, length: int) -> None:
    """SQLite's own functions and its shell end a text at a NUL; a blob they show to its end."""
    keep(path, ok(0, text))
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT typeof(content), length(content) FROM row").fetchone() == (kind, length)


def test_a_nonsensical_count_costs_no_other_row_its_commit(path: Path) -> None:
    rows = keep(path, ok(0), ok(1, usage=Usage(2**70, 1)), ok(2))
    assert [row.status for row in rows] == ["ok"] * 3
    assert rows[1].reply is not None
    assert rows[1].reply.usage == Usage(2**63 - 1, 1)


def test_neither_what_an_error_carries_nor_its_cause_is_written(path: Path) -> None:
    error = ServerError("boom", status=500)
    error.request = {"Authorization": "Bearer sk-verysecret"}  # type: ignore[attr-defined]
    error.__cause__ = ValueError("sk-verysecret")
    journal = opened(path)
    put(journal, Outcome(0, Prompt.of("p"), "error", None, error))
    journal.close()
    assert b"boom" in path.read_bytes()
    assert b"sk-verysecret" not in path.read_bytes()


# -- one outcome per row ----------------------------------------------------------------------------------


@pytest.mark.parametrize("together", [True, False], ids=["in one group", "in two runs"])
@pytest.mark.parametrize(
    ("first", "second", "stays"),
    [
        (failed(0, "old"), ok(0, "new"), "new"),
        (ok(0, "old"), failed(0, "new"), "old"),
        (failed(0, "old"), failed(0, "new"), "HTTP 500: new"),
        (failed(0, "old"), failed(0, "new", "cancelled"), "HTTP 500: old"),
        (failed(0, "old", "cancelled"), failed(0, "new"), "HTTP 500: new"),
        (failed(0, "old", "cancelled"), failed(0, "new", "cancelled"), "HTTP 500: new"),
        (ok(0, "old"), ok(0, "new"), "old"),
    ],
)
def test_success_beats_failure_and_the_newest_failure_counts(
    path: Path, first: Outcome, second: Outcome, stays: str, *, together: bool
) -> None:
    rows = keep(path, first, second) if together else [*keep(path, first), *keep(path, second)][1:]
    assert [row.reply.content if row.reply else row.error for row in rows] == [stays]


def test_identical_rows_are_kept_apart_by_their_occurrence(path: Path) -> None:
    journal = opened(path)
    for n in range(3):
        put(journal, ok(n, f"answer {n}"), key=key(0), occ=n)
    journal.close()
    assert [row.reply.content for row in read_records(path) if row.reply] == ["answer 0", "answer 1", "answer 2"]


def test_the_attempts_of_all_runs_are_kept(path: Path) -> None:
    keep(path, failed(5, "no"), attempts=[Attempt(1), Attempt(2, "retry", usage=Usage(10))])
    keep(path, ok(5), attempts=[Attempt(1)])
    assert [(index, attempt.n) for index, attempt in read_attempts(path)] == [(5, 1), (5, 2), (5, 1)]


# -- resuming ---------------------------------------------------------------------------------------------


def test_only_answered_rows_are_done(path: Path) -> None:
    keep(path, ok(0), failed(1, "no"), failed(2, "stop", "cancelled"))
    journal = opened(path)
    assert journal.done_rows == 1
    assert [journal.is_done(key(n), 0) for n in range(4)] == [True, False, False, False]
    assert not journal.is_done(key(0), 1)
    journal.close()


def test_rows_are_recalled_at_the_positions_they_have_now(path: Path) -> None:
    keep(path, *(ok(n, f"answer {n}", usage=Usage(n)) for n in range(20)))

    async def main() -> None:
        journal = opened(path)
        found = await journal.recall([(20 - n, key(n), 0) for n in range(20)] + [(99, key(99), 0)])
        assert {index: row.reply.content for index, row in found.items() if row.reply} == {
            20 - n: f"answer {n}" for n in range(20)
        }
        await journal.aclose()

    run(main)
    assert [row.prompt for row in read_records(path)] == [f"prompt {n}" for n in reversed(range(20))]
    assert [row.index for row in read_records(path)] == list(range(1, 21))


# -- whose file it is -------------------------------------------------------------------------------------


def test_a_run_with_other_settings_is_refused_and_shown_what_differs(path: Path) -> None:
    long = "Rate the following review from one to five stars, and say why: "
    first = Journal(path)
    first.open({"model": "openai:a", "template": long + "{review}", "temperature": 0.5, "same": [1, {"b": 2, "a": 1}]})
    first.close()
    before = path.read_bytes()
    with pytest.raises(JournalMismatch) as caught:
        Journal(path).open({"model": "openai:ü", "template": long + "{text}", "same": [1, {"a": 1, "b": 2}], "top": 1})
    lines = str(caught.value).splitlines()
    assert str(path) in lines[0]
    assert [line.split() for line in lines[1:4]] == [
        ["in", "the", "file", "now"],
        ["model", '"openai:a"', '"openai:ü"'],
        ["temperature", "0.5", "(not", "set)"],
    ]
    assert "{review}" in lines[4]
    assert "{text}" in lines[4]
    assert lines[5].split() == ["top", "(not", "set)", "1"]
    assert len(lines) == 6
    assert len({line.index(word) for line, word in zip(lines[1:3], ["now", '"openai:ü"'], strict=True)}) == 1
    assert path.read_bytes() == before
    keep_open = Journal(path)
    with pytest.raises(JournalMismatch):
        keep_open.open({})
    assert not path.with_name("run.sqlite-lock").exists()


def test_what_is_no_journal_is_refused_and_left_alone(path: Path) -> None:
    path.write_text("prompt,answer\n" * 1000)
    for attempt in (lambda: opened(path), lambda: list(read_records(path))):
        with pytest.raises(ValueError, match="no journal of llmlab"):
            attempt()
    assert path.read_text() == "prompt,answer\n" * 1000


def test_another_programs_database_is_refused_and_left_alone(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE row (mine)")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="some other program's database"):
        opened(path)
    assert path.read_bytes() == before
    assert [each.name for each in path.parent.iterdir()] == ["run.sqlite"]


def test_an_empty_file_becomes_a_journal(path: Path) -> None:
    path.touch()
    with pytest.raises(ValueError, match="is empty"):
        read_records(path)
    assert len(keep(path, ok(0))) == 1


def test_a_newer_format_is_refused(path: Path) -> None:
    keep(path, ok(0))
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 3")
    for attempt in (lambda: opened(path), lambda: list(read_records(path))):
        with pytest.raises(ValueError, match=r"newer llmlab \(journal format 3, this one knows 2\)"):
            attempt()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"the folder .*nowhere is not there"):
        opened(tmp_path / "nowhere" / "run.sqlite")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        opened(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no journal"):
        read_records(tmp_path / "run.sqlite")


def test_a_database_that_somebody_holds_is_busy(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(path, ok(0))
    monkeypatch.setattr(journal_module, "open_to_write", lambda path: sqlite3.connect(path, timeout=0))
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(JournalBusy, match="another process"):
            opened(path)


def test_durability_is_one_of_two(path: Path) -> None:
    with pytest.raises(ValueError, match="'process' or 'power'"):
        Journal(path, durability="disk")  # type: ignore[arg-type]


@pytest.mark.parametrize(("durability", "level"), [("process", 1), ("power", 2)])
def test_power_waits_for_the_disk_at_each_commit(path: Path, durability: Any, level: int) -> None:
    journal = Journal(path, durability=durability)
    journal.open({})
    assert live(journal).db.execute("PRAGMA synchronous").fetchone() == (level,)
    assert live(journal).db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    put(journal, ok(0))
    journal.close()
    assert len(list(read_records(path))) == 1


def live(journal: Journal) -> Any:
    return journal._live()


# -- one writer -------------------------------------------------------------------------------------------


def test_a_second_job_of_this_process_is_told_so(journal: Journal, path: Path) -> None:
    link = path.with_name("link.sqlite")
    link.symlink_to(path)
    for name in (path, link):
        with pytest.raises(JournalBusy, match="another job of this very process") as caught:
            opened(name)
        assert caught.value.pid == os.getpid()
    put(journal, ok(0))
    journal.close()
    assert len(keep(path, ok(1))) == 2


def test_another_process_is_named_and_its_death_frees_the_run(path: Path) -> None:
    began = time.time()
    with start(path, 0, "--hold") as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(JournalBusy, match=f"in use by process {other.pid} since 20") as caught:
            opened(path)
        assert caught.value.pid == other.pid
        assert caught.value.since is not None
        assert began - 1 < caught.value.since < time.time() + 1
        assert str(caught.value).startswith(str(path))
        other.kill()
    journal = Journal(path)
    journal.open({"model": "sim:small"})
    journal.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_does_not_hold_its_dead_parents_run(path: Path) -> None:
    with start(path, 0, "--fork") as parent:
        assert parent.stdout is not None
        assert {parent.stdout.readline(), parent.stdout.readline()} == {"held\n", "child\n"}
        with pytest.raises(JournalBusy):
            opened(path)
        parent.kill()
        parent.wait()
        journal = Journal(path)
        journal.open({"model": "sim:small"})  # the child lives until its stdin, our end of the pipe, is closed
        journal.close()


def test_a_forked_child_leaves_its_parents_file_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = opened(path)
    parents = live(journal)
    with monkeypatch.context() as child:
        child.setattr(os, "getpid", lambda: -1)
        journal.close()
    assert parents.db.execute("PRAGMA journal_mode").fetchone() == ("wal",), "neither closed nor tidied up"
    reported = threading.Event()
    parents.writer.barrier().add_done_callback(lambda _: reported.set())
    assert reported.wait(PATIENCE), "the writer goes on"
    parents.close()


def test_a_lock_file_left_behind_by_a_crash_is_no_hindrance(path: Path) -> None:
    path.with_name("run.sqlite-lock").write_text('{"pid": 1, "since": 0}')
    assert len(keep(path, ok(0))) == 1
    assert [each.name for each in path.parent.iterdir()] == ["run.sqlite"]


def test_a_holder_that_has_not_yet_said_who_it_is_holds_all_the_same(path: Path) -> None:
    first = RunLock(path)
    first.take()
    path.with_name("run.sqlite-lock").write_bytes(b"")
    with pytest.raises(JournalBusy, match="in use by another process: wait") as caught:
        opened(path)
    assert caught.value.pid is None
    copy = pickle.loads(pickle.dumps(caught.value))  # noqa: S301  our own
    assert str(copy) == str(caught.value)
    first.release()
    first.release()
    opened(path).close()


def test_a_lock_whose_file_is_removed_while_it_is_taken_is_taken_anew(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last holder lets go between our opening of the file and our locking of it: two would hold two files."""
    file = path.with_name("run.sqlite-lock")
    true_lock = runlock._lock
    handles: list[int] = []

    def lock(handle: int) -> bool:
        handles.append(handle)
        if len(handles) == 1:
            file.unlink()
        return true_lock(handle)

    monkeypatch.setattr(runlock, "_lock", lock)
    mine = RunLock(path)
    mine.take()
    with pytest.raises(JournalBusy):
        RunLock(path).take()
    mine.release()
    assert len(handles) == 3


def test_a_file_that_may_not_be_written_is_an_error_that_names_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(path, ok(0))
    monkeypatch.setattr(journal_module, "open_to_write", stored.open_to_read)
    with pytest.raises(OSError, match=r"run\.sqlite cannot be opened for writing: .*readonly"):
        opened(path)


# -- commits ----------------------------------------------------------------------------------------------


def test_a_row_is_in_the_file_when_it_is_reported(path: Path) -> None:
    wrong: list[int] = []
    order: list[int] = []

    def check(n: int) -> None:
        order.append(n)
        with closing(sqlite3.connect(path)) as db:
            if db.execute("SELECT content FROM row WHERE position = ?", (n,)).fetchone() != (f"answer {n}",):
                wrong.append(n)

    journal = opened(path)  # callbacks on the writer's thread: there nothing comes between commit and report
    for n in range(600):
        put(journal, ok(n, f"answer {n}"), then=partial(check, n))
    journal.close()
    assert order == list(range(600))
    assert wrong == []


def test_rows_are_committed_in_groups(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "DELAY", PATIENCE)  # so that only the number cuts groups
    statements: list[str] = []
    reported = threading.Event()
    journal = opened(path)
    live(journal).db.set_trace_callback(statements.append)
    for n in range(500):
        put(journal, ok(n), then=reported.set if n == 499 else None)
    assert reported.wait(PATIENCE)
    assert statements.count("COMMIT") == 2
    journal.close()


def test_few_rows_do_not_wait_for_more(path: Path) -> None:
    reported = threading.Event()
    journal = opened(path)
    put(journal, ok(0), then=reported.set)
    assert reported.wait(PATIENCE)
    journal.close()


def test_a_flush_does_not_wait_for_more_and_comes_after_the_reports(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "DELAY", 10 * PATIENCE)

    async def main() -> None:
        journal = opened(path, deliver=asyncio.get_running_loop().call_soon_threadsafe)
        reported: list[int] = []
        for n in range(5):
            put(journal, ok(n), then=partial(reported.append, n))
            await journal.flush()
            assert reported == list(range(n + 1))
        await journal.aclose()

    run(main)


def test_callbacks_come_on_the_loop_and_before_aclose_returns(path: Path) -> None:
    async def main() -> None:
        journal = opened(path, deliver=asyncio.get_running_loop().call_soon_threadsafe)
        threads: list[threading.Thread] = []
        for n in range(300):
            put(journal, ok(n), then=lambda: threads.append(threading.current_thread()))
        await journal.aclose()
        assert threads == [threading.current_thread()] * 300

    run(main)


def test_a_listener_that_fails_costs_the_others_nothing(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reported: list[int] = []
    journal = opened(path)
    put(journal, ok(0), then=lambda: 1 // 0)
    put(journal, ok(1), then=partial(reported.append, 1))
    journal.close()
    assert reported == [1]
    assert "a listener of a file" in caplog.text


def test_a_loop_that_is_gone_costs_no_row(path: Path) -> None:
    loop = asyncio.new_event_loop()
    loop.close()
    journal = opened(path, deliver=loop.call_soon_threadsafe)
    put(journal, ok(0), then=lambda: None)
    journal.close()
    assert len(list(read_records(path))) == 1


def test_leaving_python_commits_what_waits(path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, '.'); from tests.test_logbook import *; import llmlab.writer;"
        "llmlab.writer.DELAY = 1000; j = opened(Path(sys.argv[1])); put(j, ok(0))"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, check=True, timeout=PATIENCE)  # noqa: S603
    assert [row.status for row in read_records(path)] == ["ok"]
    assert [each.name for each in path.parent.iterdir()] == ["run.sqlite"]


def test_a_closed_journal_takes_no_rows(path: Path) -> None:
    journal = Journal(path)
    assert repr(journal).endswith("closed>")
    with pytest.raises(RuntimeError, match="not open"):
        put(journal, ok(0))
    journal.open(SETTINGS)
    assert repr(journal).endswith("open, 0 rows waiting>")
    with pytest.raises(RuntimeError, match="open already"):
        journal.open(SETTINGS)
    open_file = live(journal)
    journal.close()
    journal.close()
    with pytest.raises(RuntimeError, match="closed"):
        open_file.writer.put(None)


def test_a_journal_may_be_opened_again(path: Path) -> None:
    journal = opened(path)
    put(journal, ok(0))
    journal.close()
    journal.open(SETTINGS)
    assert journal.is_done(key(0), 0)
    journal.close()


# -- trouble ----------------------------------------------------------------------------------------------


class Loop:
    """What the journal says, as a loop would hear it."""

    def __init__(self) -> None:
        self.troubles: asyncio.Queue[str | None] = asyncio.Queue()
        self.failures: asyncio.Queue[Exception] = asyncio.Queue()
        self.reported: list[int] = []

    def open(self, path: Path) -> Journal:
        return opened(
            path,
            deliver=asyncio.get_running_loop().call_soon_threadsafe,
            on_trouble=self.troubles.put_nowait,
            on_failure=self.failures.put_nowait,
        )

    def put(self, journal: Journal, n: int, text: str) -> None:
        put(journal, ok(n, text), then=partial(self.reported.append, n))


def limit_size(journal: Journal, pages: int) -> None:
    """Make the file full: SQLite gives the very error of a full disk."""
    db = live(journal).db
    now = db.execute("PRAGMA page_count").fetchone()[0]
    db.execute(f"PRAGMA max_page_count = {now + pages}")


def test_a_full_disk_pauses_says_so_and_loses_nothing(path: Path) -> None:
    async def main() -> None:
        loop = Loop()
        journal = loop.open(path)
        loop.put(journal, 0, "fits")
        await journal.flush()
        limit_size(journal, 20)
        for n in range(1, 1001):
            loop.put(journal, n, "x" * 1000)
        trouble = await loop.troubles.get()
        assert trouble is not None
        assert "database or disk is full" in trouble
        assert "none is lost" in trouble
        assert journal.pending == journal_module.ROOM
        assert loop.reported == [0]
        assert [row.index for row in read_records(path)] == [0]
        for _ in range(100):  # the loop goes on meanwhile
            await asyncio.sleep(0)
        limit_size(journal, 1_000_000)
        await journal.flush()
        assert await loop.troubles.get() is None
        assert loop.troubles.empty(), "said once, not at each try"
        assert loop.reported == list(range(1001))
        assert not journal.full
        await journal.aclose()

    run(main)
    assert [row.index for row in read_records(path)] == list(range(1001))
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_closing_on_a_full_disk_ends_and_reports_only_what_is_saved(path: Path) -> None:
    async def main() -> None:
        loop = Loop()
        journal = loop.open(path)
        loop.put(journal, 0, "fits")
        await journal.flush()
        limit_size(journal, 20)
        for n in range(1, 501):
            loop.put(journal, n, "x" * 1000)
        flushing = asyncio.ensure_future(journal.flush())
        assert await loop.troubles.get() is not None
        await journal.aclose()
        assert isinstance(await loop.failures.get(), sqlite3.OperationalError)
        with pytest.raises(sqlite3.OperationalError, match="full"):
            await flushing
        assert loop.reported == [0]

    run(main)
    assert [row.index for row in read_records(path)] == [0]


def test_a_flush_may_be_given_up_while_there_is_trouble(path: Path) -> None:
    async def main() -> None:
        loop = Loop()
        journal = loop.open(path)
        await journal.flush()
        limit_size(journal, 1)
        loop.put(journal, 0, "x" * 100_000)
        flushing = asyncio.ensure_future(journal.flush())
        assert await loop.troubles.get() is not None
        flushing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await flushing
        limit_size(journal, 1000)
        await journal.flush()
        assert loop.reported == [0]
        await journal.aclose()

    run(main)


def test_a_file_that_was_removed_is_a_failure_and_no_row_is_reported(path: Path) -> None:
    async def main() -> None:
        loop = Loop()
        journal = loop.open(path)
        path.unlink()  # noqa: ASYNC240  what the user does meanwhile
        loop.put(journal, 0, "written into a file without a name")
        error = await loop.failures.get()
        assert isinstance(error, FileNotFoundError)
        assert "removed or replaced" in str(error)
        assert loop.reported == []
        with pytest.raises(RuntimeError, match="has failed"):
            loop.put(journal, 1, "")
        with pytest.raises(RuntimeError, match="has failed"):
            await journal.flush()
        await journal.aclose()

    run(main)


def test_the_loop_goes_on_while_the_writer_cannot(path: Path) -> None:
    """Appending and the loop's turns go on while another connection keeps the writer out: were one of them to wait
    for the writer, this test would wait for ever, as it is the one that ends the writer's waiting."""

    async def main() -> None:
        loop = Loop()
        journal = loop.open(path)
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            for n in range(2000):
                loop.put(journal, n, "x" * 1000)
                await asyncio.sleep(0)
            flushing = asyncio.ensure_future(journal.flush())
            await asyncio.sleep(0)
            assert loop.reported == []
            assert journal.pending == 2000
            assert journal.full
            other.execute("ROLLBACK")
        await flushing
        assert loop.reported == list(range(2000))
        assert journal.pending == 0
        await journal.aclose()

    run(main)


# -- reading ----------------------------------------------------------------------------------------------


def test_rows_are_read_in_the_order_of_the_input_whatever_ended_first(path: Path) -> None:
    order = random.Random(1).sample(range(700), 700)
    assert [row.index for row in keep(path, *map(ok, order))] == list(range(700))


def test_a_journal_is_read_while_it_is_written(path: Path) -> None:
    async def main() -> None:
        loop = Loop()
        journal = loop.open(path)
        for n in range(1000):
            loop.put(journal, n, f"answer {n}")
            if n % 50 == 0:
                await asyncio.sleep(0)
                before = set(loop.reported)
                seen = {row.index: row.reply.content for row in read_records(path) if row.reply}
                assert before <= set(seen)
                assert all(text == f"answer {index}" for index, text in seen.items())
        half_read = read_records(path)
        assert next(half_read).index == 0
        await journal.flush()
        assert [row.index for row in read_records(path)] == list(range(1000))
        await journal.aclose()  # with a reader inside
        assert len(list(half_read)) > 0

    run(main)
    assert len(list(read_records(path))) == 1000


def test_a_closed_journal_is_one_plain_file(path: Path, tmp_path: Path) -> None:
    keep(path, ok(0))
    assert [each.name for each in tmp_path.iterdir()] == ["run.sqlite"]
    copy = tmp_path / "folder"
    copy.mkdir()
    shutil.copy(path, copy / "odd name %20?#.sqlite")
    copy.chmod(0o500)
    try:
        assert len(list(read_records(copy / "odd name %20?#.sqlite"))) == 1
    finally:
        copy.chmod(0o700)


def copy_of_a_running_journal(path: Path, to: Path) -> Path:
    """Copy the file and its write-ahead log, without the shared memory, after two commits of 100 rows each."""

    async def main() -> None:
        journal = Loop().open(path)
        for n in range(200):
            put(journal, ok(n, "x" * 1000))
            if n % 100 == 99:
                await journal.flush()
        for end in ("", "-wal"):
            shutil.copy(f"{path}{end}", f"{to}{end}")
        await journal.aclose()

    run(main)
    return to


def test_a_copy_of_the_file_and_its_log_has_all_reported_rows(path: Path, tmp_path: Path) -> None:
    copy = copy_of_a_running_journal(path, tmp_path / "copy.sqlite")
    assert [row.index for row in read_records(copy)] == list(range(200))
    assert len(keep(copy, ok(200))) == 201


@pytest.mark.parametrize("torn", [1, 20, 4096, 100_000])
def test_a_torn_log_costs_the_last_commit_and_corrupts_nothing(path: Path, tmp_path: Path, torn: int) -> None:
    """As after a power cut; what follows is written after the last whole commit, not glued to the torn one."""
    copy = copy_of_a_running_journal(path, tmp_path / "copy.sqlite")
    log = Path(f"{copy}-wal")
    os.truncate(log, log.stat().st_size - torn)
    journal = opened(copy)
    assert journal.done_rows == 100
    for n in range(100, 300):
        put(journal, ok(n))
    journal.close()
    assert [row.index for row in read_records(copy)] == list(range(300))
    with closing(sqlite3.connect(copy)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


# -- killed -----------------------------------------------------------------------------------------------


def killed_after(path: Path, rows: int, reports: int) -> list[str]:
    """Run the victim, kill -9 it after so many reports, and give back all it said."""
    said: list[str] = []
    with start(path, rows) as victim:
        assert victim.stdout is not None
        for line in victim.stdout:
            said.append(line)
            if line.startswith("done"):
                reports -= 1
            if reports == 0:
                victim.kill()
    return [line.strip() for line in said if line.endswith("\n")]


def numbers(said: list[str], word: str) -> list[int]:
    return [int(line.split()[1]) for line in said if line.startswith(f"{word} ")]


def test_kill_minus_nine_loses_no_reported_row_and_repeats_only_what_was_in_flight(path: Path) -> None:
    rows, window, moments = 4000, 400, 10
    rng = random.Random(os.environ.get("KILL_SEED", "7"))
    reported: set[int] = set()
    asked: Counter[int] = Counter()
    for _ in range(moments):
        said = killed_after(path, rows, rng.randint(1, 350))
        assert "end" not in said, "killed before the end"
        reported |= set(numbers(said, "done"))
        asked.update(numbers(said, "asked"))
        assert set(numbers(said, "done")).isdisjoint(numbers(said, "had"))
        there = Counter(row.index for row in read_records(path))
        assert reported <= set(there)
        assert set(there.values()) == {1}
    said = killed_after(path, rows, -1)
    asked.update(numbers(said, "asked"))
    assert said[-1] == "end"
    assert reported <= set(numbers(said, "had"))
    found = list(read_records(path))
    assert [row.index for row in found] == list(range(rows))
    assert all(row.reply is not None and row.reply.content == answer_of(row.index) for row in found)
    assert set(asked) == set(range(rows))
    assert asked.total() - rows <= moments * window


# -- cost -------------------------------------------------------------------------------------------------


def test_what_a_row_costs(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prints, asserts only that the rows are there: figures belong to the machine."""
    rows = 10_000
    outcomes = [ok(n, "x" * 1000, usage=Usage(10, 20)) for n in range(rows)]
    keys = [os.urandom(16) for _ in range(rows)]

    async def main() -> None:
        journal = opened(path, deliver=asyncio.get_running_loop().call_soon_threadsafe)
        wall, cpu, mine = time.perf_counter(), time.process_time(), time.thread_time()
        for n, outcome in enumerate(outcomes):
            journal.append(n, outcome, key=keys[n], occ=0, attempts=[Attempt(1)], then=bool)
            while journal.full:
                await journal.flush()
        await journal.flush()
        spent = (time.perf_counter() - wall, time.process_time() - cpu, time.thread_time() - mine)
        await journal.aclose()
        total, busy, own = (seconds / rows * 1e6 for seconds in spent)
        with capsys.disabled():
            print(f"\njournal, µs a row: wall {total:.1f}, cpu {busy:.1f}, of it on the loop {own:.1f}")  # noqa: T201

    run(main)
    assert len(list(read_records(path))) == rows
