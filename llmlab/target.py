"""A target: a provider behind the stack that keeps to its limits. A lab has one, and further ones to fall back to."""

import asyncio
from collections.abc import Iterable, Sequence
from functools import partial

from llmlab.call import Call, Handler
from llmlab.loops import Home
from llmlab.policies.admit import Admit
from llmlab.providers.endpoint import Provider
from llmlab.rule import Budget
from llmlab.strategy import Strategy
from llmlab.types import Reply


class Target:
    """A handler that tells a call where it is on its way to, and passes it to the strategy's stack.

    Args:
        provider: The endpoint.
        strategy: The live stack around it; its state is this target's.
        home: The event loop it lives on, shared with the lab it belongs to.
    """

    def __init__(self, provider: Provider, strategy: Strategy, home: Home) -> None:
        self.provider, self.strategy, self.home = provider, strategy, home
        self._stack: Handler = strategy.handler(provider)
        self._loop: asyncio.AbstractEventLoop | None = None
        self.route: Route | None = None
        """The way of its lab's rows, if it is a lab's own target."""

    async def __call__(self, call: Call) -> Reply:
        """Answer the call."""
        return await self._answer(self._stack, call)

    def by(self, strategy: Strategy) -> Handler:
        """What answers calls by another stack of the same policies, whose limits it shares, and connections."""
        return partial(self._answer, strategy.handler(self.provider))

    async def _answer(self, stack: Handler, call: Call) -> Reply:
        provider = self.provider
        call.provider, call.model = provider.name, call.prompt.model or provider.model
        call.price = provider.prices.get(call.model)
        return await stack(call)

    def move_in(self) -> None:
        """Live on the running loop. What belonged to another one is made anew; what was spent stays spent."""
        here = asyncio.get_running_loop()
        if self._loop is not None and self._loop is not here:
            self._renew()
        self._loop = here

    def _renew(self) -> None:
        self.provider.sender.forget()
        self.take(self.strategy.fresh())

    def take(self, strategy: Strategy) -> None:
        """Put another strategy, nobody else's, in the place of this one; what was spent stays spent."""
        budget = None if self.line is None else self.line.budget
        self.strategy = strategy
        self._stack = strategy.handler(self.provider)
        self.limit_spending(budget)

    def limit_spending(self, budget: Budget | None) -> None:
        """Ask a budget before each call is admitted, whosever it is."""
        if self.line is not None:
            self.line.budget = budget

    def check_budget(self) -> None:
        """Complain if no budget can be kept to, here or where rows go on to from here.

        Raises:
            ValueError: a stack has no line, or none that knows what calls will use.
        """
        self._check_budget(self.strategy)
        for each in () if self.route is None else self.route.others:
            each.check_budget()

    def check_keeps_budget(self, strategy: Strategy) -> None:
        """Complain if calls here are on a budget that another strategy could not keep to.

        Raises:
            ValueError: it has no line, or none that knows what calls will use.
        """
        if self.line is not None and self.line.budget is not None:
            self._check_budget(strategy)

    def _check_budget(self, strategy: Strategy) -> None:
        if strategy.admit is None or strategy.admit.estimator is None:
            raise ValueError(
                f"the strategy {strategy.name!r} cannot keep to a budget at {self.name}: "
                "it has no Admit with an Estimator"
            )

    @property
    def name(self) -> str:
        """As given to Lab: "provider:model"."""
        return f"{self.provider.name}:{self.provider.model}"

    @property
    def line(self) -> Admit | None:
        """Where its calls wait for admission."""
        return self.strategy.admit


class Route:
    """A lab's targets: the first, and those that rows go on to when it has given up on them.

    Args:
        first: The lab's own.
        others: In the order in which they are asked. Those of other labs keep to the limits of theirs.
    """

    def __init__(self, first: Target, others: Sequence[Target] = ()) -> None:
        self.first, self.others = first, tuple(others)
        first.route = self

    def bind(self) -> None:
        """Live on the running loop.

        Raises:
            RuntimeError: a target's home is another loop, and it runs.
        """
        for each in self.targets:
            each.home.bind()
        for each in self.targets:
            each.move_in()
            if each.route is not None and each.route is not self:
                each.route.bind()  # a lab that has targets to fall back to has them here, too
        if self.first.strategy.fallback is not None:
            self.first.strategy.fallback.others = tuple((each.name, each) for each in self.others)

    def take(self, strategy: Strategy) -> None:
        """Put another strategy, nobody else's, in the place of this one; a cache and the further targets stay.

        Raises:
            ValueError: calls are on a budget that it could not keep to.
        """
        if strategy.cache is None and self.first.strategy.cache is not None:
            strategy = strategy.with_cache(self.first.strategy.cache)
        strategy = strategy.with_fallback() if self.others else strategy
        self.first.check_keeps_budget(strategy)
        self.first.take(strategy)
        for each in self.others:
            if each.home is self.first.home:  # those of other labs keep theirs
                each.take(strategy.below_fallback(spill=False))

    async def aclose(self) -> None:
        """Close the connections of the lab's own targets."""
        for each in self.targets:
            if each.home is self.first.home:
                await each.provider.sender.aclose()

    @property
    def targets(self) -> tuple[Target, ...]:
        """In the order in which they are asked."""
        return (self.first, *self.others)

    @property
    def lines(self) -> tuple[tuple[str, Admit], ...]:
        """The line of each target that has one, by the target's name."""
        return tuple((each.name, each.line) for each in self.targets if each.line is not None)


def bind_all(targets: Iterable[Target]) -> tuple[tuple[str, Admit], ...]:
    """Let several labs live on the running loop, by their own targets; gives their lines.

    Raises:
        RuntimeError: a lab is at work on another loop.
    """
    lines = {}
    for route in dict.fromkeys(target.route for target in targets):
        assert route is not None  # noqa: S101  a lab's own target has one
        route.bind()
        lines.update({id(line): (name, line) for name, line in route.lines})
    return tuple(lines.values())
