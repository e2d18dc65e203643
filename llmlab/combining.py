"""The verbs of a lab whose rows follow from the answers to others: run_chains, map_reduce."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

from llmlab.call import NORMAL
from llmlab.chains import Chains, read_chains
from llmlab.core import Core
from llmlab.estimate import Estimator
from llmlab.forecast import Forecast, Rehearsal
from llmlab.frame import OVERRIDES, Frame
from llmlab.job import Job
from llmlab.logbook import Journal
from llmlab.order import Order
from llmlab.progress import line_of
from llmlab.reduce import Asked, MapReduce, read_map_reduce
from llmlab.settings import budget_of
from llmlab.step import Given
from llmlab.streaming import Many, frame_of
from llmlab.tree import Limits, OnError
from llmlab.typed import REASK, reader_of
from llmlab.views import maker

T = TypeVar("T")


class Combining(Core):
    """A lab with the verbs that ask with answers; the arguments are described at `llmlab.Lab`."""

    def run_chains(
        self,
        text: str,
        chains: Chains,
        *,
        model: str | None = None,
        system: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        extra: Mapping[str, Any] | None = None,
        schema: object = None,
        reask: int = REASK,
        journal: str | Path | None = None,
        durability: Literal["process", "power"] = "process",
        budget_usd: float | None = None,
        budget_tokens: int | None = None,
        priority: int = NORMAL,
        progress: bool | None = None,
    ) -> Job[Frame]:
        """Put one text through several chains of prompts, side by side.

        Args:
            text: The input of every chain.
            chains: Each a list of steps, `[["Translate: {context}", "Shorten: {context}"], […]]`, or a mapping of
                names to such lists. `{context}` is the answer to the step before, at first the text. A step may be a
                function that makes a prompt of the context: a text, a list of messages or a Prompt.
            model: Overrides the lab's model, likewise the other parameters.
            system: System prompt.
            temperature: Sampling temperature, 0 to 2.
            max_tokens: Output tokens at most per step.
            extra: Further request fields; replaces the lab's.
            schema: What the answer to each chain's last step is to be, as in `run_many`.
            reask: How often an answer that does not fit is asked for again.
            journal: As in `run_many`, likewise the parameters after it.
            durability: What the journal survives.
            budget_usd: Dollars that this job may spend.
            budget_tokens: Tokens that it may use.
            priority: Place in the lab's line: 0 critical, 1 high, 2 normal, 3 low.
            progress: Show a line of progress. None: as the lab does.

        Returns:
            A Job: `await` it, or call its `result()`, for a DataFrame with a row for each step of each chain:
            `chain` (position or name), `step` (from 0), the columns of `llmlab.frame.COLUMNS` and those of the
            schema. A step that fails ends its own chain only: the steps after it have status `cancelled` and error
            NotAsked.

        Raises:
            TypeError, ValueError: the text, a step or a parameter is not usable; nothing was sent.
        """
        defaults = self._parameters(model, system, temperature, max_tokens, extra)
        reader = reader_of(schema, reask)
        rows, steps = read_chains(text, chains, defaults=defaults, reader=reader)
        view = maker(line_of, wanted=self._progress if progress is None else progress)
        keeper = None
        if journal is not None:
            keeper = self._keeper(Journal(journal, durability=durability), {"chains": steps, **defaults}, reader)
        lane = self._lane(priority, budget_of(self.target, budget_usd, budget_tokens), patient=True)
        return self._job("run_chains", rows, stream=False, view=view, finish=frame_of, journal=keeper, lane=lane)

    @overload
    def map_reduce(
        self,
        items: Many,
        *,
        map: Given,
        reduce: Given,
        fan_in: int | None = None,
        max_input_tokens: int | None = None,
        count_tokens: Callable[[str], int] | None = None,
        separator: str = "\n\n",
        on_error: OnError = "skip",
        overrides: Collection[str] = OVERRIDES,
        model: str | None = None,
        map_model: str | None = None,
        reduce_model: str | None = None,
        system: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        map_max_tokens: int | None = None,
        reduce_max_tokens: int | None = None,
        extra: Mapping[str, Any] | None = None,
        schema: object = None,
        reask: int = REASK,
        journal: str | Path | None = None,
        durability: Literal["process", "power"] = "process",
        budget_usd: float | None = None,
        budget_tokens: int | None = None,
        priority: int = NORMAL,
        progress: bool | None = None,
        dry_run: Literal[False] = False,
    ) -> MapReduce: ...

    @overload
    def map_reduce(
        self,
        items: Many,
        *,
        map: Given,
        reduce: Given,
        dry_run: Literal[True],
        **options: Any,
    ) -> Forecast: ...

    def map_reduce(  # type: ignore[misc]  # a dry run's options are these, too
        self,
        items: Many,
        *,
        map: Given,  # noqa: A002  the field's own word
        reduce: Given,
        fan_in: int | None = None,
        max_input_tokens: int | None = None,
        count_tokens: Callable[[str], int] | None = None,
        separator: str = "\n\n",
        on_error: OnError = "skip",
        overrides: Collection[str] = OVERRIDES,
        model: str | None = None,
        map_model: str | None = None,
        reduce_model: str | None = None,
        system: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        map_max_tokens: int | None = None,
        reduce_max_tokens: int | None = None,
        extra: Mapping[str, Any] | None = None,
        schema: object = None,
        reask: int = REASK,
        journal: str | Path | None = None,
        durability: Literal["process", "power"] = "process",
        budget_usd: float | None = None,
        budget_tokens: int | None = None,
        priority: int = NORMAL,
        progress: bool | None = None,
        dry_run: bool = False,
    ) -> MapReduce | Forecast:
        """Ask each of many items, and combine the answers, level by level, until one is left.

        Args:
            items: A Series, a DataFrame, a list of texts or mappings, or any iterable, generator or asynchronous
                iterable; at least one.
            map: What each item is asked: a template with `{item}`, `{index}` (its label, or position), or the columns
                of a DataFrame (the keys of mappings), of which `{item}` is the only one, or `prompt`; or a function of
                the item (of a DataFrame a dict of the row) that makes a prompt: a text, a list of messages or a Prompt.
            reduce: What answers are combined by: a template with `{mapped_outputs}`, or a function of a list of
                answers that makes a prompt, which may be called several times for an answer.
            fan_in: Answers combined at a time, at least 2. None: as many as `max_input_tokens` allows; 10, if that is
                not given either. Neighbours are combined, in their order; one that is left over goes up without a
                call.
            max_input_tokens: Tokens of a prompt at most, items' prompts included. They are estimated from characters,
                the same in each run (about 4 to a token in English; keep a margin), or counted by `count_tokens`. An
                item that is longer has failed.
            count_tokens: Counts the tokens of a text, as by the model's tokenizer.
            separator: Stands between answers in `{mapped_outputs}`.
            on_error: What to do about an item, or a combination, that has failed. "skip": leave it out, with the items
                below it; the answer says how many were. "raise": the job stops at the first one and raises its error;
                an item known to be too long is a ValueError before anything is sent.
            overrides: Columns of a DataFrame that set a row's own `model`, `temperature`, `max_tokens` or `system` for
                `map`, unless the template uses them. `()`: none.
            model: Overrides the lab's model, likewise the other parameters.
            map_model: Model for `map` alone.
            reduce_model: Model for `reduce` alone.
            system: System prompt.
            temperature: Sampling temperature, 0 to 2.
            max_tokens: Output tokens at most per call.
            map_max_tokens: The same for `map` alone.
            reduce_max_tokens: The same for `reduce` alone.
            extra: Further request fields; replaces the lab's.
            schema: What the last answer is to be, as in `run_many`; then the Answer's `parsed`. It is always one to
                `reduce`, also if a single item is left.
            reask: How often an answer that does not fit is asked for again.
            journal: As in `run_many`: the same call again goes on where it was, in the middle of a level, too.
            durability: What the journal survives.
            budget_usd: Dollars that this job may spend.
            budget_tokens: Tokens that it may use.
            priority: Place in the lab's line: 0 critical, 1 high, 2 normal, 3 low.
            progress: Show a line of progress. None: as the lab does.
            dry_run: Send nothing, and give a Forecast instead: calls, tokens and dollars, level by level.

        Returns:
            A Job: `await` it, or call its `result()`, for an Answer: `content` (and `parsed`), how many items it speaks
            for, what was left out, tokens and cost. `job.trace` is the tree as a DataFrame, a row for each call:
            `llmlab.reduce.TREE` and the columns of `llmlab.frame.COLUMNS`. It raises the error that no call can
            escape, TooLong if no two answers fit into one prompt, or LLMError if every item has failed.

        Raises:
            TypeError, ValueError: the items, a template or a parameter is not usable, or there is no item; nothing was
                sent.
        """
        reader = reader_of(schema, reask)
        asked = read_map_reduce(
            items,
            step=map,
            combine=reduce,
            limits=Limits(fan_in, max_input_tokens, count_tokens),
            separator=separator,
            on_error=on_error,
            overrides=overrides,
            map_defaults=self._parameters(
                _first(map_model, model), system, temperature, _first(map_max_tokens, max_tokens), extra
            ),
            reduce_defaults=self._parameters(
                _first(reduce_model, model), system, temperature, _first(reduce_max_tokens, max_tokens), extra
            ),
            reader=reader,
        )
        lane = self._lane(priority, budget_of(self.target, budget_usd, budget_tokens), patient=True)
        if dry_run:
            return self._rehearse(asked)
        keeper = None
        if journal is not None:
            keeper = self._keeper(Journal(journal, durability=durability), asked.settings, reader)
        view = maker(line_of, wanted=self._progress if progress is None else progress)
        order = Order(asked.rows, seed=self._seed, view=view, places=self._places, journal=keeper, lane=lane)
        self._tell_price()
        job = self.last = MapReduce(asked, order, home=self._home, open_ground=self._open, tuner=self)
        return job

    def _rehearse(self, asked: Asked) -> Forecast:
        if asked.inputs.total is None:
            raise TypeError("dry_run needs items that are all there: a list, a Series or a DataFrame")
        line, provider = self.target.line, self.target.provider
        known = None if line is None else line.estimator
        return Rehearsal(asked.tree, known or Estimator(), provider.model, provider.prices).run()


def _first(own: T | None, common: T | None) -> T | None:
    return common if own is None else own
