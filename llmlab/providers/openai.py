"""OpenAI's Chat Completions and the many servers that speak it, each a little differently.

Sends nothing that the user did not set: some servers refuse unknown fields, others ignore them in silence.
Reads everything that is known to come: chunks without choices, null content, usage in any chunk, reasoning
under three names, tool calls in fragments, errors inside a 200. The answer is the first choice; others (`n`)
are paid for and skipped. A model's refusal is an answer with the finish_reason `content_filter`, no error.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import orjson

from llmlab.errors import BadPayload, LLMError, Overloaded, ServerError
from llmlab.providers.base import Draft, count, pack, unpack
from llmlab.providers.fault import carries_error, plain
from llmlab.providers.sse import DONE, ServerEvent
from llmlab.providers.structured import FORMATS, Subset, strict, told
from llmlab.providers.taxonomy import classify
from llmlab.types import JSON, Form, Message, Prompt, Schema, Usage

FINISH = {
    "stop": "stop",
    "eos": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}
"""The wire's finish_reason -> ours; what is not here is `other`."""

STRICT = Subset(
    frozenset(
        ("pattern", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minItems", "maxItems")
    ),
    FORMATS,
    all_required=True,
)
"""What `strict: true` takes."""

BASE_HINT = "check that base_url ends in /v1, or wherever the server's OpenAI-compatible API begins"


@dataclass
class OpenAI:
    """The Chat Completions format; the fields are its dialects, the defaults api.openai.com."""

    path: str = "/chat/completions"
    """Appended to the base URL."""
    request_id_header: str = "x-request-id"
    """The response header that carries the provider's request id."""
    auth: Literal["bearer", "api-key"] = "bearer"
    """How the key is sent: `Authorization: Bearer`, or Azure's `api-key`."""
    max_tokens_field: str = "max_completion_tokens"
    """The name under which max_tokens is sent; older and local servers read only `max_tokens`."""
    stream_options: bool = True
    """Ask for usage at the end of a stream; some servers refuse the field."""
    developer_role: bool = True
    """Whether the server knows the role `developer`; if not, it is sent as `system`."""
    forms: tuple[Form, ...] = ("json_schema", "json_object")
    """How the server can be held to a JSON schema, the best first."""
    extra_headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Sent with every request; not shown, as they may hold keys."""
    extra_body: Mapping[str, object] = field(default_factory=dict)
    """Fields sent with every request; a prompt's own `extra` goes before them."""

    def headers(self, key: str | None) -> dict[str, str]:
        """Request headers for this key (None: no authentication)."""
        if key is None:
            return dict(self.extra_headers)
        name, value = ("api-key", key) if self.auth == "api-key" else ("authorization", f"Bearer {key}")
        return {name: value, **self.extra_headers}

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
        messages, asked = self._structured(prompt, form)
        body: JSON = {"model": model, "messages": [self._message(each) for each in messages], **asked}
        if prompt.temperature is not None:
            body["temperature"] = prompt.temperature
        if prompt.max_tokens is not None:
            body[self.max_tokens_field] = prompt.max_tokens
        body |= {**self.extra_body, **prompt.extra}
        body.pop("stream", None)
        if stream:
            body["stream"] = True
            if self.stream_options:
                body.setdefault("stream_options", {"include_usage": True})
        return pack(body)

    def decode(self, body: bytes, draft: Draft) -> None:
        """Read a whole answer into `draft`. Raises the error that a 200 body carries, or BadPayload."""
        answer = unpack(body)
        if carries_error(answer):
            raise self.error(200, {}, body)
        choices = answer.get("choices") if isinstance(answer, dict) else None
        choice = _first(choices)
        if not isinstance(answer, dict) or choice is None or not isinstance(choice.get("message"), dict):
            raise BadPayload(f"the answer has no choices: {plain(body[:200].decode(errors='replace'), 200)}")
        _note(answer, draft)
        _read(choice, choice["message"], draft)
        draft.finish_reason = draft.finish_reason or "other"
        draft.complete = draft.ended = True

    def delta(self, event: ServerEvent, draft: Draft) -> str:
        """Read one event of a stream into `draft`; returns the new text, often "".

        Raises the error that the event carries, or BadPayload.
        """
        if draft.ended:
            return ""
        try:
            chunk = orjson.loads(event.data)
        except orjson.JSONDecodeError:
            chunk = self._not_json(event, draft)
            if chunk is None:
                return ""
        if type(chunk) is not dict or event.event == "error" or chunk.get("error"):
            return self._odd(event, chunk)
        if draft.model is None or chunk.get("usage") or "x_groq" in chunk:
            _note(chunk, draft)
        choice = _first(chunk.get("choices"))
        if choice is None:
            return self._odd(event, chunk)
        message = choice.get("delta") or choice.get("message")
        return _read(choice, message if type(message) is dict else {}, draft)

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> LLMError:
        """The error that an answer of this status stands for. Never raises."""
        return classify(status, headers, body, request_id_header=self.request_id_header, path_hint=BASE_HINT)

    def _structured(self, prompt: Prompt, form: Form | None) -> tuple[tuple[Message, ...], JSON]:
        """The messages, and the field that asks for the schema."""
        if prompt.schema is None:
            return prompt.messages, {}
        form = form or next(iter(self.forms), "instructions")
        if form == "json_schema":
            return prompt.messages, {"response_format": _json_schema(prompt.schema)}
        return told(prompt), {} if form == "instructions" else {"response_format": {"type": "json_object"}}

    def _message(self, message: Message) -> JSON:
        role = "system" if message.role == "developer" and not self.developer_role else message.role
        return {"role": role, "content": message.content}

    def _not_json(self, event: ServerEvent, draft: Draft) -> object:
        """Read an event that is the stream's last word, no JSON, or JSON that only the lenient reader takes."""
        word = event.data.strip()
        if word == DONE:
            _settle(draft)
            draft.complete = draft.ended = True
        elif event.event == "error":
            raise self.error(500, {}, event.data.encode(errors="replace"))
        elif word:
            return unpack(event.data)
        return None

    def _odd(self, event: ServerEvent, chunk: object) -> str:
        """An event that is no chunk: an error, or something to skip (a ping, filter results, usage alone)."""
        named = event.event == "error"
        if named or carries_error(chunk):
            status = 200 if carries_error(chunk) else 500
            raise self.error(status, {}, event.data.encode(errors="replace"))
        if not isinstance(chunk, dict):
            raise BadPayload(f"an event of the stream is no object but: {plain(event.data, 200)}")
        return ""


def _json_schema(schema: Schema) -> JSON:
    exact = strict(schema, STRICT)
    spec = {"name": schema.name, "schema": orjson.loads(schema.text) if exact is None else exact}
    return {"type": "json_schema", "json_schema": {**spec, "strict": exact is not None}}


def _first(choices: object) -> JSON | None:
    """The choice of index 0. The index may be missing; with `n` above 1 a stream's choices interleave."""
    for choice in choices if type(choices) is list else ():
        if type(choice) is dict and not choice.get("index"):
            return choice
    return None


def _read(choice: JSON, message: JSON, draft: Draft) -> str:
    """Read one choice, whole or a chunk's; returns its text."""
    text = message.get("content")
    if type(text) is not str:
        text = _parts(text, draft) if text else ""
    if text:
        draft.pieces.append(text)
    if len(message) > 1 or not text:
        text += _rest(message, draft, has_text=bool(text))
    if reason := choice.get("finish_reason"):
        _finish(reason, draft)
    return text


def _rest(message: JSON, draft: Draft, *, has_text: bool) -> str:
    """What a message may hold besides text; returns the text of a refusal."""
    if thought := _reasoning(message):
        draft.reasoning.append(thought)
    if calls := message.get("tool_calls"):
        _collect(calls, draft)
    refusal = message.get("refusal")
    if has_text or not isinstance(refusal, str) or not refusal:
        return ""
    draft.pieces.append(refusal)
    draft.finish_reason = "content_filter"
    return refusal


def _finish(reason: object, draft: Draft) -> None:
    if reason == "insufficient_system_resource":
        raise Overloaded("the provider ran out of resources while it answered", code=reason)
    if reason == "error":
        raise ServerError("the provider broke the answer off with finish_reason 'error'", code=reason)
    if draft.finish_reason != "content_filter":  # a refusal ends with `stop`
        draft.finish_reason = FINISH.get(reason, "other") if isinstance(reason, str) else "other"
    _settle(draft)
    draft.complete = True


def _parts(content: object, draft: Draft) -> str:
    """Content as a list of parts, as Mistral sends it: the text; thinking goes into the draft."""
    text = ""
    for part in content if isinstance(content, list) else []:
        if isinstance(part, dict):
            text += _string(part.get("text"))
            if thought := _joined(part.get("thinking")):
                draft.reasoning.append(thought)
    return text


def _reasoning(message: JSON) -> str:
    plain_text = _string(message.get("reasoning_content")) or _string(message.get("reasoning"))
    return plain_text or _joined(message.get("reasoning_details"))


def _joined(parts: object) -> str:
    if not isinstance(parts, list):
        return _string(parts)
    return "".join(_string(part.get("text")) for part in parts if isinstance(part, dict))


def _string(value: object) -> str:
    return value if isinstance(value, str) else ""


def _collect(calls: object, draft: Draft) -> None:
    """Merge fragments of tool calls: the first one names the call, later ones continue its arguments."""
    for fragment in calls if isinstance(calls, list) else []:
        if not isinstance(fragment, dict):
            continue
        function = fragment.get("function")
        function = function if isinstance(function, dict) else {}
        place = _place(fragment, draft, named=bool(function.get("name")))
        if place not in draft.open_calls:
            call = {key: value for key, value in fragment.items() if key != "index"}
            call["function"] = {**function, "arguments": ""}
            draft.open_calls[place] = (call, [])
            draft.tool_calls.append(call)
        draft.open_calls[place][1].append(_string(function.get("arguments")))


def _place(fragment: JSON, draft: Draft, *, named: bool) -> int:
    """Where a fragment belongs. Gemini sends whole calls without index, or all at 0 with their own ids."""
    new = -1 - len(draft.open_calls)
    place = fragment.get("index")
    if type(place) is not int:
        begins = named or fragment.get("id") or not draft.open_calls
        return new if begins else next(reversed(draft.open_calls))
    known = draft.open_calls.get(place)
    same = known is None or not fragment.get("id") or known[0].get("id") in (None, "", fragment["id"])
    return place if same else new


def _settle(draft: Draft) -> None:
    for call, pieces in draft.open_calls.values():
        call["function"]["arguments"] = "".join(pieces)


def _note(answer: JSON, draft: Draft) -> None:
    """Take down the model and the tokens, which any chunk may bring; the last word counts."""
    draft.model = _string(answer.get("model")) or draft.model
    groq = answer.get("x_groq")
    used = answer.get("usage") or (groq.get("usage") if isinstance(groq, dict) else None)
    if isinstance(used, dict) and used:
        draft.usage = _usage(used)


def _usage(used: JSON) -> Usage:
    read, written = _object(used, "prompt_tokens_details"), _object(used, "completion_tokens_details")
    sent, made = count(used.get("prompt_tokens")), count(used.get("completion_tokens"))
    thought = count(written.get("reasoning_tokens")) or count(used.get("reasoning_tokens"))
    if thought and count(used.get("total_tokens")) == sent + made + thought:
        made += thought  # a server that counts reasoning apart
    return Usage(
        sent,
        made,
        count(read.get("cached_tokens")) or count(used.get("prompt_cache_hit_tokens")),
        count(read.get("cache_write_tokens")),
        thought,
    )


def _object(parent: JSON, key: str) -> JSON:
    value = parent.get(key)
    return value if isinstance(value, dict) else {}
