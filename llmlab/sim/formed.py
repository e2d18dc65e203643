"""Answers in JSON: what the simulated model makes of a schema, and how it gets it wrong.

A schema reaches the model by the dialect's own field, or in the prompt's words, after "JSON schema": a server that does
not know the field, refuses or ignores it, can still be told.

    structured       what the server makes of the field
    json_schema      holds the model to the schema
    json_object      knows "any JSON object"; a schema is refused with a 400
    none             any of it is refused with a 400
    ignored          as if it were not there
"""

import json
import random
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, TypeAlias, get_args

import orjson

from llmlab.sim.packs import dropped, nulled, rows_of
from llmlab.sim.wire import Answer, Ask, Choice, Refusal
from llmlab.types import JSON

Structured: TypeAlias = Literal["json_schema", "json_object", "none", "ignored"]

MARK = "JSON schema"
DEEPEST = 8
_BOUND = re.compile(r"\b((?:exclusive)?M(?:in|ax)imum|(?:min|max)(?:imum|Length|Items)|multipleOf): (-?\d+(?:\.\d+)?)")

_TEXTS = ("a clear preference", "a small but steady effect", "no surprise at all", "a café on the corner")
_FORMATS = {
    "date": "2026-{:02d}-{:02d}",
    "date-time": "2026-{:02d}-{:02d}T12:00:00Z",
    "time": "12:{:02d}:{:02d}",
    "duration": "P{}DT{}H",
    "email": "user{}.{}@example.com",
    "uri": "https://example.com/{}/{}",
    "ipv4": "192.0.{}.{}",
    "ipv6": "2001:db8::{}:{}",
    "hostname": "host{}-{}.example.com",
    "uuid": "00000000-0000-4000-8000-0000{:04d}{:04d}",
}


def checked(structured: Structured) -> Structured:
    """The way to take a schema itself.

    Raises:
        ValueError: it is none.
    """
    if structured not in get_args(Structured):
        raise ValueError(f"structured must be one of {', '.join(get_args(Structured))}, not {structured!r}")
    return structured


def take(ask: Ask, structured: Structured, field: str) -> Ask:
    """The request as the model gets it.

    Args:
        ask: As it came.
        structured: What the server makes of the dialect's field.
        field: That field's name, for the refusal.

    Raises:
        Refusal: the server does not know the field, or this use of it.
    """
    if ask.json and (structured == "none" or (structured == "json_object" and ask.schema is not None)):
        raise Refusal("unsupported_param", param=field, facts={"param": field})
    if ask.json and structured == "ignored":
        ask = replace(ask, json=False, schema=None)
    if ask.schema is None and (told := _told(ask.text)) is not None:
        return replace(ask, json=True, schema=told)
    return ask


def _told(text: str) -> JSON | None:
    at = text.find("{", text.rfind(MARK)) if MARK in text else -1
    if at < 0:
        return None
    try:
        found, _ = json.JSONDecoder().raw_decode(text, at)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


# -- what fits ----------------------------------------------------------------------------------------------------


def instance(schema: JSON, rng: random.Random) -> Any:
    """Make a value that meets a JSON schema.

    Knows type, properties, items, prefixItems, additionalProperties, enum, const, anyOf, oneOf, allOf (joined), $ref
    into the schema itself, format, minimum and maximum (exclusive, too), multipleOf of whole numbers, minItems,
    minLength and maxLength; other keywords are not looked at. Bounds may stand in the description: "(minimum: 1)".
    """
    return _instance(schema, rng, schema, 0)


