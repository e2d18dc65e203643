"""What a provider's Batch API is: pure functions between rows and bytes, and the order in which it wants to be asked.

Nothing here sends, waits or tries again by itself: whoever calls brings a `Send`, which does.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol, TypeVar

import orjson

from llmlab.errors import BadPayload, LLMError
from llmlab.providers.base import unpack
from llmlab.providers.fault import carries_error
from llmlab.types import JSON

R = TypeVar("R")

LISTED = 100
"""Batches that a list gives at most at a time."""
MB = 1_000_000


class Send(Protocol):
    """Sends requests to the provider."""

    async def __call__(
        self,
        method: str,
        path: str,
        read: Callable[[bytes], R],
        body: bytes = b"",
        kind: str = "application/json",
        *,
        again: bool = True,
    ) -> R:
        """Send one and read its answer.

        Args:
            method: HTTP method.
            path: Appended to the provider's base URL.
            read: Reads the answer; raises BadPayload if it is none.
            body: Its body.
            kind: The body's content type.
            again: Whether it may be sent once more when its answer was lost, as it does nothing twice.

        Raises:
            LLMError: in the end there was no answer, or one that says why not.
        """
        ...


@dataclass(frozen=True, slots=True)
class Status:
    """A batch as its provider last told of it. Times are Unix time in seconds."""

    id: str
    """The provider's name for it."""
    state: str
    """The provider's own word, as in_progress, completed or ended."""
    ended: bool = False
    """Whether nothing more will become of it."""
    total: int = 0
    """Rows in it; 0 while the provider does not say."""
    done: int = 0
    """Rows worked on so far, failed ones included; Anthropic says so only at the end."""
    failed: int = 0
    """Those of them that failed or expired."""
    answered: int = 0
    """Rows that the results must have an answer for."""
    made: float | None = None
    """When it was made."""
    over: float | None = None
    """When it ended."""
    results: tuple[str, ...] = ()
    """Paths of its results."""
    source: str | None = None
    """Path at which the rows can be read again as they were sent. None: the provider does not give them back."""
    origin: str | None = None
    """What it was made of: the id of the uploaded file."""
    flaws: tuple[tuple[int | None, LLMError], ...] = ()
    """Why it could not be worked on: the line of a row, from 1 (None: no row's fault), and what is wrong."""
    cancelled: bool = False
    """Whether rows without a result were cancelled."""


@dataclass(frozen=True, slots=True)
class Line:
    """What became of one row."""

    custom_id: str
    """The name it was sent under."""
    body: bytes | None = None
    """Its answer, as it would have come by itself. None: there is none."""
    error: LLMError | None = None
    """Why there is none; None besides: it was cancelled."""
    request_id: str | None = None
    """The provider's id of the request."""


@dataclass(frozen=True, slots=True)
class Sent:
    """One row as it was sent."""

    custom_id: str
    """Its name."""
    body: bytes
    """Its request."""


@dataclass(slots=True)
class Parcel:
    """What goes into one batch."""

    lines: list[bytes]
    """The rows, each as `BatchAPI.line` makes it."""
    label: Mapping[str, str]
    """Told to the provider, where it keeps such things."""
    origin: str | None = None
    """Names this parcel among the provider's batches, once it is on its way."""
    known: set[str] = field(default_factory=set)
    """Ids of batches that are others' or this job's own already."""
    doubtful: bool = False
    """Whether nobody can tell if a batch was made of it."""


class BatchAPI(Protocol):
    """One provider's Batch API."""

    most_rows: int
    """Rows of a batch at most."""
    most_bytes: int
    """Bytes of a batch at most."""
    one_model: bool
    """Whether all rows of a batch must ask the same model."""
    discount: float
    """What a token costs here, as a share of its usual price."""

    def line(self, custom_id: str, body: bytes) -> bytes:
        """One row as it stands in a batch; `body` is the request as it would go by itself."""
        ...

    async def prepare(self, send: Send, parcel: Parcel) -> None:
        """Do what must be done before a batch is made, and name the parcel."""
        ...

    async def create(self, send: Send, parcel: Parcel) -> Status:
        """Make the batch, once: if the answer is lost, the batch may be there all the same."""
        ...

    async def find(self, send: Send, parcel: Parcel) -> list[Status]:
        """What may have been made of a parcel although no answer came; of several nobody can tell which it is."""
        ...

    async def look(self, send: Send, batch: str) -> Status:
        """How a batch stands."""
        ...

    async def cancel(self, send: Send, batch: str) -> Status:
        """Ask the provider to begin none of its rows any more."""
        ...

    def read(self, line: bytes) -> Line:
        """Read one line of the results; raises BadPayload if it is none."""
        ...

    def read_sent(self, line: bytes) -> Sent:
        """Read one line of what was sent; raises BadPayload if it is none."""
        ...


def table(body: bytes) -> JSON:
    """Read an answer that is an object.

    Raises:
        BadPayload: it is none, or it carries an error.
    """
    found = unpack(body)
    if not isinstance(found, dict) or carries_error(found):
        raise BadPayload(
            f"an answer of the Batch API is no such thing but begins: {body[:200].decode(errors='replace')}"
        )
    return found


def page(body: bytes) -> JSON:
    """Read a list's page.

    Raises:
        BadPayload: it is none.
    """
    found = table(body)
    if not isinstance(found.get("data"), list):
        raise BadPayload("an answer of the Batch API is no list")
    return found


def entries(found: JSON) -> Sequence[JSON]:
    """The objects of a list's page."""
    data = found.get("data")
    return [each for each in data if isinstance(each, dict)] if isinstance(data, list) else []


def moment(value: object) -> float | None:
    """Unix time of a number or an RFC 3339 text; None if it is neither."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, str):
        return None
    try:
        return datetime.fromisoformat(value).timestamp()
    except ValueError:
        return None


def joined(custom_id: str, before: bytes, body: bytes) -> bytes:
    """A line of JSON around a body that is JSON already."""
    return b'{"custom_id":' + orjson.dumps(custom_id) + before + body + b"}"
