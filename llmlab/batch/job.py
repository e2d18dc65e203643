"""The job of a provider's Batch API: as any other, but the work is done elsewhere, and goes on when nobody looks."""

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from llmlab.batch.courier import Courier, Interval
from llmlab.batch.manifest import Manifest
from llmlab.batch.names import JOINT
from llmlab.batch.purse import Purse
from llmlab.batch.run import BatchRun
from llmlab.batch.task import Board, Task, Told
from llmlab.estimate import Estimator
from llmlab.frame import Frame, Record
from llmlab.job import Job
from llmlab.keeper import Keeper
from llmlab.live import Look
from llmlab.load import Ground, Work
from llmlab.loops import Home, running_loop
from llmlab.order import Order
from llmlab.plan import Plan
from llmlab.policies.retry import Retry
from llmlab.progress import say
from llmlab.providers.batches import BatchAPI, Status
from llmlab.roster import CLOSED
from llmlab.target import Target

PATIENT = Retry(attempts=15)
"""For what must come through, if the lab's strategy has no Retry of the user's own: about eight minutes."""
ONCE = Retry(attempts=1, throttled=0)
"""For looks: there is always a next one."""


@dataclass
class Mission:
    """What a batch job is for."""

    manifest: Manifest
    """Its rows."""
    target: Target
    """Whose Batch API."""
    api: BatchAPI
    """How that wants to be asked."""
    poll: float
    """Seconds between two looks at most."""
    most_rows: int
    """Rows of a batch at most."""
    follow: Sequence[str] = ()
    """Batches to take up."""
    todo: Sequence[int] | None = ()
    """Rows to submit. None: all."""
    kept: Mapping[int, Record] = field(default_factory=dict)
    """Rows of an earlier job that have their answer."""


