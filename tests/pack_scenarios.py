"""A model that answers packed rows, and garbles some: what packing saves, and what must be asked again.

Of each row in a pack it garbles a share, in one of the ways below; the order of the answers is shuffled, and words and
fences stand around one answer in four. Asked alone it answers as it should.

    drop     the row has no answer               null     its answer is null
    twice    it has two                          rename   it bears an id that nobody has
    break    a quote in it is not escaped        cut      the whole answer ends within it, as at max_tokens

`python -m tests.pack_scenarios` prints the figures.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pandas as pd

from llmlab import Lab, Strategy
from llmlab.clock import run_virtual
from llmlab.policies.pack import Pack
from llmlab.sim import Faults, Physics, Simulator
from llmlab.sim.wire import Ask

WAYS = ("drop", "null", "twice", "rename", "break", "cut")
SYSTEM = "You judge reviews. Say whether the review is positive, negative or neutral, and repeat its number. " * 4
PRICES = {"m": (0.5, 1.5)}


def answer_to(text: str) -> str:
    """What the model has to say to a row: nothing that could be another row's."""
    return f'label of "{text}"\n(sure)'


def rows_of(text: str) -> list[tuple[str, str]]:
    """The rows of a packed prompt, by id; none if it is a single one's."""
    lines = [line for line in text.splitlines() if line.startswith('{"id":"')]
    return [(row["id"], row["input"]) for row in map(json.loads, lines)]


@dataclass
class Model:
    """Answers as `say=` of a Simulator."""

    share: float = 0.2
    """Of packed rows that are garbled."""
    ways: Sequence[str] = WAYS
    """How."""
    seed: int = 0
    garbled: int = field(default=0, init=False)
    """Rows so far; those lost with them are not counted."""
    packs: int = field(default=0, init=False)
    """Packed requests answered so far."""

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)

    def __call__(self, ask: Ask) -> str:
        last = ask.text.removeprefix(SYSTEM).strip()
        rows = rows_of(last)
        if not rows:
            return answer_to(last)
        self.packs += 1
        self._rng.shuffle(rows)
        elements: list[str] = []
        for one, text in rows:
            way = self._rng.choice(self.ways) if self._rng.random() < self.share else ""
            self.garbled += bool(way)
            elements.extend(_element(way, one, answer_to(text)))
            if way == "cut":
                return '{"answers": [\n' + ",\n".join(elements)
        body = '{"answers": [\n' + ",\n".join(elements) + "\n]}"
        return f"Here you are [all of them]:\n```json\n{body}\n```\nDone." if self._rng.random() < 0.25 else body


def _element(way: str, one: str, answer: str) -> list[str]:
    right = json.dumps({"id": one, "answer": answer}, ensure_ascii=False)
    return {
        "": [right],
        "drop": [],
        "null": [json.dumps({"id": one, "answer": None})],
        "twice": [right, right],
        "rename": [json.dumps({"id": one[::-1] + "x", "answer": answer})],
        "break": [right.replace('\\"', '"', 1)],
        "cut": [right[: len(right) // 2]],
    }[way]


@dataclass
class Run:
    """What a run of many rows has come to."""

    frame: pd.DataFrame
    attempts: pd.DataFrame
    requests: int
    """Completions that the provider was asked for."""
    pack: Pack | None
    model: Model
    billed: Any
    """The tokens that the provider counted."""


def run(
    *,
    rows: int = 1000,
    pack: Pack | None = None,
    share: float = 0.2,
    faults: float = 0.0,
    seed: int = 1,
    **options: Any,
) -> Run:
    """Ask for `rows` short rows under one system prompt."""

    async def main() -> Run:
        model = Model(share, seed=seed)
        simulator = Simulator(seed=seed, say=model, physics=Physics(), faults=Faults.mixed(faults) if faults else None)
        strategy = Strategy.default(concurrency=8, pack=pack)
        lab = Lab("openai:m", transport=simulator, seed=seed, strategy=strategy, prices=PRICES, system=SYSTEM)
        job = lab.run_many([f"Review {n}: it {'leaks' * (n % 3)}." for n in range(rows)], progress=False, **options)
        frame = await job
        return Run(frame, job.attempts, simulator.requests, lab.strategy.pack, model, simulator.stats()["tokens"])

    return run_virtual(main)


def right(done: Run) -> bool:
    """Whether each row has its own answer, in its own place."""
    return bool((done.frame.content == done.frame.prompt.map(answer_to)).all())


def main() -> None:
    """Print the figures."""
    say = partial(print, flush=True)
    say("1,000 short rows under a system prompt of some 90 tokens; the model garbles a share of the packed rows")
    say("pack  garbled share   requests   saved   rows redone   input tokens   USD   all right")
    alone = run()
    for size, share in ((1, 0.0), (5, 0.2), (10, 0.0), (10, 0.05), (10, 0.2), (20, 0.0), (20, 0.05)):
        done = run(pack=None if size == 1 else Pack(size), share=share)
        redone = 0 if done.pack is None else done.pack.redone
        say(
            f"{size:4} {share:14.0%} {done.requests:10} {1 - done.requests / alone.requests:7.0%} {redone:13}"
            f" {done.frame.input_tokens.sum():14,} {done.frame.cost_usd.sum():6.3f} {right(done)!s:>10}"
        )


if __name__ == "__main__":
    main()
