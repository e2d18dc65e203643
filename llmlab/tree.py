"""The tree of a map-reduce: items are asked one by one, and their answers combined, level by level, until one is left.

    level 0        one node for each item
    level 1, …     neighbours of the level before, packed into as few groups as the limits allow, in their order
    a group of 1   is carried up as it is, without a call
    a lost node    (failed, or too long to be combined with anything) is left out, and with it the items below it

Groups depend on the answers alone, not on when they came or on what was learned meanwhile: a run that is taken up again
asks the same as before, and the journal has it.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal, TypeAlias, get_args

from llmlab.errors import LLMError, TooLong
from llmlab.estimate import PER_MESSAGE, PER_PROMPT, tokens
from llmlab.plan import Level, Script
from llmlab.step import Step
from llmlab.types import Item, Outcome, Prompt, Schema, Usage

OUTPUTS = "mapped_outputs"
"""The placeholder of the answers to be combined."""
FAN_IN = 10
"""Answers combined at a time if neither limit is given."""

OnError: TypeAlias = Literal["skip", "raise"]


@dataclass(frozen=True)
class Limits:
    """How much goes into one call.

    Raises:
        TypeError, ValueError: a limit is not usable.
    """

    fan_in: int | None = None
    """Answers combined at a time, at least 2. None: as many as fit; 10 if there is no limit of tokens either."""
    max_input_tokens: int | None = None
    """Tokens of a prompt at most, as estimated from its characters, or counted by `count_tokens`. None: not limited."""
    count_tokens: Callable[[str], int] | None = None
    """Counts the tokens of a text."""

    def __post_init__(self) -> None:
        _check_count("fan_in", self.fan_in, 2)
        _check_count("max_input_tokens", self.max_input_tokens, 1)
        if self.count_tokens is not None and not callable(self.count_tokens):
            raise TypeError(f"count_tokens must be a function of a text, not {self.count_tokens!r:.80}")

    @property
    def most(self) -> int | None:
        """Answers combined at a time at most."""
        return FAN_IN if self.fan_in is None and self.max_input_tokens is None else self.fan_in

    def calls(self, answers: int, size: float) -> int:
        """How many calls it takes to combine answers of so many tokens each: a guess if tokens are limited."""
        most = self.most or answers
        if self.max_input_tokens is not None:
            most = max(2, min(most, int(self.max_input_tokens / max(1.0, size))))
        calls = 0
        while answers > 1:
            whole, rest = divmod(answers, most)
            calls += whole + (rest > 1)
            answers = whole + (rest > 0)
        return calls

    def size(self, prompt: Prompt) -> float:
        """Tokens of a prompt."""
        if self.count_tokens is None:
            return tokens(prompt.messages)
        return PER_PROMPT + sum(PER_MESSAGE + self.count_tokens(message.text) for message in prompt.messages)

    def excess(self, prompt: Prompt) -> str | None:
        """What is wrong with a prompt that is too long; None: it is not."""
        if self.max_input_tokens is None or (size := self.size(prompt)) <= self.max_input_tokens:
            return None
        return f"about {size:,.0f} tokens, more than max_input_tokens={self.max_input_tokens:,}"


def _check_count(name: str, value: object, least: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {value!r:.80}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value}")


def check_on_error(on_error: object) -> None:
    """Complain about what is no way to deal with failures.

    Raises:
        ValueError: it is neither.
    """
    if on_error not in get_args(OnError):
        raise ValueError(f"on_error must be 'skip' or 'raise', not {on_error!r:.80}")


def pack(length: int, *, most: int | None, fits: Callable[[int, int], bool]) -> Iterator[range]:
    """Cut a sequence into groups of neighbours, each as long as it can be.

    Args:
        length: Of the sequence.
        most: Members of a group at most. None: as many as fit.
        fits: Whether the members from a first one up to, and without, another one may be a group. One alone is never
            asked for; where some fit, so must fewer.

    Returns:
        The groups, in order: every place is in exactly one.
    """
    start = 0
    while start < length:
        limit = length if most is None else min(length, start + most)
        stop = _farthest(start, limit, fits)
        yield range(start, stop)
        start = stop


def _farthest(start: int, limit: int, fits: Callable[[int, int], bool]) -> int:
    """The longest group by doubling, then halving: prompts are costly to make and to measure."""
    good, step = start + 1, 1
    while good < limit and fits(start, min(good + step, limit)):
        good, step = min(good + step, limit), 2 * step
    bad = min(good + step, limit)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(start, middle) else (good, middle)
    return good


@dataclass(slots=True, eq=False)
class Node:
    """One call of the tree."""

    position: int
    """Of its row in the job; children before parents."""
    level: int
    """0 for items."""
    place: int
    """Within its level."""
    children: tuple["Node", ...] = ()
    """Whose answers it combines."""
    parent: "Node | None" = None
    """Which node combines its answer with others. None: none (yet)."""
    text: str | None = None
    """Its answer."""
    typed: bool = False
    """Whether it was asked to fit the tree's schema."""

    @property
    def items(self) -> int:
        """How many items its answer speaks for."""
        return 0 if self.text is None else sum(child.items for child in self.children) if self.level else 1


