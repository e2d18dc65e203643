"""Where a feeder's rows come from, if all of them are known beforehand: any iterable, numbered as it comes."""

from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import Self

from llmlab.clock import Stopwatch
from llmlab.types import Item


class Source:
    """An iterable of rows, as an asynchronous one of (position, row).

    Args:
        items: The rows, lazily.
    """

    def __init__(self, items: Iterable[Item] | AsyncIterable[Item]) -> None:
        self._items = _in_turn(items)
        self._taken = 0
        self.waited = Stopwatch()
        """For how long the rows were waited for."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[int, Item]:
        with self.waited:
            item = await anext(self._items)
        position, self._taken = self._taken, self._taken + 1
        return position, item


async def _in_turn(items: Iterable[Item] | AsyncIterable[Item]) -> AsyncIterator[Item]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
        return
    for item in items:
        yield item
