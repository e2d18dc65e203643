"""A tuning in a notebook where there are no widgets: one output, redrawn."""

import asyncio

from llmlab.places import Places
from llmlab.tune import Tuning
from llmlab.tunelook import bundle, look_of

EVERY = 0.5
"""Seconds between two drawings."""


class TuneHtml:
    """Shows a tuning as a table that is redrawn, without knobs.

    Args:
        tuning: The tuning.
    """

    def __init__(self, tuning: Tuning) -> None:
        self._tuning = tuning
        self._places = Places()
        self._drawn: dict[str, str] = {}

    def show(self) -> None:
        """Display it in the cell at work."""
        self._places.add(bundle(look_of(self._tuning)), raw=True)

    async def run(self) -> None:
        """Redraw until cancelled."""
        while True:
            await asyncio.sleep(EVERY)
            now = bundle(await asyncio.to_thread(look_of, self._tuning))
            if now != self._drawn:
                self._drawn = now
                self._places.replace(now)

    def close(self) -> None:
        """Draw the end."""
        self._places.end(bundle(look_of(self._tuning)))
