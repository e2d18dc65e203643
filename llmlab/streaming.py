"""The verbs of a lab whose answers are seen while they are written: stream, stream_many, race, show."""

from collections.abc import AsyncIterable, Collection, Iterable, Mapping
from functools import partial
from typing import Any, TypeAlias, overload

import pandas as pd

from llmlab.call import NORMAL, Lane
from llmlab.core import Core
from llmlab.flow import Flow
from llmlab.frame import OVERRIDES, Rows, read_rows
from llmlab.job import Job
from llmlab.order import Order
from llmlab.partials import Partials
from llmlab.pieces import By
from llmlab.settings import check_priority
from llmlab.show import GridText, Models, Show, read_panes
from llmlab.streams import Race, Stream, Streams
from llmlab.typed import reader_of
from llmlab.types import Message, Prompt
from llmlab.views import maker

Many: TypeAlias = "pd.DataFrame | pd.Series[Any] | Iterable[Any] | AsyncIterable[Any]"


class Streaming(Core):
    """A lab with the verbs that stream; the arguments are described at `llmlab.Lab`."""

    @overload
    def stream(
        self,
        prompt: str | Prompt | Iterable[Message | Mapping[str, Any]],
        *,
        by: By = "piece",
        schema: None = None,
        model: str | None = None,
        system: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        extra: Mapping[str, Any] | None = None,
        priority: int = NORMAL,
    ) -> Stream: ...

    @overload
    def stream(
        self,
        prompt: str | Prompt | Iterable[Message | Mapping[str, Any]],
        *,
        by: By = "piece",
        schema: object,
        model: str | None = None,
        system: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        extra: Mapping[str, Any] | None = None,
        priority: int = NORMAL,
    ) -> Partials: ...

    def stream(
        self,
        prompt: str | Prompt | Iterable[Message | Mapping[str, Any]],
        *,
        by: By = "piece",
        schema: object = None,
        model: str | None = None,
        system: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        extra: Mapping[str, Any] | None = None,
        priority: int = NORMAL,
    ) -> Stream | Partials:
        """Read one answer while it is written: `async for piece in lab.stream(prompt)`.

        Args:
            prompt: A text, or a list of messages.
            by: "piece": as the provider sends it; "sentence": whole sentences; a number: at least so many characters.
            schema: What the answer is to be, as in `run_many`. What it holds so far is then read again and again, as it
                grows: `async for partial in lab.stream(prompt, schema=Model)`. Not together with `by`.
            model: Overrides the lab's model, likewise the other parameters.
            system: System prompt.
            temperature: Sampling temperature, 0 to 2.
            max_tokens: Output tokens at most.
            extra: Further request fields; replaces the lab's.
            priority: Place in the lab's line: 0 critical, 1 high, 2 normal, 3 low.

        Returns:
            A Stream, or with a schema Partials. Nothing is sent before it is read. Leaving the loop closes the
            connection, a slow loop holds it back. After the loop `reply` is the whole Reply. A failure raises its
            LLMError, after the text that had come. An answer that does not fit its schema raises SchemaMismatch: it
            was handed out, so it is not asked for again.

        Raises:
            TypeError, ValueError: the prompt or a parameter is not usable.
        """
        check_priority(priority)
        reader = reader_of(schema)
        rows = one(prompt, self._parameters(model, system, temperature, max_tokens, extra)).asking(reader)
        stream = Stream(partial(self._streamed, "stream", rows, self._single(priority)), by)
        if reader is None:
            return stream
        if by != "piece":
            raise ValueError("by cuts texts, and with schema= the answer is read as an object: leave it out")
        return Partials(stream, bare=reader.fitter.bare)

    def stream_many(
        self,
        prompts: Many,
        *,
        by: By = "piece",
        template: str | None = None,
        overrides: Collection[str] = OVERRIDES,
        model: str | None = None,
        system: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        extra: Mapping[str, Any] | None = None,
        priority: int = NORMAL,
    ) -> Streams:
        """Read many answers while they are written, merged: `async for position, piece in lab.stream_many(prompts)`.

        Args:
            prompts: As in `run_many`.
            by: As in `stream`, for each answer by itself.
            template: As in `run_many`, likewise the other parameters.
            overrides: Columns of a DataFrame that set a row's own parameters.
            model: Model for rows that set none.
            system: System prompt.
            temperature: Sampling temperature, 0 to 2.
            max_tokens: Output tokens at most.
            extra: Further request fields; replaces the lab's.
            priority: Place in the lab's line: 0 critical, 1 high, 2 normal, 3 low.

        Returns:
            Streams. A piece is text, or the LLMError that ended its row; `position` counts the prompts from 0. As many
            answers are under way as the lab's concurrency allows; a slow loop holds them back, unless others, as a loop
            that asks the same lab, stand in line for their slots. Afterwards `frame` is the result as a DataFrame.

        Raises:
            TypeError, ValueError: the input, a row or a parameter is not usable.
        """
        defaults = self._parameters(model, system, temperature, max_tokens, extra)
        rows = read_rows(prompts, template=template, overrides=overrides, **defaults)
        return Streams(partial(self._streamed, "stream_many", rows, self._lane(priority, None, patient=True)), by)

    def race(
        self,
        prompts: Many,
        *,
        by: By = "piece",
        template: str | None = None,
        overrides: Collection[str] = OVERRIDES,
        model: str | None = None,
        system: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        extra: Mapping[str, Any] | None = None,
        priority: int = NORMAL,
    ) -> Race:
        """Ask all, and read the answer that begins first: `async for position, piece in lab.race(prompts)`.

        The others are cancelled and their connections closed, though a provider may bill what it had begun. If the
        winner fails before any of its text was given out, the others are asked again.

        Args:
            prompts: As in `run_many`; for a race of models a DataFrame with a column `model`.
            by: As in `stream`.
            template: As in `run_many`, likewise the other parameters.
            overrides: Columns of a DataFrame that set a row's own parameters.
            model: Model for rows that set none.
            system: System prompt.
            temperature: Sampling temperature, 0 to 2.
            max_tokens: Output tokens at most.
            extra: Further request fields; replaces the lab's.
            priority: Place in the lab's line: 0 critical, 1 high, 2 normal, 3 low.

        Returns:
            A Race; afterwards `winner` is the position of the one that was heard, and `reply` its whole Reply.

        Raises:
            TypeError, ValueError: the input, a row or a parameter is not usable.
        """
        defaults = self._parameters(model, system, temperature, max_tokens, extra)
        rows = read_rows(prompts, template=template, overrides=overrides, **defaults)
        if not isinstance(rows.items, Iterable):
            raise TypeError("race takes prompts that are all there: a list, a Series or a DataFrame")
        lane = self._lane(priority, None, patient=True)
        return Race(
            list(rows.items),
            lambda items, flow: self._streamed("race", Rows(items, None, len(items)), lane, flow),
            by,
        )

    def show(
        self,
        prompts: "Many | str | Prompt",
        *,
        models: Models | None = None,
        by: By = "piece",
        template: str | None = None,
        overrides: Collection[str] = OVERRIDES,
        model: str | None = None,
        system: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        extra: Mapping[str, Any] | None = None,
        priority: int = NORMAL,
    ) -> Show:
        """Show answers side by side while they are written: a pane for each prompt, or for each of several models.

        In a notebook the panes fill live, each with its time to first token, its tokens per second and a Stop; at the
        end a still picture stays. In a terminal each is written when it has ended. Failures are retried as in
        `run_many`: a pane whose answer broke off is cleared and begins anew.

        Args:
            prompts: As in `run_many`, 100 at most, or one prompt; with `models` one: a text or a list of messages.
            models: Ask several models the same: names of the lab's provider's models, or Labs, whose panes keep to the
                limits of theirs and are asked with this lab's parameters. None: ask the lab.
            by: How text comes into the panes: as in `stream`, for each by itself.
            template: As in `run_many`, likewise the other parameters.
            overrides: Columns of a DataFrame that set a row's own parameters.
            model: Model for rows that set none; not together with `models`.
            system: System prompt.
            temperature: Sampling temperature, 0 to 2.
            max_tokens: Output tokens at most.
            extra: Further request fields; replaces the lab's.
            priority: Place in the lab's line: 0 critical, 1 high, 2 normal, 3 low.

        Returns:
            A Show, which is a Job: `await` it, or call its `result()`, for a DataFrame as of `run_many`, one row per
            pane, streamed. With `models` its index is their names. A pane that was stopped has status `cancelled`;
            what it had got is in the job's `texts`. `job.drop(position)` stops a pane, too.

        Raises:
            TypeError, ValueError: the prompts, a model or a parameter is not usable, or there are too many; nothing
                was sent.
        """
        defaults = self._parameters(model, system, temperature, max_tokens, extra)
        asked = read_panes(
            prompts, models, target=self.target, template=template, overrides=overrides, defaults=defaults
        )
        view, lane = maker(GridText, wanted=None), self._lane(priority, None, patient=True)
        order = Order(asked.rows, stream=True, seed=self._seed, view=view, places=self._places, lane=lane)
        self._tell_price()
        return self._known(Show(asked, order, by=by, home=self._home, tuner=self))

    def _streamed(self, name: str, rows: Rows, lane: Lane, flow: Flow) -> Job[Any]:
        # Whoever reads pieces takes no frame at the end, and asks for one where it is wanted.
        return self._job(name, rows, stream=True, finish=_no_frame, lane=lane, flow=flow)


def one(prompt: Any, defaults: dict[str, Any]) -> Rows:
    """The input of one prompt."""
    given = list(prompt) if isinstance(prompt, Iterable) and not isinstance(prompt, str | Mapping) else prompt
    return Rows([Prompt.of(given, **defaults)], None, 1)


def frame_of(job: Job[pd.DataFrame]) -> pd.DataFrame:
    """What a job of many rows gives back."""
    return job.frame


def _no_frame(_: Job[None]) -> None:
    """What a job gives back whose rows were handed out while they came."""
