"""`lab.map_reduce`: the job whose rows are the nodes of a tree, and what it gives back."""

import asyncio
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from llmlab import call as calls
from llmlab.columns import COLUMNS, Column
from llmlab.errors import LabClosed, LLMError, TooLong
from llmlab.frame import Frame, Rows, frame_of
from llmlab.inputs import Entry, Inputs, Reader, with_item
from llmlab.job import Job
from llmlab.load import Ground
from llmlab.loops import Home
from llmlab.order import Order, Tuner
from llmlab.plan import Plan, Script
from llmlab.progress import say
from llmlab.roster import CLOSED
from llmlab.step import Step
from llmlab.tree import OUTPUTS, Limits, Node, OnError, Reduction, Tree, check_on_error
from llmlab.types import Item, Prompt, Usage

ITEM = "item"
"""The placeholder of an item."""

ANSWER = 256
"""Tokens of an answer, while nothing is known of it."""
EMPTY = "map_reduce has nothing to reduce: items is empty"

TREE: tuple[Column, ...] = (
    Column("node", "int64", "", "the call's row in `job.frame`, and its position in `job.attempts`"),
    Column("level", "int64", "", "0 for items, above for answers that are combined"),
    Column("place", "int64", "", "its place within the level, from 0"),
    Column("item", "object", "", "the item's label in the input's index; missing where answers are combined"),
    Column("items", "int64", "", "how many items its answer speaks for; 0 without one"),
    Column(
        "parent",
        "Int64",
        "",
        "the node that combines its answer with others; missing for the root and what is left out",
    ),
    Column("children", "object", "", "the nodes whose answers it combines, as a tuple"),
    Column("left_out", "bool", "", "whether its answer is missing in that of the tree, or it has none"),
)
"""The columns of `job.trace`, before those of `llmlab.frame.COLUMNS`."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a map-reduce comes to."""

    content: str
    """The text of the last answer, which combines all others."""
    items: int
    """How many items there were."""
    left_out: int
    """How many of them the answer does not speak for, as they or what they were combined with failed; `job.trace` says
    which, and why."""
    calls: int
    """Calls of the tree; retries are not counted."""
    levels: int
    """Levels of combining; 0 if there was only one item to answer for."""
    finish_reason: str
    """Why the model stopped at the last answer: stop, length, tool_calls, content_filter or other."""
    model: str
    """The model that gave it."""
    usage: Usage
    """Tokens of all requests, those that brought no answer included; without answers from llmlab's cache."""
    cost_usd: float | None
    """Dollars for them; None when no price is known."""
    parsed: Any = None
    """The last answer as what `schema=` asks for; None without one."""

    def __str__(self) -> str:
        return self.content


@dataclass
class Asked:
    """A map-reduce, read and checked."""

    tree: Tree
    """What grows from it."""
    plan: Plan
    """The tree's rows."""
    inputs: Inputs
    """The items."""
    settings: dict[str, Any]
    """What must be the same when a journal is taken up again."""
    reader: calls.Reader | None = None
    """Reads the last answer into what was asked for. None: it is text."""

    @property
    def rows(self) -> Rows:
        """The input of a job; how many there are is a guess if the reduce is limited by tokens."""
        count = self.inputs.total
        total = None if count is None else count + self.tree.limits.calls(count, ANSWER)
        return Rows(self.plan, None, total, self.reader)

    def label(self, place: int) -> Any:
        """An item's label in the input's index."""
        return place if self.inputs.index is None else self.inputs.index[place]


class MapReduce(Job[Answer]):
    """A job that asks each of many items, and combines the answers until one is left.

    Args:
        asked: What it is to do.
        order: The same for a job.
        home: The event loop it lives on.
        open_ground: Called on the loop when it begins.
        tuner: Whose concurrency it is.
    """

    def __init__(
        self, asked: Asked, order: Order, *, home: Home, open_ground: Callable[[], Ground], tuner: Tuner
    ) -> None:
        self._asked = asked
        asked.tree.on_total = self._expect  # before the job is made: on a thread's loop it begins at once
        super().__init__("map_reduce", order, home=home, open_ground=open_ground, finish=self._answer, tuner=tuner)

    def _expect(self, total: int) -> None:
        self.progress.now.total = total

    @property
    def trace(self) -> Frame:
        """The tree so far: a row for each call that has ended, items first, then level by level; see `TREE`."""
        tree, settled = self._asked.tree, self._records.copy()
        nodes = tree.nodes.copy()  # the job may run in another thread
        lost = _lost(nodes, tree.root, settled)
        records = [
            (*self._place(node), node in lost, *record[: len(COLUMNS)])
            for node in nodes
            if (record := settled.get(node.position))
        ]
        return frame_of((*TREE, *COLUMNS), records, None)

    def _place(self, node: Node) -> tuple[Any, ...]:
        parent = None if node.parent is None else node.parent.position
        children = tuple(child.position for child in node.children)
        item = None if node.level else self._asked.label(node.place)
        return node.position, node.level, node.place, item, node.items, parent, children

    def _answer(self, _: Job[Answer]) -> Answer:
        tree = self._asked.tree
        if (root := tree.root) is None:
            raise self._failure()
        row = dict(zip((column.name for column in COLUMNS), self._records[root.position], strict=False))
        items = sum(node.level == 0 for node in tree.nodes)
        if left_out := items - root.items:
            say(f"llmlab: {left_out} of {items} items are left out of the answer; job.trace says which, and why")
        return Answer(
            content=row["content"], items=items, left_out=left_out, calls=len(tree.nodes), levels=root.level,
            finish_reason=row["finish_reason"], model=row["model"], usage=tree.usage,
            cost_usd=math.fsum(tree.costs) if tree.costs else None,  # the same, in whatever order they came
            parsed=tree.parsed,
        )  # fmt: skip

    def _failure(self) -> BaseException:
        tree = self._asked.tree
        if error := tree.trouble or self._asked.plan.error:
            return error
        if self._stopped == CLOSED:
            return LabClosed("the lab was closed before there was an answer")
        if self._stopped is not None:  # by somebody: what it gave up for is the first error's to say
            return asyncio.CancelledError(self._stopped)
        if not tree.nodes:
            return ValueError(EMPTY)
        first = tree.first_error
        if first is not None and len(tree.nodes) == 1:
            return first
        why = "" if first is None else f"; the first failure: {type(first).__name__}: {first}"
        return LLMError(f"nothing is left of {len(tree.nodes)} calls to answer with{why}")


