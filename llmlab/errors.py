"""Everything that can go wrong with a row, classified once.

    LLMError
      Rejected                never left this process
        Unsendable
        ProviderDown
        QueueFull
        BudgetSpent
        NotAsked
        TooLong
      Unreachable             no answer came
        ConnectFailed
        Dropped
        TimedOut
      Refused                 the provider answered with an error
        RateLimited
        QuotaExhausted
        Overloaded
        ServerError
        Conflict
        BadRequest
          UnsupportedParam
            NoStructuredOutput
          ContentBlocked
          ContextTooLong
          RequestTooLarge
        AuthFailed
        PermissionDenied
        NotFound
        BatchExpired
      Garbled                 an answer came and is no answer
        BadPayload
        StreamTruncated
        SchemaMismatch
        PackGarbled
      LabClosed               the lab was closed first

Codecs and the sender choose the class; its `Verdict` says what the policies make of it. Policies and
rules read the verdict and nothing else. Misuse of llmlab itself is a `TypeError` or `ValueError`.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal, TypeAlias

Phase: TypeAlias = Literal["total", "attempt", "connect", "read", "first_token", "between_tokens"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an error means for the policies."""

    retry: bool = False
    """Sending the same request to the same target again may help."""
    retries: int | None = None
    """At most this many retries of this kind per row. None: the policy's own allowance."""
    throttle: bool = False
    """The provider asks for less: spends the allowance for 429s instead of the one for failures."""
    breaker: bool = False
    """Speaks against the target's health."""
    fallback: bool = False
    """Another target may do better."""
    fatal: bool = False
    """No row of this job can succeed until a person acts: stop sending."""


