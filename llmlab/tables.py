"""A job's board where there are no widgets: one output, redrawn through its display handle."""

import asyncio
from typing import Any

from llmlab.board import bundle
from llmlab.job import Job
from llmlab.places import Places

EVERY = 0.5
"""Seconds between two drawings."""


class HtmlView:
    """Shows a job as a table that is redrawn, where there are no widgets.

    Args:
        job: The job.
    """

    def __init__(self, job: Job[Any]) -> None:
        self._job = job
        self._places = Places()

    def show(self) -> None:
        """Display it in the cell at work."""
        self._places.add(bundle(self._job.look()), raw=True)

    async def run(self) -> None:
        """Redraw until cancelled."""
        while True:
            await asyncio.sleep(EVERY)
            self._places.replace(bundle(self._job.look()))

    def close(self) -> None:
        """Draw the end."""
        self._places.end(bundle(self._job.look()))
