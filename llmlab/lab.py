"""The door: one provider, one strategy, one line that all jobs share."""

from collections.abc import Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from llmlab.call import NORMAL
from llmlab.chains import Chain, Steps, read_chain
from llmlab.core import Core
from llmlab.doors import Door
from llmlab.frame import OVERRIDES, read_rows
from llmlab.job import Job
from llmlab.logbook import Journal
from llmlab.policies.pack import Pack
from llmlab.progress import line_of, say
from llmlab.settings import budget_of, check_priority, pack_of
from llmlab.streaming import Many, Streaming, frame_of, one
from llmlab.submitting import Submitting, only_reply
from llmlab.typed import REASK, reader_of
from llmlab.types import Message, Prompt, Reply
from llmlab.views import maker

if TYPE_CHECKING:
    from llmlab.batch.verbs import Batching
    from llmlab.combining import Combining
    from llmlab.factorial import Factorial
    from llmlab.tuning import TuningVerb

    class _Late(Batching, Combining, Factorial, TuningVerb): ...

else:

    class _Late(Core):
        """Verbs that not every session uses."""

        compare = Door("llmlab.tuning", "TuningVerb")
        sweep = Door("llmlab.tuning", "TuningVerb")
        tune = Door("llmlab.tuning", "TuningVerb")
        use = Door("llmlab.tuning", "TuningVerb")
        submit_batch = Door("llmlab.batch.verbs", "Batching")
        attach_batch = Door("llmlab.batch.verbs", "Batching")
        run_chains = Door("llmlab.combining", "Combining")
        map_reduce = Door("llmlab.combining", "Combining")
        grid = Door("llmlab.factorial", "Factorial")


