"""The JSON in a model's answer, also where the model has put something around it.

    the answer                                   what is read
    {"a": 1}                                     as it is
    ```json … ```, prose before or behind        the object in it
    <think>…</think> before it                   what comes after
    several objects                              each: whoever asks takes the only one that fits
    an object that is cut off                    nothing: what stands inside of it is not the answer

Nothing is mended: no quotes are changed, no commas added, no names guessed.
"""

import json
from collections.abc import Iterator
from typing import Any

import orjson

THOUGHT = "<think>"
MOST = 20
"""Objects, or braces that begin none, that are looked at in one answer."""

_decoder = json.JSONDecoder()


def objects(text: str) -> Iterator[str]:
    """The JSON objects that stand in a text, outermost only, as texts."""
    text = text.strip().removeprefix("\ufeff")
    if text.startswith(THOUGHT):  # local servers leave the reasoning of some models in the answer
        text = text.rpartition(THOUGHT.replace("<", "</"))[2].strip()
    if text.startswith("{") and text.endswith("}") and _whole(text):
        yield text
        return
    at = text.find("{")
    for _ in range(MOST):
        if at < 0:
            return
        try:
            _, end = _decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            if is_cut(text[at:]):
                return
            at = text.find("{", at + 1)
        else:
            yield text[at:end]
            at = text.find("{", end)


def _whole(text: str) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


def is_cut(text: str) -> bool:
    """Whether a text is the beginning of JSON, whose end is missing."""
    from pydantic_core import from_json  # noqa: PLC0415  only typed answers need it

    try:
        from_json(text, allow_partial=True)
    except ValueError:
        return False
    return True


def so_far(text: str) -> Any:
    """What a JSON object that is still being written holds so far; None before it has begun.

    Texts are given as far as they have come, numbers and names once they are whole.
    """
    from pydantic_core import from_json  # noqa: PLC0415

    at = text.find("{")
    if at < 0:
        return None
    try:
        return from_json(text[at:], allow_partial="trailing-strings")
    except ValueError:
        return None


def without_nulls(text: str, places: list[tuple[str | int, ...]]) -> str | None:
    """The JSON without the nulls at these places: a null where something may be left out says that it is.

    Returns:
        The new text; None if there is no null at any of the places.
    """
    value = json.loads(text)
    if not [place for place in places if _remove_null(value, place)]:
        return None
    return json.dumps(value)


def _remove_null(value: Any, place: tuple[str | int, ...]) -> bool:
    for step in place:
        try:
            found = value[step]
        except (KeyError, IndexError, TypeError):
            continue  # the name of a union's branch
        if found is None and isinstance(value, dict):
            del value[step]
            return True
        value = found
    return False
