"""The door: one provider, one strategy, one line that all jobs share."""

import asyncio
import itertools
from collections.abc import AsyncIterable, Callable, Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias

import httpx
import pandas as pd

from llmlab.errors import LLMError
from llmlab.events import Bus
from llmlab.feeder import Ground
from llmlab.frame import OVERRIDES, Rows, read_rows
from llmlab.job import Job, Order
from llmlab.keeper import Keeper
from llmlab.logbook import Journal
from llmlab.loops import Home
from llmlab.prices import Price, read_prices
from llmlab.progress import say, wants_bar
from llmlab.providers import connect
from llmlab.rules.adapt import Controller
from llmlab.rules.slots import Slots
from llmlab.strategy import CONCURRENCY, Strategy
from llmlab.types import Message, Prompt, Reply

Many: TypeAlias = "pd.DataFrame | pd.Series[Any] | Iterable[Any] | AsyncIterable[Any]"

_told = False


class Lab:
    """Runs prompts on one provider, within one strategy.

    Jobs of one lab share its line and its connections. A lab lives on one event loop: the one it is first used on.

    Args:
        model: "provider:model", as in "openai:MODEL", "anthropic:MODEL", "ollama:MODEL". Default: the
            simulated provider, which needs no key and no network.
        base_url: Where the provider's API lives, without its path; any OpenAI-compatible server for "openai:…".
            None: the provider's own.
        api_key: The key. None: from the provider's environment variable, as OPENAI_API_KEY.
        transport: Sends the requests instead of llmlab's own connections; stays yours to close.
        concurrency: Requests in flight at most: a number of at least 1, "auto" (as many as still buy throughput, found
            while jobs run), or a controller (Elastic, AIMD, Gradient, Fixed). None: the strategy's own (32 by
            default). `lab.concurrency = 64` sets a number while jobs run.
        rpm: Requests per minute at most. None: as the provider's headers say, or its 429s teach.
        tpm: Tokens per minute at most, input and output together; likewise. `rpm` and `tpm` are settings of the
            default strategy; a strategy of your own brings its own Rate.
        strategy: What to do about limits, failures and slowness. None: Strategy.default().
        system: System prompt of every prompt that brings none.
        temperature: Sampling temperature, 0 to 2. None: not sent.
        max_tokens: Output tokens at most per answer. None: not sent.
        extra: Further fields of every request (`stop`, `seed`, `response_format`, …).
        prices: Dollars per million tokens by model: (input, output[, cached[, cache_write]]) or Price. A model
            without an entry has no cost.
        loop: "caller": live on the loop of the first use. "thread": on a private one, so that jobs go on while
            a notebook's cell computes.
        progress: Show a line of progress. None: in terminals and notebooks.
        seed: Seeds the jitter, and the simulated provider. None: jitter from the system, simulator from 0.

    Raises:
        TypeError, ValueError: an argument is not usable, the provider is unknown, or its key is missing.
    """

    def __init__(
        self,
        model: str = "sim:small",
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        concurrency: int | Controller | Literal["auto"] | None = None,
        rpm: float | None = None,
        tpm: float | None = None,
        strategy: Strategy | None = None,
        system: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        extra: Mapping[str, Any] | None = None,
        prices: Mapping[str, Price | tuple[float, ...]] | None = None,
        loop: Literal["caller", "thread"] = "caller",
        progress: bool | None = None,
        seed: int | None = None,
    ) -> None:
        self._defaults = {
            "system": system,
            "temperature": temperature,
            "max_tokens": max_tokens,
            "extra": extra,
        }
        Prompt.of("", **self._defaults)  # type: ignore[arg-type]  # complains about what cannot be sent
        self._provider = connect(
            model,
            base_url=base_url,
            api_key=api_key,
            transport=transport,
            prices=read_prices(prices),
            seed=seed,
        )
        self.strategy = _live(strategy, concurrency, rpm=rpm, tpm=tpm)
        """The live stack; its state belongs to this lab."""
        self.last: Job[Any] | None = None
        """The job started last: after an interrupted cell, `lab.last.frame` has the finished rows."""
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int)):
            raise TypeError(f"seed must be a whole number, not {seed!r}")
        if loop not in ("caller", "thread"):
            raise ValueError(f"loop must be 'caller' or 'thread', not {loop!r}")
        self._home = Home(loop)
        self._places = itertools.count()
        self._progress, self._seed = progress, seed
        if self._provider.name == "sim":
            _tell_once()

    # -- verbs --------------------------------------------------------------------------------------------

    def run(
        self,
        prompt: str | Prompt | Iterable[Message | Mapping[str, Any]],
        *,
        model: str | None = None,
        system: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        extra: Mapping[str, Any] | None = None,
        stream: bool = False,
    ) -> Job[Reply]:
        """Answer one prompt.

        Args:
            prompt: A text, or a list of messages (`{"role": …, "content": …}`).
            model: Overrides the lab's model, likewise the other parameters.
            system: System prompt.
            temperature: Sampling temperature, 0 to 2.
            max_tokens: Output tokens at most.
            extra: Further request fields; replaces the lab's.
            stream: Ask for the answer in pieces, so that it has a time to first token.

        Returns:
            A Job: `await` it, or call its `result()`, for the Reply. A failure raises its LLMError.

        Raises:
            TypeError, ValueError: the prompt or a parameter is not usable; nothing was sent.
        """
        given: Any = prompt
        if isinstance(prompt, Iterable) and not isinstance(prompt, str | Mapping):
            given = list(prompt)
        defaults = self._parameters(model, system, temperature, max_tokens, extra)
        rows = Rows([Prompt.of(given, **defaults)], None, 1)
        return self._job("run", rows, stream=stream, bar=False, finish=_only_reply)

    def run_many(
        self,
        prompts: Many,
        *,
        template: str | None = None,
        overrides: Collection[str] = OVERRIDES,
        model: str | None = None,
        system: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        extra: Mapping[str, Any] | None = None,
        stream: bool = False,
        journal: str | Path | None = None,
        durability: Literal["process", "power"] = "process",
        progress: bool | None = None,
    ) -> Job[pd.DataFrame]:
        """Answer many prompts concurrently; one row each, in input order.

        Args:
            prompts: A Series, a DataFrame, a list of texts or of message lists, or any iterable, generator or
                asynchronous iterable, which is taken only as fast as rows are answered.
            template: For a DataFrame (or an iterable of mappings): the prompt's text with column names in
                braces, `"Classify: {review}"`. None: the DataFrame's column `prompt`.
            overrides: Columns of a DataFrame that set a row's own `model`, `temperature`, `max_tokens` or `system`,
                unless the template uses them; a missing value means the default. `()`: none.
            model: Model for rows that set none, likewise the other parameters.
            system: System prompt.
            temperature: Sampling temperature, 0 to 2.
            max_tokens: Output tokens at most.
            extra: Further request fields; replaces the lab's.
            stream: Ask for the answers in pieces, which fills `ttft_ms`.
            journal: A file, "run.sqlite", in which each row is written down before it is reported. Running the same
                call again, after a crash, a restart or a Stop, pays only for rows not yet answered: failures are
                tried again. Read it without a lab by `llmlab.journal.read`.
            durability: "process": what is reported survives the death of the process, kill -9 included. "power":
                a power cut, too.
            progress: Show a line of progress. None: as the lab does.

        Returns:
            A Job: `await` it, or call its `result()`, for a DataFrame with the input's index (0, 1, 2, … if it
            has none) and the columns of `llmlab.frame.COLUMNS`. A row's failure is data in its row. An error that
            no row can escape (bad key, no credit) stops the job early: rows already answered are kept, the rest
            have status `cancelled`.

        Raises:
            TypeError, ValueError: the input, a row or a parameter is not usable; nothing was sent.
        """
        defaults = self._parameters(model, system, temperature, max_tokens, extra)
        rows = read_rows(prompts, template=template, overrides=overrides, **defaults)
        wanted = self._progress if progress is None else progress
        bar = wants_bar() if wanted is None else wanted
        settings = {"template": template, "overrides": sorted(overrides), **defaults}
        keeper = None if journal is None else self._keeper(Journal(journal, durability=durability), settings)
        return self._job("run_many", rows, stream=stream, bar=bar, finish=_frame, journal=keeper)

    # -- settings -----------------------------------------------------------------------------------------

    @property
    def concurrency(self) -> int | None:
        """Requests in flight at most; may be set while jobs run, from any thread. None: not limited."""
        return None if self.strategy.slots is None else self.strategy.slots.limit

    @concurrency.setter
    def concurrency(self, limit: int) -> None:
        slots = _slots(self.strategy)
        Slots(limit)  # complains here, not on the loop
        self._home.call_soon(partial(slots.resize, limit))

    @property
    def model(self) -> str:
        """As given to Lab: "provider:model"."""
        return f"{self._provider.name}:{self._provider.model}"

    # -- life ---------------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Close the connections. Not needed at the end of a program: the loop does it."""
        home = self._home
        if home.loop is None or home.loop is asyncio.get_running_loop():
            await self._provider.sender.aclose()
        else:
            await asyncio.to_thread(home.close, self._provider.sender.aclose)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"Lab({self.model!r}, base_url={self._provider.shown_url!r}, concurrency={self.concurrency})"

    # -- inside -------------------------------------------------------------------------------------------

    def _parameters(
        self,
        model: str | None,
        system: str | None,
        temperature: float | None,
        max_tokens: int | None,
        extra: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        given = {"system": system, "temperature": temperature, "max_tokens": max_tokens, "extra": extra}
        merged = {**self._defaults, **{name: value for name, value in given.items() if value is not None}}
        Prompt.of("", model=model, **merged)  # type: ignore[arg-type]  # complains before any row is read
        return {"model": model, **merged}

    def _keeper(self, journal: Journal, settings: dict[str, Any]) -> Callable[[Bus], Keeper]:
        provider = self._provider
        named = {"provider": provider.name, **settings, "model": settings["model"] or provider.model}
        return lambda bus: Keeper(
            journal, provider=provider.name, model=provider.model, settings=named, on_trouble=_tell_trouble, bus=bus
        )

    def _job(
        self,
        name: str,
        rows: Rows,
        *,
        stream: bool,
        bar: bool,
        finish: Any,
        journal: Callable[[Bus], Keeper] | None = None,
    ) -> Job[Any]:
        order = Order(rows, stream=stream, seed=self._seed, bar=bar, places=self._places, journal=journal)
        self.last = Job(name, order, home=self._home, open_ground=self._open, finish=finish)
        return self.last

    def _open(self) -> Ground:
        """Called on the loop on which a job starts: what belonged to a loop that is gone is made anew."""
        if self._home.bind():
            self._provider.sender.forget()
            self.strategy = self.strategy.fresh()
        return Ground(self.strategy.handler(self._provider), self.strategy.slots)


def _tell_trouble(trouble: str | None) -> None:
    say(f"llmlab: {trouble}" if trouble else "llmlab: the journal can be written again")


def _live(
    strategy: Strategy | None,
    concurrency: int | Controller | Literal["auto"] | None,
    *,
    rpm: float | None,
    tpm: float | None,
) -> Strategy:
    if strategy is None:
        limit = CONCURRENCY if concurrency is None else concurrency
        return Strategy.default(concurrency=limit, rpm=rpm, tpm=tpm)
    if rpm is not None or tpm is not None:
        raise ValueError("rpm and tpm belong to the default strategy: put a Rate into yours instead")
    if not isinstance(strategy, Strategy):
        raise TypeError(f"strategy must be a Strategy, not {type(strategy).__name__}; try Strategy.default()")
    live = strategy.fresh()
    if concurrency is not None:
        if not isinstance(concurrency, int):
            raise ValueError("a strategy of your own brings its own controller: give it as Admit((Adaptive(…),))")
        _slots(live).resize(concurrency)
    return live


def _slots(strategy: Strategy) -> Any:
    if strategy.slots is None:
        raise ValueError(f"the strategy {strategy.name!r} has no Admit with Slots, so no concurrency to set")
    return strategy.slots


def _frame(job: Job[pd.DataFrame]) -> pd.DataFrame:
    return job.frame


def _only_reply(job: Job[Reply]) -> Reply:
    outcome = job.last
    assert outcome is not None  # noqa: S101  a job of one row has settled it
    if outcome.reply is None:
        raise outcome.error or LLMError("the row has neither a reply nor an error")
    return outcome.reply


def _tell_once() -> None:
    global _told  # noqa: PLW0603  once per process
    if not _told:
        _told = True
        say("llmlab: talking to the built-in simulated provider (no key, no cost); "
            'for a real one write llmlab.Lab("openai:MODEL") or "anthropic:MODEL"')  # fmt: skip
