"""`lab.grid`: prompts, models and parameters compared on the same rows, every combination of them."""

from collections.abc import Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar, overload

from llmlab.call import NORMAL, Call, Handler
from llmlab.core import Core
from llmlab.estimate import Estimator
from llmlab.factors import FACTORS, GridForecast, GridRows, foresee, read_factor, read_grid
from llmlab.frame import OVERRIDES, Frame
from llmlab.job import Job
from llmlab.load import Ground
from llmlab.logbook import Journal
from llmlab.progress import line_of, say
from llmlab.settings import HasTarget, budget_of
from llmlab.streaming import Many, frame_of
from llmlab.target import Target, bind_all
from llmlab.typed import REASK, reader_of
from llmlab.types import Prompt, Reply, Usage
from llmlab.views import maker

T = TypeVar("T")
Levels: TypeAlias = T | Iterable[T | None] | Mapping[str, T | None] | None
"""One value, several, or several by name."""

MOST = 10_000
"""Calls of a grid at most, unless more are allowed."""


class Factorial(Core):
    """A lab with the verb that compares; the arguments are described at `llmlab.Lab`."""

    @overload
    def grid(
        self,
        prompts: "Many | str | Prompt",
        *,
        template: Levels[str] = None,
        system: Levels[str] = None,
        model: Levels[str | HasTarget] = None,
        temperature: Levels[float] = None,
        max_tokens: Levels[int] = None,
        repeat: int = 1,
        extra: Mapping[str, Any] | None = None,
        overrides: Collection[str] = OVERRIDES,
        schema: Any = None,
        reask: int = REASK,
        stream: bool = False,
        journal: str | Path | None = None,
        durability: Literal["process", "power"] = "process",
        budget_usd: float | None = None,
        budget_tokens: int | None = None,
        priority: int = NORMAL,
        max_calls: int = MOST,
        progress: bool | None = None,
        dry_run: Literal[False] = False,
    ) -> Job[Frame]: ...

    @overload
    def grid(self, prompts: "Many | str | Prompt", *, dry_run: Literal[True], **options: Any) -> GridForecast: ...

    def grid(  # type: ignore[misc]  # a dry run's options are these, too
        self,
        prompts: "Many | str | Prompt",
        *,
        template: Levels[str] = None,
        system: Levels[str] = None,
        model: Levels[str | HasTarget] = None,
        temperature: Levels[float] = None,
        max_tokens: Levels[int] = None,
        repeat: int = 1,
        extra: Mapping[str, Any] | None = None,
        overrides: Collection[str] = OVERRIDES,
        schema: Any = None,
        reask: int = REASK,
        stream: bool = False,
        journal: str | Path | None = None,
        durability: Literal["process", "power"] = "process",
        budget_usd: float | None = None,
        budget_tokens: int | None = None,
        priority: int = NORMAL,
        max_calls: int = MOST,
        progress: bool | None = None,
        dry_run: bool = False,
    ) -> Job[Frame] | GridForecast:
        """Ask every row with every combination of prompts, models and parameters.

        A factor is one value, a list of levels, or a mapping of names to levels, `{"short": "…", "long": "…"}`:
        lists and mappings become columns of the result.

        Args:
            prompts: A Series, a DataFrame, a list of texts, of message lists or of mappings, or one prompt.
            template: Templates, with column names in braces; of a Series its name, of a list of texts `{prompt}`.
            system: System prompts.
            model: Names of the lab's provider's models, or Labs, whose rows keep to the limits of theirs and are asked
                with this lab's parameters.
            temperature: Sampling temperatures, 0 to 2.
            max_tokens: Output tokens at most.
            repeat: How often each is asked. Repeats are asked anew each: the lab's cache is passed over.
            extra: Further request fields; replaces the lab's.
            overrides: Columns of a DataFrame that set a row's own parameters, unless they are factors.
            schema: What answers must fit, as in `run_many`, likewise the parameters up to `priority`.
            reask: How often an answer that does not fit is asked for again.
            stream: Ask for the answers in pieces, which fills `ttft_ms`.
            journal: A file in which each cell is written down. A grid that has grown meanwhile, by rows, levels or
                repeats, pays only for what is new in it.
            durability: What the journal survives.
            budget_usd: Dollars that this job may spend.
            budget_tokens: Tokens that it may use.
            priority: Place in the lab's line: 0 critical, 1 high, 2 normal, 3 low.
            max_calls: Calls at most: a grid that is larger is refused before anything is sent.
            progress: Show a line of progress, and first the size of the grid. None: as the lab does.
            dry_run: Send nothing, and give a GridForecast instead: calls, tokens and dollars, in all and for each
                combination.

        Returns:
            A Job: `await` it, or call its `result()`, for a tidy DataFrame with a row per cell, failed ones too, in the
            order of the grid: the label of the input's row (in a column of its index's name, or `row`), the factors,
            `repeat` from 1, and the columns of `llmlab.frame.COLUMNS` and of the schema. Where models are a factor,
            `model` is the one that was asked, and `answered_by` as the provider names it.

        Raises:
            TypeError, ValueError: the input, a factor or a parameter is not usable, or the grid is too large; nothing
                was sent.
        """
        given = (template, system, model, temperature, max_tokens)
        factors = [read_factor(name, each) for name, each in zip(FACTORS, given, strict=True)]
        alone = {factor.name: None if factor.varied else factor.levels[0] for factor in factors}
        targets = [each.target if isinstance(each, HasTarget) else self.target for each in factors[2].levels]
        one = None if isinstance(alone["model"], HasTarget) else alone["model"]
        defaults = self._parameters(one, alone["system"], alone["temperature"], alone["max_tokens"], extra)
        grid = read_grid(prompts, factors, repeat=repeat, overrides=overrides, defaults=defaults, max_calls=max_calls)
        if dry_run:
            return self._foresee(grid, targets)
        reader = reader_of(schema, reask)
        lane = self._lane(priority, budget_of(self.target, budget_usd, budget_tokens), patient=True)
        settings = {"grid": alone["template"], "overrides": sorted(overrides), **defaults}
        keeper = None
        if journal is not None:
            _check_known(targets)
            whose = partial(_whose, targets, grid)
            keeper = self._keeper(Journal(journal, durability=durability), settings, reader, whose)
        shown = self._progress if progress is None else progress
        if shown is not False:
            say(f"llmlab: a grid of {grid}")
        return self._job(
            "grid",
            grid.asking(reader),
            stream=stream,
            view=maker(line_of, wanted=shown),
            finish=frame_of,
            journal=keeper,
            lane=lane,
            open_ground=partial(_open, targets, grid),
        )

    def _foresee(self, grid: GridRows, targets: list[Target]) -> GridForecast:
        def reckon(position: int, prompt: Prompt) -> tuple[float, float, float | None]:
            target = targets[grid.level("model", position)]
            model = prompt.model or target.provider.model
            known = None if target.line is None else target.line.estimator
            cost = (known or Estimator()).cost(prompt, model)
            read, written = cost["input_tokens"], cost["output_tokens"]
            price = target.provider.prices.get(model)
            return read, written, None if price is None else price.cost(Usage(round(read), round(written)))

        return foresee(grid, reckon)


def _check_known(targets: list[Target]) -> None:
    names = {target: target.name for target in targets}
    if len({*names.values()}) < len(names):
        raise ValueError("a journal cannot tell two Labs of the same provider and model apart: give each its own grid")


def _whose(targets: list[Target], grid: GridRows, position: int) -> tuple[str, str]:
    provider = targets[grid.level("model", position)].provider
    return provider.name, provider.model


def _open(targets: list[Target], grid: GridRows) -> Ground:
    """Send each cell to the target of its model; what is to be asked repeatedly, past the caches."""
    lines = bind_all(targets)
    handlers: list[Handler] = [each if grid.repeat == 1 else each.by(each.strategy.without_cache()) for each in targets]

    async def handler(call: Call) -> Reply:
        return await handlers[grid.level("model", call.index)](call)

    return Ground(handler, targets[0].strategy.slots if len({*targets}) == 1 else None, lines)
