"""Keeps the garbage collector's full passes short while a job runs.

A job makes objects fast enough to set off full passes of the collector again and again, and each one walks
the whole heap: a notebook with a few large frames and models in it stands still for up to a second each time,
which every latency measured then includes. While jobs run, objects that existed before are therefore set aside
(`gc.freeze`) and given back afterwards (`gc.unfreeze`); what is made meanwhile is collected as ever.
A process that has frozen objects of its own is left alone.
"""

import contextlib
import gc
from collections.abc import Iterator

_jobs = 0


@contextlib.contextmanager
def set_aside() -> Iterator[None]:
    """Spare the collector the objects that exist now, until the last of overlapping uses ends."""
    global _jobs  # noqa: PLW0603  the collector is global too
    if not _jobs and gc.get_freeze_count():
        yield
        return
    if not _jobs:
        gc.freeze()
    _jobs += 1
    try:
        yield
    finally:
        _jobs -= 1
        if not _jobs:
            gc.unfreeze()
