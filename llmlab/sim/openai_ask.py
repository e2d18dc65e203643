"""Reads requests in the OpenAI chat-completions dialect, and refuses what OpenAI refuses.

Formats: `research/providers.md` sections A.1, A.2 and A.5. Texts and codes not shown there are worded by us in
their manner, not captured from the real API.
"""

from typing import Any

import orjson

from llmlab.sim import strictness
from llmlab.sim.wire import Ask, Headers, Refusal
from llmlab.types import JSON

_KNOWN = frozenset(
    "model messages audio frequency_penalty function_call functions logit_bias logprobs "  # noqa: SIM905  a list takes a line each
    "max_completion_tokens max_tokens metadata modalities moderation n parallel_tool_calls prediction "
    "presence_penalty prompt_cache_key prompt_cache_options prompt_cache_retention reasoning_effort "
    "response_format safety_identifier seed service_tier stop store stream stream_options temperature "
    "tool_choice tools top_logprobs top_p user verbosity web_search_options".split()
)
_ROLES = ("system", "assistant", "user", "function", "tool", "developer")


def parse(body: bytes, headers: Headers) -> Ask:  # noqa: ARG001  the other dialect reads its version there
    """Read a request; raises Refusal as OpenAI would answer."""
    data = _json(body)
    if unknown := next((key for key in data if key not in _KNOWN), None):
        raise Refusal("bad_request", f"Unrecognized request argument supplied: {unknown}")
    model = data.get("model")
    if not isinstance(model, str) or not model:
        raise Refusal("bad_request", "you must provide a model parameter")
    texts, images = _messages(data.get("messages"))
    thinks = "reasoning" in model
    schema = _format(data, "\n".join(texts))
    options = data.get("stream_options") or {}
    if options and not data.get("stream"):
        raise _invalid("stream_options", "The 'stream_options' parameter is only allowed when 'stream' is enabled.")
    return Ask(
        model=model,
        text="\n".join(texts),
        turns=len(data["messages"]),
        images=images,
        max_tokens=_most(data, thinks=thinks),
        stop=_stop(data.get("stop")),
        n=_numbers(data, thinks=thinks),
        stream=bool(data.get("stream")),
        usage=bool(options.get("include_usage")),
        pad=options.get("include_obfuscation") is not False,
        json=schema is not None,
        schema=schema or None,
        thinks=thinks,
    )


def _json(body: bytes) -> JSON:
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        data = None
    if not isinstance(data, dict):
        raise Refusal(
            "bad_request", "We could not parse the JSON body of your request. The API expects a JSON payload."
        )
    return data


def _invalid(param: str, message: str, code: str | None = None) -> Refusal:
    return Refusal("bad_request", message, param=param, code=code)


def _messages(messages: Any) -> tuple[list[str], int]:
    if messages is None:
        raise _invalid("messages", "Missing required parameter: 'messages'.", "missing_required_parameter")
    if not isinstance(messages, list):
        raise _invalid("messages", "Invalid type for 'messages': expected an array of objects.", "invalid_type")
    if not messages:
        raise _invalid(
            "messages",
            "Invalid 'messages': empty array. Expected an array with minimum length 1.",
            "empty_array",
        )
    texts: list[str] = []
    images = 0
    for index, message in enumerate(messages):
        images += _message(f"messages[{index}]", message, texts)
    return texts, images


def _message(where: str, message: Any, texts: list[str]) -> int:
    if not isinstance(message, dict):
        raise _invalid(where, f"Invalid type for '{where}': expected an object.", "invalid_type")
    role, content = message.get("role"), message.get("content")
    if role not in _ROLES:
        known = ", ".join(f"'{each}'" for each in _ROLES)
        raise _invalid(f"{where}.role", f"Invalid value: '{role}'. Supported values are: {known}.", "invalid_value")
    if isinstance(content, str):
        texts.append(content)
        return 0
    if content is None and role == "assistant":
        return 0
    if not isinstance(content, list):
        text = f"Invalid type for '{where}.content': expected one of a string or array of objects."
        raise _invalid(f"{where}.content", text, "invalid_type")
    return sum(_part(f"{where}.content[{index}]", part, role, texts) for index, part in enumerate(content))


