"""One packed request: the rows that wait for it, the call that carries them, and what each gets of its answer."""

import asyncio
import math
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import TypeAlias

from llmlab.call import Call, Handler
from llmlab.errors import BadRequest, ContextTooLong, LLMError, PackGarbled, RequestTooLarge, Unsendable
from llmlab.events import Admitted, Attempted, Event, Rerouted, Retrying
from llmlab.packing import draw_ids, pack, unpack
from llmlab.shares import share_cost, share_usage
from llmlab.types import Message, Prompt, Reply, Usage

WORDY, PER_ROW, AROUND = 1.25, 24, 32
"""Times the tokens of a text that it takes as JSON; tokens around each answer, and around all."""

End: TypeAlias = Reply | Exception | None
"""What a row gets: its reply, its error, or None: it is to be asked by itself."""


@dataclass(eq=False)
class Seat:
    """A row's place in a bundle."""

    call: Call
    """The row's own."""
    size: float
    """Tokens of its text, estimated."""
    joined: float
    """Loop time at which it came, or its last request ended."""
    end: "asyncio.Future[End]"
    """What it gets."""
    bundle: "Bundle"
    """Where it sits; that changes when a bundle is halved."""
    before: int = 0
    """Its attempts before this request's."""


class Bundle:
    """Rows on their way in one request. Not sent before `send`, after which nobody joins.

    Args:
        inner: The stack below.
        told: Called with how many rows have shared a request, and how many of them must be asked again.
    """

    def __init__(self, inner: Handler, told: Callable[[int, int], None]) -> None:
        self._inner, self._told = inner, told
        self._loop = asyncio.get_running_loop()
        self._seats: list[Seat] = []
        self._task: asyncio.Task[None] | None = None  # held, as the loop does not
        self._carrier: Call | None = None
        self._ids: dict[Seat, str] = {}
        self._flying = 0  # requests in flight: two, if it is hedged
        self._won: list[Attempted] = []  # successes, until it is known whose they are
        self.size = 0.0
        """Tokens of its rows."""

    @property
    def present(self) -> list[Seat]:
        """Rows that still wait for it."""
        return [seat for seat in self._seats if seat.bundle is self and not seat.end.done()]

    def join(self, call: Call, size: float) -> Seat:
        """Take a row in."""
        seat = Seat(call, size, self._loop.time(), self._loop.create_future(), self)
        self.seat(seat)
        return seat

    def seat(self, seat: Seat) -> None:
        """Take in a row that had another seat before."""
        seat.bundle, seat.before = self, seat.call.attempts
        self._seats.append(seat)
        self.size += seat.size

    def send(self) -> None:
        """Send it; a row without company is asked by itself."""
        self._seats = self.present
        if len(self._seats) > 1:
            self._task = self._loop.create_task(self._carry())
        for seat in () if self._task is not None else self._seats:
            seat.end.set_result(None)

    def leave(self, seat: Seat) -> None:
        """Let a row go that was cancelled; without rows the request is given up."""
        call = seat.call
        if not seat.end.cancelled():  # it got its answer at the very moment
            end = seat.end.result()
            if isinstance(end, Reply) and end.usage is not None:
                call.waste(end.usage, end.cost_usd)
            return
        self._charge([seat])
        for _ in range(self._flying):
            gone = LLMError("the row was cancelled while its packed request went on")
            sent = self._loop.time() if self._carrier is None or self._carrier.sent is None else self._carrier.sent
            call.emit(
                Attempted(call.index, call.attempts, sent, self._loop.time(), gone, None, None, "packed",
                          f"{call.provider}:{call.model}", rows=len(self._seats))
            )  # fmt: skip
        if not self.present and self._task is not None:
            self._task.cancel()

    # -- on its way ---------------------------------------------------------------------------------------

    async def _carry(self) -> None:
        carrier = self._carrier = self._make_carrier()
        for seat in self._seats:
            seat.call.queue_s += self._loop.time() - seat.joined
        try:
            reply = await self._inner(carrier)
        except Exception as error:  # noqa: BLE001  whatever it is, it is the rows'
            self._fail(self.present, error)
        else:
            self._hand_out(self.present, reply)
        finally:
            for seat in self.present:  # it was cancelled from below, and nobody is to be left waiting
                seat.end.cancel()

    def _make_carrier(self) -> Call:
        calls = [seat.call for seat in self._seats]
        first, texts = calls[0], [call.prompt.text for call in calls]
        ids = draw_ids(texts, first.rng)
        self._ids = dict(zip(self._seats, ids, strict=True))
        carried = replace(
            first.prompt,
            messages=(*first.prompt.messages[:-1], Message("user", pack(texts, ids))),
            max_tokens=_room(first.prompt, len(calls)),
        )
        deadlines = [math.inf if call.deadline is None else call.deadline for call in calls]
        return Call(
            first.index,
            carried,
            self._hear,
            first.rng,
            seq=min(call.seq for call in calls),
            deadline=None if max(deadlines) == math.inf else max(deadlines),
            provider=first.provider,
            model=first.model,
            price=first.price,
            kind="packed",
            lane=first.lane.turns,
        )

    def _hear(self, event: Event) -> None:
        """Publish what happens to the request as happening to each of its rows."""
        if isinstance(event, Admitted):
            self._flying += 1
        elif isinstance(event, Attempted):
            self._flying -= 1
            if event.error is None:
                self._won.append(event)
            else:
                self._publish(event, None)
            return
        elif not isinstance(event, Retrying | Rerouted):
            return
        for seat in self.present:
            each: Event = replace(event, index=seat.call.index)
            if isinstance(each, Retrying):
                each = replace(each, attempt=seat.before + each.attempt)
            seat.call.emit(each)

    def _publish(self, event: Attempted, written: Sequence[float] | None) -> None:
        """Publish one attempt as each row's, with the row's share of what it used."""
        present = self.present
        usages = self._shares(present, event.usage, written)
        costs = self._costs(event.cost_usd, usages)
        for seat, usage, cost in zip(present, usages, costs, strict=True):
            seat.call.emit(
                replace(
                    event, index=seat.call.index, attempt=seat.before + event.attempt, usage=usage, cost_usd=cost,
                    rows=len(present),
                )
            )  # fmt: skip

    def _shares(self, seats: list[Seat], usage: Usage | None, written: Sequence[float] | None) -> list[Usage | None]:
        if usage is None or not seats:
            return [None] * len(seats)
        return [*share_usage(usage, [PER_ROW + seat.size for seat in seats], written or [1.0] * len(seats))]

    def _costs(self, cost: float | None, usages: Sequence[Usage | None]) -> list[float | None]:
        known = [usage for usage in usages if usage is not None]
        if len(known) < len(usages) or not known or self._carrier is None:
            return [None] * len(usages)
        return share_cost(cost, known, self._carrier.price)

    # -- at its end ---------------------------------------------------------------------------------------

    def _charge(self, seats: list[Seat]) -> None:
        """Put the request on the account of rows: its attempts and waiting whole, what it used in vain in shares."""
        carrier = self._carrier
        if carrier is None:
            for seat in seats:
                seat.call.queue_s += self._loop.time() - seat.joined
            return
        for seat in seats:
            call = seat.call
            call.attempts = seat.before + carrier.attempts
            call.queue_s, call.wait_s = call.queue_s + carrier.queue_s, call.wait_s + carrier.wait_s
            seat.joined = self._loop.time()

    def _waste(self, seats: list[Seat]) -> None:
        carrier = self._carrier
        if carrier is None or carrier.wasted is None:
            return
        usages = self._shares(seats, carrier.wasted, None)
        for seat, usage, cost in zip(seats, usages, self._costs(carrier.wasted_usd, usages), strict=True):
            if usage is not None:
                seat.call.waste(usage, cost)

    def _hand_out(self, present: list[Seat], reply: Reply) -> None:
        found = unpack(reply.content, set(self._ids.values()))
        answers = [found.get(self._ids[seat]) for seat in present]
        written = [PER_ROW + len(answer or "") / 4 for answer in answers]
        self._charge(present)
        self._waste(present)
        for event in self._won:
            self._publish(event, written)
        usages = self._shares(present, reply.usage, written)
        for seat, answer, usage, cost in zip(
            present, answers, usages, self._costs(reply.cost_usd, usages), strict=True
        ):
            if answer is not None:
                seat.end.set_result(_part(reply, answer, usage, cost))
                continue
            if usage is not None:
                seat.call.waste(usage, cost)
            why = f"the packed answer had nothing usable for this row (it ended with: {reply.finish_reason})"
            self._redo(seat, PackGarbled(why))
        self._told(len(present), answers.count(None))

    def _fail(self, present: list[Seat], error: Exception) -> None:
        self._charge(present)
        self._waste(present)
        for event in self._won:  # an answer had come, and something above the provider made an error of it
            self._publish(event, None)
        if isinstance(error, ContextTooLong | RequestTooLarge) and len(present) > 2:  # noqa: PLR2004
            self._told(0, 0)
            self._halve(present)
        elif isinstance(error, BadRequest | Unsendable) or not isinstance(error, LLMError):
            for seat in present:
                self._redo(seat, error)
            self._told(len(present), len(present))
        else:
            for n, seat in enumerate(present):
                seat.end.set_result(copy(error) if n else error)
            self._told(len(present), 0)

    def _halve(self, present: list[Seat]) -> None:
        middle = len(present) // 2
        for seats in (present[:middle], present[middle:]):
            half = Bundle(self._inner, self._told)
            for seat in seats:
                half.seat(seat)
            half.send()

    def _redo(self, seat: Seat, why: Exception) -> None:
        call = seat.call
        if call.attempts and isinstance(why, LLMError):
            call.kind = "retry"
            call.emit(Retrying(call.index, call.attempts, 0.0, why))
        seat.end.set_result(None)


def _room(prompt: Prompt, rows: int) -> int | None:
    """Output tokens for so many answers as JSON, none of which alone may have more than the prompt allows."""
    return None if prompt.max_tokens is None else rows * (math.ceil(WORDY * prompt.max_tokens) + PER_ROW) + AROUND


def _part(reply: Reply, answer: str, usage: Usage | None, cost: float | None) -> Reply:
    return replace(reply, content=answer, finish_reason="stop", usage=usage, cost_usd=cost, reasoning="", tool_calls=())
