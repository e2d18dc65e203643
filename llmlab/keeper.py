"""A job's hold on its journal: which rows are done already, and when a row may be reported.

A row is reported when it is committed, not before. Rows answered in an earlier run are read back some hundred at a
time and reported without a request. What cannot be written in the end (a disk that stays full) is still in the frame.
"""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from llmlab.call import Reader
from llmlab.clock import wall_offset
from llmlab.errors import SchemaMismatch
from llmlab.events import Attempted, Bus
from llmlab.logbook import UNREADABLE, Attempt, Journal, Occurrences, Stored, key_of
from llmlab.types import Outcome, Prompt, Reply

CHUNK = 500
"""Rows read back from the journal at a time."""

Announce = Callable[[Outcome], None]


class Keeper:
    """Stands between a feeder and a journal. Lives on the job's loop.

    Args:
        journal: The run's file, not yet open.
        provider: Names the requests, with `model`; see `llmlab.identity.key_of`.
        model: The model of prompts that name none.
        settings: What must be the same when the run is taken up again.
        on_trouble: Told in words when the file cannot be written for now, None when it can again.
        bus: The job's events, for the attempts.
        reader: Reads answers into what was asked for. None: they are text.
        whose: Names provider and model by a row's position. None: they are those given.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        provider: str,
        model: str,
        settings: Mapping[str, Any],
        on_trouble: Callable[[str | None], object],
        bus: Bus,
        reader: Reader | None = None,
        whose: Callable[[int], tuple[str, str]] | None = None,
    ) -> None:
        self._journal, self._whose = journal, whose or (lambda _: (provider, model))
        self._settings, self._on_trouble, self._reader = settings, on_trouble, reader
        self._occurrences = Occurrences()
        self._keys: dict[int, tuple[bytes, int]] = {}
        self._past: dict[int, Prompt] = {}
        self._waiting: dict[int, Outcome] = {}
        self._attempts: dict[int, list[Attempt]] = {}
        self._failed = False
        self._wall = wall_offset()
        bus.subscribe(self._attempted, Attempted)

    async def open(self, on_failure: Callable[[Exception], object]) -> None:
        """Open the journal, off the loop.

        Raises:
            JournalMismatch, JournalBusy, ValueError, OSError: as `Journal.open`.
        """
        deliver = asyncio.get_running_loop().call_soon_threadsafe

        def failed(error: Exception) -> None:
            self._failed = True
            on_failure(error)

        open_it = partial(self._journal.open, self._settings, deliver=deliver, on_trouble=self._on_trouble)
        await asyncio.to_thread(open_it, on_failure=failed)

    @property
    def path(self) -> Path:
        """The journal's file."""
        return self._journal.path

    @property
    def identities(self) -> Mapping[int, tuple[bytes, int]]:
        """Key and occurrence of the rows that are taken up and not settled, by position."""
        return self._keys

    @property
    def full(self) -> bool:
        """Whether so much waits for its commit that no further rows should be taken."""
        return self._journal.full

    @property
    def has_a_chunk(self) -> bool:
        """Whether enough rows of an earlier run have gathered to be read back."""
        return len(self._past) >= CHUNK

    def knows(self, index: int, item: object) -> bool:
        """Note a row that is taken up; True if an earlier run has answered it."""
        key = self._key(index, item)
        occurrence = self._occurrences.next(key)
        self._keys[index] = key, occurrence
        if not isinstance(item, Prompt) or not self._journal.is_done(key, occurrence):
            return False
        self._past[index] = item
        return True

    def _key(self, index: int, item: object) -> bytes:
        if not isinstance(item, Prompt):
            return UNREADABLE
        try:
            provider, model = self._whose(index)
            return key_of(item, provider=provider, model=model)
        except TypeError:  # what cannot be written as JSON cannot be sent either: the row will say so itself
            return UNREADABLE

    async def recall(self, announce: Announce) -> dict[int, Prompt]:
        """Report the rows gathered; gives back those that must be asked again.

        They have vanished from the file, or what they hold no longer fits: a Python type may have changed where its
        JSON schema has not.
        """
        past, self._past = self._past, {}
        if not past:
            return {}
        found = await self._journal.recall([(index, *self._keys[index]) for index in past])
        for index, row in found.items():
            reply = self._read(past[index], row.reply)
            if reply is not None:
                del self._keys[index]
                announce(_outcome(index, past.pop(index), row, reply))
        return past

    def _read(self, prompt: Prompt, reply: Reply | None) -> Reply | None:
        if self._reader is None or reply is None or prompt.schema is None:
            return reply
        try:
            return self._reader.read(reply)
        except SchemaMismatch:
            return None

    def keep(self, outcome: Outcome, announce: Announce) -> None:
        """Write an outcome down and report it once it is committed."""
        index = outcome.index
        if self._failed:
            announce(outcome)
            return
        key, occurrence = self._keys.pop(index)
        self._waiting[index] = outcome

        def committed() -> None:
            del self._waiting[index]
            announce(outcome)

        attempts = self._attempts.pop(index, ())
        try:
            self._journal.append(index, outcome, key=key, occ=occurrence, attempts=attempts, then=committed)
        except RuntimeError:  # it failed a moment ago on its own thread; the answer is paid for all the same
            self._failed = True
            committed()

    async def close(self, announce: Announce, *, at_once: bool) -> None:
        """Commit and report what waits, and let go of the file; with `at_once` a full disk is not waited for."""
        try:
            if not at_once:
                await self._journal.flush()
        finally:
            await self._journal.aclose()
            for outcome in tuple(self._waiting.values()):
                announce(outcome)

    def _attempted(self, event: Attempted) -> None:
        error = event.error
        self._attempts.setdefault(event.index, []).append(
            Attempt(
                n=event.attempt,
                kind=event.kind,
                target=event.target,
                sent_at=event.sent + self._wall,
                ended_at=event.ended + self._wall,
                http=None if error is None else error.status,
                error_type=None if error is None else type(error).__name__,
                error=None if error is None else str(error),
                usage=event.usage,
                cost_usd=event.cost_usd,
            )
        )


def _outcome(index: int, prompt: Prompt, row: Stored, reply: Reply) -> Outcome:
    return Outcome(
        index, prompt, "ok", reply, None, row.attempts, row.queue_s, row.wait_s, row.started_at, row.finished_at,
        row.wasted, row.wasted_usd,
    )  # fmt: skip
