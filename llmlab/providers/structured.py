"""A JSON schema as providers take it, and as models are told of it in words.

Providers take a part of JSON schema only. What they do not take is said in the field's description, and what cannot be
said is left to whoever reads the answer. OpenAI's strict form also wants each property to be required: one that may be
left out becomes one that may be null, and such a null is read as left out.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import orjson

from llmlab.schemas import rebuilt
from llmlab.types import JSON, Message, Prompt, Schema


def told(prompt: Prompt) -> tuple[Message, ...]:
    """The prompt's messages with the schema said in words: at the end of the last one of the user's."""
    assert prompt.schema is not None  # noqa: S101  whoever calls it has looked
    messages = list(prompt.messages)
    words = prompt.schema.instruction
    for at in reversed(range(len(messages))):
        message = messages[at]
        if message.role == "user":
            if words not in message.text:
                messages[at] = Message("user", _with(message.content, words))
            return tuple(messages)
    return (*messages, Message("user", words))


def _with(content: str | tuple[JSON, ...], words: str) -> str | tuple[JSON, ...]:
    return f"{content}\n\n{words}" if isinstance(content, str) else (*content, {"type": "text", "text": words})


# -- what providers take of JSON schema -----------------------------------------------------------------------


@dataclass(frozen=True)
class Subset:
    """The part of JSON schema that a dialect takes."""

    keywords: frozenset[str]
    """Taken as they are, besides those that all dialects take."""
    formats: frozenset[str]
    """Values of `format` that are taken."""
    all_required: bool
    """Whether each property must be required."""


FORMATS = frozenset(("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"))
_EVERYWHERE = frozenset(
    ("type", "properties", "required", "additionalProperties", "items", "enum", "const", "anyOf", "$ref", "$defs",
     "description")
)  # fmt: skip
_IMPOSSIBLE = ("patternProperties", "prefixItems", "not", "if", "dependentSchemas", "dependentRequired", "definitions")
_IDLE = ("default", "title", "examples", "discriminator", "$schema", "$id", "$comment", "deprecated", "readOnly")


class _CannotBe(Exception):
    pass


@lru_cache(maxsize=64)
def strict(schema: Schema, subset: Subset) -> JSON | None:
    """The schema as far as the dialect takes it; None if answers that fit it might not fit the schema at all.

    The same object is given out again: leave it as it is.
    """
    asked = orjson.loads(schema.text)
    try:
        found: JSON = rebuilt(asked, lambda each: _strict(each, subset))
    except _CannotBe:
        return None
    return found


def _strict(schema: JSON, subset: Subset) -> JSON:
    if any(key in schema for key in _IMPOSSIBLE) or not all(isinstance(each, dict) for each in _below(schema)):
        raise _CannotBe
    schema = _unfolded(schema)
    if "$ref" in schema:
        return {"$ref": schema["$ref"], **{key: schema[key] for key in ("$defs",) if key in schema}}
    if not schema.keys() & {"type", "enum", "const", "anyOf"}:
        raise _CannotBe
    kept: JSON = {}
    unsaid: JSON = {}
    for key, value in schema.items():
        taken = _takes(subset, key, value)
        if taken or key not in _IDLE:
            (kept if taken else unsaid)[key] = value
    if unsaid:
        said = ", ".join(f"{key}: {orjson.dumps(value).decode()}" for key, value in unsaid.items())
        kept["description"] = "\n".join(filter(None, (kept.get("description"), f"({said})")))
    return _closed(kept, subset) if "object" in _types(kept) else kept


def _below(schema: JSON) -> list[Any]:
    """Subschemas that might be `true`, which says nothing, or no schemas at all."""
    items = [schema["items"]] if "items" in schema else []
    return [*schema.get("properties", {}).values(), *items, *schema.get("anyOf", ()), *schema.get("oneOf", ())]


def _unfolded(schema: JSON) -> JSON:
    """`oneOf` as `anyOf`, and `allOf` of one as that one."""
    schema = dict(schema)
    if "oneOf" in schema:
        schema["anyOf"] = schema.pop("oneOf")
    if "allOf" in schema:
        parts = schema.pop("allOf")
        if len(parts) != 1:
            raise _CannotBe
        schema = {**parts[0], **schema}
    return schema


def _takes(subset: Subset, key: str, value: object) -> bool:
    if key == "format":
        return value in subset.formats
    if key == "pattern":
        return key in subset.keywords and "(?" not in str(value)  # no looking around
    if key == "minItems" and key not in subset.keywords:
        return value in (0, 1)
    return key in _EVERYWHERE or key in subset.keywords


def _types(schema: JSON) -> list[Any]:
    kind = schema.get("type")
    return kind if isinstance(kind, list) else [kind]


def _closed(schema: JSON, subset: Subset) -> JSON:
    """An object without further properties."""
    properties = schema.get("properties", {})
    if not properties or isinstance(schema.get("additionalProperties"), dict):
        raise _CannotBe  # a map of names that nobody knows beforehand
    required = [name for name in schema.get("required", ()) if name in properties]
    if subset.all_required:
        properties = {name: each if name in required else _or_null(each) for name, each in properties.items()}
        required = list(properties)
    return {**schema, "properties": properties, "required": required, "additionalProperties": False}


def _or_null(schema: JSON) -> JSON:
    branches = schema.get("anyOf", [schema])
    if "null" in _types(schema) or any("null" in _types(each) for each in branches):
        return schema
    about = {key: value for key, value in schema.items() if key == "description"}
    bare = {key: value for key, value in schema.items() if key != "description"}
    return {**about, "anyOf": [*bare.get("anyOf", [bare]), {"type": "null"}]}
