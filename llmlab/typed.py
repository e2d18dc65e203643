"""Typed answers: what `schema=` asks for, how answers are read into it, and which columns it makes.

    asked for                                    Reply.parsed           columns
    a model, dataclass, TypedDict                the object             one for each field
    a JSON schema of an object                   a dict                 one for each property
    a number, choice, list, Optional, Union, …   the value              `value`

    JSON schema of a field          dtype
    integer, number, boolean        Int64, float64, boolean
    string                          string
    date, datetime (Python types)   datetime64[us], datetime64[us, UTC] (without a zone: taken as UTC)
    enum, const                     category, with the values in the schema's order
    the same or null                the same
    anything else                   object: plain dicts and lists

A field whose name is one of `llmlab.frame.COLUMNS` becomes `parsed_…`.
"""

import logging
import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import orjson

from llmlab import lenient
from llmlab.columns import COLUMNS, Column
from llmlab.errors import SchemaMismatch
from llmlab.fitting import Fitter, Misfit, Unjudged, fitter
from llmlab.schemas import VALUE, resolved
from llmlab.types import JSON, Reply, Schema

REASK = 2
"""How often an answer that does not fit is asked for again."""
TAKEN = frozenset(column.name for column in COLUMNS)

_SCALARS = {"integer": "Int64", "number": "float64", "boolean": "boolean", "string": "string"}
_DATES = {"date": "datetime64[us]", "date-time": "datetime64[us, UTC]"}
_DEEP = 16

_log = logging.getLogger("llmlab")


@dataclass(frozen=True)
class Typed:
    """What answers must fit, and how they are read. Made by `typed`."""

    schema: Schema
    """The form to ask for."""
    columns: tuple[Column, ...]
    """What it adds to the frame."""
    reask: int
    """How often an answer that does not fit is asked for again."""
    fitter: Fitter = field(repr=False)
    """Judges."""

    @property
    def settings(self) -> JSON:
        """What a journal remembers of it: the JSON schema, by the name that it has for providers."""
        asked: JSON = orjson.loads(self.schema.text)
        return {self.schema.name: asked}

    def read(self, reply: Reply) -> Reply:
        """The reply with its `parsed`.

        Raises:
            SchemaMismatch: the answer does not fit; the error has the reply.
        """
        try:
            return replace(reply, parsed=self._parsed(reply.content))
        except Misfit as misfit:
            raise SchemaMismatch(f"{_why(reply)}{misfit}", reply=replace(reply, usage=None, cost_usd=None)) from None
        except Exception as bug:  # a validator of the user's stumbles over it, or it is nested beyond all measure
            said = f"{_why(reply)}it cannot be judged: {type(bug).__name__}: {bug}"
            raise SchemaMismatch(said, reply=replace(reply, usage=None, cost_usd=None)) from bug

    def _parsed(self, text: str) -> Any:
        found = list(lenient.objects(text)) or list(self._bare(text))
        if not found:
            raise Misfit("there is no whole JSON object in it")
        fits: dict[bytes, Any] = {}
        complaint: Misfit | None = None
        for each in found:
            try:
                value = self.fitter.read(each)
            except Misfit as misfit:
                complaint = complaint or misfit
            else:
                fits[_canonical(each)] = value
        if len(fits) > 1:
            raise Misfit("there are several JSON objects in it that fit, and they differ")
        if complaint is not None and not fits:
            raise complaint
        return fits.popitem()[1]

    def _bare(self, text: str) -> list[str]:
        """A bare value as the object that it was to be in: some models leave that out."""
        text = text.strip()
        if not self.fitter.bare or not text or "{" in text:
            return []
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError:
            value = text
            if text not in self.columns[0].choices:  # a choice may come without its quotes; prose is no string
                return []
        return [orjson.dumps({VALUE: value}).decode()]

    def cells(self, reply: Reply | None) -> tuple[Any, ...]:
        """The columns' values of a reply that was read, plain; all None without a reply."""
        if reply is None:
            return self._missing
        try:
            plain = self.fitter.plain(reply.parsed)
        except Exception:  # noqa: BLE001  a user's own serializer may raise anything
            _log.exception("llmlab: an answer that fits could not be written into its columns")
            return self._missing
        if self.fitter.single:
            return (plain,)
        return tuple(map(plain.get, self._names))

    @cached_property
    def _missing(self) -> tuple[None, ...]:
        return (None,) * len(self.columns)

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(resolved(self.fitter.shape, self.fitter.shape)["properties"])


