"""What a Lab is given, read and checked: its targets, its strategy with the limits asked for, priorities, budgets."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import httpx

from llmlab.call import PRIORITIES
from llmlab.loops import Home
from llmlab.policies.cache import Cache
from llmlab.policies.pack import Pack
from llmlab.prices import Price, read_prices
from llmlab.providers import connect
from llmlab.rules.adapt import Controller
from llmlab.rules.adaptive import Adaptive
from llmlab.rules.slots import Slots
from llmlab.rules.spend import Spend
from llmlab.strategy import CONCURRENCY, Strategy
from llmlab.target import Route, Target


@runtime_checkable
class HasTarget(Protocol):
    """A Lab, as seen by others that fall back to it."""

    @property
    def target(self) -> Target:
        """Its own provider and limits."""
        ...


def open_route(
    model: str,
    strategy: Strategy,
    *,
    home: Home,
    base_url: str | None,
    api_key: str | None,
    transport: httpx.AsyncBaseTransport | None,
    prices: Mapping[str, Price | tuple[float, ...]] | None,
    seed: int | None,
    cache: str | Path | Cache | None,
    fallback: "str | HasTarget | Iterable[str | HasTarget]",
    spill: bool,
) -> Route:
    """The targets of a lab, its own first. `spill`: rows do not wait for one that is down while another is left."""
    table = read_prices(prices)
    provider = connect(model, base_url=base_url, api_key=api_key, transport=transport, prices=table, seed=seed)
    if cache is not None:
        strategy = strategy.with_cache(cache if isinstance(cache, Cache) else Cache(cache))
    wanted = [fallback] if isinstance(fallback, str | HasTarget) else list(fallback)
    others = []
    for left, each in zip(reversed(range(len(wanted))), wanted, strict=True):
        if isinstance(each, HasTarget):
            others.append(each.target)
        elif isinstance(each, str):
            endpoint = connect(each, prices=table, seed=seed)
            others.append(Target(endpoint, strategy.below_fallback(spill=spill and left > 0), home))
        else:
            raise TypeError(f"fallback must be 'provider:model' or a Lab, or several of them, not {each!r}")
    if others:
        strategy = (strategy.spilling() if spill else strategy).with_fallback()
    return Route(Target(provider, strategy, home), others)


def budget_of(target: Target, usd: float | None, tokens: int | None) -> Spend | None:
    """A budget for calls to this target, if a limit is given.

    Raises:
        TypeError, ValueError: a limit is not usable, or nobody could keep to it.
    """
    if usd is None and tokens is None:
        return None
    target.check_budget()
    model = target.provider.model
    if usd is not None and target.provider.prices.get(model) is None:
        raise ValueError(
            f"budget_usd needs the price of {model!r}: Lab(prices={{{model!r}: (input, output)}}), dollars per "
            'million tokens, or pip install "llmlab[prices]"'
        )
    return Spend(usd, tokens)


def live_strategy(
    strategy: Strategy | None,
    concurrency: int | Controller | Literal["auto"] | None,
    *,
    rpm: float | None,
    tpm: float | None,
    queue: int | None,
) -> Strategy:
    """A fresh copy of a user's strategy, or the default one, with the limits asked for.

    Raises:
        TypeError, ValueError: a limit is not usable, or is a setting of the default strategy only.
    """
    if strategy is None:
        limit = CONCURRENCY if concurrency is None else concurrency
        return Strategy.default(concurrency=limit, rpm=rpm, tpm=tpm, queue=queue)
    if rpm is not None or tpm is not None:
        raise ValueError("rpm and tpm belong to the default strategy: put a Rate into yours instead")
    if queue is not None:
        raise ValueError("queue belongs to the default strategy: give it to your own as Admit((…,), queue=…)")
    if not isinstance(strategy, Strategy):
        raise TypeError(f"strategy must be a Strategy, not {type(strategy).__name__}; try Strategy.default()")
    live = strategy.fresh()
    if concurrency is not None:
        if not isinstance(concurrency, int):
            raise ValueError("a strategy of your own brings its own controller: give it as Admit((Adaptive(…),))")
        limit_of(live).resize(concurrency)
    return live


def limit_of(strategy: Strategy) -> Slots | Adaptive:
    """The rule whose limit `lab.concurrency` is.

    Raises:
        ValueError: the strategy has none.
    """
    if strategy.slots is None:
        raise ValueError(f"the strategy {strategy.name!r} has no Admit with Slots, so no concurrency to set")
    return strategy.slots


def pack_of(pack: object, *, typed: bool = False) -> Pack | None:
    """A fresh Pack for one job: of a number of rows, or a user's own.

    Args:
        pack: Either. None: none.
        typed: Whether all answers are, which are not packed.

    Raises:
        TypeError, ValueError: it is neither, no number of at least 1, or nothing could be packed.
    """
    if pack is None:
        return None
    if typed:
        raise ValueError("pack and schema exclude each other: a typed answer has a request of its own")
    if isinstance(pack, Pack):
        return replace(pack)
    if isinstance(pack, bool) or not isinstance(pack, int):
        raise TypeError(f"pack must be a number of rows or a Pack, not {pack!r}")
    return Pack(pack)


def check_priority(priority: object) -> None:
    """Complain about what is no priority.

    Raises:
        TypeError, ValueError: it is no whole number from 0 to 3.
    """
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise TypeError(f"priority must be a whole number from 0 (critical) to 3 (low), not {priority!r}")
    if priority not in PRIORITIES:
        raise ValueError(f"priority must be from 0 (critical) to 3 (low), not {priority}")
