"""The live views of a notebook: a job's board. Imported only when something is displayed.

What the browser says may arrive on another thread (JupyterLab with ipykernel 7.0 to 7.3 runs it on a subshell's), so a
message only ever leaves word on the job's loop. Controls are custom messages: a state that is synced both ways gets
stuck for good when a cell awaits on ipykernel 7.4. They are numbered, and a look says which was heard last: ipykernel 6
leaves them until the cell is over, and the board then says so. When the job is over the widget is replaced by a still
table, which a notebook reopened without a kernel can show.
"""

import asyncio
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from llmlab.board import bundle
from llmlab.job import Job
from llmlab.live import Look
from llmlab.places import Places

EVERY = 0.1
"""Seconds between two drawings, whatever the job does."""
MOST = 100_000
"""Largest concurrency that a slider may ask for."""
_STATIC = Path(__file__).parent / "static"


class Board(anywidget.AnyWidget):
    """The browser's side of a job's board: draws looks, sends the controls' messages."""

    _esm = _STATIC / "board.js"
    _css = _STATIC / "board.css"

    uid = traitlets.Unicode().tag(sync=True)
    """Names the model in the browser."""
    look = traitlets.Dict().tag(sync=True)
    """The first look, and the last one; those between go as messages."""


class BoardView:
    """Shows a job on a board, wherever it is displayed.

    Args:
        job: The job.
    """

    def __init__(self, job: Job[Any]) -> None:
        self._job = job
        self._widget = Board(uid=uuid.uuid4().hex, look=asdict(job.look()))
        self._widget.on_msg(self._heard)
        self._bundle: Any = self._widget._repr_mimebundle_() or ({}, {})  # now: one that is closed has none
        self._places = Places()
        self._drawn: Look | None = None
        self._heard_last = 0  # number of the browser's message that was heard last
        self._over = False

    def show(self) -> None:
        """Display it in the cell at work."""
        data, metadata = self._bundle
        # Beside the widget, the look: for who opens a notebook that was saved while the job ran.
        self._places.add(data | bundle(self._job.look()), metadata=metadata, raw=True)

    async def run(self) -> None:
        """Send looks until cancelled."""
        while True:
            self.draw()
            await asyncio.sleep(EVERY)

    def draw(self) -> None:
        """Send the present look, if it differs from the last."""
        look = self._job.look()
        if look != self._drawn:
            self._drawn = look
            self._widget.send({"kind": "look", "look": asdict(look), "heard": self._heard_last})

    def close(self) -> None:
        """Put a still table in the place of each board."""
        look = self._job.look()
        self._over = True
        self._places.end(bundle(look))
        self._widget.look = asdict(look)
        self._widget.close()

    def _heard(self, _: object, message: object, __: object) -> None:
        """Do what a control asks for. May be called on any thread."""
        if self._over or not isinstance(message, Mapping):
            return
        kind, limit, number = (message.get(name) for name in ("kind", "limit", "number"))
        if kind == "stop":
            self._job.cancel()
        elif kind == "pause":
            self._job.pause()
        elif kind == "resume":
            self._job.resume()
        elif kind == "concurrency" and type(limit) is int and 1 <= limit <= MOST:  # True is no limit
            self._job.concurrency = limit
        if isinstance(number, int):
            self._heard_last = number