def _part(where: str, part: Any, role: str, texts: list[str]) -> int:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        texts.append(part["text"])
        return 0
    allowed = ("image_url", "input_audio", "file") if role == "user" else ("refusal",)
    if kind not in allowed or kind not in part:
        known = ", ".join(f"'{each}'" for each in ("text", *allowed))
        raise _invalid(where, f"Invalid value: '{kind}'. Supported values are: {known}.", "invalid_value")
    return 1


def _most(data: JSON, *, thinks: bool) -> int | None:
    old, new = data.get("max_tokens"), data.get("max_completion_tokens")
    if old is not None and new is not None:
        message = "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported."
        raise _invalid("max_tokens", message, "invalid_parameter_combination")
    if old is not None and thinks:
        message = "Unsupported parameter: 'max_tokens' is not supported with this model."
        message += " Use 'max_completion_tokens' instead."
        raise Refusal("unsupported_param", message, param="max_tokens")
    name, most = ("max_tokens", old) if new is None else ("max_completion_tokens", new)
    if most is not None:
        _whole(name, most, 1, None)
    return most


def _whole(name: str, value: Any, low: int, high: int | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _invalid(name, f"Invalid type for '{name}': expected an integer.", "invalid_type")
    _range("integer", name, value, low, high)


def _range(kind: str, name: str, value: float, low: int, high: int | None) -> None:
    if value < low:
        text = f"Invalid '{name}': {kind} below minimum value. Expected a value >= {low}, but got {value}."
        raise _invalid(name, text, f"{kind}_below_min_value")
    if high is not None and value > high:
        text = f"Invalid '{name}': {kind} above maximum value. Expected a value <= {high}, but got {value}."
        raise _invalid(name, text, f"{kind}_above_max_value")


def _numbers(data: JSON, *, thinks: bool) -> int:
    """Check the sampling numbers; returns `n`."""
    for name, low, high in (
        ("temperature", 0, 2),
        ("top_p", 0, 1),
        ("presence_penalty", -2, 2),
        ("frequency_penalty", -2, 2),
    ):
        if (value := data.get(name)) is not None:
            _number(name, value, low, high)
    if thinks and data.get("temperature", 1) not in (None, 1):
        message = "Unsupported value: 'temperature' does not support {} with this model."
        message += " Only the default (1) value is supported."
        raise Refusal(
            "unsupported_param",
            message.format(data["temperature"]),
            param="temperature",
            code="unsupported_value",
        )
    n = 1 if data.get("n") is None else data["n"]
    _whole("n", n, 1, 128)
    return int(n)


def _number(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _invalid(name, f"Invalid type for '{name}': expected a decimal.", "invalid_type")
    _range("decimal", name, value, low, high)


def _stop(stop: Any) -> tuple[str, ...]:
    if stop is None:
        return ()
    words = [stop] if isinstance(stop, str) else stop
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise _invalid("stop", "Invalid type for 'stop': expected a string or an array of strings.", "invalid_type")
    if len(words) > 4:  # noqa: PLR2004  the API's own limit
        text = "Invalid 'stop': array too long. Expected an array with maximum length 4,"
        text += f" but got an array with length {len(words)} instead."
        raise _invalid("stop", text, "array_above_max_length")
    return tuple(words)


def _format(data: JSON, text: str) -> JSON | None:
    """Read `response_format`. None: text; {}: any JSON object; else a JSON schema."""
    form = data.get("response_format") or {"type": "text"}
    kind = form.get("type") if isinstance(form, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        if "json" not in text.lower():
            message = "'messages' must contain the word 'json' in some form,"
            message += " to use 'response_format' of type 'json_object'."
            raise _invalid("messages", message)
        return {}
    if kind != "json_schema":
        message = f"Invalid value: '{kind}'. Supported values are: 'json_object', 'json_schema', and 'text'."
        raise _invalid("response_format.type", message, "invalid_value")
    spec = form.get("json_schema")
    if not isinstance(spec, dict) or not spec.get("name") or not isinstance(spec.get("schema"), dict):
        name = "response_format.json_schema"
        raise _invalid(name, f"Missing required parameter: '{name}.name'.", "missing_required_parameter")
    if spec.get("strict") and (why := strictness.openai(spec["schema"])):
        raise _invalid("response_format", f"Invalid schema for response_format '{spec['name']}': {why}")
    return dict(spec["schema"])
