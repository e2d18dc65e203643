"""Several rows in one request, as `llmlab.packing` writes them: how the simulated model answers, and gets it wrong.

It says to each row what it would say to it alone. Of the faults in form, `misfit_missing` drops one row's answer,
`misfit_type` leaves it null, `misfit_cut` and `misfit_prose` end or lose the whole; fences and prose stand around it.
"""

import json
import random
import re
from collections.abc import Callable, Iterable

MARK = re.compile(r"^Below are \d+ separate inputs, a JSON object a line", re.MULTILINE)


def rows_of(text: str) -> list[tuple[str, str]]:
    """The rows of a packed request: their ids, and the text of the request that asks for one alone. Else none."""
    found = MARK.search(text)
    if found is None:
        return []
    before, rows = text[: found.start()], []
    for line in text[found.end() :].splitlines():
        if line.startswith('{"id":"'):
            row = json.loads(line)
            rows.append((row["id"], before + row["input"]))
    return rows


def answers_of(rows: Iterable[tuple[str, str]], say: Callable[[str], str]) -> str:
    """The answer to a packed request, of what there is to say to each row's text."""
    lines = (json.dumps({"id": one, "answer": say(text)}, ensure_ascii=False) for one, text in rows)
    return '{"answers": [\n' + ",\n".join(lines) + "\n]}"


def dropped(text: str, rng: random.Random) -> str:
    """One row has no answer."""
    return _but_one(text, rng, lambda _: None)


def nulled(text: str, rng: random.Random) -> str:
    """One row's answer is null."""
    return _but_one(text, rng, lambda one: {**one, "answer": None})


def _but_one(text: str, rng: random.Random, change: Callable[[dict[str, object]], object]) -> str:
    try:
        answers = json.loads(text)["answers"]
    except ValueError:  # cut off at its limit of tokens already
        return text
    at = rng.randrange(len(answers))
    answers[at : at + 1] = [new for new in [change(answers[at])] if new is not None]
    return json.dumps({"answers": answers}, ensure_ascii=False)
