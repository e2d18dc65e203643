"""Writes answers, errors and headers in the Anthropic Messages dialect.

Formats: `research/providers.md` sections B.3 to B.6. Error texts and codes not shown there are worded by us
in their manner, not captured from the real API.
"""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from llmlab.sim.wire import Answer, Ask, Choice, Event, Level, Refusal, Stamp
from llmlab.types import JSON

BUCKETS: tuple[str, ...] = ("requests", "input-tokens", "output-tokens")

_FINISH = {
    "stop": "end_turn",
    "length": "max_tokens",
    "stop_sequence": "stop_sequence",
    "content_filter": "refusal",
}
_SIGNATURE = "EqQBCgIYAhIM1gbcDa9GJwZA2b3hGgxBdjrkzLoky3dl1pkiMOYds"

ERRORS: dict[str, tuple[int, str, str]] = {
    "bad_request": (400, "invalid_request_error", "The request is not valid."),
    "unsupported_param": (400, "invalid_request_error", "{param}: Extra inputs are not permitted"),
    "context_too_long": (400, "invalid_request_error", "prompt is too long: {used} tokens > {limit} maximum"),
    "content_filter": (400, "invalid_request_error", "Output blocked by content filtering policy"),
    "auth": (401, "authentication_error", "invalid x-api-key"),
    "billing": (402, "billing_error", "Your account has an outstanding balance."),
    "permission": (
        403,
        "permission_error",
        "Your API key does not have permission to use the specified resource.",
    ),
    "not_found": (404, "not_found_error", "model: {model}"),
    "timeout": (408, "timeout_error", "Request timeout"),
    "conflict": (409, "conflict_error", "The resource was updated by another request."),
    "too_large": (413, "request_too_large", "Request exceeds the maximum size"),
    "rate_limited": (
        429,
        "rate_limit_error",
        "This request would exceed your organization's rate limit of {limit} {unit} per minute.{again}",
    ),
    "slow_down": (
        429,
        "rate_limit_error",
        "This request would exceed your organization's acceleration limit. Please scale up more gradually.",
    ),
    "too_large_429": (
        429,
        "rate_limit_error",
        "Request too large: Limit {limit}, Requested {asked} tokens per minute. The prompt must be reduced.",
    ),
    "quota": (429, "rate_limit_error", "You have reached your organization's monthly spend limit."),
    "server_error": (500, "api_error", "Internal server error"),
    "unavailable": (503, "api_error", "Service temporarily unavailable"),
    "overloaded": (529, "overloaded_error", "Overloaded"),
    "gateway_timeout": (504, "timeout_error", "Request timed out"),
}
_EXAMPLES: dict[str, JSON] = {
    "unsupported_param": {"param": "logit_bias"},
    "context_too_long": {"limit": 200_000, "used": 210_000},
    "not_found": {"model": "the-model"},
    "rate_limited": {"bucket": "requests", "limit": 50},
    "too_large_429": {"limit": 30_000, "asked": 31_538},
}
"""Facts of a refusal that comes from a drawn fault, not from a limit."""
_DETAILS = {"quota": "enforced_spend_limit_reached", "slow_down": "ramp_limit_exceeded"}


def plain(ask: Ask, answer: Answer, stamp: Stamp, quirk: str = "") -> JSON:
    """Write an answer as one JSON body."""
    choice = answer.choices[0]
    content: list[JSON] = []
    if answer.reasoning:
        content.append({"type": "thinking", "thinking": "".join(answer.reasoning), "signature": _SIGNATURE})
    if choice.pieces:
        content.append({"type": "text", "text": choice.text})
    body = _message_of(ask, stamp, quirk) | {
        "content": content,
        "stop_reason": _FINISH[choice.finish],
        "stop_sequence": choice.stopped_by,
        "stop_details": _details(choice),
    }
    if quirk == "no_choices":  # neither content nor a reason: no answer
        return {key: value for key, value in body.items() if key not in ("content", "stop_reason")}
    return body if quirk == "no_usage" else body | {"usage": _usage(answer)}


def _message_of(ask: Ask, stamp: Stamp, quirk: str) -> JSON:
    name = "7" if quirk == "same_ids" else stamp.id
    return {"id": f"msg_{name}", "type": "message", "role": "assistant", "model": ask.model}


def _details(choice: Choice) -> JSON | None:
    if choice.finish != "content_filter":
        return None
    return {"type": "refusal", "category": None, "explanation": "The request was declined."}


def _usage(answer: Answer) -> JSON:
    return {
        "input_tokens": answer.input_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
        "output_tokens": answer.output_tokens,
        "output_tokens_details": {"thinking_tokens": len(answer.reasoning)},
        "service_tier": "standard",
    }


def _event(after: int, kind: str, *, ends: bool = False, **rest: Any) -> Event:
    return Event(after, {"type": kind, **rest}, kind, ends)


def stream(ask: Ask, answer: Answer, stamp: Stamp, quirk: str = "") -> list[Event]:
    """Write an answer as a stream's events; `quirk` gives it an unusual shape."""
    usage = _usage(answer) | {"output_tokens": 1, "output_tokens_details": {"thinking_tokens": 0}}
    message = _message_of(ask, stamp, quirk) | {
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": usage,
    }
    if quirk == "no_usage":
        del message["usage"]
    events = [_event(0, "message_start", message=message)]
    if quirk != "no_choices":
        events += _blocks(answer, quirk)
        events.append(_stop_event(answer, quirk))
    return [*events, _event(answer.steps, "message_stop", ends=True)]


