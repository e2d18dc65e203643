"""Keeps the garbage collector's passes few and short while a job runs.

A job makes objects fast enough to set off full passes of the collector again and again, and each one walks
the whole heap: a notebook with a few large frames and models in it stands still for up to a second each time,
which every latency measured then includes. While jobs run, objects that existed before are therefore set aside
(`gc.freeze`) and given back afterwards (`gc.unfreeze`); what is made meanwhile is collected as ever, only with
`YOUNG` new objects between two passes instead of a few hundred, most of which would be rows in flight.
A process that has frozen objects of its own is left alone.
"""

import contextlib
import gc
import threading
from collections.abc import Iterator

YOUNG = 10_000
"""New objects after which the collector looks at them."""

_lock = threading.Lock()  # jobs of several threads may overlap
_jobs = 0
_threshold = (0, 0, 0)


@contextlib.contextmanager
def set_aside() -> Iterator[None]:
    """Spare the collector the objects that exist now, until the last of overlapping uses ends."""
    if not _begin():
        yield
        return
    try:
        yield
    finally:
        _end()


def _begin() -> bool:
    global _jobs, _threshold  # noqa: PLW0603  the collector is global too
    with _lock:
        if not _jobs and gc.get_freeze_count():
            return False
        if not _jobs:
            gc.freeze()
            _threshold = gc.get_threshold()
            if 0 < _threshold[0] < YOUNG:  # 0: somebody has switched it off
                gc.set_threshold(YOUNG, *_threshold[1:])
        _jobs += 1
        return True


def _end() -> None:
    global _jobs  # noqa: PLW0603
    with _lock:
        _jobs -= 1
        if not _jobs:
            gc.unfreeze()
            gc.set_threshold(*_threshold)
