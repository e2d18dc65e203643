"""From an error answer to the one class of `llmlab.errors` that fits it.

Providers agree on nothing: the same 429 stands for "wait 174 ms", "pay first" and "this request never fits",
and a 200 may carry an error. So the body speaks before the status, in this order:

    money           no waiting helps                                         QuotaExhausted
    size in words   one request above the whole allowance                    RequestTooLarge
    context length  by code or by one of the known sentences                 ContextTooLong
    codes           the provider's code, sub-code, type or Google status     CODES
    refused fields  sentences, at 400 and 422 only                           UnsupportedParam
    status          the body's own number, then HTTP's, then the type's      STATUSES

`x-should-retry: false` then forbids a retry; `true` allows one only where no more than the status spoke.
"""

import re
from collections.abc import Mapping

from llmlab.errors import (
    AuthFailed,
    BadPayload,
    BadRequest,
    Conflict,
    ContentBlocked,
    ContextTooLong,
    LLMError,
    NotFound,
    Overloaded,
    PermissionDenied,
    QuotaExhausted,
    RateLimited,
    RequestTooLarge,
    ServerError,
    TimedOut,
    UnsupportedParam,
)
from llmlab.providers import fault, limits
from llmlab.providers.fault import Fault

SHOWN = 500
"""Most characters of a provider's message that are kept."""
LONGEST_WAIT = 3600.0
"""Seconds; who must wait longer than this for a 429 has used up a daily or monthly quota."""

CODES: dict[str, type[LLMError]] = {
    "insufficient_quota": QuotaExhausted,
    "credit_balance_exhausted": QuotaExhausted,
    "organization_spend_limit_exceeded": QuotaExhausted,
    "project_spend_limit_exceeded": QuotaExhausted,
    "organization_usage_limit_exceeded": QuotaExhausted,
    "billing_hard_limit_reached": QuotaExhausted,
    "billing_not_active": QuotaExhausted,
    "enforced_spend_limit_reached": QuotaExhausted,
    "contract_spend_limit_reached": QuotaExhausted,
    "billing_error": QuotaExhausted,
    "context_length_exceeded": ContextTooLong,
    "exceed_context_size_error": ContextTooLong,
    "request_too_large": RequestTooLarge,
    "unsupported_parameter": UnsupportedParam,
    "unsupported_value": UnsupportedParam,
    "content_filter": ContentBlocked,
    "content_policy_violation": ContentBlocked,
    "responsibleaipolicyviolation": ContentBlocked,
    "invalid_api_key": AuthFailed,
    "api_key_invalid": AuthFailed,
    "authentication_error": AuthFailed,
    "unauthenticated": AuthFailed,
    "unsupported_country_region_territory": PermissionDenied,
    "organization_on_hold": PermissionDenied,
    "permission_error": PermissionDenied,
    "permission_denied": PermissionDenied,
    "model_not_found": NotFound,
    "not_found_error": NotFound,
    "deploymentnotfound": NotFound,
    "not_found": NotFound,
    "rate_limit_exceeded": RateLimited,
    "rate_limit_error": RateLimited,
    "slow_down": RateLimited,
    "ramp_limit_exceeded": RateLimited,
    "resource_exhausted": RateLimited,
    "overloaded_error": Overloaded,
    "server_is_overloaded": Overloaded,
    "service_unavailable_error": Overloaded,
    "unavailable_error": Overloaded,
    "unavailable": Overloaded,
    "timeout_error": TimedOut,
    "deadline_exceeded": TimedOut,
    "conflict_error": Conflict,
}
"""Code, sub-code or type, in lower case -> class. Broad ones (`server_error`) say less than a status does."""

STATUSES: dict[int, type[LLMError]] = {
    401: AuthFailed,
    402: QuotaExhausted,
    403: PermissionDenied,
    404: NotFound,
    408: TimedOut,
    409: Conflict,
    413: RequestTooLarge,
    429: RateLimited,
    498: RateLimited,  # Groq: no capacity on the flex tier
    501: BadRequest,
    503: Overloaded,
    504: TimedOut,
    529: Overloaded,
}
"""HTTP status -> class. Other 4xx: BadRequest; other 5xx: ServerError."""

