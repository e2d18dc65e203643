"""Budgets of a batch: it is reckoned whole before anything is sent, as nothing can be held back afterwards.

before           what all its rows may cost is reserved; BudgetSpent, if that might pass a budget
afterwards       what they have cost is spent, and of rows that nobody has waited for what they may cost
"""

import asyncio
from collections.abc import Iterable, Sequence

from llmlab.batch.manifest import Manifest
from llmlab.errors import BudgetSpent
from llmlab.estimate import Estimator
from llmlab.rule import Budget
from llmlab.types import Prompt, Usage


class Purse:
    """The budgets that a batch job has to keep to.

    Args:
        budgets: The lab's and the job's own.
        estimator: Reckons what rows will use.
        rows: The job's rows.
        discount: The price as a share of the usual one.
    """

    def __init__(self, budgets: Sequence[Budget], estimator: Estimator, rows: Manifest, discount: float) -> None:
        self._budgets, self._estimator, self._rows, self._discount = budgets, estimator, rows, discount
        self._costs: dict[int, dict[str, float]] = {}
        self._used = {"total_tokens": 0.0, "usd": 0.0}
        self._reserved: dict[str, float] | None = None

    def reserve(self, positions: Iterable[int]) -> None:
        """Set aside what these rows may cost.

        Raises:
            BudgetSpent: that might pass a budget; nothing is set aside.
        """
        if not self._budgets:
            return
        self._costs = {position: self._cost(position) for position in positions}
        whole = _sum(self._costs.values())
        now = asyncio.get_running_loop().time()
        for budget in self._budgets:
            if budget.wait(now, whole):
                why = budget.refuse(now) or BudgetSpent("what is in flight besides may use the rest of the budget")
                why.message = why.args[0].replace("the next request", f"a batch of {len(self._costs)} rows")
                raise why
        for budget in self._budgets:
            budget.take(now, whole)
        self._reserved = whole

    def settled(self, position: int, usage: Usage | None, cost_usd: float | None) -> None:
        """Take down what a row has used; None: nothing."""
        if self._costs.pop(position, None) is not None and usage is not None:
            self._used["total_tokens"] += usage.input_tokens + usage.output_tokens
            self._used["usd"] += cost_usd or 0.0

    def close(self) -> None:
        """Turn what was set aside into what was spent."""
        if self._reserved is None:
            return
        used, now = _sum([self._used, *self._costs.values()]), asyncio.get_running_loop().time()
        for budget in self._budgets:
            budget.settle(now, self._reserved, None, used, None, now, None)
        self._reserved = None

    def never_sent(self, position: int) -> None:
        """A row that went into no batch costs nothing."""
        self._costs.pop(position, None)

    def _cost(self, position: int) -> dict[str, float]:
        item = self._rows.items.get(position)
        if not isinstance(item, Prompt):
            return {"total_tokens": 0.0, "usd": 0.0}
        model = self._rows.model(position)
        estimate, price = self._estimator.cost(item, model), self._rows.provider.prices.get(model)
        cost = {"total_tokens": estimate["total_tokens"]}
        if price is not None:
            cost["usd"] = price.most(estimate["input_tokens"], estimate["output_tokens"]) * self._discount
        return cost


def _sum(costs: Iterable[dict[str, float]]) -> dict[str, float]:
    """All of them together; without dollars if the price of one is not known."""
    every = list(costs)
    names = ("total_tokens", "usd") if all("usd" in each for each in every) else ("total_tokens",)
    return {name: sum(each[name] for each in every) for name in names}
