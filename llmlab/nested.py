"""Loops within loops: asyncio made re-entrant, for code that must wait where it cannot `await`.

asyncio refuses to run a loop that runs already. nest-asyncio2 patches that, for the whole process and for good: every
task switch then takes 1.4 to 2.4 times as long, and calls that wait inside of each other end in the reverse order. So
it is applied when somebody asks for it, never at import. Its forerunner nest-asyncio, and nest-asyncio2 before 1.7.3,
silently lose the cells that "Run All" has queued behind such a call on ipykernel 7.1 and later.
"""

import asyncio
import sys
import warnings
from importlib import metadata

WHOLE = (1, 7, 3)
"""First version of nest-asyncio2 that loses no cell."""
LOSES = (7, 1)
"""First version of ipykernel that loses cells with what came before it."""


def enable_nested() -> None:
    """Let `asyncio.run` and `loop.run_until_complete` be called inside the running loop, as in a notebook's cell.

    For third-party code that calls `asyncio.run` itself. For llmlab alone it is not needed: `job.result()` works in
    a notebook as it is, and `Lab(loop="thread")` waits on a loop of its own. Process-wide, and cannot be undone.

    Warns of versions that lose cells.

    Raises:
        RuntimeError: no loop runs here, or it is of a kind that cannot be patched (uvloop's).
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(
            "no event loop runs here, so there is nothing to nest in: call asyncio.run as it is"
        ) from None
    nest(loop)


def nest(loop: asyncio.AbstractEventLoop) -> None:
    """Make a loop re-entrant; see `enable_nested`.

    Raises:
        RuntimeError: the loop is of a kind that cannot be patched.
    """
    import nest_asyncio2  # noqa: PLC0415  importing it is harmless, but few sessions ever need it

    for trouble in troubles():
        warnings.warn(trouble, RuntimeWarning, stacklevel=3)
    try:
        nest_asyncio2.apply(loop)
    except ValueError as error:
        raise RuntimeError(
            f"a {type(loop).__name__} cannot be re-entered: write `await job`, or make the lab with Lab(loop='thread')"
        ) from error


def troubles() -> list[str]:
    """What is known to go wrong with the versions installed, in words."""
    kernel = _version("ipykernel") if "ipykernel" in sys.modules else None
    if kernel is None or kernel < LOSES:
        return []
    found = []
    if (ours := _version("nest-asyncio2")) is not None and ours < WHOLE:
        found.append("this nest-asyncio2 silently loses queued cells on this ipykernel: pip install -U nest-asyncio2")
    if hasattr(asyncio, "_nest_patched") and not hasattr(asyncio, "_nest_asyncio2"):
        found.append(
            "nest_asyncio has patched asyncio here: on this ipykernel it silently loses queued cells; restart the "
            "kernel and use llmlab.enable_nested(), which uses nest-asyncio2"
        )
    return found


def _version(package: str) -> tuple[int, ...] | None:
    try:
        found = metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
    return tuple(int(part) for part in found.split(".")[:3] if part.isdigit())
