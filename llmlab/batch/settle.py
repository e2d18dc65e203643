"""Settles the rows of a batch job: each exactly once, with the last word on it.

A row may be in several batches, as it was submitted again. Its first answer counts; a failure only when all is known.
"""

import asyncio
from collections.abc import Iterable

from llmlab.batch.names import JOINT
from llmlab.batch.purse import Purse
from llmlab.batch.task import Task, Told
from llmlab.clock import wall_offset
from llmlab.errors import BadPayload, Conflict, LLMError, SchemaMismatch
from llmlab.events import Attempted, Finished
from llmlab.providers.batches import Line, Status
from llmlab.types import Kind, Outcome, Prompt, Reply
from llmlab.types import Status as Fate


class Settler:
    """Turns results into outcomes. Lives on one loop.

    Args:
        task: What the job is to do.
        told: Who is told of each row.
        purse: Told what it has cost.
    """

    def __init__(self, task: Task, told: Told, purse: Purse) -> None:
        self._rows, self._settled, self._keeper = task.manifest, task.carried, task.keeper
        self._bus, self._keep, self._purse = told.bus, told.keep, purse
        self._failures: dict[int, tuple[Line, Status]] = {}
        self.members: dict[str, list[int | None]] = {}
        """Rows of each batch, as they stand in it, where that is known; None: not of this job."""
        self._wall = wall_offset()

    def take(self, line: Line, status: Status, *, counts: bool) -> None:
        """Take the result of a row; `counts`: that it was in this batch is not counted yet."""
        if line.custom_id in self._rows.aliases and self._rows.aliases[line.custom_id] is None:
            return  # of an earlier run, whose input had it
        position = self._rows.place(line.custom_id)
        if counts:
            self._rows.tries[position] += 1
        if line.body is None:
            self._failures[position] = line, status
            return
        try:
            reply = self._read(position, line)
        except LLMError as error:
            self._failures[position] = Line(line.custom_id, error=error, request_id=line.request_id), status
        else:
            self.settle(position, "ok", reply=reply, batch=status)

    def _read(self, position: int, line: Line) -> Reply:
        reply = self._rows.reply(line)
        if self._rows.reader is None:
            return reply
        try:
            return self._rows.reader.read(reply)
        except SchemaMismatch:
            if reply.usage is not None:
                self._rows.waste(position, reply.usage, reply.cost_usd)
            raise

    def finish(self, batches: Iterable[Status]) -> None:
        """Settle the rows that have no answer: all batches have ended."""
        self._settle_failures()
        for status in batches:
            self._settle_without_results(status, self.members.get(status.id, []))

    def _settle_failures(self) -> None:
        for position, (line, status) in self._failures.items():
            if line.error is None:
                self.settle(position, "cancelled", error=_cancelled(status), batch=status)
            else:
                self.settle(position, "error", error=line.error, batch=status)

    def _settle_without_results(self, status: Status, members: list[int | None]) -> None:
        flaws = dict(status.flaws)
        for number, position in enumerate(members, 1):
            if position is None or position in self._settled:
                continue
            if status.flaws:
                self.settle(position, "error", error=_flaw(flaws, number), batch=status)
            elif status.cancelled:
                self.settle(position, "cancelled", error=_cancelled(status), batch=status)
            else:
                error = BadPayload(f"{status.id} has ended as {status.state} without a result for this row")
                self.settle(position, "error", error=error, batch=status)

    def settle(
        self,
        position: int,
        fate: Fate,
        *,
        reply: Reply | None = None,
        error: BaseException | None = None,
        batch: Status | None = None,
    ) -> None:
        """Settle a row, unless it is settled; `batch`: the one that it was worked on in."""
        if position in self._settled:
            return
        self._settled.add(position)
        item, now = self._rows.items.get(position), asyncio.get_running_loop().time() + self._wall
        now = now if batch is None else batch.over or now
        began = now if batch is None or batch.made is None else batch.made
        if batch is not None:
            self._attempted(position, reply, error, began, now)
        elif not self._rows.tries[position]:
            self._purse.never_sent(position)
        if error is None:
            self._rows.bodies.pop(position, None)
            self._rows.errors.pop(position, None)
        else:
            self._rows.errors[position] = error
        prompt = item if isinstance(item, Prompt) else None
        tries, wasted = self._rows.tries[position], self._rows.wasted.get(position, (None, None))
        outcome = Outcome(position, prompt, fate, reply, error, tries, 0.0, 0.0, began, now, *wasted)
        if self._keeper is not None and fate != "cancelled":
            self._keeper.keep(outcome, self.announce)  # it is reported when it is committed
        else:
            self.announce(outcome)

    def announce(self, outcome: Outcome) -> None:
        """Report a row: one settled here, or in an earlier run."""
        self._settled.add(outcome.index)
        self._keep(outcome)
        self._bus.emit(Finished(outcome))

    def settled(self, position: int) -> bool:
        """Whether a row is settled."""
        return position in self._settled

    def _attempted(
        self, position: int, reply: Reply | None, error: BaseException | None, began: float, ended: float
    ) -> None:
        tries, target = self._rows.tries[position], f"{self._rows.provider.name}:{self._rows.provider.model}"
        usage, cost = self._rows.wasted.get(position, (None, None)) if reply is None else (reply.usage, reply.cost_usd)
        self._purse.settled(position, usage, cost)
        failure = error if isinstance(error, LLMError) or error is None else LLMError(str(error))
        sent, over = began - self._wall, ended - self._wall
        kind: Kind = "first" if tries <= 1 else "retry"
        self._bus.emit(Attempted(position, max(1, tries), sent, over, failure, usage, cost, kind, target))

    def write_off(self, reason: str, *, live: bool) -> None:
        """Settle what nobody waits for any more, and rows that are in no batch; `live`: a batch goes on."""
        self._settle_failures()
        if live:
            reason += f"; what was submitted goes on: lab.attach_batch({JOINT.join(self._rows.ids)!r})"
        for position in sorted({*self._rows.items} - self._settled):
            self.settle(position, "cancelled", error=asyncio.CancelledError(reason))


def _cancelled(status: Status) -> asyncio.CancelledError:
    return asyncio.CancelledError(f"cancelled at the provider with {status.id}")


def _flaw(flaws: dict[int | None, LLMError], number: int) -> LLMError:
    """What is wrong with a row of a batch that was not worked on: its own fault, or another row's."""
    if (own := flaws.get(number) or flaws.get(None)) is not None:
        return own
    other, error = next(iter(flaws.items()))
    failure = Conflict(f"not worked on, as the whole batch was refused: its line {other} is wrong ({error.message})")
    failure.hint = "job.resubmit() sends the rows without such a fault"
    return failure
