"""What a map-reduce will come to, before anything of it is sent: its tree is grown with made-up answers.

The tree is the very one of the job, prompts and packing included. Assumed is that nothing fails, and how long answers
are: as `max_tokens` allows, or, once the lab has had answers of the model, as 80% of them were at most; or 256 tokens.
"""

import contextlib
from abc import ABC
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

from llmlab.columns import Column
from llmlab.estimate import Estimator
from llmlab.frame import Frame, frame_of
from llmlab.prices import Prices
from llmlab.tree import Tree
from llmlab.types import Outcome, Prompt, Reply, Usage

ASSUMES = (
    "Assumes that nothing fails, and answers as long as max_tokens allows, or, once the lab has had answers of the "
    "model, as 80% of them were at most, or else 256 tokens. What a journal or a cache holds is not taken off."
)

LEVELS: tuple[Column, ...] = (
    Column("level", "int64", "", "0 for items, above for answers that are combined"),
    Column("calls", "int64", "", "calls of the level"),
    Column("input_tokens", "int64", "tokens", "of their prompts, as estimated"),
    Column("output_tokens", "int64", "tokens", "of their answers, as assumed"),
    Column("cost_usd", "float64", "USD", "price of those tokens; missing when it is not known"),
)
"""The columns of `Forecast.levels`."""


class Foreseen(ABC):
    """Figures of what is not done yet. `await` them, or call `result()`, as if they were a job."""

    calls: int
    input_tokens: int
    output_tokens: int
    cost_usd: float | None

    def __await__(self) -> Generator[Any, None, Self]:
        return self._itself().__await__()

    async def _itself(self) -> Self:
        return self

    def result(self) -> Self:
        """The forecast itself."""
        return self

    @property
    def in_words(self) -> str:
        """The figures in a line."""
        cost = "price not known" if self.cost_usd is None else f"${self.cost_usd:,.4f}"
        tokens = f"about {self.input_tokens:,} input and {self.output_tokens:,} output tokens"
        return f"{self.calls:,} calls, {tokens}, {cost}"


@dataclass(frozen=True)
class Forecast(Foreseen):
    """What a map-reduce will come to. `await` it, or call its `result()`, for itself, as if it were a job."""

    calls: int
    """Calls of the tree."""
    input_tokens: int
    """Tokens of all prompts, as estimated."""
    output_tokens: int
    """Tokens of all answers, as assumed."""
    cost_usd: float | None
    """Dollars for them; None when a price is not known."""
    left_out: int
    """Items that will not be asked, as they are longer than `max_input_tokens`."""
    levels: Frame
    """The same level by level; see `LEVELS`."""
    assumes: str
    """What the figures rest on, for a person."""

    def __str__(self) -> str:
        left = f"\nToo long, and left out: {self.left_out} of the items" if self.left_out else ""
        table = self.levels.to_string(index=False)
        return f"{self.in_words}\n{table}{left}\n{self.assumes}"

    __repr__ = __str__


@dataclass
class _Sum:
    """Adds up the calls of a level."""

    level: int
    calls: int = 0
    input_tokens: float = 0.0
    output_tokens: float = 0.0
    cost_usd: float | None = 0.0

    @property
    def record(self) -> tuple[Any, ...]:
        return self.level, self.calls, round(self.input_tokens), round(self.output_tokens), self.cost_usd


@dataclass(frozen=True)
class Rehearsal:
    """Grows a tree without sending anything."""

    tree: Tree
    """Its items must be all there."""
    estimator: Estimator
    """Estimates the tokens of prompts and answers."""
    model: str
    """The model of prompts that name none."""
    prices: Prices
    """What tokens cost."""

    def run(self) -> Forecast:
        """Make up the answers.

        Raises:
            TooLong: answers of the assumed length would not fit into `max_input_tokens`.
        """
        sums, left_out = [], 0
        for number, level in enumerate(self.tree.levels()):
            assert isinstance(level, Iterable)  # noqa: S101  its items are all there
            total = _Sum(number)
            for script in level:
                position, item = next(script)
                if isinstance(item, Prompt):
                    outcome = Outcome(position, item, "ok", self._answer(item, total), None)
                else:
                    outcome, left_out = Outcome(position, None, "error", None, item), left_out + 1
                with contextlib.suppress(StopIteration):
                    script.send(outcome)
            sums.append(total)
        return _forecast([each for each in sums if each.calls], left_out)

    def _answer(self, prompt: Prompt, total: _Sum) -> Reply:
        model = prompt.model or self.model
        cost = self.estimator.cost(prompt, model)
        given, wanted = cost["input_tokens"], cost["output_tokens"]
        total.calls += 1
        total.input_tokens += given
        total.output_tokens += wanted
        price = self.prices.get(model)
        if price is None or total.cost_usd is None:
            total.cost_usd = None
        else:
            total.cost_usd += price.cost(Usage(round(given), round(wanted)))
        return Reply(_text(round(wanted), counted=self.tree.limits.count_tokens is not None), "stop", "", model)


@cache
def _text(tokens: int, *, counted: bool) -> str:
    """A text of so many tokens: as counted by somebody's tokenizer, or as estimated, at four characters each."""
    return ("word " if counted else "wor ") * tokens


def _forecast(sums: list[_Sum], left_out: int) -> Forecast:
    costs = [each.cost_usd for each in sums]
    return Forecast(
        calls=sum(each.calls for each in sums),
        input_tokens=round(sum(each.input_tokens for each in sums)),
        output_tokens=round(sum(each.output_tokens for each in sums)),
        cost_usd=None if None in costs else sum(cost for cost in costs if cost is not None),
        left_out=left_out,
        levels=frame_of(LEVELS, [each.record for each in sums]),
        assumes=ASSUMES,
    )
