"""Who writes a run: at most one process, and after its death, however sudden, the next.

The lock is the kernel's, on a small file beside the journal. It is gone the moment its holder is, so a dead holder's
lock needs no guessing by process id, which may be another program's by now. The file's content, process and time, is
for people to read. It cannot be on the journal itself: closing any handle on that file would drop SQLite's own locks.
"""

import contextlib
import json
import os
import sys
import time
import weakref
from datetime import datetime
from pathlib import Path
from typing import Any

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

SUFFIX = "-lock"
_BEYOND = 1 << 30  # Windows' locks keep others from reading what is locked: lock a byte that holds nothing


class JournalBusy(RuntimeError):
    """Another live process, or another job of this one, writes this journal.

    Args:
        path: The journal.
        pid: Its holder's process id; None if the holder has not said yet.
        since: Unix time since when; None likewise.
    """

    def __init__(self, path: str, pid: int | None = None, since: float | None = None) -> None:
        super().__init__(path, pid, since)
        self.path = path
        self.pid = pid
        self.since = since

    def __str__(self) -> str:
        who = "another process" if self.pid is None else f"process {self.pid}"
        if self.pid == os.getpid():
            who = f"another job of this very process ({self.pid})"
        when = "" if self.since is None else f" since {datetime.fromtimestamp(self.since):%Y-%m-%d %H:%M:%S}"  # noqa: DTZ006  as the user's clock shows it
        return f"{self.path} is in use by {who}{when}: wait for it, stop it, or give this run a journal of its own"


class RunLock:
    """The right to write one journal.

    Args:
        journal: The journal's path, resolved: two names of one file must meet at one lock.
    """

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._path = journal.with_name(journal.name + SUFFIX)
        self._handle: int | None = None

    def take(self) -> None:
        """Take the lock, or say who has it; does not wait.

        Raises:
            JournalBusy: somebody alive holds it.
        """
        while self._handle is None:
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            if not _lock(handle):
                holder = _read(handle)
                os.close(handle)
                raise JournalBusy(str(self._journal), holder.get("pid"), holder.get("since"))
            if _is_at(handle, self._path):
                self._handle = handle
            else:  # its last holder removed it between our two steps: locked is a file that nobody else will see
                os.close(handle)
        _write(self._handle, {"pid": os.getpid(), "since": time.time()})
        _held.add(self)

    def release(self) -> None:
        """Give the lock back and remove its file."""
        if self._handle is None:
            return
        with contextlib.suppress(OSError):  # Windows keeps open files: it stays, which does no harm
            self._path.unlink()
        self._drop()

    def _drop(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
        self._handle = None
        _held.discard(self)


_held: "weakref.WeakSet[RunLock]" = weakref.WeakSet()


def _drop_all() -> None:
    for lock in tuple(_held):
        lock._drop()  # noqa: SLF001  the module's own


if hasattr(os, "register_at_fork"):
    # A forked child shares its parent's handles and would hold the lock on after the parent's death.
    os.register_at_fork(after_in_child=_drop_all)


def _lock(handle: int) -> bool:
    try:
        if sys.platform == "win32":
            os.lseek(handle, _BEYOND, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if isinstance(error, BlockingIOError | PermissionError):
            return False
        raise
    return True


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _read(handle: int) -> dict[str, Any]:
    os.lseek(handle, 0, os.SEEK_SET)
    try:
        holder = json.loads(os.read(handle, 1000))
    except ValueError:  # taken this instant, nothing written yet
        return {}
    return holder if isinstance(holder, dict) else {}


def _write(handle: int, holder: dict[str, Any]) -> None:
    os.ftruncate(handle, 0)
    os.lseek(handle, 0, os.SEEK_SET)
    os.write(handle, json.dumps(holder).encode())
