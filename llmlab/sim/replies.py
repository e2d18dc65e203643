"""What the simulated model says: plausible English, the same for the same seed and prompt.

One rule counts the tokens of prompts and answers and cuts the answers into the pieces in which they are
streamed: a token is up to six letters or digits with the blank before them, or one other character. That is
about four characters of English per token, one per CJK character, and joining the pieces gives back the text.
"""

import random
import re
from dataclasses import replace
from functools import partial
from hashlib import blake2b

import orjson

from llmlab.sim.formed import instance
from llmlab.sim.packs import answers_of, rows_of
from llmlab.sim.wire import Answer, Ask, Choice

PER_TURN = 4
PER_REQUEST = 3
PER_IMAGE = 800
LONGEST = 4096
THOUGHT = 24

_TOKEN = re.compile(r" ?[A-Za-z0-9]{1,6}| ?[^A-Za-z0-9\s]|\s")
_WORD = re.compile(r"[A-Za-z]{4,}")

_OPENERS = (
    "",
    "In short, ",
    "On balance, ",
    "Seen from a distance, ",
    "For most readers, ",
    "As a rule, ",
    "At first sight, ",
    "In practice, ",
)
_SUBJECTS = (
    "the text",
    "the first paragraph",
    "this example",
    "the evidence",
    "a careful reading",
    "the question of {topic}",
    "what is said about {topic}",
    "the naïve view of {topic}",
    "the customer",
    "the second point",
    "every mention of {topic}",
)
_VERBS = (
    "suggests",
    "shows",
    "explains",
    "leaves open",
    "confirms",
    "hints at",
    "depends on",
    "describes",
    "points to",
)
_OBJECTS = (
    "a clear preference",
    "the same conclusion",
    "two separate causes",
    "a small but steady effect",
    "the role of {topic}",
    "a mixed picture",
    "an honest mistake",
    "the price of waiting",
    "a café on the corner",
    "no surprise at all",
)
_TAILS = (
    "",
    "",
    ", at least here",
    ", for now",
    ", which is worth a note",
    " — with one exception",
    ", as expected",
)


def tokens(text: str) -> list[str]:
    """Cut a text into its tokens; joined they are the text."""
    return _TOKEN.findall(text)


def input_tokens(ask: Ask) -> int:
    """Count the tokens of a request as the provider bills them."""
    return len(tokens(ask.text)) + PER_TURN * ask.turns + PER_REQUEST + PER_IMAGE * ask.images


def answer(ask: Ask, *, seed: int, median: float, sigma: float, text: str | None = None) -> Answer:
    """Make the answer to a request.

    Args:
        ask: The request.
        seed: The simulator's seed.
        median: Median length in tokens.
        sigma: Sigma of the lognormal distribution of lengths.
        text: What to say instead of something made up; still subject to `max_tokens` and `stop`.
    """
    if text is None and not ask.json and (rows := rows_of(ask.text)):
        text = answers_of(rows, partial(_alone, ask, seed=seed, median=median, sigma=sigma))
    rng = random.Random(blake2b(f"{seed}\0{ask.model}\0{ask.text}".encode(), digest_size=8).digest())
    thought = tuple(tokens(_sentences(rng, ask.text, THOUGHT))) if ask.thinks else ()
    left = None if ask.max_tokens is None else max(0, ask.max_tokens - len(thought))
    choices = []
    for _ in range(ask.n):
        length = min(LONGEST, max(1, round(median * rng.lognormvariate(0.0, sigma) if sigma else median)))
        said = _say(ask, rng, length) if text is None else text
        choices.append(_cut(tokens(said), left, ask.stop))
    return Answer(tuple(choices), input_tokens(ask), thought[: ask.max_tokens])


def _alone(ask: Ask, text: str, *, seed: int, median: float, sigma: float) -> str:
    """What is said to a row of a pack: the same as if it were asked by itself."""
    each = replace(ask, text=text, max_tokens=None, n=1)
    return answer(each, seed=seed, median=median, sigma=sigma).choices[0].text


def _say(ask: Ask, rng: random.Random, length: int) -> str:
    if ask.schema is not None:
        return orjson.dumps(instance(ask.schema, rng)).decode()
    if ask.json:
        label = rng.choice(("positive", "negative", "neutral"))
        value = {
            "label": label,
            "score": round(rng.random(), 2),
            "answer": _sentences(rng, ask.text, length // 2),
        }
        return orjson.dumps(value).decode()
    return _sentences(rng, ask.text, length)


def _sentences(rng: random.Random, prompt: str, length: int) -> str:
    """Write whole sentences until there are about `length` tokens."""
    topic = max(_WORD.findall(prompt[-400:]), key=len, default="it")
    said: list[str] = []
    left = length
    while True:
        said_by = f"{rng.choice(_OPENERS)}{rng.choice(_SUBJECTS)} {rng.choice(_VERBS)}"
        sentence = f"{said_by} {rng.choice(_OBJECTS)}{rng.choice(_TAILS)}.".replace("{topic}", topic)
        size = len(tokens(sentence))
        if said and left < size / 2:
            return " ".join(said)
        said.append(sentence[0].upper() + sentence[1:])
        left -= size


def _cut(pieces: list[str], left: int | None, stop: tuple[str, ...]) -> Choice:
    """End an answer where `stop` or the allowance of tokens says; what comes first counts."""
    kept = pieces if left is None else pieces[:left]
    text = "".join(kept)
    found = [(at, word) for word in stop if word and (at := text.find(word)) >= 0]
    if found:
        at, word = min(found)
        return Choice(tuple(tokens(text[:at])), "stop_sequence", word)
    return Choice(tuple(kept), "length" if len(kept) < len(pieces) else "stop")