class BatchJob(Job[Frame]):
    """The job of `lab.submit_batch` and `lab.attach_batch`: `await` it, or call `result()`, for the DataFrame.

    Whatever ends the waiting (Ctrl-C, leaving the loop, the kernel's death), the batch goes on at the provider:
    `lab.attach_batch(job.id)` takes it up again. Only `cancel()` ends it there.
    """

    SPARES_COLLECTOR = False  # it lives for hours, and does next to nothing

    def __init__(
        self, name: str, order: Order, mission: Mission, *, home: Home, open_ground: Callable[[], Ground]
    ) -> None:
        self._mission, self._manifest = mission, mission.manifest
        self._ready = asyncio.Event()
        self._run: BatchRun | None = None
        self._board = Board()
        super().__init__(name, order, home=home, open_ground=open_ground, finish=_frame)

    def _begin_by_itself(self) -> None:
        self._records.update(self._mission.kept)
        self.progress.now.done = len(self._mission.kept)
        super()._begin_by_itself()

    def _work(self, ground: Ground, keeper: Keeper | None) -> Work:  # noqa: ARG002  a batch stands in no line
        mission, rng = self._mission, random.Random(self._order.seed)
        provider, policies = mission.target.provider, mission.target.strategy.policies
        own = next((each for each in policies if isinstance(each, Retry)), Retry())
        retry = PATIENT if own == Retry() else own
        items = self._order.rows.items
        assert not isinstance(items, Plan)  # noqa: S101  read_rows makes none
        task = Task(
            self._manifest,
            items,
            mission.todo,
            mission.follow,
            {*mission.kept},
            mission.most_rows,
            keeper,
            self._order.rows.total is not None,
        )
        self._run = BatchRun(
            task,
            mission.api,
            self._board,
            courier=Courier(provider, retry, rng),
            poller=Courier(provider, ONCE, rng),
            interval=Interval(mission.poll, rng),
            purse=self._purse(),
            told=Told(self.bus, self._keep, self._tell_total, self._tell_made, lambda: self.paused),
        )
        return self._run

    def _purse(self) -> Purse:
        line = self._mission.target.line
        estimator = Estimator() if line is None or line.estimator is None else line.estimator
        return Purse(self._order.lane.budgets, estimator, self._manifest, self._mission.api.discount)

    def _tell_total(self, total: int) -> None:
        self.progress.now.total = total or None

    def _tell_made(self) -> None:
        first = not self._ready.is_set()
        self._ready.set()
        if first and self.id is not None and self._mission.todo not in ((), []):
            say(f"llmlab: submitted; from any process lab.attach_batch({self.id!r}) takes it up again")

    # -- looking ------------------------------------------------------------------------------------------

    @property
    def id(self) -> str | None:
        """What `lab.attach_batch` takes the job up by, in any process; None: nothing was submitted yet.

        The provider's own ids, joined by "+" if the rows are several batches.
        """
        return JOINT.join(self._manifest.ids) or None

    @property
    def batches(self) -> list[Status]:
        """Each batch as its provider last told of it."""
        return list(self._board.batches.values())

    async def submitted(self) -> str:
        """Wait until the provider has all rows; gives `id`. In a script without a loop: `lab.wait_for(job.submitted)`.

        Raises:
            LLMError: nothing could be submitted.
            asyncio.CancelledError: the job was stopped before.
        """
        loop = self._home.loop
        if self._home.elsewhere and loop is not None and loop is not running_loop():
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._submitted(), loop))
        return await self._submitted()

    async def _submitted(self) -> str:
        task = self._start()
        ready = asyncio.ensure_future(self._ready.wait())
        await asyncio.wait([task, ready], return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if self.id is None:
            await asyncio.shield(task)
            raise asyncio.CancelledError(self._stopped or "nothing was submitted")
        return self.id

    def look(self) -> Look:
        """What there is to see of the job now, from any thread; how far the provider is, by its own counts."""
        look = super().look()
        look.total = self.progress.now.total
        if look.state == "running":
            look.notes = [*look.notes, *(_said(each) for each in self.batches)]
            if self._board.trouble:
                look.notes.append(f"the provider cannot be asked for now: {self._board.trouble}")
        return look

    @property
    def frame(self) -> Frame:
        """The rows settled so far, in input order; names that others gave them are the index, where there is no other.

        See `llmlab.frame.COLUMNS`.
        """
        rows, names = self._order.rows, self._manifest.foreign
        if names is not None and rows.index is None:
            rows = replace(rows, index=Frame(index=names).index)
        return rows.frame(self._records.copy())  # a copy: the job may run in another thread

    # -- stopping -----------------------------------------------------------------------------------------

    async def drained(self) -> None:
        """Wait until the provider has all rows, and then look no further: its lab is closed, the batch goes on."""
        task, ready = self._start(), asyncio.ensure_future(self._ready.wait())
        await asyncio.wait([task, ready], return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if not task.done():
            self.stop(CLOSED)
        await self.ended()

    def cancel(self) -> None:
        """Cancel at the provider, from any thread: awaiting then returns what was answered by then, and is billed.

        Rows that the provider had not begun become `cancelled`. That may take it some minutes; a second call waits no
        longer.
        """
        self._home.call_soon(self._cancel_there)

    def _cancel_there(self) -> None:
        if self._run is None or not self._run.cancel_there():
            self._stop("cancelled")
        self._stopped = self._stopped or "cancelled"

    def resubmit(self, *, refused: bool = False, poll: float | None = None) -> "BatchJob":
        """Submit the rows without an answer once more: those that expired, failed or were cancelled.

        Args:
            refused: Also those that the provider found wrong, which will be refused again if they are the same.
            poll: As in `lab.submit_batch`. None: as before.

        Returns:
            A new job for all rows, whose id names the old batches, too; rows with an answer are not asked again.

        Raises:
            RuntimeError: the job is still under way.
            ValueError: it was taken up by its id alone, and the provider does not give its prompts back.
        """
        if not self.done:
            raise RuntimeError("resubmit: the batch is still under way; await the job first")
        todo = self._manifest.without_answer(refused=refused)
        if any(each not in self._manifest.items and each not in self._manifest.bodies for each in todo):
            raise ValueError(f"resubmit needs the prompts: lab.attach_batch({self.id!r}, prompts) knows them")
        kept = {position: row for position, row in self._records.items() if position not in {*todo}}
        mission = replace(
            self._mission,
            manifest=replace(self._manifest, ids=[*self._manifest.ids]),
            poll=poll or self._mission.poll,
            follow=(),
            todo=todo,
            kept=kept,
        )
        rows = replace(self._order.rows, items=())
        return BatchJob(
            "submit_batch",
            replace(self._order, rows=rows, journal=None),
            mission,
            home=self._home,
            open_ground=self._open,
        )


def _frame(job: Job[Frame]) -> Frame:
    return job.frame


def _said(batch: Status) -> str:
    """How a batch stands, in words."""
    counts = f", {batch.done:,} of {batch.total:,} rows" if batch.total else ""
    return f"{batch.id}: {batch.state}{counts}"
