"""Reads requests in the Anthropic Messages dialect, and refuses what Anthropic refuses.

Formats: `research/providers.md` sections B.1, B.2 and B.5. Texts and codes not shown there are worded by us in
their manner, not captured from the real API.
"""

from typing import Any

import orjson

from llmlab.sim import strictness
from llmlab.sim.wire import Ask, Headers, Refusal
from llmlab.types import JSON

VERSIONS = ("2023-06-01", "2026-10-21")
NO_SAMPLING = "2026-10-21"
SAMPLING = ("temperature", "top_p", "top_k")

_KNOWN = frozenset(
    "model max_tokens messages system stop_sequences stream metadata service_tier speed inference_geo "  # noqa: SIM905  a list takes a line each
    "cache_control thinking output_config tools tool_choice container context_management mcp_servers".split()
)


def parse(body: bytes, headers: Headers) -> Ask:
    """Read a request; raises Refusal as Anthropic would answer."""
    data = _json(body)
    _check_fields(
        data,
        _version(headers),
        headers.get("anthropic-beta") or "",
        required=("model", "max_tokens", "messages"),
    )
    return _ask(data)


def parse_count(body: bytes, headers: Headers) -> Ask:
    """Read a request of `/v1/messages/count_tokens`, which needs no `max_tokens`."""
    data = _json(body)
    _check_fields(data, _version(headers), headers.get("anthropic-beta") or "", required=("model", "messages"))
    return _ask(data)


def _ask(data: JSON) -> Ask:
    texts: list[str] = []
    images = _content("system", data["system"], texts) if data.get("system") is not None else 0
    images += sum(_message(f"messages.{index}", each, texts) for index, each in enumerate(data["messages"]))
    schema = _schema(data.get("output_config"))
    return Ask(
        model=data["model"],
        text="\n".join(texts),
        turns=len(data["messages"]),
        images=images,
        max_tokens=data.get("max_tokens"),
        stop=_stop(data.get("stop_sequences")),
        stream=bool(data.get("stream")),
        json=schema is not None,
        schema=schema,
        thinks=(data.get("thinking") or {}).get("type") in ("enabled", "adaptive"),
    )


def _json(body: bytes) -> JSON:
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        data = None
    if not isinstance(data, dict):
        raise Refusal("bad_request", "The request body is not valid JSON.")
    return data


def _version(headers: Headers) -> str:
    version = headers.get("anthropic-version")
    if not version:
        raise Refusal("bad_request", "anthropic-version: header is required")
    if version not in VERSIONS:
        raise Refusal("bad_request", f'anthropic-version: "{version}" is not a valid version')
    return version


def _check_fields(data: JSON, version: str, beta: str, *, required: tuple[str, ...]) -> None:
    for name in required:
        if data.get(name) is None:
            raise Refusal("bad_request", f"{name}: Field required")
    known = _KNOWN if version == NO_SAMPLING else _KNOWN | set(SAMPLING)
    for name in data:
        if name not in known and not (name == "output_format" and "structured-outputs" in beta):
            raise Refusal("bad_request", f"{name}: Extra inputs are not permitted")
    if not isinstance(data["model"], str) or not data["model"]:
        raise Refusal("bad_request", "model: Input should be a valid string")
    if not isinstance(data["messages"], list):
        raise Refusal("bad_request", "messages: Input should be a valid list")
    if not data["messages"]:
        raise Refusal("bad_request", "messages: at least one message is required")
    _check_numbers(data)


def _check_numbers(data: JSON) -> None:
    most = data.get("max_tokens", 1)
    if isinstance(most, bool) or not isinstance(most, int):
        raise Refusal("bad_request", "max_tokens: Input should be a valid integer")
    if most < 0:
        raise Refusal("bad_request", "max_tokens: Input should be greater than or equal to 0")
    for name in ("temperature", "top_p"):
        value = data.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise Refusal("bad_request", f"{name}: Input should be a valid number")
        if not 0 <= value <= 1:
            raise Refusal("bad_request", f"{name}: range: 0..1")


def _message(where: str, message: Any, texts: list[str]) -> int:
    if not isinstance(message, dict):
        raise Refusal("bad_request", f"{where}: Input should be a valid dictionary")
    role = message.get("role")
    if role == "system":
        text = f'{where}: Unexpected role "system". The Messages API accepts a top-level `system` parameter.'
        raise Refusal("bad_request", text)
    if role not in ("user", "assistant"):
        raise Refusal("bad_request", f"{where}.role: Input should be 'user' or 'assistant'")
    if message.get("content") is None:
        raise Refusal("bad_request", f"{where}.content: Field required")
    return _content(f"{where}.content", message["content"], texts)


def _content(where: str, content: Any, texts: list[str]) -> int:
    """Collect the text of a content; returns how many of its blocks are not text."""
    if isinstance(content, str):
        texts.append(content)
        return 0
    if not isinstance(content, list):
        raise Refusal("bad_request", f"{where}: Input should be a valid string or list of blocks")
    return sum(_block(f"{where}.{index}", block, texts) for index, block in enumerate(content))


def _block(where: str, block: Any, texts: list[str]) -> int:
    kind = block.get("type") if isinstance(block, dict) else None
    if not isinstance(kind, str) or kind in ("image_url", "input_audio"):
        text = f"Input tag '{kind}' found using 'type' does not match any of the expected tags"
        raise Refusal("bad_request", f"{where}: {text}")
    if kind != "text":
        return 1
    if not isinstance(block.get("text"), str):
        raise Refusal("bad_request", f"{where}.text.text: Field required")
    if not block["text"]:
        raise Refusal("bad_request", "messages: text content blocks must be non-empty")
    texts.append(block["text"])
    return 0


def _stop(stop: Any) -> tuple[str, ...]:
    if stop is None:
        return ()
    if not isinstance(stop, list) or not all(isinstance(word, str) for word in stop):
        raise Refusal("bad_request", "stop_sequences: Input should be a valid list of strings")
    if any(not word.strip() for word in stop):
        raise Refusal("bad_request", "stop_sequences: each stop sequence must contain non-whitespace")
    return tuple(stop)


def _schema(config: Any) -> JSON | None:
    form = config.get("format") if isinstance(config, dict) else None
    if form is None:
        return None
    if not isinstance(form, dict) or form.get("type") != "json_schema" or not isinstance(form.get("schema"), dict):
        raise Refusal("bad_request", "output_config.format: Input should be a json_schema with a schema")
    if why := strictness.anthropic(form["schema"]):
        raise Refusal("bad_request", f"output_config.format.schema: {why}")
    return dict(form["schema"])