def _lost(nodes: Sequence[Node], root: Node | None, settled: Collection[int]) -> set[Node]:
    """The nodes whose answers are not in that of the tree; while it grows, those of which that is known."""
    lost: set[Node] = set()
    for node in reversed(nodes):  # parents first
        failed = node.text is None and node.position in settled
        ends_here = node.parent is None and root is not None and node is not root
        if failed or ends_here or node.parent in lost:
            lost.add(node)
    return lost


# -- what is asked ------------------------------------------------------------------------------------------


def read_map_reduce(
    items: object,
    *,
    step: object,
    combine: object,
    limits: Limits,
    separator: str,
    on_error: OnError,
    overrides: Collection[str],
    map_defaults: Mapping[str, Any],
    reduce_defaults: Mapping[str, Any],
    reader: calls.Reader | None = None,
) -> Asked:
    """Read what `map_reduce` is given; items whose number is known are checked whole, before anything is sent.

    Args:
        items: As in `run_many`.
        step: `map=`.
        combine: `reduce=`.
        limits: How much goes into one call.
        separator: Between the answers in a template.
        on_error: What to do about failures.
        overrides: Columns that set an item's own parameters.
        map_defaults: Parameters of the items' prompts, as in `Prompt.of`.
        reduce_defaults: Of the prompts that combine answers.
        reader: Reads the last answer into what was asked for. None: it is text.

    Raises:
        TypeError, ValueError: something is not usable, there is nothing, or with "raise" an item is too long; names it.
    """
    if not isinstance(separator, str):
        raise TypeError(f"separator must be a text, not {separator!r:.80}")
    check_on_error(on_error)
    asks, reduction = Step("map", step), Reduction(Step("reduce", combine), separator, reduce_defaults)
    reduction.step.check([OUTPUTS])
    _check_room(reduction, limits)
    source = Reader("map_reduce", ITEM, asks.columns, whole=asks.template is None, overrides=overrides)
    inputs = source.read(with_item(items, ITEM) if ITEM in asks.columns else items)
    if inputs.total == 0:
        raise ValueError(EMPTY)
    if inputs.known is not None:
        asks.check(inputs.known)
    mapping = Mapped(asks, map_defaults, limits, inputs)
    mapping.check(strict=on_error == "raise")
    schema = None if reader is None else reader.schema
    tree = Tree(lambda tree: inputs.map(partial(mapping.script, tree)), reduction, limits, on_error, schema)
    settings = {
        "map": asks.known_as, "reduce": reduction.step.known_as, "separator": separator, "fan_in": limits.most,
        "max_input_tokens": limits.max_input_tokens, "overrides": sorted(overrides), **map_defaults,
        **{f"reduce_{name}": value for name, value in reduce_defaults.items() if value != map_defaults[name]},
    }  # fmt: skip
    return Asked(tree, Plan(tree.levels()), inputs, settings, reader)


def _check_room(reduction: Reduction, limits: Limits) -> None:
    if reduction.step.template is not None and (excess := limits.excess(reduction(["", ""]))):
        raise ValueError(f"max_input_tokens leaves no room for answers: reduce alone makes a prompt of {excess}")


@dataclass
class Mapped:
    """Makes the prompts of items."""

    step: Step
    """The template, or the function of an item."""
    defaults: Mapping[str, Any]
    """Parameters of the prompts, as in `Prompt.of`."""
    limits: Limits
    """How long a prompt may be."""
    inputs: Inputs
    """The items."""
    _made: list[Prompt] | None = None

    def check(self, *, strict: bool) -> None:
        """Make all prompts before any is sent, if the number of items is known; with `strict` none may be too long."""
        self._made = self.inputs.check(self._strictly if strict else self._make, keep=self.step.template is None)

    def script(self, tree: Tree, place: int, entry: Entry) -> Script:
        """Ask an item."""
        return tree.ask(place, self._item(place, entry))

    def _item(self, place: int, entry: Entry) -> Item:
        try:
            prompt = self._make(entry) if self._made is None else self._made[place]
        except Exception as error:  # noqa: BLE001  items of a generator are seen when their turn comes
            return error
        excess = self.limits.excess(prompt)
        return TooLong(f"item {entry.label!r} makes a prompt of {excess}") if excess else prompt

    def _make(self, entry: Entry) -> Prompt:
        if self.inputs.known is None:
            self.step.check(list(entry.named))
        return self.step.make(entry.argument, entry.named, {**self.defaults, **entry.own})

    def _strictly(self, entry: Entry) -> Prompt:
        prompt = self._make(entry)
        if excess := self.limits.excess(prompt):
            raise ValueError(f"it makes a prompt of {excess}; split it, or raise the limit")
        return prompt
