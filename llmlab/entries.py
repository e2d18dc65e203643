"""What a journal holds, as values: a row, and a request."""

from dataclasses import dataclass

from llmlab.types import Reply, Status, Usage


@dataclass(frozen=True, slots=True)
class Attempt:
    """One request of a row, as the journal keeps it."""

    n: int
    """1 for the row's first request in its run."""
    kind: str = "first"
    """Why it was sent: first, packed, retry, hedge, fallback or reask."""
    target: str | None = None
    """Where to: "provider:model"."""
    queue_s: float = 0.0
    """Seconds it waited for admission."""
    wait_s: float = 0.0
    """Seconds backed off before."""
    sent_at: float = 0.0
    """Unix time at which it was sent."""
    ended_at: float = 0.0
    """Unix time at which its answer was complete or its failure known."""
    http: int | None = None
    """HTTP status of a refusal."""
    error_type: str | None = None
    """The error's class; None if it succeeded."""
    error: str | None = None
    """The error in words; None if it succeeded."""
    usage: Usage | None = None
    """Tokens it is known to have used, also when it failed."""
    cost_usd: float | None = None
    """Its price; None when not known."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One row as it stands in a journal."""

    index: int
    """The row's position in the input of the run that saw it last."""
    key: bytes
    """The request's key."""
    occ: int
    """Which of the rows that ask the same, from 0."""
    prompt: str | None
    """The prompt's text; None when the row could not be read as a prompt."""
    status: Status
    """ok, error or cancelled."""
    reply: Reply | None
    """The answer of an ok row."""
    error: str | None
    """Why there is no answer, in words."""
    error_type: str | None
    """The error's class."""
    attempts: int
    """Requests sent in the run that settled it."""
    queue_s: float
    """Seconds spent waiting for admission."""
    wait_s: float
    """Seconds spent backing off."""
    started_at: float
    """Unix time at which the row was taken up."""
    finished_at: float
    """Unix time at which it was settled."""
    wasted: Usage | None = None
    """Tokens that its other attempts are known to have used."""
    wasted_usd: float | None = None
    """Dollars for them."""
