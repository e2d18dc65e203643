"""The file of a cache has a real thread and real files: these tests run on the real clock, and wait for events."""

import gc
import inspect
import logging
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmlab import answers, writer
from llmlab.answers import Lease, lease
from llmlab.identity import key_of
from llmlab.logbook import Journal
from llmlab.types import Prompt, Reply, Usage

ROOT = Path(__file__).parent.parent
PATIENCE = 30.0
"""Seconds after which a wait has failed; no test takes so long unless it fails."""
EVER = float("-inf")


def key(n: int) -> bytes:
    return key_of(Prompt.of(f"prompt {n}"), provider="sim", model="small")


def reply(n: int, size: int = 0) -> Reply:
    return Reply(f"answer {n} " + "x" * size, "stop", "sim", "small", Usage(n, 2 * n))


def put(held: Lease, *numbers: int, size: int = 0) -> None:
    for n in numbers:
        held.answers.put(key(n), 1000.0 + n, reply(n, size))


def found(held: Lease, *numbers: int) -> list[int]:
    """The numbers whose answers are there; each that is there must be the right one."""
    there = {n: held.answers.find(key(n), EVER) for n in numbers}
    assert all(each is None or each.content.strip("x") == f"answer {n} " for n, each in there.items())
    return [n for n, each in there.items() if each is not None]


def commit(held: Lease) -> None:
    held.answers._writer.barrier().result(PATIENCE)


