"""What a client is told of a failure: an honest status, words that help, and nothing of the upstream's own.

    whose fault                                   status
    the request is wrong                          400, 404, 413
    the client asks too much, or all do           429, with Retry-After
    the service cannot serve at all for now       503, with Retry-After where somebody knows
    the upstream failed, or its answer is none    502; too slow: 504
    the service's own key or account is at fault  502: a 401 would accuse the client's key, which is right

Messages of errors that may speak of keys, accounts and addresses of the upstream are replaced by our own.
"""

import math
import re
from dataclasses import dataclass

from llmlab import errors
from llmlab.errors import LLMError

Kind = type[LLMError]


@dataclass(frozen=True)
class Answer:
    """How one class of failure is answered."""

    status: int
    """HTTP status."""
    type: str
    """In a word, for programs."""
    words: str | None = None
    """What is said instead of the error's own message. None: that is fit to be shown."""


_ANSWERS: dict[Kind, Answer] = {
    errors.QueueFull: Answer(429, "queue_full"),
    errors.RateLimited: Answer(429, "rate_limited", "the upstream provider's rate limit is reached"),
    errors.BudgetSpent: Answer(503, "budget_spent", "the service's budget is spent"),
    errors.ProviderDown: Answer(503, "upstream_down", "the upstream provider is down"),
    errors.Overloaded: Answer(503, "upstream_overloaded", "the upstream provider has no capacity for now"),
    errors.LabClosed: Answer(503, "shutting_down", "the service is shutting down"),
    errors.QuotaExhausted: Answer(502, "upstream_quota", "the service has no credit with its upstream provider"),
    errors.AuthFailed: Answer(502, "upstream_auth", "the upstream provider refuses the service's key"),
    errors.PermissionDenied: Answer(502, "upstream_permission", "the upstream provider does not permit this request"),
    errors.TimedOut: Answer(504, "upstream_timeout", "the upstream provider did not answer in time"),
    errors.Unreachable: Answer(502, "upstream_unreachable", "the upstream provider cannot be reached"),
    errors.ServerError: Answer(502, "upstream_error", "the upstream provider failed"),
    errors.Garbled: Answer(502, "upstream_garbled", "the upstream provider's answer is none"),
    errors.NotFound: Answer(404, "not_found", "the upstream provider knows no such model"),
    errors.RequestTooLarge: Answer(413, "too_large"),
    errors.ContextTooLong: Answer(400, "context_too_long"),
    errors.ContentBlocked: Answer(400, "content_blocked"),
    errors.UnsupportedParam: Answer(400, "unsupported_param"),
    errors.TooLong: Answer(400, "too_long"),
    errors.BadRequest: Answer(400, "bad_request"),
    errors.Conflict: Answer(502, "upstream_conflict", "the upstream provider reports a conflict"),
    errors.Unsendable: Answer(400, "unsendable", "the request holds what cannot be sent to the upstream provider"),
    errors.SchemaMismatch: Answer(502, "schema_mismatch", "the model's answer does not fit the schema"),
}
_OTHER = Answer(502, "upstream_error", "the request failed at the upstream provider")
_PLACE = re.compile(
    r"\b[a-z][a-z0-9+.-]*://\S+|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?|\b(?:org|proj|acct)[-_]\w{6,}", re.IGNORECASE
)
"""What a provider's own words may tell of where and as whom it was asked."""
INTERNAL = 500
SOON = 1.0
"""Seconds after which a full queue is worth another try."""


@dataclass(frozen=True)
class Fault:
    """A failure as the client gets it."""

    status: int
    """HTTP status."""
    type: str
    """In a word."""
    message: str
    """In words."""
    retry_after: float | None = None
    """Seconds to wait before another try. None: nobody knows, or there is no use."""

    def body(self, request_id: str | None = None) -> dict[str, dict[str, object]]:
        """As JSON: `{"error": {"type", "message", "code", "request_id", "retry_after_s"}}`."""
        error: dict[str, object] = {"type": self.type, "message": self.message, "code": self.status}
        if request_id is not None:
            error["request_id"] = request_id
        if self.retry_after is not None:
            error["retry_after_s"] = self.retry_after
        return {"error": error}

    def headers(self) -> dict[str, str]:
        """Retry-After in whole seconds, where it is known."""
        return {} if self.retry_after is None else {"Retry-After": str(max(1, math.ceil(self.retry_after)))}


class Failure(Exception):
    """Ends a request with a Fault."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


def fault_of(error: BaseException) -> Fault:
    """What a client is told of an error."""
    if isinstance(error, Failure):
        return error.fault
    if not isinstance(error, LLMError):
        return Fault(INTERNAL, "internal", "the service failed; its log has the reason under this request_id")
    answer = next((_ANSWERS[kind] for kind in type(error).__mro__ if kind in _ANSWERS), _OTHER)
    retry_after = error.retry_after
    if isinstance(error, errors.QueueFull):
        retry_after = SOON
    if answer.status not in (429, 503):
        retry_after = None
    words = answer.words or _PLACE.sub("…", error.message) or answer.type
    return Fault(answer.status, answer.type, words, retry_after)


ENDING = Fault(503, "shutting_down", "the service is shutting down", SOON)
GONE = Fault(499, "client_gone", "the client has closed the connection")


def late(seconds: float) -> Fault:
    """What is said when an answer took longer than was allowed."""
    return Fault(504, "deadline", f"there was no whole answer within {seconds:g} s")
