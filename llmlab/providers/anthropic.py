"""Anthropic's Messages, as the vendor and the servers that imitate it speak it.

The system prompt stands outside the messages, so system and developer messages are hoisted wherever they
stand. Token counts come without the cached ones and are made totals. Sampling parameters are sent as the
user set them, though version 2026-10-21 and newer models refuse them: dropping one in silence would change
the answers, while the 400 comes back as UnsupportedParam and names it.
"""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import unquote_to_bytes

import orjson

from llmlab.errors import BadPayload, LLMError
from llmlab.providers.base import Draft, count, pack, unpack
from llmlab.providers.fault import carries_error, plain
from llmlab.providers.sse import DONE, ServerEvent
from llmlab.providers.structured import FORMATS, Subset, strict, told
from llmlab.providers.taxonomy import classify
from llmlab.types import JSON, Form, Message, Prompt, Usage

FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
"""The wire's stop_reason -> ours; what is not here, as `pause_turn`, is `other`."""

STRICT = Subset(frozenset(), FORMATS | {"uri"}, all_required=False)
"""What `output_config.format` takes."""

BASE_HINT = "check that base_url is the server's root: /v1/messages is appended"

_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?((?:;[^,;]+)*),(.*)", re.DOTALL | re.IGNORECASE)


@dataclass
class Anthropic:
    """The Messages format; the fields are its dialects, the defaults api.anthropic.com."""

    path: str = "/v1/messages"
    """Appended to the base URL."""
    request_id_header: str = "request-id"
    """The response header that carries the provider's request id."""
    version: str = "2023-06-01"
    """The API's version, sent as `anthropic-version`; the default is the one that every server knows."""
    default_max_tokens: int = 4096
    """Sent where the prompt sets no max_tokens, which this API requires."""
    auth: Literal["x-api-key", "bearer"] = "x-api-key"
    """How the key is sent; gateways may want `Authorization: Bearer`."""
    forms: tuple[Form, ...] = ("json_schema",)
    """How the server can be held to a JSON schema, the best first."""
    extra_headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Sent with every request (`anthropic-beta`); not shown, as they may hold keys."""
    extra_body: Mapping[str, object] = field(default_factory=dict)
    """Fields sent with every request; a prompt's own `extra` goes before them."""

    def headers(self, key: str | None) -> dict[str, str]:
        """Request headers for this key (None: no authentication)."""
        headers = {"anthropic-version": self.version}
        if key is not None:
            bearer = self.auth == "bearer"
            headers["authorization" if bearer else "x-api-key"] = f"Bearer {key}" if bearer else key
        return {**headers, **self.extra_headers}

    def encode(self, prompt: Prompt, model: str, *, stream: bool, form: Form | None = None) -> bytes:
        """The request's body; `model` is the one to ask, whatever the prompt says.

        Args:
            prompt: What is asked.
            model: Whom.
            stream: Whether the answer is to come in pieces.
            form: How to ask for the prompt's schema, if it has one. None: in the best way that is known.

        Raises:
            Unsendable: The prompt holds what JSON cannot carry.
        """
        messages, exact = self._structured(prompt, form)
        system = [each for each in messages if each.role in ("system", "developer")]
        turns = [each for each in messages if each.role not in ("system", "developer")]
        limit = self.default_max_tokens if prompt.max_tokens is None else prompt.max_tokens
        body: JSON = {"model": model, "max_tokens": limit, "messages": [_turn(each) for each in turns]}
        if system:
            body["system"] = _system(system)
        if prompt.temperature is not None:
            body["temperature"] = prompt.temperature
        body |= {**self.extra_body, **prompt.extra}
        if exact is not None:  # beside what else may be configured there, as the effort
            wanted = {"format": {"type": "json_schema", "schema": exact}}
            body["output_config"] = wanted | (body.get("output_config") or {})
        body.pop("stream", None)
        if stream:
            body["stream"] = True
        return pack(body)

    def _structured(self, prompt: Prompt, form: Form | None) -> tuple[tuple[Message, ...], JSON | None]:
        """The messages, and the schema to hold the model to; None where it is told in words, or asked for none."""
        if prompt.schema is None:
            return prompt.messages, None
        form = form or next(iter(self.forms), "instructions")
        exact = strict(prompt.schema, STRICT) if form == "json_schema" else None
        return (told(prompt) if exact is None else prompt.messages), exact

    def decode(self, body: bytes, draft: Draft) -> None:
        """Read a whole answer into `draft`. Raises the error that a 200 body carries, or BadPayload."""
        answer = unpack(body)
        if carries_error(answer):
            raise self.error(200, {}, body)
        blocks = answer.get("content") if isinstance(answer, dict) else None
        if not isinstance(answer, dict) or not isinstance(blocks, list):
            raise BadPayload(f"the answer has no content: {plain(body[:200].decode(errors='replace'), 200)}")
        for block in blocks:
            if isinstance(block, dict):
                _take(block, draft)
        _note(answer, draft)
        draft.finish_reason = _finish(answer.get("stop_reason")) or "other"
        draft.complete = draft.ended = True

    def delta(self, event: ServerEvent, draft: Draft) -> str:
        """Read one event of a stream into `draft`; returns the new text, often "".

        Raises the error that the event carries, or BadPayload.
        """
        if draft.ended:
            return ""
        try:
            data = orjson.loads(event.data)
        except orjson.JSONDecodeError:
            data = self._not_json(event)
            if data is None:
                return ""
        if type(data) is not dict:
            if carries_error(data) or event.event == "error":
                raise self._refusal(event, data)
            raise BadPayload(f"an event of the stream is no object but: {plain(event.data, 200)}")
        kind = data.get("type")
        if kind == "content_block_delta":
            return _grow(data, draft)
        if event.event == "error" or carries_error(data):
            raise self._refusal(event, data)
        return _step(kind, data, draft)

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> LLMError:
        """The error that an answer of this status stands for. Never raises."""
        return classify(status, headers, body, request_id_header=self.request_id_header, path_hint=BASE_HINT)

    def _not_json(self, event: ServerEvent) -> object:
        if event.event == "error":
            raise self._refusal(event, None)
        if event.data.strip() not in ("", DONE):  # some proxies end as OpenAI does
            return unpack(event.data)
        return None

    def _refusal(self, event: ServerEvent, data: object) -> LLMError:
        status = 200 if carries_error(data) else 500
        return self.error(status, {}, event.data.encode(errors="replace"))