def wait_for(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def in_the_file(path: Path) -> int:
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        count: int = db.execute("SELECT count(*) FROM answer").fetchone()[0]
        return count


# Another process needs the modules below the package's door only, and what pandas takes to import is no matter of ours.
DOOR = """
import os, sys, time, types
from pathlib import Path
package = types.ModuleType("llmlab")
package.__path__ = [str(Path("llmlab").resolve())]
sys.modules["llmlab"] = package
from llmlab import writer
from llmlab.answers import Lease, lease
from llmlab.identity import key_of
from llmlab.types import Prompt, Reply, Usage
EVER = float("-inf")
"""


def start(code: str, *arguments: object) -> "subprocess.Popen[str]":
    """Run code that knows `put` and `found`, as another process."""
    program = "\n".join([DOOR, *(inspect.getsource(each) for each in (key, reply, put, found)), code])
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603


def finish(process: "subprocess.Popen[str]") -> str:
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    return said


def let_go(processes: "list[subprocess.Popen[str]]") -> None:
    """Let processes that say when they are ready go on at the same moment, and wait for their end."""
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        finish(process)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "answers.sqlite"


@pytest.fixture
def held(path: Path) -> Iterator[Lease]:
    held = lease(path)
    yield held
    held.give_back()


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    with caplog.at_level(logging.WARNING, logger="llmlab"):
        yield lambda: [record.getMessage() for record in caplog.records]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is committed unless somebody asks for it."""
    monkeypatch.setattr(writer, "DELAY", 1000.0)


# -- what comes back --------------------------------------------------------------------------------------

JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
SURROGATES = st.text(st.characters(codec=None, categories=None), max_size=30)
SECONDS = st.floats(0, 1e6)
REPLIES = st.builds(
    Reply,
    content=SURROGATES,
    finish_reason=SURROGATES,
    provider=SURROGATES,
    model=SURROGATES,
    usage=st.none() | st.builds(Usage, *[st.integers(0, 2**70)] * 5),
    request_id=st.none() | SURROGATES,
    reasoning=SURROGATES,
    tool_calls=st.lists(st.dictionaries(st.text(), JSONS, max_size=3), max_size=2).map(tuple),
    latency_s=SECONDS,
    ttft_s=st.none() | SECONDS,
    cost_usd=st.none() | SECONDS,
    cache_hit=st.booleans(),
)


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(REPLIES)
def test_any_reply_comes_back_as_it_was_before_its_commit_and_after(held: Lease, any_reply: Reply) -> None:
    held.answers.put(b"any", 0.0, any_reply)
    assert held.answers.find(b"any", EVER) == any_reply
    commit(held)
    assert held.answers._waiting == {}
    assert held.answers.find(b"any", EVER) == any_reply


@pytest.mark.usefixtures("slow")
def test_an_answer_is_found_at_once_before_its_commit(held: Lease, path: Path) -> None:
    put(held, 1, 2)
    assert found(held, 1, 2, 3) == [1, 2]
    assert in_the_file(path) == 0
    commit(held)
    assert in_the_file(path) == 2


@pytest.mark.usefixtures("slow")
def test_what_is_changed_after_it_was_put_is_not_changed_in_the_cache(held: Lease) -> None:
    tool_calls = ({"id": "1"},)
    held.answers.put(key(0), 0.0, replace(reply(0), tool_calls=tool_calls))
    tool_calls[0]["id"] = "2"
    there = held.answers.find(key(0), EVER)
    assert there is not None
    assert there.tool_calls == ({"id": "1"},)


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("committed", [True, False])
def test_a_newer_answer_takes_the_place_of_the_older_one(held: Lease, *, committed: bool) -> None:
    for n in (1, 2):
        held.answers.put(key(0), float(n), reply(n))
        if committed:
            commit(held)
    assert held.answers.find(key(0), 2.0) == reply(2)
    assert held.answers.find(key(0), 2.1) is None
    assert len(held.answers) == 1


@pytest.mark.usefixtures("slow")
def test_an_answer_replaced_while_it_is_written_is_not_lost_sight_of(held: Lease, monkeypatch: Any) -> None:
    """The newer one waits on when the older one's commit is done."""
    true_write, answers_ = held.answers._write, held.answers

    def write(items: Any) -> None:
        monkeypatch.setattr(answers_._writer, "_write", true_write)
        answers_.put(key(0), 2.0, reply(2))
        true_write(items)
        assert answers_.find(key(0), EVER) == reply(2)

    monkeypatch.setattr(answers_._writer, "_write", write)
    answers_.put(key(0), 1.0, reply(1))
    commit(held)
    assert answers_.find(key(0), EVER) == reply(2)


def test_tool_calls_that_are_no_json_are_not_kept(held: Lease, said: Callable[[], list[str]]) -> None:
    held.answers.put(key(0), 0.0, replace(reply(0), tool_calls=({"x": object()},)))
    assert found(held, 0) == []
    assert said() == []


@pytest.mark.usefixtures("slow")
def test_the_length_counts_each_answer_once_wherever_it_is(held: Lease) -> None:
    put(held, *range(5))
    commit(held)
    put(held, *range(3, 10))
    assert len(held.answers) == 10


def test_a_field_that_only_a_newer_llmlab_knows_is_passed_over(held: Lease, path: Path) -> None:
    put(held, 1)
    commit(held)
    change(path, "UPDATE answer SET reply = CAST(json_set(reply, '$.new', 1) AS BLOB)")
    assert held.answers.find(key(1), EVER) == reply(1)


def change(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(statement)


# -- clearing ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("slow")
def test_clearing_removes_what_is_written_and_what_waits(held: Lease, path: Path) -> None:
    put(held, 1)
    commit(held)
    put(held, 2)
    held.answers.clear()
    put(held, 3)
    assert found(held, 1, 2, 3) == [3]
    commit(held)
    assert found(held, 1, 2, 3) == [3]
    assert in_the_file(path) == 1


def test_clearing_waits_for_as_long_as_it_takes(held: Lease, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "PATIENCE", 0.001)
    put(held, 1)
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        timer = threading.Timer(0.05, other.execute, ("ROLLBACK",))
        timer.start()
        held.answers.clear()
        timer.join()
    assert in_the_file(path) == 0


def test_what_cannot_be_cleared_says_why(held: Lease, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "PATIENCE", 0.1)
    held.answers._writing.execute("PRAGMA busy_timeout = 0")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        put(held, 1)
        wait_for(lambda: held.answers._trouble)
        with pytest.raises(OSError, match=r"answers\.sqlite cannot be cleared now: database is locked"):
            held.answers.clear()
        put(held, 2)
        other.execute("ROLLBACK")
    commit(held)
    assert found(held, 1, 2) == [2], "cleared later, and only what was there"
    held.answers.close()
    with pytest.raises(OSError, match=r"answers\.sqlite cannot be cleared now: .*closed"):
        held.answers.clear()


# -- shared by labs ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("slow")
def test_the_caches_of_a_process_share_one_file_until_the_last_lets_go(path: Path) -> None:
    first, second = lease(path), lease(path)
    assert first.answers is second.answers
    put(first, 1)
    assert found(second, 1) == [1]
    first.give_back()
    first.give_back()
    put(second, 2)
    assert lease(path).answers is second.answers
    second.give_back()
    assert not second.answers.current
    assert in_the_file(path) == 2
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_a_cache_that_was_dropped_does_not_keep_the_file_open(path: Path) -> None:
    kept, dropped = lease(path), lease(path)
    del dropped
    gc.collect()
    kept.give_back()
    assert not kept.answers.current


def test_a_file_opened_again_has_what_was_there(path: Path) -> None:
    for n in range(3):
        held = lease(path)
        assert found(held, *range(3)) == list(range(n))
        put(held, n)
        held.give_back()


def test_many_threads_may_use_it_at_once(held: Lease) -> None:
    wrong: list[int] = []

    def work(base: int) -> None:
        for n in range(base, base + 300):
            put(held, n)
            wrong.extend({n, base} - set(found(held, n, base)))

    threads = [threading.Thread(target=work, args=(1000 * each,)) for each in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(held.answers) == 1200


# -- shared by processes ----------------------------------------------------------------------------------

WRITE = """
held = lease(Path(sys.argv[1]))
numbers = range(int(sys.argv[2]), int(sys.argv[3]))
print('ready', flush=True); sys.stdin.readline()
put(held, *numbers)
assert found(held, *numbers) == list(numbers)
"""


def test_two_processes_write_one_file_at_once(path: Path) -> None:
    let_go([start(WRITE, path, begin, begin + 600) for begin in (0, 400)])
    held = lease(path)
    assert found(held, *range(1001)) == list(range(1000))
    assert len(held.answers) == 1000
    held.give_back()


def test_what_one_process_commits_another_finds(held: Lease, path: Path) -> None:
    assert found(held, 7) == []
    finish(start("held = lease(Path(sys.argv[1])); put(held, 7)", path))
    assert found(held, 7) == [7]


OPEN = """
print('ready', flush=True); sys.stdin.readline()
held = lease(Path(sys.argv[1])); put(held, int(sys.argv[2])); held.give_back()
"""


def test_several_processes_may_make_the_file_at_the_same_moment(path: Path) -> None:
    let_go([start(OPEN, path, n) for n in range(4)])
    assert in_the_file(path) == 4


def test_many_threads_may_make_it_at_the_same_moment(tmp_path: Path) -> None:
    """Connections of one process are as foreign to each other as those of several; so this is cheap to try often."""
    for turn in range(10):
        path = tmp_path / f"{turn}.sqlite"
        together = threading.Barrier(6)
        opened: list[sqlite3.Connection] = []

        def work(path: Path = path, together: threading.Barrier = together, opened: Any = opened) -> None:
            together.wait(PATIENCE)
            opened.append(answers._opened(path))

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(opened) == 6
        for db in opened:
            db.close()
        assert in_the_file(path) == 0


def test_a_script_that_closes_nothing_loses_nothing(path: Path) -> None:
    finish(start("writer.DELAY = 1000; held = lease(Path(sys.argv[1])); put(held, 1, 2)", path))
    assert in_the_file(path) == 2
    assert [each.name for each in path.parent.iterdir()] == [path.name]


FORK = """
writer.DELAY = 1000
parents = lease(Path(sys.argv[1])); put(parents, 1)
if os.fork() == 0:
    assert not parents.answers.current
    parents.give_back()
    assert not parents.answers._closed
    own = lease(Path(sys.argv[1])); put(own, 2)
    sys.exit()
os.wait()
assert found(parents, 1, 2) == [1, 2]
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_a_file_of_its_own_and_leaves_its_parents_alone(path: Path) -> None:
    finish(start(FORK, path))
    assert in_the_file(path) == 2


# -- killed -----------------------------------------------------------------------------------------------

VICTIM = """
held = lease(Path(sys.argv[1]))
for n in range(int(sys.argv[2])):
    if not found(held, n):
        put(held, n, size=n % 5000)
        os.write(1, b'.')
        time.sleep(0.0005)
held.give_back()
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 here")
def test_kill_minus_nine_leaves_a_readable_cache_that_has_all_but_the_last_moment(path: Path) -> None:
    rows, there = 2000, 0
    rng = random.Random(os.environ.get("KILL_SEED", "7"))
    for _ in range(6):
        with start(VICTIM, path, rows) as victim:
            assert victim.stdout is not None
            for _ in range(rng.randint(1, 300)):
                victim.stdout.read(1)
            victim.kill()
        now = in_the_file(path)
        assert now >= there
        there = now
    assert 0 < there < rows
    with start(VICTIM, path, rows) as heir:
        assert heir.stdout is not None
        assert len(heir.stdout.read()) == rows - there, "what was committed is not asked for again"
    held = lease(path)
    assert found(held, *range(rows)) == list(range(rows))
    held.give_back()


# -- files that cannot be used ----------------------------------------------------------------------------


def refused(path: Path, error: type[Exception], match: str) -> None:
    before = {each.name: each.read_bytes() for each in path.parent.iterdir() if each.is_file()}
    for _ in range(2):
        with pytest.raises(error, match=match) as caught:
            lease(path)
        assert str(path) in str(caught.value)
    assert {each.name: each.read_bytes() for each in path.parent.iterdir() if each.is_file()} == before


@pytest.mark.parametrize("content", [b"hi", b"prompt,answer\n" * 1000, b"SQLite format 3\0" + b"\0" * 2000])
def test_what_is_no_database_is_refused_and_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    refused(path, ValueError, "is no cache of llmlab: ")


def test_another_programs_database_is_refused_and_left_alone(path: Path) -> None:
    change(path, "CREATE TABLE answer (mine)")
    refused(path, ValueError, "some other program's database; nothing was changed")


def test_a_journal_is_refused_and_left_alone(path: Path) -> None:
    journal = Journal(path)
    journal.open({})
    journal.close()
    refused(path, ValueError, "is the journal of a run: give the cache a file of its own")


def test_a_cache_is_no_journal(path: Path) -> None:
    lease(path).give_back()
    with pytest.raises(ValueError, match="is no journal of llmlab"):
        Journal(path).open({})


def test_a_newer_format_is_refused(path: Path) -> None:
    lease(path).give_back()
    change(path, "PRAGMA user_version = 2")
    refused(path, ValueError, r"newer llmlab \(cache format 2, this one knows 1\): update llmlab, or start a new cache")


def test_an_empty_file_becomes_a_cache(path: Path) -> None:
    path.touch()
    held = lease(path)
    put(held, 1)
    held.give_back()
    assert in_the_file(path) == 1


def test_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"cache: the folder .*nowhere is not there; make it first"):
        lease(tmp_path / "nowhere" / "answers.sqlite")
    refused(tmp_path, IsADirectoryError, r"is a folder; name a file, as .*answers\.sqlite")


def test_a_file_that_may_not_be_written_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lease(path).give_back()

    def read_only(path: Path) -> sqlite3.Connection:
        return sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None)

    monkeypatch.setattr(answers, "open_to_write", read_only)
    with pytest.raises(OSError, match=r"the cache .*answers\.sqlite cannot be opened for writing: .*readonly"):
        lease(path)


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="needs a folder in which nobody may write")
def test_a_folder_in_which_nothing_can_be_made_is_named() -> None:
    with pytest.raises(OSError, match=r"the cache /proc/answers\.sqlite cannot be opened for writing: "):
        lease(Path("/proc/answers.sqlite"))


