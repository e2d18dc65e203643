"""`lab.show`: answers side by side, each in a pane that fills while it is written.

A Show is a job whose rows are streamed. Nobody reads it piece by piece, so nothing holds its connections back: the
events fill panes (`llmlab.grid`), and whatever shows them looks at the panes a few times a second. A browser that
lags holds up nothing; memory is the text itself.

    shown by            where                            how
    `llmlab.gridview`   a notebook                       panes that fill, with a Stop each
    `llmlab.gridhtml`   a notebook without anywidget     one output, redrawn
    GridText            a terminal                       pane by pane, as they end

Rows of one Show may go to different labs: all of them then live on one loop, and each keeps to its own limits.
"""

import asyncio
from collections.abc import AsyncIterable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, TypeAlias

from llmlab.call import Call
from llmlab.frame import Frame, Rows, read_rows
from llmlab.grid import Grid, Pane, as_text, clean, headline
from llmlab.job import Job
from llmlab.load import Ground
from llmlab.loops import Home
from llmlab.order import Order, Tuner
from llmlab.pieces import By
from llmlab.progress import say
from llmlab.settings import HasTarget
from llmlab.target import Target, bind_all
from llmlab.types import Item, Prompt, Reply

MOST = 100
"""Panes at most."""
EVERY = 0.1
"""Seconds between two looks at which panes have ended, in a terminal."""
HARMLESS = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
"""For `str.translate`: an answer must not steer the terminal that it is written to."""

Models: TypeAlias = Sequence[str | HasTarget]
"""Names of models of the lab's provider, or Labs."""


@dataclass(frozen=True)
class Asked:
    """What is to be shown, read and checked."""

    rows: Rows
    """One for each pane."""
    titles: Sequence[str]
    """Theirs."""
    targets: Sequence[Target]
    """Where each of them goes."""


class Show(Job[Frame]):
    """The job of a grid: as any other, `await` it for the frame; with the panes as they stand.

    Args:
        asked: What is to be shown.
        order: What the job is to do.
        by: How text is handed to the panes.
        home: The event loop it lives on.
        tuner: Whose concurrency it is.
    """

    def __init__(self, asked: Asked, order: Order, *, by: By, home: Home, tuner: Tuner) -> None:
        # Before the job is made: on a thread's loop it begins at once.
        self.grid = Grid(asked.titles, by)
        """The panes."""
        self._targets = asked.targets
        super().__init__("show", order, home=home, open_ground=self._open_grid, finish=_frame, tuner=tuner)

    @property
    def texts(self) -> list[str]:
        """What each pane has got so far, also those that were stopped or have failed."""
        return [pane.text for pane in self.grid.panes]

    def _open_grid(self) -> Ground:
        ground = open_all(self._targets)
        self.grid.listen(self.bus)
        return ground


def _frame(job: Job[Frame]) -> Frame:
    return job.frame


def open_all(targets: Sequence[Target]) -> Ground:
    """Let several labs live on the running loop; each row goes to the target at its position.

    No limit is given to the feeder: panes are few, and one that was not taken yet could not be stopped.

    Raises:
        RuntimeError: a lab is at work on another loop.
    """
    lines = bind_all(targets)

    async def handler(call: Call) -> Reply:
        return await targets[call.index](call)

    return Ground(handler, None, lines)


# -- what is asked ------------------------------------------------------------------------------------------


def read_panes(
    prompts: object,
    models: object,
    *,
    target: Target,
    template: str | None,
    overrides: Collection[str],
    defaults: Mapping[str, Any],
) -> Asked:
    """Read what `lab.show` is given.

    Args:
        prompts: Many prompts or one; with `models` one.
        models: Whom to ask. None: the lab.
        target: The lab's own.
        template: As in `run_many`.
        overrides: As in `run_many`.
        defaults: Parameters of prompts that do not set their own, as in `Prompt.of`.

    Raises:
        TypeError, ValueError: something is not usable, or there are too many panes.
    """
    if models is not None:
        if template is not None:
            raise ValueError("template is for a table of prompts: with models= the prompt is one text")
        if defaults.get("model") is not None:
            raise ValueError("model and models exclude each other: put all of them into models")
        return _of_models(prompts, _checked(models), target, defaults)
    rows = read_rows(_many(prompts), template=template, overrides=overrides, **defaults)
    _check_count(rows.total or 0, "prompts")
    assert isinstance(rows.items, Iterable)  # noqa: S101  asynchronous ones are refused
    items: list[Any] = list(rows.items)  # checked, and each a Prompt
    return Asked(replace(rows, items=items), [headline(item.text) for item in items], [target] * len(items))


def _of_models(prompt: Any, models: Models, target: Target, defaults: Mapping[str, Any]) -> Asked:
    plain = replace(_one(prompt, defaults), model=None)
    names = [each if isinstance(each, str) else each.target.name for each in models]
    items: list[Item] = [replace(plain, model=each) if isinstance(each, str) else plain for each in models]
    targets = [target if isinstance(each, str) else each.target for each in models]
    # A row that fails has no model in the frame: its index says which one was asked.
    return Asked(Rows(items, Frame(index=names).index, len(items)), names, targets)


def _one(prompt: Any, defaults: Mapping[str, Any]) -> Prompt:
    try:
        return Prompt.of(prompt, **defaults)
    except TypeError as error:
        raise TypeError(f"with models= show takes one prompt, a text or a list of messages: {error}") from None


def _many(prompts: Any) -> Any:
    """Prompts whose number is known; never more than one too many."""
    if isinstance(prompts, str | Prompt):
        return [prompts]
    if isinstance(prompts, AsyncIterable) or not isinstance(prompts, Iterable):
        kind = type(prompts).__name__
        raise TypeError(f"show takes a prompt, or a Series, DataFrame, list or iterable of prompts, not {kind}")
    return prompts if isinstance(prompts, Collection) else list(islice(prompts, MOST + 1))


def _checked(models: object) -> Models:
    if isinstance(models, str | HasTarget | Mapping) or not isinstance(models, Iterable):
        raise TypeError(f"models must be a list of model names or Labs, not {models!r}; for one write models=[…]")
    found = list(models)
    for each in found:
        if not isinstance(each, str | HasTarget) or not each:
            raise TypeError(f"models must hold names of models or Labs, not {each!r}")
    if not found:
        raise ValueError("models must hold at least one name of a model, or Lab")
    _check_count(len(found), "models")
    return found


def _check_count(count: int, what: str) -> None:
    if count > MOST:
        raise ValueError(f"show has room for {MOST} {what}, a pane each: show a part, or use run_many")


# -- in a terminal ------------------------------------------------------------------------------------------


class GridText:
    """Shows a grid's panes as lines of text, each as it ends.

    Args:
        job: The grid's job.
    """

    def __init__(self, job: Show) -> None:
        self._left = list(job.grid.panes)

    def show(self) -> None:
        """Nothing yet: it is shown by and by."""

    async def run(self) -> None:
        """Write the panes that have ended, until cancelled."""
        while True:
            self.close()
            await asyncio.sleep(EVERY)

    def close(self) -> None:
        """Write the panes that have ended since."""
        ended = [pane for pane in self._left if pane.over]
        self._left = [pane for pane in self._left if not pane.over]
        for pane in ended:
            say(_printable(pane))


def _printable(pane: Pane) -> str:
    """A pane's text without the characters that steer a terminal."""
    return clean(as_text(pane)).translate(HARMLESS)
