"""The names under which rows go into batches, and what they tell when results come back in any order.

    TOKEN-POSITION-KEY    at most 64 of the characters that every provider takes
    TOKEN                 8 hex digits, the job's own: whose row it is
    POSITION              the row's in the input, from 0
    KEY                   the request's (see `llmlab.identity`), 32 hex digits: which prompt it was

So the id of a batch is enough to put its results in order, and prompts given along with it are known to be the same.
"""

import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field

from llmlab.identity import UNREADABLE, key_of
from llmlab.types import Item, Prompt

_NAME = re.compile(r"([0-9a-f]{8})-(\d{1,12})-([0-9a-f]{32})", re.ASCII)
JOINT = "+"
"""Stands between the ids of a job that is several batches."""


@dataclass(frozen=True, slots=True)
class Name:
    """A row's name, read."""

    token: str
    """The job's."""
    position: int
    """The row's position in its input."""
    key: bytes
    """The request's key."""

    def __str__(self) -> str:
        return f"{self.token}-{self.position}-{self.key.hex()}"


def read_name(custom_id: str) -> Name | None:
    """Read a name; None: it was not given by llmlab."""
    found = _NAME.fullmatch(custom_id)
    return None if found is None else Name(found[1], int(found[2]), bytes.fromhex(found[3]))


def new_token() -> str:
    """A token for a job."""
    return secrets.token_hex(4)


def request_key(item: Item, provider: str, model: str) -> bytes:
    """The key of a row's request; of one that is none, a key that no other has."""
    if not isinstance(item, Prompt):
        return UNREADABLE
    try:
        return key_of(item, provider=provider, model=model)
    except TypeError:  # it cannot be sent either, and will say so
        return UNREADABLE


def read_ids(given: object) -> tuple[str, ...]:
    """The batches that are meant by a job's id, or by several.

    Raises:
        TypeError, ValueError: there is none, or it is no id.
    """
    wanted = [given] if isinstance(given, str) else given
    if not isinstance(wanted, Iterable):
        raise TypeError(f"id must be a job's id, as 'batch_…', not {given!r}")
    ids = []
    for each in wanted:
        if not isinstance(each, str):
            raise TypeError(f"id must be a job's id, as 'batch_…', not {each!r}")
        ids += [part.strip() for part in each.split(JOINT)]
    if not ids or not all(re.fullmatch(r"[\w-]+", each) for each in ids):
        raise ValueError(f"id must be a job's id, as 'batch_…' or 'batch_…{JOINT}batch_…', not {given!r}")
    return tuple(dict.fromkeys(ids))


# -- packing --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Bundle:
    """Rows that go into one batch."""

    model: str
    """The first one's model."""
    positions: list[int] = field(default_factory=list)
    """Theirs."""
    lines: list[bytes] = field(default_factory=list)
    """As they stand in the batch."""
    size: int = 0
    """Bytes of all lines."""


class Bundler:
    """Divides rows into as few batches as the limits allow, in their order.

    Args:
        most_rows: Rows of a batch at most.
        most_bytes: Bytes of a batch at most; no line is longer.
        one_model: Whether all rows of a batch must ask the same model; those that do must follow one another.
    """

    def __init__(self, *, most_rows: int, most_bytes: int, one_model: bool) -> None:
        self._most_rows, self._most_bytes, self._one_model = most_rows, most_bytes, one_model
        self._open: Bundle | None = None

    def add(self, position: int, model: str, line: bytes) -> Bundle | None:
        """Take a row; gives the bundle before it, if there was no room for it there."""
        full = self.rest() if self._open is not None and not self._fits(self._open, model, line) else None
        bundle = self._open = self._open or Bundle(model)
        bundle.positions.append(position)
        bundle.lines.append(line)
        bundle.size += len(line)
        return full

    def rest(self) -> Bundle | None:
        """Give the last bundle, if there is one."""
        bundle, self._open = self._open, None
        return bundle

    def _fits(self, bundle: Bundle, model: str, line: bytes) -> bool:
        if self._one_model and model != bundle.model:
            return False
        return len(bundle.lines) < self._most_rows and bundle.size + len(line) <= self._most_bytes
