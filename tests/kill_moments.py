"""Kill a journalled run with kill -9, again and again, and look at what is left.

    python -m tests.kill_moments --moments 50 [--seed 1] [--rows 500] [--faults …]

A trial is one journal, from no file to the whole frame. Its victims are processes that run the job and say what they
are told, each line one write to a pipe, so that no kill tears one. Moments and faults are drawn from the seed; what
exactly a victim is doing when the signal arrives is the machine's.

    start    up to 0.12 s after `run_many`: the file is made or read, old rows come back, the first requests go out
    middle   some rows further, and up to 0.15 s later
    commit   some rows further, at the next change of the write-ahead log, and up to 0.2 ms later
    end      all rows are reported, and up to 10 ms later: the file is tidied up, the frame is built

After each kill the file must be sound; each row that was reported must be in it, with the answer that was reported;
and no row that is in it may ever be asked again. In the end each row is in the file and in the frame once, and

    answers of the server to a question <= rows that ask it + kills that met one of them admitted and not yet reported

The server gives no answer twice, so that one that has taken another's place shows.
"""

import argparse
import asyncio
import itertools
import math
import os
import random
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self, TypeAlias

import orjson

import llmlab
from llmlab.events import Admitted, Attempted, Finished
from llmlab.logbook import read_records
from llmlab.sim.faults import Faults
from llmlab.sim.kinds import KINDS
from llmlab.sim.physics import Physics
from llmlab.sim.server import run_server
from llmlab.sim.transport import Simulator
from llmlab.sim.world import World

CONCURRENCY = 16
PER_TRIAL = 10
PATIENCE = 60.0  # seconds without a word after which a victim is taken to be stuck
DELAYS = {"start": 0.12, "middle": 0.15, "commit": 0.0002, "end": 0.01}  # the kill comes later by up to so many seconds
BRISK = Physics(rtt=0.005, ttft=0.05, itl=0.0, load=0.0, jitter=0.5)
FAULTS = "mixed:0.04,server_error:0.02,reset:0.02,cut:0.02"  # not all mixed: a 429 stops the line for a second
SHORT_WAITS = "retry_after:0.05,stall_for:0.1"
LONG = "Nobody says this twice. " * 300  # an answer of two pages, so that a commit takes long enough to be met
ROOT = Path(__file__).parents[1]

Fate: TypeAlias = tuple[str, str]
"""What became of a row: its status, and a digest of its answer."""


def tell(*words: object) -> None:
    os.write(1, f"{' '.join(map(str, words))}\n".encode())


def never(what: str, found: Collection[object]) -> None:
    """Complain if something was found; not by `assert`, which `python -O` leaves out."""
    if found:
        raise AssertionError(f"{what}: {len(found)}, as {list(found)[:5]}")


def question(trial: int, index: int) -> str:
    """What a row asks; each seventh asks what the one before it does: occurrences count."""
    return f"Trial {trial}: question {index - (index % 7 == 6)}"


def fate(status: str, content: str | None) -> Fate:
    return status, blake2b(content.encode(), digest_size=8).hexdigest() if content and status == "ok" else "-"


def start(*arguments: object, errors: Any = None) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "tests.kill_moments", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, cwd=ROOT)  # noqa: S603  ourselves


# -- the server, a process --------------------------------------------------------------------------------


class LoggingWorld(World):
    """Writes down of each request the fault that it meets, a tab, and the question."""

    log: int

    def _enter(self, dialect: Any, body: bytes) -> Any:
        visit = super()._enter(dialect, body)
        asked = orjson.loads(body)["messages"][-1]["content"]
        os.write(self.log, f"{visit.kind.name}\t{asked}\n".encode())
        return visit


def serve(log: str, seed: int, faults: str) -> None:
    numbers, simulator = itertools.count(1), Simulator()
    bad = Faults.parse(f"{faults},{SHORT_WAITS}")
    world = LoggingWorld(seed=seed, physics=BRISK, faults=bad, say=lambda _: f"Answer {next(numbers)}. {LONG}")
    world.log, simulator.world = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), world
    asyncio.run(run_server(simulator, announce=tell))


@contextmanager
def served(log: Path, seed: int, faults: str) -> Iterator[str]:
    """The simulated provider as a process; gives its base URL."""
    log.touch()
    with start("--serve", log, "--seed", seed, "--faults", faults) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[-1].decode()
        finally:
            process.send_signal(signal.SIGINT)


def read_log(log: Path) -> tuple[Counter[str], Counter[str]]:
    """By question: requests that the server set out to answer, and those that met a fault instead."""
    lines = [line.split("\t") for line in log.read_text().splitlines()]
    good = Counter(asked for kind, asked in lines if not kind or KINDS[kind].harmless)
    return good, Counter(asked for _, asked in lines) - good


# -- the victim, a process --------------------------------------------------------------------------------


