"""Every fault the simulated provider knows, in both dialects, plain and streamed: what becomes of the rows.

A cell is one run of `Lab.run_many` through the default stack in virtual time, in which SHARE of the requests meet the
fault. What each row met is taken from the provider's own log, never from the client's account, and `judge` holds the
result against it. It goes by what the last request of a row met:

    nothing, a quirk, slowness     ok, with the whole answer to its own prompt            else lost, or misplaced
    an empty or a refused answer   ok, "", and the finish_reason says which               else lost
    what a retry mends             it is not the last request until PATIENCE is over      else lost; then spent
    what no retry mends            failed, with the error class of the taxonomy           else misread, or lost
    (it was never sent)            unsent: cancelled, because a fatal fault ends the job  else lost

A fatal fault (no row can succeed: key, credit) ends the job with its first answer. What is in flight then ends by
itself; whatever is sent later is a wrong retry.

`python -m tests.fault_table [SEED]` prints the table, and below it what must not be.
"""

import asyncio
import contextlib
import io
import math
import sys
from collections import Counter
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import astuple, dataclass, fields
from functools import cached_property, partial
from hashlib import blake2b
from itertools import product
from typing import Any
from zlib import crc32

import httpx
import orjson
import pandas as pd

import llmlab
from llmlab.clock import run_virtual
from llmlab.policies.retry import Retry
from llmlab.sim.faults import Faults
from llmlab.sim.kinds import KINDS
from llmlab.sim.tally import Tally
from llmlab.sim.transport import Simulator
from llmlab.strategy import Strategy

ROWS = 60
SHARE = 0.2
"""Of the requests, retries included, that meet the cell's fault."""
MOST = 1.0
"""Requests per ideal request at most: not one too many."""

FATAL = frozenset({"quota", "billing", "auth"})
POOR = {"empty": "stop", "refused": "content_filter"}
"""Answers without text -> the finish_reason that says so."""

_NAMES = {
    "RateLimited": "rate_limited rate_limited_float rate_limited_date rate_limited_ms rate_limited_text "
    "rate_limited_bare rate_limited_long slow_down",
    "RequestTooLarge": "too_large_429 too_large",
    "QuotaExhausted": "quota billing",
    "BadRequest": "bad_request",
    "UnsupportedParam": "unsupported_param",
    "ContextTooLong": "context_too_long",
    "ContentBlocked": "content_filter",
    "AuthFailed": "auth",
    "PermissionDenied": "permission",
    "NotFound": "not_found",
    "TimedOut": "timeout gateway_timeout",
    "Conflict": "conflict",
    "Overloaded": "unavailable overloaded string_error array_error",
    "ServerError": "server_error final_500 bad_gateway_html error_200 error_in_stream",
    "Dropped": "reset hangup stall reset_midway cut stall_midway",
    "BadPayload": "cut_silent malformed html_200 no_choices empty_body",
}
PLAIN = {fault: error for error, faults in _NAMES.items() for fault in faults.split()}
"""Fault -> the class of the taxonomy that an attempt ends with; what is not here is an answer."""
STREAMED = PLAIN | {"error_in_stream": "Overloaded"} | dict.fromkeys(("cut_silent", "empty_body"), "StreamTruncated")
PATIENCE = {"RateLimited": 31}
"""A row may be given up when it has met its fault so many times; other classes: 6. The figures of the default Retry
and of the verdicts, written out, so that less patience shows as rows lost."""


@dataclass(frozen=True)
class Cell:
    """One line of the table."""

    dialect: str
    """openai or anthropic."""
    fault: str
    """A kind of KINDS."""
    mode: str
    """plain or streamed."""

    def error(self, fault: str) -> str | None:
        """The class of the error with which an attempt that met `fault` must end; None: an answer."""
        return (PLAIN if self.mode == "plain" else STREAMED).get(fault)

    def __str__(self) -> str:
        return f"{self.dialect}-{self.fault}-{self.mode}"


CELLS = tuple(Cell(*each) for each in product(("openai", "anthropic"), KINDS, ("plain", "streamed")))


def mends(fault: str) -> bool:
    """Whether a retry mends it; not if it asks for a longer wait than the default Retry grants."""
    kind = KINDS.get(fault)
    return kind is not None and kind.recoverable and (Faults().wait(kind) or 0.0) <= Retry().max_retry_after


def answer(prompt: str) -> str:
    """The answer to a prompt: no other prompt has it, and no part of it is whole. Not all of it is ASCII."""
    digest = blake2b(prompt.encode(), digest_size=8).hexdigest()
    return f"Naïve 答え {digest[:6]} {digest[6:]}, and that is all about “{prompt}”."


@dataclass
class Request:
    """One request, as the provider saw it."""

    prompt: str
    """What it asked."""
    sent: float
    """When it came, loop seconds."""
    fault: str = ""
    """What it met; "": nothing."""
    ended: float = math.inf
    """When its answer began, or the connection ended."""