def test_a_file_that_is_held_is_waited_for(path: Path) -> None:
    lease(path).give_back()
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("PRAGMA journal_mode = DELETE")
        other.execute("BEGIN EXCLUSIVE")
        timer = threading.Timer(0.05, other.execute, ("ROLLBACK",))
        timer.start()
        lease(path).give_back()
        timer.join()


def test_a_file_that_stays_held_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "PATIENCE", 0.05)
    lease(path).give_back()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA journal_mode = DELETE")
        other.execute("BEGIN EXCLUSIVE")
        refused(path, OSError, "is held by another program: database is locked")


# -- trouble later ----------------------------------------------------------------------------------------


def limit_size(held: Lease, pages: int) -> None:
    """Make the file full: SQLite gives the very error of a full disk."""
    db = held.answers._writing
    now = db.execute("PRAGMA page_count").fetchone()[0]
    db.execute(f"PRAGMA max_page_count = {now + pages}")


def test_a_full_disk_is_said_once_and_costs_what_does_not_fit_in_memory(
    held: Lease, path: Path, said: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "ROOM", 50)
    limit_size(held, 1)
    put(held, *range(40), size=1000)
    wait_for(lambda: held.answers._trouble)
    put(held, *range(40, 100), size=1000)
    assert found(held, *range(100)) == list(range(50))
    assert in_the_file(path) == 0
    limit_size(held, 10_000)
    commit(held)
    assert in_the_file(path) == 50
    put(held, 99)
    assert found(held, *range(100)) == [*range(50), 99]
    limit_size(held, 0)
    put(held, *range(200, 240), size=1000)
    wait_for(lambda: held.answers._trouble)
    [message] = said()
    assert f"the cache {path}: it cannot be written for now (database or disk is full)" in message
    limit_size(held, 10_000)


