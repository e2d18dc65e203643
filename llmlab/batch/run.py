"""A batch job at work: submits, looks now and then, fetches, and settles each row exactly once.

Stopping it leaves the batches alone: they are paid for, and go on at the provider. Only `cancel_there` ends them; what
was answered by then is fetched all the same.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterable, AsyncIterator
from functools import partial

from llmlab.batch.courier import Courier, Interval
from llmlab.batch.manifest import read_lines
from llmlab.batch.names import Bundle, Bundler
from llmlab.batch.past import Past
from llmlab.batch.purse import Purse
from llmlab.batch.settle import Settler
from llmlab.batch.task import Board, Task, Told, breathing
from llmlab.errors import BadPayload, BadRequest, Conflict, LLMError, NotFound, RequestTooLarge
from llmlab.events import Reported, Stopped
from llmlab.providers.batches import BatchAPI, Line, Parcel, Status

DOWNLOADS = 3
"""Times that results are fetched if they are not whole."""
DISK = 0.01
"""Seconds between two looks at whether the journal has caught up."""
NAP = 1.0
"""Seconds between two looks at whether a paused job goes on."""


class BatchRun:
    """Settles the rows of a batch job; see `llmlab.load.Work`.

    Args:
        task: What to do.
        api: How the provider wants to be asked.
        board: Where it shows how it stands.
        courier: Sends; tries again.
        poller: Sends once.
        interval: Seconds between two looks.
        told: Who is told.
        purse: What may be spent.
    """

    def __init__(
        self,
        task: Task,
        api: BatchAPI,
        board: Board,
        *,
        courier: Courier,
        poller: Courier,
        interval: Interval,
        told: Told,
        purse: Purse,
    ) -> None:
        self._task, self._rows, self._api, self._board = task, task.manifest, api, board
        self._courier, self._poller, self._interval, self._told = courier, poller, interval, told
        self.stopped: str | None = None
        self._purse = purse
        self._settler = Settler(task, told, purse)
        keeper, settler = task.keeper, self._settler
        self._past = None if keeper is None else Past(keeper, self._rows, settler.members, settler.announce)
        self._following = list(task.follow)
        self._left = "in no batch of this job"
        self._fetched: set[str] = set()
        self._worker: asyncio.Task[None] | None = None
        self._making = self._cancelling = False
        self._cancelled: set[str] = set()
        self._woken = asyncio.Event()

    # -- life ---------------------------------------------------------------------------------------------

    async def go(self) -> None:
        """Submit, follow and settle.

        Raises:
            LLMError: nothing could be submitted, or a batch cannot be looked at any more; BudgetSpent, if the rows
                might cost more than they may.
            Mismatch: prompts given along with an id are not those that were submitted.
        """
        worker = self._worker = asyncio.get_running_loop().create_task(self._work())
        if self.stopped is not None:
            worker.cancel()
            if self._task.sized:
                await self._read_rows()
        try:
            await asyncio.wait([worker])
        except asyncio.CancelledError:
            worker.cancel()
            await asyncio.wait([worker])
            raise
        finally:
            live = len(self._fetched) < len(self._board.batches)
            self._settler.write_off(self.stopped or _why(worker) or self._left, live=live)
            self._purse.close()
            self._told.made()
            if self._past is not None:
                await self._past.close(self._fetched, at_once=self.stopped is not None)
        if not worker.cancelled():
            worker.result()

    def stop(self, reason: str) -> None:
        """Look no further; a batch that is being made is waited for, as its id must be known."""
        if self.stopped is None:
            self.stopped = reason
            self._told.bus.emit(Stopped(reason))
        if self._worker is not None and not self._making:
            self._worker.cancel()

    def cancel_there(self) -> bool:
        """End the batches at the provider and fetch what was answered; whether that was not asked for before."""
        first, self._cancelling = not self._cancelling, True
        self._interval.again()
        self._woken.set()
        return first

    def keep_only(self, index: int) -> None:
        """Do nothing: no row of a batch can be taken back."""

    def drop(self, index: int) -> None:
        """Do nothing: no row of a batch can be taken back."""

    @property
    def waits_for(self) -> str:
        """The provider, always."""
        return "provider"

    async def _work(self) -> None:
        await self._read_rows()
        if self._past is not None:
            await self._past.recall()
            for status in await self._past.take_up(self._courier, self._api):
                self._following.append(self._note(status).id)
            self._rows.ids += self._following
        for batch in self._task.follow:
            self._note(await self._api.look(self._courier, batch))
        if not self._rows.given:
            await self._restore()
        await self._submit()
        self._told.made()
        if self.stopped is None:
            await self._follow()
            self._settler.finish(self._board.batches.values())

    async def _read_rows(self) -> None:
        source, items = self._task.source, self._rows.items
        if isinstance(source, AsyncIterable):
            async for item in source:
                items[len(items)] = item
        else:
            async for item in breathing(source):
                items[len(items)] = item
        if items:
            self._told.total(len(items))

    async def _restore(self) -> None:
        """Read the rows again, where the provider gives them back; without, only prompts are missing."""
        for status in tuple(self._board.batches.values()):
            await self._read_back(status)
        if self._rows.items:
            self._told.total(len(self._rows.items))

    async def _read_back(self, status: Status) -> None:
        if status.source is None or status.id in self._settler.members:
            return
        members: list[int | None] = []
        self._settler.members[status.id] = members
        with contextlib.suppress(NotFound):  # the file is gone after a month
            async for line in breathing(read_lines(await self._courier("GET", status.source, bytes))):
                with contextlib.suppress(BadPayload):
                    sent = self._api.read_sent(line)
                    members.append(self._rows.remember(sent.custom_id, sent.body))

    # -- submitting ---------------------------------------------------------------------------------------

    async def _submit(self) -> None:
        self._purse.reserve(self._in_order())
        api, failure = self._api, None
        bundler = Bundler(most_rows=self._task.most_rows, most_bytes=api.most_bytes, one_model=api.one_model)
        async for bundle in self._bundles(bundler):
            if self.stopped is not None or self._cancelling:
                return
            try:
                await self._make(bundle)
            except LLMError as error:
                failure = error
                for position in bundle.positions:
                    self._settler.settle(position, "error", error=error)
                if error.verdict.fatal:
                    self._left = f"not submitted, as an earlier batch could not be: {type(error).__name__}: {error}"
                    break
        if failure is not None and not self._board.batches:
            raise failure

    async def _make(self, bundle: Bundle) -> None:
        known = {*self._rows.ids}
        label = {"llmlab_job": self._rows.token or "", "llmlab_part": str(len(known) + 1)}
        parcel, past = Parcel(bundle.lines, label, known=known), self._past
        self._making = True
        try:
            ready = None if past is None else partial(past.intend, bundle=bundle)
            status = await self._courier.make(self._api, parcel, ready)
            self._rows.ids.append(status.id)
            self._rows.tries.update(bundle.positions)
            self._settler.members[status.id] = [*bundle.positions]
            self._note(status)
            if past is not None:
                await past.made(status.id)
        except LLMError:
            if past is not None and not parcel.doubtful:
                await past.not_made()
            raise
        finally:
            self._making = False

    async def _bundles(self, bundler: Bundler) -> AsyncIterator[Bundle]:
        async for position in breathing(self._in_order()):
            try:
                line = self._line(position)
            except Exception as error:  # noqa: BLE001  a row's failure is data, whatever it is
                self._settler.settle(position, "error", error=error)
                continue
            if (full := bundler.add(position, self._rows.model(position), line)) is not None:
                yield full
        if (last := bundler.rest()) is not None:
            yield last

    def _line(self, position: int) -> bytes:
        line = self._api.line(self._rows.name(position), self._rows.body(position))
        if len(line) > self._api.most_bytes:
            raise RequestTooLarge(f"one row of {len(line):,} bytes is more than a batch may hold")
        return line

    def _in_order(self) -> list[int]:
        todo = sorted(self._rows.items) if self._task.todo is None else list(self._task.todo)
        elsewhere = () if self._past is None else self._past.elsewhere
        todo = [each for each in todo if not self._settler.settled(each) and each not in elsewhere]
        return sorted(todo, key=self._rows.model) if self._api.one_model else todo

    # -- following ----------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        batches, fresh = self._board.batches, True
        while True:
            while self._told.paused() and not self._cancelling:
                await self._sleep(NAP)
            asked = [await self._visit(name, fresh=fresh) for name in tuple(batches) if name not in self._fetched]
            self._report()
            if len(self._fetched) == len(batches):
                return
            await self._sleep(self._interval.next(max(asked, default=0.0)))
            fresh = False

    async def _visit(self, name: str, *, fresh: bool) -> float:
        """See how a batch is, and fetch its results if it has ended; seconds that the provider is to be left alone.

        `fresh`: what it told a moment ago still holds.
        """
        try:
            await self._cancel(name)
            status = self._board.batches[name] if fresh else self._note(await self._api.look(self._poller, name))
            if status.ended:
                await self._fetch(status)
        except LLMError as error:
            if not error.verdict.retry:
                raise
            self._board.trouble = str(error)  # the batch goes on meanwhile: no look is the last one
            return error.retry_after or 0.0
        self._board.trouble = None
        return 0.0

    async def _cancel(self, name: str) -> None:
        if self._cancelling and name not in self._cancelled:
            with contextlib.suppress(BadRequest, Conflict):  # it has ended meanwhile
                await self._api.cancel(self._poller, name)
            self._cancelled.add(name)

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):  # not wait_for: at the moment of waking it would lose a cancellation
                await self._woken.wait()
        self._woken.clear()

    def _note(self, status: Status) -> Status:
        self._board.batches[status.id] = status
        if not self._rows.items:
            self._told.total(sum(each.total for each in self._board.batches.values()))
        return status

    def _report(self) -> None:
        told = self._board.batches.values()
        done, failed = sum(each.done for each in told), sum(each.failed for each in told)
        self._told.bus.emit(Reported(done, failed))

    # -- fetching -----------------------------------------------------------------------------------------

    async def _fetch(self, status: Status) -> None:
        if status.flaws:
            await self._read_back(status)  # they name lines
        for left in reversed(range(DOWNLOADS)):
            lines, broken = await self._download(status)
            whole = not broken and sum(line.body is not None for line in lines) >= status.answered
            if whole or not left:
                break
            await asyncio.sleep(self._interval.next())
        async for line in breathing(lines):
            self._settler.take(line, status, counts=status.id in self._following)
            while self._past is not None and self._past.behind:  # noqa: ASYNC110  a thread writes
                await asyncio.sleep(DISK)
        self._fetched.add(status.id)

    async def _download(self, status: Status) -> tuple[list[Line], int]:
        lines, broken = [], 0
        for path in status.results:
            async for line in breathing(read_lines(await self._courier("GET", path, bytes))):
                try:
                    lines.append(self._api.read(line))
                except BadPayload:
                    broken += 1
        return lines, broken


def _why(worker: "asyncio.Task[None]") -> str | None:
    """Why rows are left when a worker has failed."""
    error = None if worker.cancelled() else worker.exception()
    return None if error is None else f"{type(error).__name__}: {error}"