TYPES: dict[str, int] = {
    "overloaded_error": 529,
    "server_is_overloaded": 503,
    "service_unavailable_error": 503,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
    "request_too_large": 413,
    "timeout_error": 504,
    "authentication_error": 401,
    "invalid_api_key": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "model_not_found": 404,
    "invalid_request_error": 400,
    "billing_error": 402,
    "conflict_error": 409,
    "api_error": 500,
    "server_error": 500,
}
"""The status that an error inside a stream would have had."""

HINTS: dict[type[LLMError], str] = {
    ContextTooLong: "shorten the prompt, lower max_tokens, or take a model with a larger context",
    RequestTooLarge: "lower max_tokens or shorten the prompt: this request alone is above the limit",
    QuotaExhausted: "add credit or raise the limit in the provider's console; waiting a moment does not help",
}
"""What the user can do."""

_MONEY = re.compile(r"credit balance is too low|specified api usage limits")
_TOO_LARGE = re.compile(r"request too large|must be reduced|reduce your message size")
_FIGURES = re.compile(r"limit:? (\d[\d,]{0,18}).{0,80}?requested:? (\d[\d,]{0,18})", re.DOTALL)
_BLOCKED = re.compile(r"blocked by content filtering policy", re.IGNORECASE)
_CONTEXT = re.compile(
    r"this model's maximum context length is|maximum context limit|is longer than the model's context length"
    r"|exceeds the available context size|input tokens exceed the configured limit"
    r"|exceeds the maximum number of tokens allowed|exceed context limit|prompt is too long"
    r"|string too long\. expected a string with maximum length"
)
_UNSUPPORTED = re.compile(
    r"extra inputs are not permitted|unsupported (?:parameter|value)|unrecognized request argument"
    r"|is not supported with this model|(?:is|are) deprecated for this model|only the default \(1\) value"
    r"|unknown name \"|property '[^']+' is unsupported"
)
_PARAM = re.compile(
    r"^([\w.]+): Extra inputs|^[`']([\w.]+)[`']|argument supplied: ([\w.]+)"
    r"|(?:parameter|value|property|unknown name)s?:? ['\"`]([\w.]+)",
    re.IGNORECASE,
)
_WRONG_PATH = re.compile(r"(?:404 page |file |resource )?not found\.?|invalid url .*|", re.DOTALL)
_RESPONSES_ONLY = re.compile(
    r"v1/responses|\b(?:gpt|o\d)[\w.-]*-(?:pro|codex|deep-research)\b|computer-use|gpt-daybreak-"
)


def classify(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    request_id_header: str = "x-request-id",
    path_hint: str | None = None,
) -> LLMError:
    """Make the error that an answer stands for. Never raises.

    Args:
        status: HTTP status; below 300 (an error inside a 200) the body names the true one.
        headers: Of the response, names in lower case; empty for an event of a stream.
        body: The response's body, or the event's data.
        request_id_header: The header that carries the provider's request id.
        path_hint: What to check when the path itself is not found.
    """
    said = fault.read(body)
    true = _true_status(status, said)
    delay = _delay(headers, said)
    by_body = _by_body(true, said, delay)
    kind = by_body or _by_status(true)
    message = fault.plain(said.message, SHOWN)
    error = TimedOut(message, phase="read") if kind is TimedOut else kind(message)
    error.status = true if status < 300 else status  # noqa: PLR2004
    error.code = fault.plain(said.words[0], 80) if said.words else None
    error.request_id = headers.get(request_id_header) or said.request_id
    error.retry_after = delay
    error.hint = _hint(error, said, path_hint)
    _obey(error, headers.get("x-should-retry", "").strip().lower(), by_status=by_body is None)
    return error


def _true_status(status: int, said: Fault) -> int:
    if said.status is not None:
        return said.status
    if status >= 300 or not said.known:  # noqa: PLR2004
        return status
    return next((TYPES[word] for word in map(str.lower, said.words) if word in TYPES), 500)


def _delay(headers: Mapping[str, str], said: Fault) -> float | None:
    asked = limits.retry_after(headers)
    if asked is None:
        asked = limits.duration(said.delay)
    return limits.spoken(said.message) if asked is None else asked