def test_closing_on_a_full_disk_ends_and_keeps_what_was_committed(
    held: Lease, path: Path, said: Callable[[], list[str]]
) -> None:
    put(held, 1)
    commit(held)
    limit_size(held, 0)
    put(held, *range(2, 50), size=1000)
    held.give_back()
    assert in_the_file(path) == 1
    assert "can no longer be written" in said()[-1]


def test_a_writer_that_holds_the_file_keeps_nobody_waiting(held: Lease, path: Path) -> None:
    """Were one of these to wait for the lock, the test would fail: it is the one that gives it back."""
    put(held, 1)
    commit(held)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("DELETE FROM answer")
        put(held, 2)
        assert found(held, 1, 2, 3) == [1, 2]
        assert len(held.answers) == 2
        other.execute("ROLLBACK")
    commit(held)
    assert in_the_file(path) == 2


@pytest.mark.usefixtures("slow")
def test_a_file_that_was_removed_is_made_anew_and_its_answers_are_gone(
    held: Lease, path: Path, said: Callable[[], list[str]]
) -> None:
    put(held, 1)
    commit(held)
    put(held, 2)
    path.unlink()
    assert not held.answers.current
    anew = lease(path)
    assert found(anew, 1, 2) == []
    put(anew, 3)
    held.give_back()
    assert found(anew, 3) == [3]
    anew.give_back()
    assert in_the_file(path) == 1
    assert len(said()) == 1
    assert "removed or replaced" in said()[0]


