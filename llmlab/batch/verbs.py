"""The verbs of a lab for the providers' own Batch APIs: submit_batch and attach_batch."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from llmlab.batch.job import BatchJob, Mission
from llmlab.batch.manifest import Manifest
from llmlab.batch.names import read_ids
from llmlab.call import NORMAL
from llmlab.core import Core
from llmlab.events import Bus
from llmlab.frame import OVERRIDES, Rows, read_rows
from llmlab.keeper import Keeper
from llmlab.logbook import Journal
from llmlab.order import Order
from llmlab.progress import line_of
from llmlab.providers.batches import BatchAPI
from llmlab.rules.checks import count
from llmlab.rules.spend import Spend
from llmlab.settings import budget_of
from llmlab.streaming import Many
from llmlab.typed import reader_of
from llmlab.views import maker

POLL = 60.0
"""Seconds between two looks at most."""


class Batching(Core):
    """A lab with the verbs of Batch APIs; the arguments are described at `llmlab.Lab`."""

    def submit_batch(
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
        schema: object = None,
        journal: str | Path | None = None,
        durability: Literal["process", "power"] = "process",
        budget_usd: float | None = None,
        budget_tokens: int | None = None,
        most_rows: int | None = None,
        poll: float = POLL,
        progress: bool | None = None,
    ) -> BatchJob:
        """Answer many prompts by the provider's own Batch API: half the price, within 24 hours.

        Providers with one: openai (and servers that imitate it, by `base_url=`), anthropic, and the simulated one.

        The rows are divided into as few batches as the provider's limits allow. The job looks at them after 5 s, then
        less and less often, and fetches what has come of them. `job.id` is known once they are submitted, is said then,
        and is all that `attach_batch` needs in another process. Nothing but `job.cancel()` ends a batch: after Ctrl-C,
        or when nobody waits any more, it goes on, and is billed.

        Args:
            prompts: As in `run_many`; a generator is read whole first.
            template: As in `run_many`, likewise the other parameters.
            overrides: Columns of a DataFrame that set a row's own parameters.
            model: Model for rows that set none.
            system: System prompt.
            temperature: Sampling temperature, 0 to 2.
            max_tokens: Output tokens at most.
            extra: Further request fields; replaces the lab's.
            schema: What each answer is to be, as in `run_many`. One that does not fit is an error, SchemaMismatch;
                `job.resubmit()` asks for it again.
            journal: A file, "run.sqlite", as in `run_many`: the same call again, after a crash, reports what is
                answered, takes up the batches that were made, and submits only rows that failed or are in none.
            durability: What the journal survives.
            budget_usd: Dollars that this job may spend; BudgetSpent, before anything is sent, if its rows might cost
                more. How much they may is estimated, from above if `max_tokens` is set.
            budget_tokens: Tokens that it may use, input and output together; likewise.
            most_rows: Rows of a batch at most, if that is to be fewer than the provider's limit, as where it lets only
                so many tokens wait.
            poll: Seconds between two looks at most.
            progress: Show a line of progress. None: as the lab does.

        Returns:
            A BatchJob: `await` it, or call its `result()`, for a DataFrame as of `run_many`. `latency_ms` is missing,
            `cost_usd` is at the batch's price. A row's failure is data; `job.resubmit()` sends those once more. That
            nothing could be submitted is the job's own failure.

        Raises:
            TypeError, ValueError: the input, a row or a parameter is not usable, or the provider has no Batch API that
                llmlab speaks; nothing was sent.
        """
        defaults = self._parameters(model, system, temperature, max_tokens, extra)
        reader = reader_of(schema, 0)
        rows = read_rows(prompts, template=template, overrides=overrides, **defaults).asking(reader)
        mission = self._mission(Manifest(self.target.provider, reader=reader), poll, most_rows)
        mission.todo = None
        budget, keeper = budget_of(self.target, budget_usd, budget_tokens), None
        if journal is not None:
            settings = {"template": template, "overrides": sorted(overrides), **defaults}
            keeper = self._keeper(Journal(journal, durability=durability), settings, reader)
        return self._batch_job("submit_batch", rows, mission, progress=progress, budget=budget, keeper=keeper)

    def attach_batch(
        self,
        id: str | Iterable[str],  # noqa: A002  what `job.id` is called
        prompts: "Many | None" = None,
        *,
        template: str | None = None,
        overrides: Collection[str] = OVERRIDES,
        model: str | None = None,
        system: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        extra: Mapping[str, Any] | None = None,
        schema: object = None,
        poll: float = POLL,
        progress: bool | None = None,
    ) -> BatchJob:
        """Take up a batch by its id, in any process: after a kernel restart, or one that another program submitted.

        The id alone gives all results in input order, with the index 0, 1, 2, …; the column `prompt` too where the
        provider gives the rows back (OpenAI, for a month), else it is missing (Anthropic). With the prompts of
        `submit_batch`, given the same way, their index comes back as well, and rows can be submitted once more; that
        they are the same is checked. A batch that llmlab did not submit has its rows' `custom_id` as index.

        Args:
            id: `job.id`, or the provider's own id of a batch; several for a job that is several batches.
            prompts: As given to `submit_batch`. None: the id alone.
            template: As given to `submit_batch`, likewise the other parameters.
            overrides: Columns of a DataFrame that set a row's own parameters.
            model: Model for rows that set none.
            system: System prompt.
            temperature: Sampling temperature, 0 to 2.
            max_tokens: Output tokens at most.
            extra: Further request fields; replaces the lab's.
            schema: As given to `submit_batch`; reads the answers also without the prompts.
            poll: Seconds between two looks at most.
            progress: Show a line of progress. None: as the lab does.

        Returns:
            A BatchJob, as of `submit_batch`. Awaiting it raises NotFound if the provider knows no such batch, and
            ValueError if the prompts are not those that were submitted.

        Raises:
            TypeError, ValueError: an argument is not usable, or the provider has no Batch API that llmlab speaks.
        """
        ids = read_ids(id)
        defaults = self._parameters(model, system, temperature, max_tokens, extra)
        reader = reader_of(schema, 0)
        rows = Rows((), None, None, reader)
        if prompts is not None:
            rows = read_rows(prompts, template=template, overrides=overrides, **defaults).asking(reader)
        manifest = Manifest(self.target.provider, reader=reader, given=prompts is not None, ids=[*ids])
        mission = self._mission(manifest, poll, None)
        mission.follow = ids
        return self._batch_job("attach_batch", rows, mission, progress=progress)

    def _mission(self, manifest: Manifest, poll: float, most_rows: int | None) -> Mission:
        if isinstance(poll, bool) or not isinstance(poll, int | float) or not 0 < poll < math.inf:
            raise ValueError(f"poll must be a number of seconds above 0, not {poll!r}")
        if most_rows is not None:
            count("most_rows", most_rows)
        api = self._batch_api()
        return Mission(manifest, self.target, api, poll, min(most_rows or api.most_rows, api.most_rows))

    def _batch_api(self) -> BatchAPI:
        provider = self.target.provider
        if provider.batches is None:
            raise ValueError(
                f"{provider.name} has no Batch API that llmlab speaks (openai and anthropic have): use run_many; for a "
                'server that imitates OpenAI\'s, Lab("openai:MODEL", base_url=…)'
            )
        return provider.batches

    def _batch_job(
        self,
        name: str,
        rows: Rows,
        mission: Mission,
        *,
        progress: bool | None,
        budget: Spend | None = None,
        keeper: Callable[[Bus], Keeper] | None = None,
    ) -> BatchJob:
        self._tell_price()
        view = maker(line_of, wanted=self._progress if progress is None else progress)
        lane = self._lane(NORMAL, budget, patient=True)
        order = Order(rows, seed=self._seed, view=view, places=self._places, lane=lane, journal=keeper)
        job = self.last = BatchJob(name, order, mission, home=self._home, open_ground=self._open)
        return job
