"""What the providers' structured output refuses of JSON schema, with a 400.

OpenAI with `strict: true`: the root is an object; each object names all its properties as required and is closed; few
keywords are known. Anthropic: each object is closed; fewer keywords still. Texts not captured from the real API.
"""

from collections.abc import Iterator
from typing import Any

from llmlab.types import JSON

_BOTH = frozenset(
    "type properties required additionalProperties items enum const anyOf $ref $defs description title format".split()  # noqa: SIM905
)
OPENAI = _BOTH | frozenset(
    "pattern minimum maximum exclusiveMinimum exclusiveMaximum multipleOf minItems maxItems".split()  # noqa: SIM905
)
ANTHROPIC = _BOTH | {"allOf", "minItems"}


def openai(schema: JSON) -> str | None:
    """Why OpenAI refuses a strict schema; None if it does not."""
    if schema.get("type") != "object":
        return "In context=(), schema must be a JSON Schema of 'type: \"object\"'"
    found = ((path, _openai(each)) for path, each in _walk(schema, ()))
    return next((f"In context={path}, {why}" for path, why in found if why is not None), None)


def _openai(schema: JSON) -> str | None:
    if unknown := next((key for key in schema if key not in OPENAI), None):
        return f"'{unknown}' is not permitted."
    if not schema.keys() & {"type", "anyOf", "$ref", "enum", "const"}:
        return "schema must have a 'type' key."
    if "$ref" in schema and schema.keys() - {"$ref", "$defs"}:
        return f"$ref cannot have keywords {schema.keys() - {'$ref'}}."
    if schema.get("type") != "object":
        return None
    if schema.get("additionalProperties") is not False:
        return "'additionalProperties' is required to be supplied and to be false."
    missing = sorted(set(schema.get("properties", {})) - set(schema.get("required", ())))
    wanted = "'required' is required to be supplied and to be an array including every key in properties"
    return f"{wanted}. Missing '{missing[0]}'." if missing else None


def anthropic(schema: JSON) -> str | None:
    """Why Anthropic refuses a schema; None if it does not."""
    for _, each in _walk(schema, ()):
        if each.get("type") == "object" and each.get("additionalProperties") is not False:
            return "For 'object' type, 'additionalProperties' must be explicitly set to false"
        kind = each.get("type", "any")
        if unknown := next((key for key in each if key not in ANTHROPIC), None):
            return f"For '{kind}' type, property '{unknown}' is not supported"
        if each.get("minItems", 0) not in (0, 1):
            return "For 'array' type, 'minItems' values other than 0 or 1 are not supported"
    return None


def _walk(schema: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], JSON]]:
    if not isinstance(schema, dict):
        return
    yield path, schema
    for key in ("properties", "$defs"):
        for name, each in schema.get(key, {}).items():
            yield from _walk(each, (*path, key, name))
    for key in ("anyOf", "allOf"):
        for number, each in enumerate(schema.get(key, ())):
            yield from _walk(each, (*path, key, str(number)))
    yield from _walk(schema.get("items"), (*path, "items"))