async def suffer(base: str, path: str, trial: int, rows: int) -> None:
    """Run the job, and say all that is to be known of it."""
    lab = llmlab.Lab("openai:any", base_url=base, api_key="k", concurrency=CONCURRENCY, seed=trial)
    tell("begin")
    job = lab.run_many((question(trial, index) for index in range(rows)), journal=path, progress=False)
    job.bus.subscribe(lambda event: tell("go", event.index), Admitted)
    job.bus.subscribe(lambda event: tell("failed" if event.error else "back", event.index), Attempted)
    job.bus.subscribe(lambda event: _report(event.outcome), Finished)
    frame = await job
    for index, status, content in zip(frame.index, frame.status, frame.content, strict=True):
        tell("row", index, *fate(status, content))


def _report(outcome: llmlab.Outcome) -> None:
    tell("told", outcome.index, *fate(outcome.status, getattr(outcome.reply, "content", None)))


class Life:
    """What a victim has said so far."""

    def __init__(self) -> None:
        self.begun = False
        self.told: dict[int, Fate] = {}  # rows reported
        self.flying: set[int] = set()  # rows admitted, with nothing known of the request's end
        self.out: set[int] = set()  # rows admitted and not yet reported, without those that failed and back off
        self.frame: list[tuple[int, Fate]] = []

    def take(self, line: str) -> None:
        if line == "begin":
            self.begun = True
            return
        word, index, *became = line.split()
        if word == "row":
            self.frame.append((int(index), (became[0], became[1])))
        elif word == "told":
            never("rows reported twice", {int(index)} & self.told.keys())
            self.told[int(index)] = became[0], became[1]
            self.out.discard(int(index))
        else:
            self._request(word, int(index))

    def _request(self, word: str, index: int) -> None:
        (self.flying.add if word == "go" else self.flying.discard)(index)
        if word != "back":  # what is back waits for its commit
            (self.out.add if word == "go" else self.out.discard)(index)


class Victim:
    """A process that can be heard and killed; it does not outlive its context."""

    def __init__(self, *arguments: object, errors: Path) -> None:
        self.life = Life()
        self._rest, self._errors, self._patience = b"", errors, time.monotonic() + PATIENCE
        with errors.open("wb") as file:
            self._process = start("--victim", *arguments, errors=file)
        assert self._process.stdout is not None
        self._pipe = self._process.stdout

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._pipe.close()

    def wait_for(self, reached: Callable[[], bool], look_every: float = 1.0) -> bool:
        """Listen until something has come about; False if the process ends before."""
        while not reached():
            if not self._listen(look_every):
                return False
        return True

    def end(self, *, kill: bool) -> bool:
        """Hear it to its end, which `kill` brings about; True if it was killed, False if it was done before."""
        if kill:
            self._process.kill()
        self.wait_for(lambda: False)
        code = self._process.wait(PATIENCE)
        never(f"exit codes of a victim that failed\n{self._errors.read_text()}\n", {code} - {0, -signal.SIGKILL})
        return code != 0

    def _listen(self, seconds: float) -> bool:
        if not select.select([self._pipe], [], [], seconds)[0]:
            never("seconds without a word from a victim", {PATIENCE} if time.monotonic() > self._patience else ())
            return True
        self._patience = time.monotonic() + PATIENCE
        heard = os.read(self._pipe.fileno(), 1 << 16)
        *lines, self._rest = (self._rest + heard).split(b"\n")
        for line in lines:
            self.life.take(line.decode())
        return bool(heard)


# -- a trial ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kill:
    """What a kill met."""

    kind: str
    """The kind of its moment."""
    reported: int
    """Rows reported until then, to this victim or an earlier one."""
    flying: frozenset[int]
    """Rows with a request in flight."""
    out: frozenset[int]
    """Rows admitted and not yet reported."""
    file: str
    """The journal: not there, empty, with its write-ahead log, with a torn commit in it, or plain."""


