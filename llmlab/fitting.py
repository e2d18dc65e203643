"""Whether JSON fits what was asked for: pydantic judges Python types, jsonschema judges JSON schemas.

Both are imported when the first schema is given, not with llmlab.
"""

import dataclasses
import functools
import inspect
import json
import operator
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any, Protocol, Union, get_args, get_origin

from llmlab import lenient
from llmlab.schemas import VALUE, is_record, rebuilt, resolved, rooted, untitled, wrapped
from llmlab.types import JSON

SHOWN = 10
"""Complaints about one answer that are shown."""
WIDTH = 80
"""Characters of a value that does not fit that are shown."""


class Misfit(Exception):
    """JSON that does not fit; `str()` of it says where and why, a line for each complaint."""


class Fitter(Protocol):
    """Reads a JSON object into the value that was asked for."""

    asked: JSON
    """The JSON schema to ask for; its root is an object."""
    shape: JSON
    """The JSON schema of what `plain` gives."""
    bare: bool
    """Whether the value stands alone in the object's one property."""
    single: bool
    """Whether `plain` gives one value rather than named ones."""
    pythonic: bool
    """Whether values are Python's own: dates are dates."""

    def read(self, text: str) -> Any:
        """The value. Raises Misfit."""
        ...

    def plain(self, value: Any) -> Any:
        """The value as plain JSON."""
        ...


def fitter(schema: object) -> tuple[str, Fitter]:
    """What reads answers into a type or a JSON schema, and its name.

    Raises:
        TypeError: it is neither.
        ValueError: the JSON schema is none.
    """
    if isinstance(schema, Mapping):
        return str(schema.get("title") or "answer"), _Schema(dict(schema))
    value = schema is None or isinstance(schema, str | bytes | int | float) or dataclasses.is_dataclass(type(schema))
    if value or inspect.isroutine(schema):
        raise _no_type(schema)
    return str(getattr(schema, "__name__", "answer")), _Python(schema)


def _no_type(schema: object, why: str = "") -> TypeError:
    return TypeError(
        "schema must be a type that pydantic knows (a model, dataclass, TypedDict, Enum, Literal, int, list[…]) or a "
        f"JSON schema as a dict, not {schema!r:.80}{why}"
    )


# -- Python types -------------------------------------------------------------------------------------------


class _Python:
    pythonic = True

    def __init__(self, kind: Any) -> None:
        import pydantic  # noqa: PLC0415  takes a while, and only typed answers need it

        self._invalid = pydantic.ValidationError
        if isinstance(kind, pydantic.BaseModel):
            raise _no_type(kind, ": give the class, not one of its objects")
        try:
            kind = _for_pydantic(kind)
            self._inner = pydantic.TypeAdapter(kind)
            schema = self._inner.json_schema()
            self.shape = self._inner.json_schema(mode="serialization", by_alias=False)
            self.bare = not is_record(schema, schema)
            self.single = self.bare or not is_record(self.shape, self.shape)  # a serializer may make anything of it
            self._outer: Any = self._inner
            if self.bare:
                self._outer = pydantic.TypeAdapter(pydantic.create_model("Answer", value=(kind, ...)))
                schema = self._outer.json_schema()
        except (pydantic.errors.PydanticUserError, pydantic.errors.PydanticUndefinedAnnotation, TypeError) as error:
            raise _no_type(kind, f": {str(error).splitlines()[0]}") from None
        except Exception as error:
            if type(error).__module__.startswith("pydantic"):  # of its core, for values that are no types at all
                raise _no_type(kind) from None
            raise
        self.asked = untitled(rooted(schema))

    def read(self, text: str) -> Any:
        try:
            value = self._outer.validate_json(text)
        except self._invalid as error:
            value = self._again(text, error)
        except ValueError as error:  # half a surrogate pair
            raise Misfit(f"not valid JSON: {error}") from None
        return getattr(value, VALUE) if self.bare else value

    def _again(self, text: str, error: Any) -> Any:
        """Once more without nulls where something may be left out."""
        complaints = error.errors(include_url=False, include_context=False)
        places = [each["loc"] for each in complaints if each["input"] is None and each["loc"]]
        mended = lenient.without_nulls(text, places) if places else None
        if mended is None:
            raise Misfit(_listed([_complaint(each) for each in complaints])) from None
        try:
            return self._outer.validate_json(mended)
        except self._invalid:
            raise Misfit(_listed([_complaint(each) for each in complaints])) from None

    def plain(self, value: Any) -> Any:
        return self._inner.dump_python(value, mode="json")


def _complaint(error: Mapping[str, Any]) -> str:
    where = ".".join(map(str, error["loc"]))
    said = str(error["msg"])
    if error["type"] != "missing":
        said += f", not {_shown(error['input'])}"
    return f"{where}: {said}" if where else said