def _instance(schema: Any, rng: random.Random, root: JSON, depth: int) -> Any:  # noqa: PLR0911  one line per keyword
    if not isinstance(schema, dict):
        return rng.choice(_TEXTS)
    schema = {**_told_of(schema), **schema}
    if ref := schema.get("$ref"):
        beside = {key: value for key, value in schema.items() if key != "$ref"}
        return _instance(_resolve(ref, root) | beside, rng, root, depth + 1)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return rng.choice(schema["enum"])
    for key in ("anyOf", "oneOf"):
        if key in schema:
            # deep inside a schema that refers to itself only the plainest branch comes to an end
            branch = schema[key][-1] if depth > DEEPEST else rng.choice(schema[key])
            return _instance(branch, rng, root, depth + 1)
    if "allOf" in schema:
        joined = {key: value for part in schema["allOf"] for key, value in part.items()}
        return _instance(joined, rng, root, depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        return _object(schema, rng, root, depth)
    return _array(schema, rng, root, depth) if kind == "array" else _scalar(kind, schema, rng)


def _told_of(schema: JSON) -> JSON:
    """The bounds that stand in the description, as clients write them there that may not send them otherwise."""
    found = _BOUND.findall(str(schema.get("description", "")))
    return {key: float(value) if "." in value else int(value) for key, value in found}


def _object(schema: JSON, rng: random.Random, root: JSON, depth: int) -> JSON:
    made = {key: _instance(each, rng, root, depth + 1) for key, each in schema.get("properties", {}).items()}
    more = schema.get("additionalProperties")
    if isinstance(more, dict):
        made |= {f"key{n}": _instance(more, rng, root, depth + 1) for n in range(rng.randint(1, 2))}
    return made


def _array(schema: JSON, rng: random.Random, root: JSON, depth: int) -> list[Any]:
    first = [_instance(each, rng, root, depth + 1) for each in schema.get("prefixItems", ())]
    if first:
        return first
    least = int(schema.get("minItems", 0))
    most = max(least, int(schema.get("maxItems", least + 2)))
    size = least if depth > DEEPEST else min(most, max(least, rng.randint(1, 3)))
    return [_instance(schema.get("items", {}), rng, root, depth + 1) for _ in range(size)]


def _scalar(kind: str, schema: JSON, rng: random.Random) -> Any:
    if kind == "integer":
        low = int(schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1))
        high = int(schema.get("maximum", schema.get("exclusiveMaximum", low + 101) - 1))
        step = int(schema.get("multipleOf", 1)) or 1
        return rng.randint(-(-low // step), high // step) * step
    if kind == "number":
        least: Any = schema.get("minimum", schema.get("exclusiveMinimum", 0))
        most: Any = schema.get("maximum", schema.get("exclusiveMaximum", least + 1))
        return round(least + (most - least) * rng.uniform(0.001, 0.999), 3)
    if kind == "boolean":
        return rng.random() < 0.5  # noqa: PLR2004
    if kind == "null":
        return None
    if form := _FORMATS.get(str(schema.get("format"))):
        return form.format(rng.randint(1, 12), rng.randint(1, 28))
    return rng.choice(_TEXTS).ljust(int(schema.get("minLength", 0)), ".")[: schema.get("maxLength")]


def _resolve(ref: str, root: JSON) -> JSON:
    found: Any = root
    for part in ref.removeprefix("#").strip("/").split("/"):
        found = found.get(part, {}) if part else found
    return dict(found)


# -- what does not ------------------------------------------------------------------------------------------------


def spoil(answer: Answer, ask: Ask, fault: str, rng: random.Random, cut: Callable[[str], tuple[str, ...]]) -> Answer:
    """The answer as a model gives it that gets the form wrong, or puts something around it.

    Args:
        answer: As it should be.
        ask: What was asked. Without a schema the answer stays as it is, unless it is one to several rows.
        fault: How it is wrong: a kind of the family `form`.
        rng: Says where.
        cut: Cuts a text into tokens.
    """
    ways = _SPOILT if ask.schema is not None else _SPOILT_PACK if rows_of(ask.text) else {}
    if fault not in ways:
        return answer
    text = ways[fault](answer.choices[0].text, ask.schema or {}, rng)
    return replace(answer, choices=(Choice(cut(text), answer.choices[0].finish),))


def _mistyped(text: str, schema: JSON, rng: random.Random) -> str:  # noqa: ARG001  they share one shape
    """One field has a value of another type."""
    value = _loaded(text)
    if not value:
        return text
    name = rng.choice(sorted(value))
    value[name] = {"said": "rather so"} if isinstance(value[name], str | None) else "not easy to say"
    return orjson.dumps(value).decode()


def _missing(text: str, schema: JSON, rng: random.Random) -> str:
    """A field that is required is not there."""
    value = _loaded(text)
    if not value:
        return text
    del value[rng.choice(sorted(set(schema.get("required", ())) & set(value) or value))]
    return orjson.dumps(value).decode()


def _cut(text: str, schema: JSON, rng: random.Random) -> str:  # noqa: ARG001
    """It ends too early, and the model says that it was done."""
    return text[: rng.randrange(1, max(2, len(text)))]


def _prose(text: str, schema: JSON, rng: random.Random) -> str:  # noqa: ARG001
    """There is no JSON in it."""
    return f"Let me think about it: I would say {rng.choice(_TEXTS)}."


def _fenced(text: str, schema: JSON, rng: random.Random) -> str:  # noqa: ARG001
    return f"```json\n{text}\n```"


def _chatty(text: str, schema: JSON, rng: random.Random) -> str:  # noqa: ARG001
    return f"Sure! Here is what you asked for:\n\n{text}\n\nIs there anything else?"


_SPOILT: dict[str, Callable[[str, JSON, random.Random], str]] = {
    "misfit_type": _mistyped,
    "misfit_missing": _missing,
    "misfit_cut": _cut,
    "misfit_prose": _prose,
    "fenced": _fenced,
    "chatty": _chatty,
}
_SPOILT_PACK = {
    **_SPOILT,
    "misfit_type": lambda text, _, rng: nulled(text, rng),
    "misfit_missing": lambda text, _, rng: dropped(text, rng),
}


def _loaded(text: str) -> JSON:
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}