class Trial:
    """One journal, from no file to the whole frame."""

    def __init__(self, number: int, rows: int, base: str, path: Path, log: Path) -> None:
        self.kills: list[Kill] = []
        self._rows, self._path, self._log = rows, path, log
        self._victim = lambda: Victim(base, path, number, rows, errors=path.with_suffix(".stderr"))
        self._asks = [question(number, index) for index in range(rows)]
        self._reported: dict[int, Fate] = {}
        self._settled: dict[str, int] = {}  # by question whose rows are all in the file: requests until then

    def kill_at(self, kind: str, share: float, delay: float) -> None:
        """Start or take up the run, and kill it at a moment, for some kinds after this share of the rows missing."""
        with self._victim() as victim:
            killed = victim.end(kill=self._wait(victim, kind, share, delay))
        life, file = victim.life, self.state()
        self.check(life.told)
        if killed:  # and not done before the signal came
            self.kills.append(Kill(kind, len(self._reported), frozenset(life.flying), frozenset(life.out), file))

    def finish(self) -> None:
        """Run it to completion and look at everything; rows that have failed are tried again by the next run."""
        failed = {-1}
        while failed:
            with self._victim() as victim:
                never("victims killed by somebody else", {"the last"} if victim.end(kill=False) else ())
            self.check(victim.life.told)
            failed = {index for index, (status, _) in victim.life.frame if status == "error"}
        self.check_frame(victim.life)
        self.check_requests()

    def _wait(self, victim: Victim, kind: str, share: float, delay: float) -> bool:
        """Wait for the moment; False if the victim is done before it."""
        enough = math.ceil(share * (self._rows - len(self._reported)))

        def reached() -> bool:
            if kind == "end":
                return len(victim.life.told) == self._rows
            fresh = victim.life.told.keys() - self._reported.keys()
            return victim.life.begun and (kind == "start" or len(fresh) >= enough)

        here = victim.wait_for(reached)
        if kind == "commit":
            before = self._write_ahead()
            here = here and victim.wait_for(lambda: self._write_ahead() != before, look_every=0.0)
        due = time.monotonic() + delay
        return here and victim.wait_for(lambda: time.monotonic() >= due, look_every=delay / 8)

    def _write_ahead(self) -> tuple[int, int]:
        try:
            found = Path(f"{self._path}-wal").stat()
        except FileNotFoundError:
            return 0, 0
        return found.st_size, found.st_mtime_ns

    def state(self) -> str:
        """What there is of the journal; see `Kill.file`."""
        if not self._path.exists():
            return "not there"
        log = Path(f"{self._path}-wal")
        data = log.read_bytes() if log.exists() else b""
        if not data:
            return "plain" if self._path.stat().st_size else "empty"
        # Of SQLite's file format: 32 bytes with page size and salt, then pages, each after 24 bytes with the file's
        # size in pages if it is a commit's last (else 0), and the salt unless it is left from before a checkpoint.
        step, salt = 24 + int.from_bytes(data[8:12]), data[16:24]
        pages = (data[at : at + 24] for at in range(32, len(data) - step + 1, step))
        now = list(itertools.takewhile(lambda page: page[8:16] == salt, pages))
        return "torn commit" if now and not int.from_bytes(now[-1][4:8]) else "with log"

    def check(self, told: dict[int, Fate]) -> None:
        """What must hold after the end of a victim that was told this."""
        answered = {row for row in self._reported.items() if row[1][0] == "ok"}
        never("answers reported otherwise than before", {row for row in answered if row[0] in told} - told.items())
        self._reported |= told
        file = self._file()
        never("rows reported that are not in the file", self._reported.keys() - file.keys())
        answered = {row for row in self._reported.items() if row[1][0] == "ok"}
        never("answers reported that the file has otherwise", answered - file.items())
        good, faults = read_log(self._log)
        asked = good + faults
        never("questions asked again", {ask for ask, count in self._settled.items() if asked[ask] != count})
        open_ = {ask for index, ask in enumerate(self._asks) if file.get(index, ("", ""))[0] != "ok"}
        self._settled = {ask: asked[ask] for ask in self._asks if ask not in open_}

    def check_frame(self, life: Life) -> None:
        """What must hold of a run that came to its end."""
        frame, places = set(life.frame), [index for index, _ in life.frame]
        never("rows of a frame that has not each once, in order", places if places != list(range(self._rows)) else ())
        never("rows without an answer", {index for index, (status, _) in frame if status != "ok"})
        never("rows not reported as they are in the frame", frame ^ life.told.items())
        never("rows not in the file as they are in the frame", frame ^ self._file().items())

    def check_requests(self) -> None:
        """What must hold of all that was asked."""
        (good, _), rows = read_log(self._log), Counter(self._asks)
        met = Counter(self._asks[index] for kill in self.kills for index in kill.out)
        never("questions never answered", {ask for ask in rows if good[ask] < rows[ask]})
        never("questions answered too often", {ask for ask in rows if good[ask] > rows[ask] + met[ask]})

    def _file(self) -> dict[int, Fate]:
        """The journal's rows, from a copy: the next victim shall find it as this one has left it."""
        if not self._path.exists():
            return {}
        copy = self._path.with_name("copy.sqlite")
        for suffix in ("", "-wal"):
            Path(f"{copy}{suffix}").unlink(missing_ok=True)
            if Path(f"{self._path}{suffix}").exists():
                shutil.copy(f"{self._path}{suffix}", f"{copy}{suffix}")
        with closing(sqlite3.connect(copy)) as db:
            never("damages to the file", {line for (line,) in db.execute("PRAGMA integrity_check")} - {"ok"})
            if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                return {}  # killed before it was made
        rows = list(read_records(copy))
        for name, given in (("keys", {(row.key, row.occ) for row in rows}), ("places", {row.index for row in rows})):
            never(f"{name} that stand in the file twice", range(len(rows) - len(given)))
        return {row.index: fate(row.status, getattr(row.reply, "content", None)) for row in rows}


