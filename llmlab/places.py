"""The outputs of a notebook in which one thing is shown. Imported only where there is IPython."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

from IPython.display import display

from llmlab.frontend import cell_at_work


class Places:
    """The outputs in which one thing is shown, one below each cell at most."""

    def __init__(self) -> None:
        self._display: Callable[..., Any] = display
        self._handles: dict[str, Any] = {}
        self._lock = threading.Lock()  # a job on a thread's loop begins and ends while a cell displays it
        self._end: Mapping[str, str] | None = None

    def add(self, what: object, **options: Any) -> None:
        """Show it below the cell at work, unless it is there already.

        Args:
            what: What to show; after `end`, that is shown.
            options: For IPython's `display`.
        """
        cell = cell_at_work()
        with self._lock:
            if cell in self._handles:
                return
            if self._end is not None:
                what, options = self._end, {"raw": True}
            handle = self._display(what, display_id=True, **options)
            if handle is not None:
                self._handles[cell or handle.display_id] = handle

    def replace(self, by: Mapping[str, str]) -> None:
        """Show something else in its place everywhere: the ways to say it, by their types."""
        for handle in tuple(self._handles.values()):
            handle.update(by, raw=True)

    def end(self, by: Mapping[str, str]) -> None:
        """Show something else in its place everywhere, for good."""
        with self._lock:
            self._end = by
            self.replace(by)
