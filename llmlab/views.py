"""How a job is shown: what a view is, and the door through which the live ones come in.

The engine imports no widget. Whoever has one puts its maker into `MAKERS`; the package does, without importing it.
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

from llmlab.frontend import Frontend, frontend, in_kernel


class View(Protocol):
    """Shows a job while it runs, and leaves something still behind."""

    def show(self) -> None:
        """Show it here and now, in the cell at work, unless it is there already."""
        ...

    async def run(self) -> None:
        """Redraw until cancelled, on the job's loop."""
        ...

    def close(self) -> None:
        """Draw the end, on the job's loop."""
        ...


Maker: TypeAlias = Callable[[Any], View]
"""Makes the view of a job."""

MAKERS: dict[Frontend, Maker] = {}
"""The live views by the kind of display that they need."""


def maker(text: Maker, *, wanted: bool | None) -> Maker | None:
    """Who makes the view of a job that is waited for; None: it is not shown.

    Args:
        text: Makes a line of text.
        wanted: Whether the user wants to see it. None: where there is somebody to look.
    """
    kind = frontend()
    if wanted is False or (wanted is None and kind == "none"):
        return None
    return MAKERS.get(kind, text)


def live_maker() -> Maker | None:
    """Who makes a view that can be displayed in a notebook; None: there is no notebook, or nothing that could."""
    return MAKERS.get(frontend()) if in_kernel() else None