def test_a_writer_that_has_failed_takes_nothing_more_and_says_so_once(
    held: Lease, path: Path, said: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise sqlite3.DatabaseError("database disk image is malformed")

    put(held, 0)
    commit(held)
    monkeypatch.setattr(held.answers._writer, "_write", fail)
    put(held, 1)
    wait_for(lambda: held.answers._writer.failure)
    put(held, 2)
    assert found(held, 0, 1, 2) == [0, 1]
    with pytest.raises(OSError, match=r"cannot be cleared now: .*malformed"):
        held.answers.clear()
    [message] = said()
    assert f"the cache {path}: it can no longer be written" in message
    assert message.endswith("No answer is lost by it, only its caching")


def test_what_cannot_be_read_is_asked_for_anew_and_replaced(
    held: Lease, path: Path, said: Callable[[], list[str]]
) -> None:
    put(held, *range(9))
    commit(held)
    damage = ["x'00'", "x''", "'[]'", "'{}'", "'null'", """'{"usage": {"x": 1}, "tool_calls": []}'""", "1", "x'ff'"]
    for n, cell in enumerate(damage):
        change(path, f"UPDATE answer SET reply = {cell} WHERE seq = {n + 1}")  # noqa: S608  our own damage
    assert found(held, *range(9)) == [8]
    assert said()
    put(held, *range(9))
    assert found(held, *range(9)) == list(range(9))
    commit(held)
    assert found(held, *range(9)) == list(range(9))


def test_a_corrupt_file_gives_what_can_be_read_and_ends_no_run(path: Path, said: Callable[[], list[str]]) -> None:
    held = lease(path)
    put(held, *range(200), size=1000)
    held.give_back()
    whole = path.read_bytes()
    page = 4096
    path.write_bytes(whole[: 20 * page] + random.Random(1).randbytes(20 * page) + whole[40 * page :])
    held = lease(path)
    left = found(held, *range(200))
    assert 0 < len(left) < 200
    put(held, *range(1000, 1100), size=3000)
    wait_for(lambda: held.answers._writer.failure or not held.answers._writer.pending)
    put(held, 5000)
    assert len(found(held, *range(200))) <= 200
    assert any("cannot be read" in message for message in said())
    held.give_back()
