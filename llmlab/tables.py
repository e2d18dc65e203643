"""A job's board where there are no widgets: one output, redrawn through its display handle."""

import asyncio
from typing import Any

from IPython.display import DisplayHandle, display

from llmlab.board import bundle, cell_at_work
from llmlab.job import Job

EVERY = 0.5
"""Seconds between two drawings."""


class HtmlView:
    """Shows a job as a table that is redrawn, where there are no widgets.

    Args:
        job: The job.
    """

    def __init__(self, job: Job[Any]) -> None:
        self._job = job
        self._handles: dict[str, DisplayHandle] = {}

    def show(self) -> None:
        """Display it in the cell at work, once; see `llmlab.widgets.BoardView`."""
        cell = cell_at_work()
        if cell in self._handles:
            return
        handle = display(bundle(self._job.look()), raw=True, display_id=True)  # type: ignore[no-untyped-call]
        if handle is not None:
            self._handles[cell or handle.display_id] = handle

    async def run(self) -> None:
        """Redraw until cancelled."""
        while True:
            await asyncio.sleep(EVERY)
            self.close()

    def close(self) -> None:
        """Redraw."""
        for handle in tuple(self._handles.values()):
            handle.update(bundle(self._job.look()), raw=True)  # type: ignore[no-untyped-call]