_asking: ContextVar[Request] = ContextVar("_asking")


class _Log(Tally):
    def enter(self, fault: str) -> None:
        super().enter(fault)
        _asking.get().fault = fault


class Witness(Simulator):
    """The simulated provider; says `answer`, and writes down each request."""

    def __init__(self, fault: str, *, seed: int) -> None:
        super().__init__(seed=seed, faults=Faults.only(fault, SHARE), say=lambda ask: answer(ask.text))
        self.world.tally = _Log()
        self.log: list[Request] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer one request."""
        loop = asyncio.get_running_loop()
        noted = Request(orjson.loads(await request.aread())["messages"][-1]["content"], loop.time())
        self.log.append(noted)
        _asking.set(noted)
        try:
            return await super().handle_async_request(request)
        finally:
            noted.ended = loop.time()


@dataclass(frozen=True)
class Evidence:
    """What went into a run, and what came out."""

    cell: Cell
    """Which run."""
    prompts: "pd.Series[str]"
    """The input, under labels that are in no order."""
    frame: pd.DataFrame
    """The result."""
    attempts: pd.DataFrame
    """`job.attempts`."""
    requests: tuple[Request, ...]
    """The provider's log, in the order in which they came."""
    counted: int
    """Requests by the simulator's own count."""
    seconds: float
    """How long it took, virtual seconds."""

    @cached_property
    def met(self) -> dict[str, list[str]]:
        """Prompt -> what its requests met, in their order."""
        met: dict[str, list[str]] = {prompt: [] for prompt in self.prompts}
        for request in self.requests:
            met.setdefault(request.prompt, []).append(request.fault)
        return met


def run(cell: Cell, *, strategy: Strategy | None = None, seed: int = 0) -> Evidence:
    """Run a cell in virtual time; None: the strategy that a Lab has by itself."""
    own = crc32(f"{cell} {seed}".encode())  # with one seed for all, it would be the same rows in every cell
    witness = Witness(cell.fault, seed=own)
    prompts = pd.Series({f"row {n * 37 % 101}": f"Question {n}" for n in range(ROWS)})

    async def main() -> Evidence:
        lab = llmlab.Lab(f"{cell.dialect}:m", transport=witness, strategy=strategy, seed=own, progress=False)
        job = lab.run_many(prompts, stream=cell.mode == "streamed")
        frame = await job
        now = asyncio.get_running_loop().time()
        return Evidence(cell, prompts, frame, job.attempts, tuple(witness.log), witness.requests, now)

    return run_virtual(main)


@dataclass(frozen=True)
class Line:
    """What is to be said of a run."""

    cell: Cell
    """Which run."""
    rows: int
    """Rows of the input."""
    faults: int
    """Requests that met the fault."""
    ok: int
    """Rows with the answer they should have."""
    failed: int
    """Rows that failed as they should."""
    unsent: int
    """Rows that a fatal fault has rightly kept from being sent."""
    spent: int
    """Rows given up, with the right error, because they met what a retry mends as often as PATIENCE says."""
    lost: int
    """Rows without an outcome, in error although a retry mends the fault, or ok with a wrong, cut or missing answer."""
    misplaced: int
    """Rows with the prompt or the answer of another, or in another's place."""
    misread: int
    """Attempts that ended otherwise than the taxonomy says of what they met."""
    wrong_retries: int
    """Requests after what no retry mends, after a good answer, or after a fatal one."""
    unaccounted: int
    """Requests on which frame, attempts, log and simulator do not agree."""
    requests: int
    """Requests that the provider saw."""
    ideal: int
    """Requests needed: one for each row that had to be sent, and one more for each fault met that a retry mends."""
    seconds: float
    """How long the run took, virtual seconds."""

    @property
    def ratio(self) -> float:
        """Requests per ideal request."""
        return self.requests / self.ideal if self.ideal else math.inf

    @property
    def breaches(self) -> list[str]:
        """What must not be."""
        none = ("lost", "misplaced", "misread", "wrong_retries", "unaccounted")
        found = [f"{name}: {getattr(self, name)}" for name in none if getattr(self, name)]
        if self.ratio > MOST:
            found.append(f"requests/ideal: {self.ratio:.3f}")
        return found if self.faults else [*found, "the fault never came"]


def _records(frame: pd.DataFrame) -> list[dict[Any, Any]]:
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