# -- all of it --------------------------------------------------------------------------------------------


@dataclass
class Report:
    """What came of it, all trials together."""

    rows: int = 0
    """Rows to be answered."""
    received: int = 0
    """Requests that the server received."""
    faults: int = 0
    """Those of them that met a fault: another is due."""
    kills: list[Kill] = field(default_factory=list)
    """All kills, in order."""

    @property
    def beyond(self) -> int:
        """Requests beyond the ideal: answers on their way or not yet committed when a kill came."""
        return self.received - self.rows - self.faults

    def total(self, name: str, kinds: Collection[str] = tuple(DELAYS)) -> int:
        """How many rows the kills found `flying` or `out`, all together."""
        return sum(len(getattr(kill, name)) for kill in self.kills if kill.kind in kinds)

    def __str__(self) -> str:
        head = f"{'moment':<8}{'kills':>6}{'rows reported':>15}{'in flight':>11}{'not reported':>14}  the file\n"
        lines = "\n".join(map(self._line, DELAYS))
        ideal = f"{self.rows:,} rows + {self.faults:,} faults + {self.beyond:,} beyond the ideal"
        met = f"{self.total('flying'):,} requests in flight, {self.total('out'):,} rows admitted and not yet reported"
        return f"{head}{lines}\n\n{self.received:,} requests = {ideal}\n{len(self.kills)} kills met {met}"

    def _line(self, kind: str) -> str:
        kills = [kill for kill in self.kills if kill.kind == kind]
        told = [kill.reported for kill in kills] or [0]
        files = ", ".join(f"{count} {file}" for file, count in Counter(kill.file for kill in kills).most_common())
        met = f"{self.total('flying', {kind}):>11}{self.total('out', {kind}):>14}"
        return f"{kind:<8}{len(kills):>6}{f'{min(told)}..{max(told)}':>15}{met}  {files}"


def plan(rng: random.Random, moments: int) -> Iterator[tuple[str, float, float]]:
    """The moments of one trial, from `start` to `end`: kind, share of the rows then missing to be reported, delay."""
    ends = moments // 5
    between = list(itertools.islice(itertools.cycle(("commit", "middle", "start")), moments - 1 - ends))
    rng.shuffle(between)
    for left, kind in zip(range(moments - 1, -1, -1), ["start", *between, *["end"] * ends], strict=True):
        share = 1.0 if kind == "end" else rng.uniform(0, 1.2) / (left + 1)
        yield kind, share, DELAYS[kind] * rng.random() ** 2  # most things happen soon


def kill_often(
    folder: Path, *, moments: int, rows: int, seed: int, faults: str, say: Callable[[str], object] = bool
) -> Report:
    """Kill at so many moments, in trials of up to PER_TRIAL.

    Raises:
        AssertionError: something is lost, damaged, or paid for twice.
        ValueError: there is nothing to kill.
    """
    if min(moments, rows) < 1:
        raise ValueError(f"moments and rows must be at least 1, not {moments} and {rows}")
    rng, report, log = random.Random(seed), Report(), folder / "requests.log"
    with served(log, seed, faults) as base:
        for number in itertools.count(1):
            trial = Trial(number, rows, base, folder / f"trial-{number}.sqlite", log)
            for kind, share, delay in plan(rng, min(PER_TRIAL, moments - len(report.kills))):
                trial.kill_at(kind, share, delay)
            trial.finish()
            report.rows += rows
            report.kills += trial.kills
            say(f"trial {number}: {len(trial.kills)} kills, all rows there")
            if len(report.kills) >= moments:
                break
        good, bad = read_log(log)
    report.received, report.faults = good.total() + bad.total(), bad.total()
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--moments", type=int, default=50, help="kills (default %(default)s)")
    parser.add_argument("--rows", type=int, default=500, help="rows of each trial (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="draws moments and faults (default %(default)s)")
    parser.add_argument("--faults", default=FAULTS, help="as of `llmlab simulate` (default %(default)s)")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--victim", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.seed, args.faults)
    elif args.victim:
        base, path, trial, rows = args.victim
        asyncio.run(suffer(base, path, int(trial), int(rows)))
    else:
        tell(f"seed {args.seed}, faults {args.faults}, {args.rows} rows a trial, {CONCURRENCY} at once")
        with tempfile.TemporaryDirectory() as folder:
            given = {"moments": args.moments, "rows": args.rows, "seed": args.seed, "faults": args.faults}
            tell(f"\n{kill_often(Path(folder), **given, say=tell)}")


if __name__ == "__main__":
    main()