def _by_body(status: int, said: Fault, delay: float | None) -> type[LLMError] | None:
    """The class that the body speaks for; None when nothing but the status can tell."""
    text = said.message.lower()
    words = [word.lower() for word in said.words]
    coded = [CODES[word] for word in words if word in CODES]
    if QuotaExhausted in coded or _is_spent(status, said, delay):
        return QuotaExhausted
    if size := _by_size(status, text, coded):
        return size
    if any(word.startswith("cmek_") for word in words):
        return PermissionDenied  # Anthropic sends it as a 503: the customer's own encryption key is the trouble
    if said.moderated and status == 403:  # noqa: PLR2004
        return ContentBlocked
    if coded:
        return coded[0]
    return _by_words(status, text)


def _by_words(status: int, text: str) -> type[LLMError] | None:
    if status == 400 and _BLOCKED.search(text):  # noqa: PLR2004
        return ContentBlocked  # Anthropic has no code for it
    return UnsupportedParam if status in (400, 422) and _UNSUPPORTED.search(text) else None


def _by_size(status: int, text: str, coded: list[type[LLMError]]) -> type[LLMError] | None:
    if status in (413, 429) and _never_fits(text):
        return RequestTooLarge
    if ContextTooLong in coded or _CONTEXT.search(text):
        return ContextTooLong
    # Groq sends 413 with the code `rate_limit_exceeded`, yet no waiting helps.
    return RequestTooLarge if status == 413 else None  # noqa: PLR2004


def _is_spent(status: int, said: Fault, delay: float | None) -> bool:
    if status == 429 and (said.daily or (delay or 0) > LONGEST_WAIT):  # noqa: PLR2004
        return True
    return status in (400, 402, 403, 429) and bool(_MONEY.search(said.message.lower()))


def _never_fits(text: str) -> bool:
    if _TOO_LARGE.search(text):
        return True
    figures = _FIGURES.search(text)
    if not figures:
        return False
    limit, requested = (int(number.replace(",", "")) for number in figures.groups())
    return requested > limit


def _by_status(status: int) -> type[LLMError]:
    if status in STATUSES:
        return STATUSES[status]
    if status < 300:  # noqa: PLR2004
        return BadPayload
    if status < 400:  # noqa: PLR2004
        return NotFound  # redirects are not followed: the key would go to whoever is named
    return BadRequest if status < 500 else ServerError  # noqa: PLR2004


def _hint(error: LLMError, said: Fault, path_hint: str | None) -> str | None:
    if isinstance(error, NotFound):
        return _not_found_hint(error, said, path_hint)
    if isinstance(error, UnsupportedParam):
        return _unsupported_hint(said)
    if error.status == 405:  # noqa: PLR2004
        return path_hint
    if isinstance(error, RateLimited) and "resource unavailable" in said.message.lower():
        return "the flex tier has no capacity now: service_tier='default' would be served"
    return next((hint for kind, hint in HINTS.items() if isinstance(error, kind)), None)


def _not_found_hint(error: LLMError, said: Fault, path_hint: str | None) -> str | None:
    text = said.message.lower()
    if _RESPONSES_ONLY.search(text):
        return "this model may answer on OpenAI's Responses API only: choose one that has chat completions"
    redirected = error.status is not None and error.status < 400  # noqa: PLR2004
    return path_hint if redirected or not said.known or _WRONG_PATH.fullmatch(text) else None


def _unsupported_hint(said: Fault) -> str:
    found = _PARAM.search(said.message)
    name = said.param or (next(filter(None, found.groups())) if found else "")
    if name == "max_tokens":
        return "the model refuses 'max_tokens': it wants 'max_completion_tokens'"
    return f"the model refuses {fault.plain(name, 40)!r}: leave it out" if name else "leave the refused parameter out"


def _obey(error: LLMError, wish: str, *, by_status: bool) -> None:
    """Follow `x-should-retry`; nothing revives a spent quota or a wrong key."""
    if wish == "false" and error.verdict.retry:
        error.judge(retry=False)
    elif wish == "true" and by_status and not isinstance(error, QuotaExhausted | AuthFailed):
        error.judge(retry=True)