def _system(messages: list[Message]) -> str | list[JSON]:
    """One system prompt of several messages: text, or blocks if any message has parts."""
    if all(isinstance(each.content, str) for each in messages):
        return "\n\n".join(str(each.content) for each in messages)
    blocks: list[JSON] = []
    for each in messages:
        blocks += [{"type": "text", "text": each.content}] if isinstance(each.content, str) else each.content
    return blocks


def _turn(message: Message) -> JSON:
    content = message.content
    parts = content if isinstance(content, str) else [_part(each) for each in content]
    return {"role": message.role, "content": parts}


def _part(part: JSON) -> JSON:
    """OpenAI's `image_url` part as an image block; every other part as it is."""
    image = part.get("image_url")
    url = image.get("url") if isinstance(image, dict) else image
    source = _source(url) if part.get("type") == "image_url" and isinstance(url, str) else None
    if source is None:
        return part
    kept = {key: value for key, value in part.items() if key not in ("type", "image_url")}
    return {"type": "image", "source": source, **kept}


def _source(url: str) -> JSON | None:
    if found := _DATA_URL.fullmatch(url):
        media, options, data = found.groups()
        if ";base64" not in options.lower():
            data = base64.b64encode(unquote_to_bytes(data)).decode()
        return {"type": "base64", "media_type": media or "text/plain", "data": data}
    return {"type": "url", "url": url} if url.startswith(("https://", "http://")) else None


def _take(block: JSON, draft: Draft) -> str:
    """Read a content block that has come whole, or the beginning of one; returns its text."""
    kind = block.get("type")
    if kind == "tool_use":
        draft.tool_calls.append(dict(block))
    elif kind == "thinking" and (thought := _string(block.get("thinking"))):
        draft.reasoning.append(thought)
    elif kind == "text" and (text := _string(block.get("text"))):
        draft.pieces.append(text)
        return text
    return ""


def _grow(data: JSON, draft: Draft) -> str:
    """Read a content_block_delta; returns its text."""
    change = data.get("delta")
    if not isinstance(change, dict):
        return ""
    if text := _string(change.get("text")):
        draft.pieces.append(text)
        return text
    if thought := _string(change.get("thinking")):
        draft.reasoning.append(thought)
    elif piece := _string(change.get("partial_json")):
        call = draft.open_calls.get(_index(data))
        if call:
            call[1].append(piece)
    return ""


def _step(kind: object, data: JSON, draft: Draft) -> str:
    """Read any event but content and errors; pings and kinds not known are skipped."""
    if kind == "message_start":
        _note(_object(data, "message"), draft)
    elif kind == "content_block_start":
        block = _object(data, "content_block")
        text = _take(block, draft)
        if block.get("type") == "tool_use":
            draft.open_calls[_index(data)] = (draft.tool_calls[-1], [])
        return text
    elif kind == "content_block_stop":
        _settle(draft, _index(data))
    elif kind == "message_delta":
        _note(data, draft)
        if reason := _finish(_object(data, "delta").get("stop_reason")):
            draft.finish_reason = reason
            draft.complete = True
    elif kind == "message_stop":
        for index in tuple(draft.open_calls):
            _settle(draft, index)
        draft.complete = draft.ended = True
    return ""


def _finish(reason: object) -> str | None:
    if not reason:
        return None
    return FINISH.get(reason, "other") if isinstance(reason, str) else "other"


def _settle(draft: Draft, index: int) -> None:
    """Parse the input of a tool call that has come; cut-off JSON stays text, so that nothing is lost."""
    call, pieces = draft.open_calls.pop(index, ({}, []))
    if text := "".join(pieces):
        try:
            call["input"] = orjson.loads(text)
        except orjson.JSONDecodeError:
            call["input"] = text


def _note(message: JSON, draft: Draft) -> None:
    """Take down the model and the tokens; counts are cumulative, and those not repeated stand."""
    draft.model = _string(message.get("model")) or draft.model
    used = message.get("usage")
    if isinstance(used, dict):
        draft.usage = _usage(used, draft.usage or Usage())


def _usage(used: JSON, old: Usage) -> Usage:
    def last(key: str, before: int) -> int:
        return before if used.get(key) is None else count(used[key])

    fresh = last("input_tokens", old.input_tokens - old.cached_tokens - old.cache_write_tokens)
    read = last("cache_read_input_tokens", old.cached_tokens)
    written = last("cache_creation_input_tokens", old.cache_write_tokens)
    thought = _object(used, "output_tokens_details").get("thinking_tokens")
    return Usage(
        input_tokens=fresh + read + written,
        output_tokens=last("output_tokens", old.output_tokens),
        cached_tokens=read,
        cache_write_tokens=written,
        reasoning_tokens=old.reasoning_tokens if thought is None else count(thought),
    )


def _index(data: JSON) -> int:
    index = data.get("index")
    return index if type(index) is int else 0


def _object(parent: JSON, key: str) -> JSON:
    value = parent.get(key)
    return value if isinstance(value, dict) else {}


def _string(value: object) -> str:
    return value if isinstance(value, str) else ""
