"""Writes answers, errors and headers in the OpenAI chat-completions dialect.

Formats: `research/providers.md` sections A.3 to A.6. Error texts and codes not shown there are worded by us
in their manner, not captured from the real API.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import formatdate

from llmlab.sim.wire import Answer, Ask, Choice, Event, Level, Refusal, Stamp
from llmlab.types import JSON

ORGANIZATION = "org-simulated"
DONE = "[DONE]"
BUCKETS: tuple[str, ...] = ("requests", "tokens")

_FINISH = {"stop_sequence": "stop"}
_PAD = "xK9fQ2mZ7aB4rT1w"

_INVALID = "invalid_request_error"
ERRORS: dict[str, tuple[int, str, str | None]] = {
    "bad_request": (400, _INVALID, None),
    "unsupported_param": (400, _INVALID, "unsupported_parameter"),
    "context_too_long": (400, _INVALID, "context_length_exceeded"),
    "content_filter": (400, _INVALID, "content_filter"),
    "auth": (401, _INVALID, "invalid_api_key"),
    "billing": (402, "billing_error", "insufficient_balance"),
    "permission": (403, "permission_error", "model_not_allowed"),
    "not_found": (404, _INVALID, "model_not_found"),
    "timeout": (408, _INVALID, "request_timeout"),
    "conflict": (409, _INVALID, "conflict"),
    "too_large": (413, _INVALID, None),
    "rate_limited": (429, "{bucket}", "rate_limit_exceeded"),
    "slow_down": (429, "rate_limit_error", "slow_down"),
    "too_large_429": (429, "tokens", "rate_limit_exceeded"),
    "quota": (429, "insufficient_quota", "insufficient_quota"),
    "server_error": (500, "server_error", None),
    "unavailable": (503, "server_error", None),
    "overloaded": (503, "service_unavailable_error", "server_is_overloaded"),
    "gateway_timeout": (504, "server_error", "gateway_timeout"),
}
"""Kind of error -> status, type, code."""

_TEXTS = {
    "bad_request": "The request is not valid.",
    "unsupported_param": "Unsupported parameter: '{param}' is not supported with this model.",
    "context_too_long": "This model's maximum context length is {limit} tokens. However, your messages "
    "resulted in {used} tokens. Please reduce the length of the messages.",
    "content_filter": "The response was filtered due to the prompt triggering the content management policy.",
    "auth": "Incorrect API key provided: {key}.",
    "billing": "Insufficient balance.",
    "permission": "Your project does not have access to this model.",
    "not_found": "The model `{model}` does not exist or you do not have access to it.",
    "timeout": "The request timed out.",
    "conflict": "The resource was updated by another request. Try again.",
    "too_large": "Maximum content size limit exceeded.",
    "rate_limited": "Rate limit reached for {model} in organization org-simulated on {unit}: Limit {limit}, "
    "Used {used}, Requested {asked}.{again} Visit https://platform.openai.com/account/rate-limits to learn "
    "more.",
    "slow_down": "Your request rate grew too fast. Please reduce it and raise it again gradually.",
    "too_large_429": "Request too large for {model} in organization org-simulated on {unit}: Limit {limit}, "
    "Requested {asked}. The input or output tokens must be reduced in order to run successfully.",
    "quota": "You exceeded your current quota, please check your plan and billing details.",
    "server_error": "The server had an error while processing your request. Sorry about that!",
    "unavailable": "The server is temporarily unavailable. Please try again later.",
    "overloaded": "The engine is currently overloaded, please try again later.",
    "gateway_timeout": "The upstream did not answer in time.",
}
_UNITS = {"requests": "requests per min (RPM)", "tokens": "tokens per min (TPM)"}
_EXAMPLES: dict[str, JSON] = {
    "unsupported_param": {"param": "logit_bias"},
    "context_too_long": {"limit": 8192, "used": 9000},
    "auth": {"key": "none"},
    "not_found": {"model": "the-model"},
    "rate_limited": {"model": "the-model", "bucket": "requests", "limit": 500, "used": 500, "asked": 1},
    "too_large_429": {"model": "the-model", "bucket": "tokens", "limit": 30_000, "asked": 31_538},
}
"""Facts of a refusal that comes from a drawn fault, not from a limit."""


def plain(ask: Ask, answer: Answer, stamp: Stamp, quirk: str = "") -> JSON:
    """Write an answer as one JSON body."""
    choices: list[JSON] = [
        {
            "index": index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None, "annotations": []},
            "logprobs": None,
            "finish_reason": _FINISH.get(choice.finish, choice.finish),
        }
        for index, choice in enumerate(answer.choices)
    ]
    body = _head(ask, stamp, "chat.completion", quirk) | {"choices": [] if quirk == "no_choices" else choices}
    return body if quirk == "no_usage" else body | {"usage": _usage(answer)}


def _head(ask: Ask, stamp: Stamp, kind: str, quirk: str) -> JSON:
    return {
        "id": f"chatcmpl-{7 if quirk == 'same_ids' else stamp.id}",
        "object": kind,
        "created": stamp.created,
        "model": ask.model,
        "service_tier": "default",
        "system_fingerprint": "fp_simulated",
    }


def _usage(answer: Answer) -> JSON:
    return {
        "prompt_tokens": answer.input_tokens,
        "completion_tokens": answer.output_tokens,
        "total_tokens": answer.input_tokens + answer.output_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0, "cache_write_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": len(answer.reasoning),
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def stream(ask: Ask, answer: Answer, stamp: Stamp, quirk: str = "") -> list[Event]:
    """Write an answer as a stream's events; `quirk` gives it the shape of a lookalike server."""
    head = _head(ask, stamp, "chat.completion.chunk", quirk)
    chunks = _Chunks(head, {"usage": None} if ask.usage else {}, answer, quirk)
    if quirk == "no_choices":
        return [chunks.event(0, []), Event(answer.steps, DONE, ends=True)]
    events = list(chunks.opening())
    for index, choice in enumerate(answer.choices):
        events += chunks.texts(index, choice, pad=ask.pad)
    events.sort(key=lambda event: event.after)  # stable: side by side, each choice in its own order
    if ask.usage and quirk not in ("no_usage", "usage_on_last"):
        events.append(chunks.event(answer.steps, [], {"usage": _usage(answer)}))
    if quirk != "no_done":
        events.append(Event(answer.steps, DONE, ends=True))
    return events


