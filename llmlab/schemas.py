"""JSON schemas as values: looking up references, walking through subschemas, wrapping what is no object."""

from collections.abc import Callable, Mapping
from typing import Any

from llmlab.types import JSON

VALUE = "value"
"""The one property of the object that a bare value (a number, a list, a choice) is wrapped in."""

_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_ONES = ("items", "additionalProperties", "contains", "propertyNames", "not", "if", "then", "else")
_DEEP = 32


def resolved(schema: JSON, root: JSON) -> JSON:
    """A schema with its own `$ref` followed; what stands beside the reference counts before what it refers to.

    Raises:
        ValueError: it leads out of `root`, to nothing, or round in circles.
    """
    for _ in range(_DEEP):
        ref = schema.get("$ref")
        if ref is None:
            return schema
        beside = {key: value for key, value in schema.items() if key != "$ref"}
        schema = {**_looked_up(ref, root), **beside}
    raise ValueError(f"schema: the reference {ref!r} leads round in circles")


def _looked_up(ref: object, root: JSON) -> JSON:
    found: Any = root
    if not isinstance(ref, str) or not (ref == "#" or ref.startswith("#/")):
        raise ValueError(f"schema: the reference {ref!r} leads out of the schema; only '#/…' is followed")
    for part in ref[2:].split("/") if ref != "#" else ():
        name = part.replace("~1", "/").replace("~0", "~")
        found = found.get(name) if isinstance(found, Mapping) else None
    if not isinstance(found, Mapping):
        raise ValueError(f"schema: the reference {ref!r} leads to nothing")  # noqa: TRY004
    return dict(found)


def rebuilt(schema: Any, change: Callable[[JSON], JSON]) -> Any:
    """A copy of a schema in which each subschema, the innermost first, is replaced by what `change` makes of it."""
    if not isinstance(schema, Mapping):
        return schema  # true, false, or nonsense that is somebody else's to complain about
    copy = dict(schema)
    for key, value in schema.items():
        if key in _MAPS and isinstance(value, Mapping):
            copy[key] = {name: rebuilt(each, change) for name, each in value.items()}
        elif key in _LISTS and isinstance(value, list):
            copy[key] = [rebuilt(each, change) for each in value]
        elif key in _ONES:
            copy[key] = rebuilt(value, change)
    return change(copy)


def untitled(schema: JSON) -> JSON:
    """Without the titles that only repeat the names; they cost tokens."""
    plain: JSON = rebuilt(schema, lambda each: {key: value for key, value in each.items() if key != "title"})
    return plain


def is_record(schema: JSON, root: JSON) -> bool:
    """Whether a schema is an object with properties of its own, so that each may become a column."""
    found = resolved(schema, root)
    return found.get("type", "object") == "object" and bool(found.get("properties"))


def rooted(schema: JSON) -> JSON:
    """A schema whose root is no reference: providers want an object there."""
    if "$ref" not in schema:
        return schema
    beside: JSON = {key: value for key, value in schema.items() if key in ("$defs", "definitions")}
    return {**resolved(schema, schema), **beside}


def wrapped(schema: JSON) -> JSON:
    """An object with the one property `value`, which must fit the schema. References go on leading where they led."""
    shared = {key: value for key, value in schema.items() if key in ("$defs", "definitions", "$schema")}
    inner = {key: value for key, value in schema.items() if key not in shared}

    def moved(each: JSON) -> JSON:
        ref = each.get("$ref")
        if not isinstance(ref, str) or not ref.startswith("#") or ref.startswith(("#/$defs/", "#/definitions/")):
            return each
        return {**each, "$ref": f"#/properties/{VALUE}{ref[1:]}"}

    inner = rebuilt(inner, moved)
    shared = rebuilt(shared, moved)
    return {"type": "object", "properties": {VALUE: inner}, "required": [VALUE], **shared}
