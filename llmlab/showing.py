"""Whatever shows a job while it runs: one view at most, drawn on the job's loop, wherever it was displayed."""

import asyncio
import logging
import threading
from typing import Any

from llmlab.events import Bus
from llmlab.live import Live
from llmlab.progress import Progress
from llmlab.views import Maker, View, live_maker

_log = logging.getLogger("llmlab")


class Shown:
    """The view of something at work, if it has one."""

    def __init__(self) -> None:
        self.ended: float | None = None
        """Loop time at which it was over. None: it is not."""
        self._view: View | None = None
        self._ticker: asyncio.Task[None] | None = None
        self._lock = threading.Lock()  # a job on a thread's loop begins while its cell displays it

    @property
    def on(self) -> bool:
        """Whether there is a view."""
        return self._view is not None

    def open(self, job: Any, maker: Maker | None) -> None:
        """Show it in the cell at work, on its loop, unless it is displayed already."""
        with self._lock:
            if self._view is None and maker is not None:
                self._view = maker(job)
                self._view.show()
        self.start()

    def start(self) -> None:
        """Let the view draw from now on; on the job's loop."""
        if self._view is not None and self._ticker is None and self.ended is None:
            self._ticker = asyncio.get_running_loop().create_task(self._view.run())

    def end(self) -> None:
        """The job is over, on its loop: draw the end."""
        self.ended = asyncio.get_running_loop().time()
        if self._ticker is not None:
            self._ticker.cancel()
        self._close()

    def settle(self) -> None:
        """Draw the end once more, in the cell that has waited for it.

        What a job draws by itself belongs to the cell that made it, and whoever runs a notebook without a browser hears
        only the cell at work.
        """
        if self.ended is not None:
            self._close()

    def _close(self) -> None:
        if self._view is not None:
            try:
                self._view.close()
            except Exception:  # noqa: BLE001  a picture's trouble is not the run's
                _log.exception("llmlab: the job's board could not be closed")

    def reopen(self) -> None:
        """Let it be shown anew after its end; what was left behind stays."""
        if self.ended is not None:
            self.ended = self._view = self._ticker = None

    def display(self, job: Any) -> bool:
        """Show the job in the cell at work; whether there is a notebook that can show it."""
        make = live_maker()
        if make is None:
            return False
        with self._lock:
            if self._view is None:
                self._view = make(job)
            self._view.show()
        return True


class Showing(Shown):
    """A job's view, if it has one, and what its looks are made of."""

    def __init__(self, bus: Bus, progress: Progress) -> None:
        super().__init__()
        self.live = Live(bus, progress)
        """What looks are made of."""

    def begin(self, job: Any, maker: Maker | None) -> None:
        """The job begins, on its loop: show it."""
        self.live.begin(asyncio.get_running_loop().time())
        self.open(job, maker)