def _for_pydantic(kind: Any) -> Any:
    """Before Python 3.12 pydantic refuses `typing.TypedDict` for what it cannot know of it: made anew, it is taken."""
    if sys.version_info >= (3, 12):
        return kind
    if hasattr(kind, "__required_keys__"):
        return _typed_dict(kind)
    arguments = get_args(kind)
    origin = get_origin(kind)
    if not arguments or origin in (None, typing.Literal):
        return kind
    known = tuple(map(_for_pydantic, arguments))
    if known == arguments:
        return kind
    if origin in (Union, types.UnionType):
        return functools.reduce(operator.or_, known)
    return origin[known]


def _typed_dict(kind: Any) -> Any:
    import typing_extensions  # noqa: PLC0415  pydantic brings it along

    hints = typing_extensions.get_type_hints(kind, include_extras=True)
    optional = typing_extensions.NotRequired
    fields = {
        name: known if name in kind.__required_keys__ else optional[known]
        for name, known in ((name, _for_pydantic(_bare(hint))) for name, hint in hints.items())
    }
    make: Any = typing_extensions.TypedDict
    made = make(kind.__name__, fields)
    made.__doc__ = kind.__doc__
    return made


def _bare(hint: Any) -> Any:
    origin = get_origin(hint)
    return get_args(hint)[0] if origin in (typing.NotRequired, typing.Required) else hint


# -- JSON schemas -------------------------------------------------------------------------------------------


class _Schema:
    pythonic = False

    def __init__(self, schema: JSON) -> None:
        from jsonschema import validators  # noqa: PLC0415  as pydantic above
        from jsonschema.exceptions import SchemaError  # noqa: PLC0415
        from referencing.jsonschema import EMPTY_REGISTRY  # noqa: PLC0415

        kind = validators.validator_for(schema, default=validators.Draft202012Validator)
        try:
            json.dumps(schema, allow_nan=False)
            kind.check_schema(schema)
        except (TypeError, ValueError) as error:
            raise ValueError(f"schema is no JSON: {error}") from None
        except SchemaError as error:
            raise ValueError(f"schema is no valid JSON schema: {error.message} at {error.json_path}") from None
        # Nothing is fetched: a reference that leads out of the schema is an error, here and now.
        _check_references(schema)
        self._judge = kind(schema, registry=EMPTY_REGISTRY)
        self.shape = schema
        self.bare = self.single = not is_record(schema, schema)
        self.asked = wrapped(schema) if self.bare else rooted(schema)

    def read(self, text: str) -> Any:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise Misfit(f"not valid JSON: {error}") from None
        complaints = self._complaints(value)
        places = [tuple(each.absolute_path) for each in complaints if each.instance is None]
        if places and (mended := lenient.without_nulls(text, self._moved(places))) is not None:
            value = json.loads(mended)
            complaints = self._complaints(value)
        if complaints:
            raise Misfit(_listed([self._said(each) for each in complaints]))
        return value[VALUE] if self.bare else value

    def _moved(self, places: list[tuple[str | int, ...]]) -> list[tuple[str | int, ...]]:
        return [(VALUE, *place) if self.bare else place for place in places if place]

    def _complaints(self, value: Any) -> list[Any]:
        if not self.bare:
            return list(self._judge.iter_errors(value))
        if not isinstance(value, dict) or VALUE not in value:
            raise Misfit(f"{VALUE}: Field required")
        return list(self._judge.iter_errors(value[VALUE]))

    def _said(self, error: Any) -> str:
        where = ".".join(map(str, ((VALUE,) if self.bare else ()) + tuple(error.absolute_path)))
        message = str(error.message)
        return f"{where}: {message:.300}" if where else f"{message:.300}"

    def plain(self, value: Any) -> Any:
        return value


class Unjudged:
    """Reads answers that were found to fit once, when there is only a JSON schema left of what they had to fit.

    Args:
        asked: The JSON schema that was asked for; its root is an object.
    """

    pythonic = False

    def __init__(self, asked: JSON) -> None:
        self.asked = asked
        self.bare = self.single = list(asked["properties"]) == [VALUE]
        inner = asked["properties"][VALUE] if self.bare else asked
        self.shape = {**inner, **{key: value for key, value in asked.items() if key == "$defs"}}

    def read(self, text: str) -> Any:
        """What the object holds."""
        value = json.loads(text)
        return value.get(VALUE) if self.bare else value

    def plain(self, value: Any) -> Any:
        """The value itself."""
        return value


def _check_references(schema: JSON) -> None:
    def check(each: JSON) -> JSON:
        resolved(each, schema)
        return each

    rebuilt(schema, check)


def _listed(complaints: list[str]) -> str:
    if len(complaints) == 1:
        return complaints[0]
    more = len(complaints) - SHOWN
    shown = [f"- {each}" for each in dict.fromkeys(complaints[:SHOWN])]
    return "\n".join([*shown, f"- and {more} more"] if more > 0 else shown)


def _shown(value: object) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, default=repr)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= WIDTH else f"{text[:WIDTH]}…"