class LLMError(Exception):
    """A row's failure; `str()` of it is safe to show: no header, no key.

    Args:
        message: What happened, for a person.
        status: HTTP status of the answer, if one came.
        code: The provider's own error code or type.
        request_id: The provider's id of the request.
        retry_after: Seconds the provider asked to wait, at least.
        hint: What the user can do about it.
    """

    verdict: Verdict = Verdict()

    def __init__(
        self,
        message: str = "",
        *,
        status: int | None = None,
        code: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.request_id = request_id
        self.retry_after = retry_after
        self.hint = hint

    def judge(self, **changes: bool | int | None) -> None:
        """Change this one error's verdict, as when the provider says `x-should-retry: false`."""
        self.verdict = replace(self.verdict, **changes)  # type: ignore[arg-type]

    def __str__(self) -> str:
        status = f"HTTP {self.status}" if self.status else ""
        head = " ".join(filter(None, (status, self.code)))
        text = ": ".join(filter(None, (head, self.message))) or type(self).__name__
        return f"{text} ({self.hint})" if self.hint else text


class Rejected(LLMError):
    """The request never left this process."""


class Unsendable(Rejected):
    """The request could not be sent as it is: a bad URL, an unsupported scheme, a local protocol error."""


class ProviderDown(Rejected):
    """The provider has been down for so long that waiting on is pointless; says for how long, and the last error."""

    verdict = Verdict(fallback=True, fatal=True)


class QueueFull(Rejected):
    """So many requests wait in the lab's line that this one was not taken in; says how many."""

    verdict = Verdict(fallback=True)


class BudgetSpent(Rejected):
    """The next request might pass the budget: says what was spent, and of how much."""

    verdict = Verdict(fatal=True)


class NotAsked(Rejected):
    """An earlier step of the row's chain has failed: there is nothing to ask this one with."""


class TooLong(Rejected):
    """The prompt is longer than the `max_input_tokens` it was to keep to, or the answers it is to combine are."""


class Unreachable(LLMError):
    """No answer came."""

    verdict = Verdict(retry=True, breaker=True, fallback=True)


class ConnectFailed(Unreachable):
    """No connection: refused, DNS, TLS or proxy failure."""


class Dropped(Unreachable):
    """The connection broke before the answer was complete. The provider may bill the attempt all the same."""


class TimedOut(Unreachable):
    """A deadline passed; `phase` says which one."""

    LAST_WORD: ClassVar[Verdict] = Verdict(breaker=True, fallback=True)

    def __init__(self, message: str, *, phase: Phase, status: int | None = None) -> None:
        super().__init__(message, status=status)
        self.phase: Phase = phase
        if phase == "total":
            self.verdict = self.LAST_WORD

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception is copied and pickled by calling its class with `args`, which lack the phase.
        return partial(type(self), phase=self.phase), self.args, self.__dict__


class Refused(LLMError):
    """The provider answered with an error."""


class RateLimited(Refused):
    """Too many requests or tokens for now (429, 498)."""

    verdict = Verdict(retry=True, throttle=True, fallback=True)


class QuotaExhausted(Refused):
    """No credit, or a spend limit is reached: waiting never helps."""

    verdict = Verdict(fallback=True, fatal=True)


class Overloaded(Refused):
    """The provider has no capacity for now (503, 529)."""

    verdict = Verdict(retry=True, breaker=True, fallback=True)


class ServerError(Refused):
    """The provider failed (5xx)."""

    verdict = Verdict(retry=True, breaker=True, fallback=True)


class Conflict(Refused):
    """409."""

    verdict = Verdict(retry=True)


class BadRequest(Refused):
    """The request is wrong and stays wrong (400, 405, 415, 422, 501)."""


class UnsupportedParam(BadRequest):
    """The model refuses a parameter."""


class NoStructuredOutput(UnsupportedParam):
    """The model, or its server, cannot be held to a JSON schema in the way that was tried; asked in another, it is."""


class ContentBlocked(BadRequest):
    """The provider's moderation refused the prompt."""


class ContextTooLong(BadRequest):
    """The prompt does not fit the model's context."""

    verdict = Verdict(fallback=True)


class RequestTooLarge(BadRequest):
    """One request above the whole allowance per minute, or above the size limit: waiting never helps."""

    verdict = Verdict(fallback=True)


class AuthFailed(Refused):
    """The key is wrong or missing (401)."""

    verdict = Verdict(fallback=True, fatal=True)


class PermissionDenied(Refused):
    """The key is right but may not do this (403)."""

    verdict = Verdict(fallback=True)


class NotFound(Refused):
    """No such model, or no such path (404)."""

    verdict = Verdict(fallback=True)


class BatchExpired(Refused):
    """The provider did not get to the row within the 24 hours that it has for a batch; it bills nothing for it."""

    verdict = Verdict(retry=True, fallback=True)


class Garbled(LLMError):
    """An answer came that is no answer."""

    verdict = Verdict(retry=True, breaker=True, fallback=True)


class BadPayload(Garbled):
    """A body that is not what the protocol says: HTML, broken JSON, no choices."""

    # As often as other failures: fewer tries would lose rows of a flaky provider, and if what answers is no LLM at all,
    # the breaker finds out.
    verdict = Verdict(retry=True, breaker=True, fallback=True)


class StreamTruncated(Garbled):
    """The stream ended before the protocol said so; `partial` is the text that had come."""

    def __init__(self, message: str, *, partial: str = "") -> None:
        super().__init__(message)
        self.partial = partial


class SchemaMismatch(Garbled):
    """The answer does not fit the schema, however often it was asked for; says where and why.

    Args:
        message: Where and why.
        reply: The answer, a Reply; its tokens and price stand in the row's account.
    """

    # Not the provider's health, and asked again it was already: another model may do better.
    verdict = Verdict(fallback=True)

    def __init__(self, message: str, *, reply: Any = None) -> None:
        super().__init__(message)
        self.reply = reply


class PackGarbled(Garbled):
    """The one answer to several packed rows had nothing usable for this row, which is asked again by itself."""

    verdict = Verdict(retry=True, fallback=True)  # the others may have theirs: the provider is well


class LabClosed(LLMError):
    """The lab was closed, or is about to be: it takes nothing more, and what it has stopped has no answer."""