def typed(schema: object, *, reask: int = REASK) -> Typed:
    """What answers must fit, of a Python type or a JSON schema.

    Args:
        schema: A pydantic model, a dataclass, a TypedDict, an Enum, or any other type that pydantic's TypeAdapter
            knows (Literal, int, float, bool, list[…], Optional, Union, …); or a JSON schema as a dict.
        reask: How often an answer that does not fit is asked for again, at least 0.

    Raises:
        TypeError, ValueError: one of them is not usable.
    """
    if isinstance(reask, bool) or not isinstance(reask, int):
        raise TypeError(f"reask must be a whole number of at least 0, not {reask!r}")
    if reask < 0:
        raise ValueError(f"reask must be at least 0, not {reask}")
    name, judge = fitter(schema)
    return _typed(re.sub(r"[^a-zA-Z0-9_-]+", "_", name)[:64].strip("_") or "answer", judge, reask)


def remembered(settings: JSON) -> Typed:
    """What a journal remembers of the schema of its run (`Typed.settings`); reads answers without judging them."""
    name, asked = next(iter(settings.items()))
    return _typed(name, Unjudged(asked), 0)


def _typed(name: str, judge: Fitter, reask: int) -> Typed:
    try:
        text = orjson.dumps(judge.asked).decode()
    except TypeError as error:
        raise ValueError(f"schema cannot be written as JSON: {error}") from None
    return Typed(Schema(name, text), _columns(judge), reask, judge)


def reader_of(schema: object, reask: int = REASK) -> Typed | None:
    """`typed`, or None if no schema is given."""
    return None if schema is None else typed(schema, reask=reask)


def _why(reply: Reply) -> str:
    return {
        "length": "the answer was cut off at its limit of tokens:\n",
        "content_filter": "the model or its provider refused to answer:\n",
        "tool_calls": "the model called a tool instead of answering:\n",
    }.get(reply.finish_reason, "")


def _canonical(text: str) -> bytes:
    try:
        return orjson.dumps(orjson.loads(text), option=orjson.OPT_SORT_KEYS)
    except (orjson.JSONDecodeError, TypeError):
        return text.encode("utf-8", "surrogatepass")


# -- columns ------------------------------------------------------------------------------------------------


def _columns(judge: Fitter) -> tuple[Column, ...]:
    root = judge.shape
    fields = {VALUE: root} if judge.single else resolved(root, root)["properties"]
    names = [f"parsed_{name}" if name in TAKEN else name for name in fields]
    if twice := next((name for name in names if names.count(name) > 1 or name in TAKEN), None):
        raise ValueError(f"schema: two fields would become the column {twice!r}; rename one")
    return tuple(
        _column(name, each, root, pythonic=judge.pythonic) for name, each in zip(names, fields.values(), strict=True)
    )


def _column(name: str, schema: JSON, root: JSON, *, pythonic: bool) -> Column:
    dtype, values = _dtype(schema, root, pythonic=pythonic, depth=0)
    about = schema.get("description") if isinstance(schema, dict) else None
    return Column(name, dtype, "", str(about or ""), values)


def _dtype(schema: Any, root: JSON, *, pythonic: bool, depth: int) -> tuple[str, tuple[Any, ...]]:  # noqa: PLR0911
    if not isinstance(schema, dict) or depth > _DEEP:
        return "object", ()
    try:
        schema = resolved(schema, root)
    except ValueError:
        return "object", ()
    if "const" in schema:
        return _category([schema["const"]])
    if "enum" in schema:
        return _category(schema["enum"])
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return _of_many([_dtype(each, root, pythonic=pythonic, depth=depth + 1) for each in _not_null(schema[key])])
    kind = schema.get("type")
    if isinstance(kind, list):
        return _of_many([(_SCALARS.get(each, "object"), ()) for each in kind if each != "null"])
    if pythonic and kind == "string" and schema.get("format") in _DATES:
        return _DATES[schema["format"]], ()
    return _SCALARS.get(str(kind), "object"), ()


def _category(values: list[Any]) -> tuple[str, tuple[Any, ...]]:
    known = tuple(value for value in values if value is not None)
    plain = all(isinstance(value, str | int | float) for value in known)
    return ("category", known) if known and plain and len(set(known)) == len(known) else ("object", ())


def _not_null(branches: list[Any]) -> list[Any]:
    return [each for each in branches if not (isinstance(each, dict) and each.get("type") == "null")]


def _of_many(found: list[tuple[str, tuple[Any, ...]]]) -> tuple[str, tuple[Any, ...]]:
    kinds = {dtype for dtype, _ in found}
    if kinds == {"category"}:
        return _category(list(dict.fromkeys(value for _, values in found for value in values)))
    if kinds == {"Int64", "float64"}:
        return "float64", ()
    return found[0] if len(kinds) == 1 else ("object", ())
