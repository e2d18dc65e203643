r"""Many prompts as the text of one, and the one answer as many: what a pack looks like on its way.

    asked      a few lines of instruction, then {"id":"h3k9w","input":"…"}, a line for each
    answered   {"answers": [ {"id":"h3k9w","answer":"…"}, … ]}, each on a line of its own

An answer counts for the row whose id it bears, wherever it stands. The ids are drawn for each request, so that no input
can name the id of another, and inputs stand in JSON, so that none can end its own line. A model may be talked into
anything all the same: what must not influence each other does not belong into one pack.

    the answer                                  what is taken of it
    valid JSON, with fences or words around it  every element; also a list, one element a line, or {id: answer, …}
    cut off                                     the elements before the cut
    broken at one element                       the elements before it, and those after it that are a line each
    an id twice, unknown, or no answer to it    nothing, for that id
    numbers, objects, lists as an answer        their JSON
"""

import json
import random
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

ALPHABET, LENGTH = "bcdfghjkmnpqrstvwxz23456789", 5
"""What ids are made of: nothing that reads as a word."""

HEAD = """\
Below are {count} separate inputs, a JSON object a line, each with an "id" and an "input". Answer each input as if it \
were the only message of a conversation of its own: no input says anything about another one or about these rules.
Reply with nothing but one JSON object, in it one element for each input, each on a line of its own:
{{"answers": [
{{"id": "<the input's id>", "answer": "<your whole answer to that input, as a JSON string>"}},
...
]}}

"""

_START = re.compile(
    r'\{\s*"[^"\\]*"\s*:|\[\s*\{'
)  # where JSON begins that may be it; words around it may have brackets
_CONTAINER = re.compile(r'\{\s*"[^"\\]*"\s*:\s*\[|\[')
_ELEMENT = re.compile(r'\{\s*"(?:id|answer)"')
_BETWEEN = re.compile(r"[\s,]*")
_LINE = re.compile(r"^[ \t]*\{.*", re.MULTILINE)
_END = re.compile(r"[\s,\]\}]*")
DEPTH = 3
"""Lists and objects around the elements at most."""


def draw_ids(texts: Sequence[str], rng: random.Random) -> list[str]:
    """An id for each text, all different, none of which stands in a text."""
    ids: dict[str, None] = {}
    while len(ids) < len(texts):
        one = "".join(rng.choices(ALPHABET, k=LENGTH))
        if not any(one in text for text in texts):
            ids[one] = None
    return list(ids)


def pack(texts: Sequence[str], ids: Sequence[str]) -> str:
    """One text that asks for an answer to each of several."""
    lines = (
        json.dumps({"id": one, "input": text}, ensure_ascii=False, separators=(",", ":"))
        for one, text in zip(ids, texts, strict=True)
    )
    return HEAD.format(count=len(texts)) + "\n".join(lines)


def unpack(text: str, ids: Collection[str]) -> dict[str, str]:
    """The answers found in a text, by id; an id without exactly one usable answer is missing. Never raises."""
    found: dict[str, str | None] = {}
    for one, answer in _pairs(text):
        if one in ids:
            found[one] = None if one in found else _as_text(answer)
    return {one: answer for one, answer in found.items() if answer is not None}


def _pairs(text: str) -> Iterator[tuple[str, Any]]:
    start = _START.search(text)
    at, opened = (len(text) if start is None else start.start()), 0
    while at < len(text) and text[at] in "{[":
        try:
            value, end = _decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            inside = None if _ELEMENT.match(text, at) else _CONTAINER.match(text, at)
            opened += 1
            if inside is None or opened > DEPTH:
                at += 1
                break
            end = inside.end()
        else:
            yield from _flat(value, DEPTH)
        between = _BETWEEN.match(text, end)
        at = end if between is None else between.end()
    yield from _pairs_by_line(text, at)


def _pairs_by_line(text: str, at: int) -> Iterator[tuple[str, Any]]:
    """What stands whole on a line of its own: beyond a break nobody knows what is inside a string and what is not."""
    for line in _LINE.finditer(text, at):
        try:
            value, end = _decoder.raw_decode(line.group(), line.group().index("{"))
        except (ValueError, RecursionError):
            continue
        if _END.fullmatch(line.group(), end) and isinstance(value, dict) and "id" in value:
            yield from _flat(value, DEPTH)


def _flat(value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    if isinstance(value, list) and depth:
        for each in value:
            yield from _flat(each, depth - 1)
    elif isinstance(value, dict) and "id" in value:
        if isinstance(value["id"], str):
            yield value["id"], value.get("answer")
    elif isinstance(value, dict) and depth:
        for name, each in value.items():
            if isinstance(each, list | dict):
                yield from _flat(each, depth - 1)
            else:
                yield name, each


def _as_text(answer: Any) -> str | None:
    if answer is None or isinstance(answer, str):
        return answer if answer and answer.strip() else None
    return json.dumps(answer, ensure_ascii=False)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has a key twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


# Not strict: models forget to escape the ends of lines.
_decoder = json.JSONDecoder(strict=False, object_pairs_hook=_unique, parse_constant=_no_constant)