def judge(seen: Evidence) -> Line:
    """Hold a run's result against what the provider saw."""
    said = dict(zip(seen.prompts, _rows(seen), strict=True))
    rows, late = Counter(said.values()), _late(seen)
    misread = {(prompt, len(seen.met[prompt])) for prompt in said if said[prompt] == "misread"} | _misread(seen)
    return Line(
        cell=seen.cell,
        rows=len(said),
        faults=sum(request.fault == seen.cell.fault for request in seen.requests),
        **{name: rows[name] for name in ("ok", "failed", "unsent", "spent", "lost")},
        misplaced=rows["misplaced"] + _moved(seen),
        misread=len(misread),
        wrong_retries=sum(map(_needless, seen.met.values())) + len(late),
        unaccounted=_unaccounted(seen),
        requests=len(seen.requests),
        ideal=len(said) - rows["unsent"] - len(late) + sum(mends(request.fault) for request in seen.requests),
        seconds=seen.seconds,
    )


def _rows(seen: Evidence) -> Iterator[str]:
    """What is to be said of each row of the input."""
    owners = {answer(prompt): prompt for prompt in seen.prompts}
    found = dict(zip(seen.frame.index, _records(seen.frame), strict=True))
    for label, prompt in seen.prompts.items():
        row = found.get(label)
        if row is None:
            yield "lost"
        elif row["prompt"] != prompt or owners.get(row["content"], prompt) != prompt:
            yield "misplaced"
        else:
            yield _verdict(seen.cell, row, seen.met[prompt])


def _verdict(cell: Cell, row: dict[Any, Any], met: list[str]) -> str:
    if not met:
        return "unsent" if row["status"] == "cancelled" and cell.fault in FATAL else "lost"
    last, error = met[-1], cell.error(met[-1])
    if error is None:
        due = ("", POOR[last]) if last in POOR else (answer(row["prompt"]), "stop")
        return "ok" if (row["status"], row["content"], row["finish_reason"]) == ("ok", *due) else "lost"
    if row["status"] != "error":
        return "lost"
    if mends(last):
        return "spent" if row["error_type"] == error and len(met) >= PATIENCE.get(error, 6) else "lost"
    return "failed" if row["error_type"] == error else "misread"


def _moved(seen: Evidence) -> int:
    """Rows that are not where the input has them, or that it does not have."""
    labels: list[str] = seen.frame.index.tolist()
    due = [str(label) for label in seen.prompts.index if label in labels]
    return sum((a != b for a, b in zip(due, labels, strict=False)), len(labels) - len(due))


def _misread(seen: Evidence) -> set[tuple[str, int]]:
    """Attempts, as (prompt, from 1), whose error is not the one due."""
    told = {(seen.prompts.iloc[each["position"]], each["attempt"]): each for each in _records(seen.attempts)}
    due = {(prompt, n): seen.cell.error(fault) for prompt, met in seen.met.items() for n, fault in enumerate(met, 1)}
    return {key for key in told.keys() & due.keys() if told[key]["error_type"] != due[key]}


def _needless(met: list[str]) -> int:
    """Requests of a row after the one that settled it."""
    return next((len(met) - n for n, fault in enumerate(met, 1) if not mends(fault)), 0)


def _late(seen: Evidence) -> set[str]:
    """Rows first sent after a fatal answer."""
    fatal = [each.ended for each in seen.requests if each.fault in FATAL]
    stop = min(fatal, default=math.inf)
    return {each.prompt for each in seen.requests} - {each.prompt for each in seen.requests if each.sent <= stop}


def _unaccounted(seen: Evidence) -> int:
    sent = Counter(request.prompt for request in seen.requests)
    told = Counter[str](seen.frame["prompt"].repeat(seen.frame["attempts"].tolist()))
    ended = Counter[str](seen.prompts.iloc[seen.attempts["position"]])
    return abs(seen.counted - len(seen.requests)) + sum(((n - sent) + (sent - n)).total() for n in (told, ended))


def table(lines: list[Line]) -> str:
    """The lines, and their sums, in Markdown."""
    counts = [each.name for each in fields(Line)[1:-1]]
    heads = ["dialect", "fault", "mode", *(name.replace("_", " ") for name in counts), "requests/ideal", "seconds"]
    rows = [[*astuple(line.cell), *astuple(line)[1:-1], f"{line.ratio:.3f}", f"{line.seconds:.1f}"] for line in lines]
    sums = [sum(getattr(line, name) for line in lines) for name in counts]
    total = ["all", "", "", *sums, f"at most {max(line.ratio for line in lines):.3f}", ""]
    ruler = ["---" if n < 3 else "---:" for n in range(len(heads))]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (heads, ruler, *rows, total))


def main() -> None:
    """Print the table, and below it what must not be."""
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    with contextlib.redirect_stderr(io.StringIO()):  # jobs that stop early say so
        lines = [judge(each) for each in map(partial(run, seed=seed), CELLS)]
    print(table(lines))  # noqa: T201  the table is what it is for
    print(*(f"\n{line.cell}: {', '.join(line.breaches)}" for line in lines if line.breaches), sep="\n")  # noqa: T201


if __name__ == "__main__":
    main()