@dataclass(frozen=True, slots=True)
class _Chunks:
    """The chunks of one stream."""

    head: JSON
    tail: JSON
    answer: Answer
    quirk: str

    def event(self, after: int, choices: list[JSON], extra: JSON | None = None, *, ends: bool = False) -> Event:
        return Event(after, self.head | {"choices": choices} | self.tail | (extra or {}), ends=ends)

    def opening(self) -> Iterator[Event]:
        if self.quirk == "empty_choices":  # Azure's first chunk carries the prompt's filter results only
            results = [{"prompt_index": 0, "content_filter_results": {}}]
            yield self.event(0, [], {"prompt_filter_results": results})
        content = None if self.quirk == "null_content" else ""
        for index in range(len(self.answer.choices)):
            yield self.event(0, [_delta(index, {"role": "assistant", "content": content, "refusal": None})])

    def texts(self, index: int, choice: Choice, *, pad: bool) -> Iterator[Event]:
        role = {"role": "assistant"} if self.quirk == "role_everywhere" else {}
        before = len(self.answer.reasoning)
        for step, piece in enumerate(choice.pieces, before + 1):
            extra = {"obfuscation": _PAD[len(piece) :]} if pad else None
            yield self.event(step, [_delta(index, role | {"content": piece})], extra)
        delta: JSON = {"content": None} if self.quirk == "null_content" else {}
        last = [_delta(index, delta, _FINISH.get(choice.finish, choice.finish))]
        yield self.event(before + len(choice.pieces), last, self.last_extra(), ends=True)

    def last_extra(self) -> JSON:
        if self.quirk == "usage_on_last":
            return {"usage": _usage(self.answer)}
        if self.quirk == "x_groq":
            return {"x_groq": {"id": "req_groq", "usage": _usage(self.answer)}}
        return {}