class Lab(Submitting, Streaming, _Late):
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
        fallback: Further targets, asked in this order when one has given up on a row: "provider:model", or a Lab, for
            keys, URLs and limits of its own. Each keeps to limits of its own. Rows do not wait for a target that is
            down while another is left. A row's own `model` holds for the first target only.
        cache: A file, "answers.sqlite", in which answers are kept: the same request, asked again, costs nothing.
            None: no cache, and rows that ask the same are each asked.
        budget_usd: Dollars that this lab may spend in all, attempts without an answer included. Before a request might
            pass it, the job stops with the rows answered so far. Needs the model's price.
        budget_tokens: Tokens that this lab may use in all, input and output together; likewise.
        queue: Requests that may wait in line; a further `lab.run` or `lab.submit` fails with QueueFull. None: 10,000.
            Rows of `run_many` are held back instead.
        prices: Dollars per million tokens by model: (input, output[, cached[, cache_write]]) or Price. A model
            without an entry has the price that the package genai-prices knows (`pip install "llmlab[prices]"`), or
            else no cost.
        loop: "caller": live on the loop of the first use. "thread": on a private one, so that jobs go on while
            a notebook's cell computes.
        progress: Show a line of progress. None: in terminals and notebooks.
        seed: Seeds the jitter, and the simulated provider. None: jitter from the system, simulator from 0.

    Raises:
        TypeError, ValueError: an argument is not usable, the provider is unknown, or its key is missing.
    """

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
        schema: object = None,
        reask: int = REASK,
        stream: bool = False,
        priority: int = NORMAL,
    ) -> Job[Reply]:
        """Answer one prompt.

        Args:
            prompt: A text, or a list of messages (`{"role": …, "content": …}`).
            model: Overrides the lab's model, likewise the other parameters.
            system: System prompt.
            temperature: Sampling temperature, 0 to 2.
            max_tokens: Output tokens at most.
            extra: Further request fields; replaces the lab's.
            schema: What the answer is to be, which is then the reply's `parsed`: see `run_many`.
            reask: How often an answer that does not fit the schema is asked for again, with what is wrong.
            stream: Ask for the answer in pieces, so that it has a time to first token.
            priority: Place in the lab's line: 0 critical, 1 high, 2 normal, 3 low. Who has waited a minute counts as
                one class more urgent.

        Returns:
            A Job: `await` it, or call its `result()`, for the Reply. A failure raises its LLMError; QueueFull, if
            too many requests wait already; SchemaMismatch, with the last `reply`, if the answer does not fit.

        Raises:
            TypeError, ValueError: the prompt or a parameter is not usable; nothing was sent.
        """
        rows = one(prompt, self._parameters(model, system, temperature, max_tokens, extra))
        rows = rows.asking(reader_of(schema, reask))
        check_priority(priority)
        return self._job("run", rows, stream=stream, finish=only_reply, lane=self._single(priority))

    def run_many(
        self,
        prompts: Many,
        *,
        template: str | None = None,
        chain: Chain | None = None,
        overrides: Collection[str] = OVERRIDES,
        model: str | None = None,
        system: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        extra: Mapping[str, Any] | None = None,
        schema: object = None,
        reask: int = REASK,
        stream: bool = False,
        journal: str | Path | None = None,
        durability: Literal["process", "power"] = "process",
        budget_usd: float | None = None,
        budget_tokens: int | None = None,
        priority: int = NORMAL,
        pack: int | Pack | None = None,
        progress: bool | None = None,
    ) -> Job[pd.DataFrame]:
        """Answer many prompts concurrently; one row each, in input order.

        Args:
            prompts: A Series, a DataFrame, a list of texts or of message lists, or any iterable, generator or
                asynchronous iterable, which is taken only as fast as rows are answered.
            template: For a DataFrame (or an iterable of mappings): the prompt's text with column names in
                braces, `"Classify: {review}"`. None: the DataFrame's column `prompt`.
            chain: Steps that each row goes through, in place of a template: `["Translate: {context}", "Rate {product}:
                {context}"]`. `{context}` is the answer to the step before, at first the row (of a DataFrame its column
                `prompt`); other names are columns. A step may be a function that makes a prompt of the context.
            overrides: Columns of a DataFrame that set a row's own `model`, `temperature`, `max_tokens` or `system`,
                unless the template uses them; a missing value means the default. `()`: none.
            model: Model for rows that set none, likewise the other parameters.
            system: System prompt.
            temperature: Sampling temperature, 0 to 2.
            max_tokens: Output tokens at most.
            extra: Further request fields; replaces the lab's.
            schema: What each answer is to be: a pydantic model, a dataclass, a TypedDict, an Enum, Literal, int, float,
                bool, any other type that pydantic's TypeAdapter takes (list[…], Optional, Union), or a JSON schema as
                a dict. The provider is held to it if it can be, else told of it. Its fields are columns of the result
                (`llmlab.typed`); a bare value is the column `value`. None: the answer is text.
            reask: How often an answer that does not fit is asked for again, with what is wrong; at least 0. A row whose
                answer does not fit even then is an error, SchemaMismatch, and `content` has the answer.
            stream: Ask for the answers in pieces, which fills `ttft_ms`.
            journal: A file, "run.sqlite", in which each row is written down before it is reported. Running the same
                call again, after a crash, a restart or a Stop, pays only for rows not yet answered: failures are
                tried again. Read it without a lab by `llmlab.journal.read`.
            durability: "process": what is reported survives the death of the process, kill -9 included. "power":
                a power cut, too.
            budget_usd: Dollars that this job may spend, attempts without an answer included (those of earlier runs of
                a journal are not). Before a request might pass it, the job stops with the rows answered so far. How
                much a request may cost is estimated, from above if `max_tokens` is set.
            budget_tokens: Tokens that it may use, input and output together; likewise.
            priority: Place in the lab's line: 0 critical, 1 high, 2 normal, 3 low. Jobs of one class share the lab
                evenly by tokens; who has waited a minute counts as one class more urgent.
            pack: Ask up to so many short rows in one request, whose answer is taken apart again; or a Pack with
                settings of its own. A row that has no usable part in it is asked again by itself; tokens and cost are
                shared out. Streaming is off then; typed answers have a request each. None: as the strategy does,
                which is not at all by default.
            progress: Show a line of progress. None: as the lab does.

        Returns:
            A Job: `await` it, or call its `result()`, for a DataFrame with the input's index (0, 1, 2, … if it
            has none), the columns of `llmlab.frame.COLUMNS`, and those of the schema. A row's failure is data in its
            row. An error that no row can escape (bad key, no credit) stops the job early: rows already answered are
            kept, the rest have status `cancelled`. With `chain` a row for each step, those of one input row together,
            with its label: columns `chain` (the row's position), `step` (from 0) and the same; a schema is the last
            step's. A step that fails ends its own chain only: the steps after it have status `cancelled` and error
            NotAsked.

        Raises:
            TypeError, ValueError: the input, a row or a parameter is not usable; nothing was sent.
        """
        defaults = self._parameters(model, system, temperature, max_tokens, extra)
        settings, reader = {"template": template, "overrides": sorted(overrides), **defaults}, reader_of(schema, reask)
        if chain is None:
            rows = read_rows(prompts, template=template, overrides=overrides, **defaults).asking(reader)
        elif template is not None:
            raise ValueError("template and chain exclude each other: put the template first into the chain")
        else:
            rows = read_chain(prompts, chain, overrides=overrides, defaults=defaults, reader=reader)
            settings["chain"] = Steps(chain).known_as
        view = maker(line_of, wanted=self._progress if progress is None else progress)
        keeper = None if journal is None else self._keeper(Journal(journal, durability=durability), settings, reader)
        packing = pack_of(pack, typed=reader is not None and chain is None)
        if packing is not None and stream:
            stream = False
            say("llmlab: streaming is off, as rows are packed: ttft_ms stays empty")
        lane = self._lane(priority, budget_of(self.target, budget_usd, budget_tokens), patient=True)
        return self._job(
            "run_many",
            rows,
            stream=stream,
            view=view,
            finish=frame_of,
            journal=keeper,
            lane=lane,
            open_ground=None if packing is None else partial(self._open, packing),
        )
