"""Tables on disk for the command line: csv, jsonl and parquet, in and out.

A result is written beside its place and moved there whole, so that a reader never sees half of one. What was paid for
is not lost to a full disk or a wrong path: the place is tried before anything is sent, and what cannot be written there
in the end goes to a temporary file instead.
"""

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

import orjson
import pandas as pd

from llmlab.frame import Frame

Format: TypeAlias = Literal["csv", "jsonl", "parquet"]
FORMATS: tuple[Format, ...] = ("csv", "jsonl", "parquet")
STREAM = "-"
"""Standard input or output."""
_SUFFIXES: dict[str, Format] = {
    ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip


def format_of(path: str, given: Format | None = None) -> Format:
    """Say how a table is written there.

    Args:
        path: A file's path, or "-".
        given: Overrides what the path says. None: its suffix; "-" means jsonl.

    Raises:
        ValueError: the suffix is none of ours, or parquet is asked for and pyarrow is not installed.
    """
    found = given or ("jsonl" if path == STREAM else _SUFFIXES.get(Path(path).suffix.lower()))
    if found is None:
        raise ValueError(f"{path}: name it .csv, .jsonl or .parquet, or say which it is")
    if found == "parquet" and find_spec("pyarrow") is None:
        raise ValueError(f'{path}: parquet needs pyarrow: pip install "llmlab[parquet]"')
    return found


def read_table(path: str, kind: Format) -> Frame:
    """Read a table; texts that look like numbers in a csv become numbers, and empty cells are missing.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no such table; names the file.
    """
    readers: dict[Format, Callable[[Any], Frame]] = {
        "csv": lambda source: pd.read_csv(source, keep_default_na=False, na_values=[""]),  # "NA" is a text, too
        "jsonl": _read_lines,
        "parquet": pd.read_parquet,
    }
    try:
        if path == STREAM:
            table = readers[kind](sys.stdin.buffer)
        else:
            with Path(path).open("rb") as source:
                table = readers[kind](source)
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001  each reader has exceptions of its own
        raise ValueError(f"{path} cannot be read as {kind}: {error}") from None
    if not isinstance(table.index, pd.RangeIndex):
        return table.reset_index()
    return table


def _read_lines(source: IO[bytes]) -> Frame:
    """Each value as it stands: texts that look like numbers or dates stay texts."""
    return pd.DataFrame([orjson.loads(line) for line in source if line.strip()])


def check_place(path: str, *, replace: bool) -> None:
    """Complain now about what would go wrong when the result is written.

    Raises:
        FileExistsError: there is a file already, and it may not be replaced.
        OSError: the folder is not there, or nothing can be written into it.
    """
    if path == STREAM:
        return
    place = Path(path)
    if place.is_dir():
        raise IsADirectoryError(f"{path} is a folder")
    if place.exists() and not replace:
        raise FileExistsError(
            f"{path} is there already: --force replaces it, --journal goes on where a run has stopped"
        )
    if not place.parent.is_dir():
        raise NotADirectoryError(f"{path}: there is no folder {place.parent}")
    with _beside(place):
        pass


def write_table(table: Frame, path: str, kind: Format) -> None:
    """Write a result, whole or not at all.

    Raises:
        OSError: it cannot be written there; it then lies in a temporary file, which the message names.
    """
    if path == STREAM:
        _write(table, sys.stdout.buffer if kind == "parquet" else sys.stdout, kind)
        return
    place = Path(path)
    try:
        with _beside(place) as file:
            _write(table, file, kind)
            file.chmod(0o666 & ~_umask())  # temporary files are for their owner alone; a result is one like any other
            file.replace(place)
    except OSError as error:
        raise OSError(f"{path} cannot be written ({error}); the result is in {_rescue(table)}") from None


@contextlib.contextmanager
def _beside(place: Path) -> Iterator[Path]:
    """A file in the same folder that is gone afterwards, unless it was moved away."""
    handle, name = tempfile.mkstemp(prefix=f".{place.name}.", dir=place.parent)
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _write(table: Frame, where: Path | IO[Any], kind: Format) -> None:
    if kind == "csv":
        table.to_csv(where, index=False)
    elif kind == "jsonl":
        table.to_json(where, orient="records", lines=True, date_format="iso", date_unit="us", force_ascii=False)
    else:
        table.to_parquet(where, index=False)


def _rescue(table: Frame) -> str:
    handle, name = tempfile.mkstemp(prefix="llmlab-", suffix=".jsonl")
    os.close(handle)
    _write(table, Path(name), "jsonl")
    return name