def _delta(index: int, delta: JSON, finish: str | None = None) -> JSON:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}


def error(refusal: Refusal, request_id: str) -> tuple[int, JSON]:  # noqa: ARG001  the other dialect repeats the id
    """Write an error as status and body."""
    status, kind, code = ERRORS[refusal.kind]
    facts = _EXAMPLES.get(refusal.kind, {}) | refusal.facts
    facts["unit"] = _UNITS.get(facts.get("bucket", ""), "")
    facts["again"] = "" if refusal.wait is None else f" Please try again in {duration(refusal.wait)}."
    message = _TEXTS[refusal.kind].format_map(facts) if refusal.message is None else refusal.message
    body: JSON = {
        "message": message,
        "type": kind.format_map(facts),
        "param": refusal.param or facts.get("param"),
        "code": refusal.code or code,
    }
    return status, {"error": body}


def error_event(refusal: Refusal, request_id: str) -> Event:
    """Write an error inside a stream that has begun: no name, and no [DONE] after it."""
    return Event(0, error(refusal, request_id)[1])


def duration(seconds: float) -> str:
    """Write seconds as Go does: 12ms, 8.64s, 1m30.5s, 6m0s, 0s."""
    millis = round(seconds * 1000)
    if millis < 1000:  # noqa: PLR2004
        return f"{millis}ms" if millis else "0s"
    minutes, rest = divmod(millis, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{rest / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text


def ids(stamp: Stamp, elapsed: float) -> dict[str, str]:
    """Give the headers that identify a response."""
    return {
        "x-request-id": f"req_{stamp.id}",
        "openai-organization": ORGANIZATION,
        "openai-processing-ms": str(round(elapsed * 1000)),
        "openai-version": "2020-10-01",
    }


def hints(refusal: Refusal, now: float) -> dict[str, str]:
    """Give the headers by which a refusal asks to wait."""
    wait = refusal.wait
    if wait is None or refusal.hint in ("text", "none"):
        return {}
    if refusal.hint == "date":
        return {"retry-after": formatdate(now + wait + 0.999, usegmt=True)}
    if refusal.hint == "float":
        return {"retry-after": f"{wait:.3f}"}
    if refusal.hint == "ms":
        return {"retry-after-ms": str(round(wait * 1000))}
    return {"retry-after": str(_ceil(wait))}


def _ceil(seconds: float) -> int:
    return max(1, -int(-seconds // 1))


def costs(ask: Ask, input_tokens: int) -> dict[str, int]:
    """Charge the whole `max_tokens` as a request is let in, used or not; 16 a choice where it names none."""
    return {"requests": 1, "tokens": input_tokens + (ask.max_tokens or 16) * ask.n}


def levels(levels: dict[str, Level], now: float) -> dict[str, str]:  # noqa: ARG001  the other dialect writes times
    """Give the rate limit headers."""
    headers: dict[str, str] = {}
    for name, level in levels.items():
        if name in _UNITS:
            headers[f"x-ratelimit-limit-{name}"] = str(level.limit)
            headers[f"x-ratelimit-remaining-{name}"] = str(level.remaining)
            headers[f"x-ratelimit-reset-{name}"] = duration(level.reset)
    return headers


def models(names: tuple[str, ...]) -> JSON:
    """Write the list of models."""
    return {"object": "list", "data": [model(name) for name in names]}


def model(name: str) -> JSON:
    """Write one model's entry."""
    return {"id": name, "object": "model", "created": 1_764_000_000, "owned_by": "llmlab"}
