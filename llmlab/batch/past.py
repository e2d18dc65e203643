"""A batch job's hold on its journal: what an earlier run has answered, and what it has left at the provider."""

import contextlib
from collections.abc import Callable, Iterable

from llmlab.batch.courier import Courier
from llmlab.batch.ledger import Entry, Ledger
from llmlab.batch.manifest import Manifest
from llmlab.batch.names import Bundle
from llmlab.batch.task import breathing
from llmlab.errors import NotFound
from llmlab.keeper import Keeper
from llmlab.providers.batches import BatchAPI, Parcel, Status
from llmlab.types import Outcome

CRASHED = "as the run before ended in that moment"


class Past:
    """What the job before has done. Lives on the job's loop.

    Args:
        keeper: The job's hold on the rows' part of the journal, open.
        rows: The job's rows, read.
        members: Filled in: the rows of each batch, as they stand in it; None: not in the input any more.
        announce: Told of rows that are answered.
    """

    def __init__(
        self,
        keeper: Keeper,
        rows: Manifest,
        members: dict[str, list[int | None]],
        announce: Callable[[Outcome], None],
    ) -> None:
        self._keeper, self._rows, self._members, self._announce = keeper, rows, members, announce
        self._ledger = Ledger(keeper.path)
        self._intended: int | None = None
        self.elsewhere: set[int] = set()
        """Rows that are in batches of an earlier run."""

    async def recall(self) -> None:
        """Report the rows that an earlier run has answered."""
        async for position in breathing(sorted(self._rows.items)):
            if self._keeper.knows(position, self._rows.items[position]) and self._keeper.has_a_chunk:
                await self._keeper.recall(self._announce)
        await self._keeper.recall(self._announce)

    async def take_up(self, courier: Courier, api: BatchAPI) -> list[Status]:
        """The batches that an earlier run has made, and whose results it has not seen."""
        positions = {identity: position for position, identity in self._keeper.identities.items()}
        found = []
        for entry in await self._ledger.open_entries():
            status = await self._find(entry, courier, api)
            if status is None:
                await self._ledger.forget(entry.seq)
                continue
            places = entry.places(positions)
            self._rows.aliases.update(zip(entry.names, places, strict=True))
            self._members[status.id] = places
            self.elsewhere.update(place for place in places if place is not None)
            found.append(status)
        return found

    async def _find(self, entry: Entry, courier: Courier, api: BatchAPI) -> Status | None:
        """How a batch stands; None: it was never made, or the provider has forgotten it, as it does after a month."""
        if entry.id is not None:
            with contextlib.suppress(NotFound):
                return await api.look(courier, entry.id)
            return None
        status = await courier.find(api, entry.parcel, CRASHED)
        if status is not None:
            await self._ledger.made(entry.seq, status.id)
        return status

    async def intend(self, parcel: Parcel, bundle: Bundle) -> None:
        """Write a batch down that is about to be made."""
        names = [self._rows.name(position) for position in bundle.positions]
        occs = [self._keeper.identities[position][1] for position in bundle.positions]
        self._intended = await self._ledger.intend(parcel, names, occs)

    async def made(self, name: str) -> None:
        """The batch written down last was made."""
        if self._intended is not None:
            await self._ledger.made(self._intended, name)
        self._intended = None

    async def not_made(self) -> None:
        """It was not."""
        if self._intended is not None:
            await self._ledger.forget(self._intended)
        self._intended = None

    @property
    def behind(self) -> bool:
        """Whether so much waits for its commit that no further rows should be settled."""
        return self._keeper.full

    async def close(self, fetched: Iterable[str], *, at_once: bool) -> None:
        """Commit what waits; the batches whose results were fetched are done with."""
        await self._keeper.close(self._announce, at_once=at_once)
        await self._ledger.done(sorted(fetched))