Make: TypeAlias = Callable[[Sequence[str]], Prompt]


@dataclass(frozen=True)
class Reduction:
    """Makes the prompts that combine answers."""

    step: Step
    """The template, or the function, which gets the answers as a list."""
    separator: str
    """Stands between the answers in a template."""
    defaults: Mapping[str, Any]
    """Parameters of the prompts, as in `Prompt.of`."""

    def __call__(self, texts: Sequence[str]) -> Prompt:
        """The prompt that combines these answers."""
        joined = "" if self.step.template is None else self.separator.join(texts)
        return self.step.make(list(texts), {OUTPUTS: joined}, self.defaults)


@dataclass
class Tree:
    """Grows while its nodes are answered."""

    items: Callable[["Tree"], Level]
    """Makes level 0: a script for each item, by `ask`."""
    reduction: Callable[[Sequence[str]], Prompt]
    """Makes the prompts of the other levels."""
    limits: Limits
    """How much goes into one call."""
    on_error: OnError = "skip"
    """Whether a failed node is left out, or ends the job."""
    schema: Schema | None = None
    """What the last answer is to be. None: text."""
    nodes: list[Node] = field(default_factory=list)
    """All so far, by position."""
    root: Node | None = None
    """Whose answer is that of the tree. None: not yet, or there is none."""
    trouble: LLMError | None = None
    """The failure that no node could escape."""
    first_error: BaseException | None = None
    """The first failure of a node."""
    parsed: Any = None
    """The root's answer as what `schema` asks for."""
    usage: Usage = field(default_factory=Usage)
    """Tokens of all requests so far, those without an answer included."""
    costs: list[float] = field(default_factory=list)
    """Dollars for them, as far as prices are known."""
    on_total: Callable[[int], object] | None = None
    """Told before each level how many calls there will be in all, as far as can be seen."""

    def levels(self) -> Iterator[Level]:
        """The levels for a plan, each when the one before is over.

        Raises:
            TooLong: no two neighbours of a level fit into one prompt.
            Exception: whatever a function raises that makes prompts.
        """
        yield self.items(self)
        present, level = [node for node in self.nodes if node.text is not None], 1
        while len(present) > 1 or self._untyped(present):
            self._tell_total(present)
            present = self._without_too_long(present)
            combined: list[Node] = []
            yield self._combine(level, present, combined)
            if len(combined) == len(present) > 1:
                raise TooLong(self._stuck(present))
            present, level = [node for node in combined if node.text is not None], level + 1
        self.root = present[0] if present else None
        if self.on_total is not None:  # the last guess was too high if answers were left out
            self.on_total(len(self.nodes))

    def ask(self, place: int, item: Item) -> Script:
        """Ask an item."""
        return self._ask(self._add(Node(len(self.nodes), 0, place)), item)

    def _add(self, node: Node) -> Node:
        self.nodes.append(node)
        return node

    def _combine(self, level: int, present: Sequence[Node], combined: list[Node]) -> Iterator[Script]:
        """Scripts for the groups of a level, made one by one; `combined` is what comes out of it."""
        texts = [node.text or "" for node in present]

        def fits(start: int, stop: int) -> bool:
            return self._fits(texts[start:stop])

        for group in pack(len(present), most=self.limits.most, fits=fits):
            last = len(group) == len(present)
            if len(group) == 1 and not self._untyped(present):
                combined.append(present[group[0]])
                continue
            children = tuple(present[group.start : group.stop])
            node = self._add(Node(len(self.nodes), level, len(combined), children))
            for child in children:
                child.parent = node
            combined.append(node)
            prompt = self.reduction(texts[group.start : group.stop])
            if last and self.schema is not None:
                node.typed, prompt = True, replace(prompt, schema=self.schema)
            yield self._ask(node, prompt)

    def _untyped(self, present: Sequence[Node]) -> bool:
        """Whether one answer is left that was not asked to fit the schema: an item's, or others were lost."""
        return self.schema is not None and len(present) == 1 and not present[0].typed

    def _fits(self, texts: Sequence[str]) -> bool:
        return self.limits.max_input_tokens is None or self.limits.excess(self.reduction(texts)) is None

    def _without_too_long(self, present: list[Node]) -> list[Node]:
        """Leave out the nodes that fit into no prompt, not even alone."""
        fitting: list[Node] = []
        for node in present:
            if self._fits([node.text or ""]):
                fitting.append(node)
                continue
            excess = self.limits.excess(self.reduction([node.text or ""]))
            what = f"the answer of node {node.position} fits into no prompt with others: alone it makes one of {excess}"
            self._lose(TooLong(what, hint="ask for shorter answers: map_max_tokens, reduce_max_tokens"))
        return fitting

    def _stuck(self, present: Sequence[Node]) -> str:
        pairs = pairwise(present)
        least = min(self.limits.size(self.reduction([one.text or "", two.text or ""])) for one, two in pairs)
        return (
            f"{len(present)} answers are left and no two neighbours fit into one prompt: the shortest pair makes one "
            f"of about {least:,.0f} tokens, more than max_input_tokens={self.limits.max_input_tokens:,}. Raise it, or "
            "ask for shorter answers: map_max_tokens, reduce_max_tokens"
        )

    def _tell_total(self, present: Sequence[Node]) -> None:
        if self.on_total is not None:
            mean = sum(len(node.text or "") for node in present) / len(present) / 4
            self.on_total(len(self.nodes) + self.limits.calls(len(present), mean))

    def _ask(self, node: Node, item: Item) -> Script:
        outcome = yield node.position, item
        self._count(outcome)
        if outcome.reply is not None:
            node.text = outcome.reply.content
            self.parsed = outcome.reply.parsed if node.typed else None
            return
        error = outcome.error
        if isinstance(error, LLMError) and error.verdict.fatal:
            self.trouble = self.trouble or error
        elif error is not None and not isinstance(error, asyncio.CancelledError):
            self._lose(error)

    def _lose(self, error: BaseException) -> None:
        self.first_error = self.first_error or error
        if self.on_error == "raise":
            raise error

    def _count(self, outcome: Outcome) -> None:
        reply = outcome.reply
        for cost in (outcome.wasted_usd, None if reply is None else reply.cost_usd):
            if cost is not None:
                self.costs.append(cost)
        for used in (outcome.wasted, None if reply is None or reply.cache_hit else reply.usage):
            self.usage = self.usage if used is None else self.usage + used