def _blocks(answer: Answer, quirk: str) -> list[Event]:
    events: list[Event] = []
    thought = len(answer.reasoning)
    if thought:
        block = {"type": "thinking", "thinking": "", "signature": ""}
        signed = {"type": "signature_delta", "signature": _SIGNATURE}
        start, *deltas, stop = _block(block, "thinking", answer.reasoning, quirk)
        events += [start, *deltas, _event(thought, "content_block_delta", delta=signed), stop]
    if pieces := answer.choices[0].pieces:
        text = _block({"type": "text", "text": ""}, "text", pieces, quirk)
        events += [replace(event, after=event.after + thought) for event in text]
    return _numbered(events)


def _block(block: JSON, field: str, pieces: tuple[str, ...], quirk: str) -> list[Event]:
    events = [_event(0, "content_block_start", content_block=block), _event(0, "ping")]
    for step, piece in enumerate(pieces, 1):
        delta = {"type": f"{field}_delta", field: piece}
        events.append(_event(step, "content_block_delta", delta=delta))
        if quirk == "pings":
            events.append(_event(step, "ping"))
        elif quirk == "unknown_events":
            events.append(_event(step, "content_block_rumour", delta={"type": "rumour_delta"}))
    return [*events, _event(len(pieces), "content_block_stop")]


def _numbered(events: list[Event]) -> list[Event]:
    """Give each event of a block the block's index, in the place where Anthropic has it."""
    numbered, index = [], 0
    for event in events:
        if event.name == "ping":
            numbered.append(event)
            continue
        data = {"type": event.name, "index": index} | event.data
        numbered.append(replace(event, data=data))
        index += event.name == "content_block_stop"
    return numbered


def _stop_event(answer: Answer, quirk: str) -> Event:
    choice = answer.choices[0]
    delta: JSON = {"stop_reason": _FINISH[choice.finish], "stop_sequence": choice.stopped_by}
    if details := _details(choice):
        delta["stop_details"] = details
    rest: JSON = {} if quirk == "no_usage" else {"usage": {"output_tokens": answer.output_tokens}}
    return _event(answer.steps, "message_delta", ends=True, delta=delta, **rest)


def error(refusal: Refusal, request_id: str) -> tuple[int, JSON]:
    """Write an error as status and body."""
    status, kind, text = ERRORS[refusal.kind]
    facts = _EXAMPLES.get(refusal.kind, {}) | refusal.facts
    facts["unit"] = str(facts.get("bucket", "")).replace("-", " ")
    told = refusal.wait is not None and refusal.hint == "text"
    facts["again"] = f" Please try again in {refusal.wait:.3g}s." if told else ""
    message = text.format_map(facts) if refusal.message is None else refusal.message
    code = refusal.code or _DETAILS.get(refusal.kind)
    body = {"type": kind, "message": message, "details": {"error_code": code} if code else None}
    return status, {"type": "error", "error": body, "request_id": request_id}


def error_event(refusal: Refusal, request_id: str) -> Event:
    """Write an error inside a stream that has begun."""
    return Event(0, error(refusal, request_id)[1], "error")


def ids(stamp: Stamp, elapsed: float) -> dict[str, str]:  # noqa: ARG001  the other dialect tells the time
    """Give the headers that identify a response."""
    return {
        "request-id": f"req_{stamp.id}",
        "anthropic-organization-id": "00000000-0000-4000-8000-000000000000",
    }


def hints(refusal: Refusal, now: float) -> dict[str, str]:  # noqa: ARG001  the other dialect knows dates
    """Give the headers by which a refusal asks to wait: always whole seconds."""
    headers = {"x-should-retry": "true"} if refusal.kind in ("overloaded", "rate_limited") else {}
    if refusal.wait is None or refusal.hint in ("text", "none"):
        return headers
    return headers | {"retry-after": str(max(1, -int(-refusal.wait // 1)))}


def costs(ask: Ask, input_tokens: int) -> dict[str, int]:  # noqa: ARG001  the other dialect charges max_tokens
    """Charge the input as a request is let in; output is charged as it is written, and may be overdrawn."""
    return {"requests": 1, "input-tokens": input_tokens, "output-tokens": 0}


def levels(levels: dict[str, Level], now: float) -> dict[str, str]:
    """Give the rate limit headers; `tokens` is the tightest of the token limits."""
    shown = dict(levels)
    if kinds := [levels[name] for name in ("input-tokens", "output-tokens") if name in levels]:
        shown["tokens"] = min(kinds, key=lambda level: level.remaining / level.limit)
    headers = {}
    for name, level in shown.items():
        full = datetime.fromtimestamp(now + level.reset, UTC)
        headers[f"anthropic-ratelimit-{name}-limit"] = str(level.limit)
        headers[f"anthropic-ratelimit-{name}-remaining"] = str(level.remaining)
        headers[f"anthropic-ratelimit-{name}-reset"] = full.strftime("%Y-%m-%dT%H:%M:%SZ")
    return headers


def models(names: tuple[str, ...]) -> JSON:
    """Write the list of models."""
    first, last = (names[0], names[-1]) if names else (None, None)
    return {"data": [model(name) for name in names], "has_more": False, "first_id": first, "last_id": last}


def model(name: str) -> JSON:
    """Write one model's entry."""
    display = name.replace("-", " ").title()
    return {"type": "model", "id": name, "display_name": display, "created_at": "2025-11-24T00:00:00Z"}
