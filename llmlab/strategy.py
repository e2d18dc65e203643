"""A strategy is a named stack of policies; the default order stands here, once, with its reasons."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, cast

from llmlab.call import Handler, Policy, chain
from llmlab.estimate import Estimator
from llmlab.policies.admit import QUEUE, Admit
from llmlab.policies.cache import Cache
from llmlab.policies.fallback import Fallback
from llmlab.policies.hedge import Hedge
from llmlab.policies.pack import Pack
from llmlab.policies.reask import Reask
from llmlab.policies.retry import Retry
from llmlab.policies.timeout import Timeout
from llmlab.rules.adapt import Controller
from llmlab.rules.adaptive import Adaptive
from llmlab.rules.breaker import Breaker
from llmlab.rules.elastic import Elastic
from llmlab.rules.rate import Rate
from llmlab.rules.slots import Slots

CONCURRENCY = 32
STRAY = 0.1
"""Share of 429s from which they speak of a limit: a flaky provider's stray ones must not choke the rate."""
ATTEMPT = Timeout(attempt=600.0, connect=10.0, first_token=120.0, between_tokens=60.0)


@dataclass(frozen=True)
class Strategy:
    """A named stack of policies, outermost first: what a lab does about limits, failures and slowness.

    Configuration only: each lab runs a fresh copy, so that one strategy can serve many labs.
    """

    name: str
    """Its name in comparisons."""
    policies: tuple[Policy, ...]
    """Outermost first."""

    def __post_init__(self) -> None:
        for policy in self.policies:
            if isinstance(policy, type) or not callable(policy):
                raise TypeError(
                    f"Strategy {self.name!r}: a policy is called with (call, inner); {policy!r} is none. "
                    "Rules go into Admit((…,))"
                )

    @classmethod
    def default(
        cls,
        *,
        concurrency: int | Controller | Literal["auto"] = CONCURRENCY,
        rpm: float | None = None,
        tpm: float | None = None,
        total: float | None = None,
        retry: Retry | None = None,
        rate: Rate | None = None,
        breaker: Breaker | None = None,
        timeout: Timeout | None = None,
        hedge: Hedge | None = None,
        cache: Cache | None = None,
        fallback: Fallback | None = None,
        queue: int | None = None,
        pack: Pack | None = None,
    ) -> "Strategy":
        """The stack a Lab uses unless told otherwise.

        Args:
            concurrency: Requests in flight at most: a number of at least 1, "auto" (Elastic(): as many as still buy
                throughput), or a controller: Elastic, AIMD, Gradient, Fixed.
            rpm: Requests per minute. None: as the provider's headers say, or its 429s teach.
            tpm: Tokens per minute, input and output together; likewise.
            total: Seconds for a whole row, waits and retries included. None: no limit.
            retry: Replaces the default Retry().
            rate: Replaces Rate(rpm=rpm, tpm=tpm, stray=0.1).
            breaker: Replaces the default Breaker().
            timeout: Replaces the default deadlines of an attempt: 600 s in all, 10 s to connect, and for
                streams 120 s to the first token and 60 s between tokens.
            hedge: Send slow requests a second time, within bounds. None: never.
            cache: Keep answers on disk. None: no cache, and rows that ask the same are each asked.
            fallback: Go on to the lab's further targets. None: a lab that has some puts a Fallback() there.
            queue: Requests in line from which on a further one of `lab.run` is refused. None: 10,000.
            pack: Ask several short rows in one request. None: each row has its own.
        """
        stack: tuple[Policy | None, ...] = (
            # A hit costs nothing, so nothing below may see it.
            cache,
            # The row's promise: covers every attempt and every wait, so it stands outside all of them.
            Timeout(total=total) if total is not None else None,
            # Below what holds for a row, above what makes requests: a full pack is one call to all that follows.
            pack,
            # Only when the whole stack below has given up on a target is the next one asked.
            fallback,
            # Above Admit: a row that sleeps holds no slot, and comes back to its old place in line.
            retry or Retry(),
            # Above Admit: the second copy takes a slot of its own.
            hedge,
            # One line for all calls of the lab; everything below it is a request in flight. The breaker is asked last:
            # it counts probes when it lets one go, so nobody after it may say no.
            Admit(
                (_slots(concurrency), rate or Rate(rpm=rpm, tpm=tpm, stray=STRAY), breaker or Breaker()),
                Estimator(),
                QUEUE if queue is None else queue,
            ),
            # Below Admit: waiting in line is not slowness of the provider.
            timeout or ATTEMPT,
        )
        return cls("default", tuple(policy for policy in stack if policy is not None))

    @classmethod
    def bare(cls, *, concurrency: int = CONCURRENCY) -> "Strategy":
        """Concurrency and nothing else: no retries, no deadlines. For comparisons."""
        return cls("bare", (Admit((Slots(concurrency),)),))

    def with_cache(self, cache: Cache) -> "Strategy":
        """The same with a cache outermost, in place of its own if it has one."""
        return replace(self, policies=(cache, *(each for each in self.policies if not isinstance(each, Cache))))

    def without_cache(self) -> "Strategy":
        """The same, its policies shared, but for its cache."""
        return replace(self, policies=tuple(each for each in self.policies if not isinstance(each, Cache)))

    @property
    def packs(self) -> bool:
        """Whether rows share requests."""
        return any(isinstance(each, Pack) for each in self.policies)

    def with_pack(self, pack: Pack) -> "Strategy":
        """The same, its policies shared, with rows packed below what holds for a row as a whole."""
        policies = tuple(each for each in self.policies if not isinstance(each, Pack))
        above = _rows_own(policies)
        return replace(self, policies=(*policies[:above], pack, *policies[above:]))

    def with_fallback(self) -> "Strategy":
        """The same with a Fallback below what holds for a row as a whole (Cache, Timeout(total)), if it has none."""
        if self.fallback is not None:
            return self
        above = _rows_own(self.policies)
        return replace(self, policies=(*self.policies[:above], Fallback(), *self.policies[above:]))

    def below_fallback(self, *, spill: bool) -> "Strategy":
        """What a further target gets: the layers below Fallback, fresh.

        Args:
            spill: Rows do not wait for a target that is down: its breaker gives up at once.
        """
        above = _rows_own(self.policies)
        lower = (policy for policy in self.policies[above:] if not isinstance(policy, Fallback))
        return replace(self, policies=tuple(_spilling(policy) if spill else _fresh(policy) for policy in lower))

    def spilling(self) -> "Strategy":
        """The same, but rows do not wait for a provider that is down: its breaker gives up at once."""
        return replace(self, policies=tuple(map(_spilling, self.policies)))

    def fresh(self) -> "Strategy":
        """A copy with the same settings and none of the state."""
        return replace(self, policies=tuple(_fresh(policy) for policy in self.policies))

    def handler(self, endpoint: Handler) -> Handler:
        """The stack around an endpoint. Every stack holds answers to their schema, so Reask is not part of a strategy.

        It stands below Cache, which is to keep answers that fit; below Timeout(total), which covers asking again; below
        Fallback, as another target may do better; and above the rest, as asking again is a request like any other.
        """
        above = _rows_own(self.policies)
        above += any(isinstance(each, Fallback) for each in self.policies[above : above + 1])
        return chain((*self.policies[:above], Reask(), *self.policies[above:]), endpoint)

    @property
    def admit(self) -> Admit | None:
        """The policy that holds the line, if the stack has one."""
        return next((policy for policy in self.policies if isinstance(policy, Admit)), None)

    @property
    def cache(self) -> Cache | None:
        """The policy that keeps answers, if the stack has one."""
        return next((policy for policy in self.policies if isinstance(policy, Cache)), None)

    @property
    def fallback(self) -> Fallback | None:
        """The policy that goes on to further targets, if the stack has one."""
        return next((policy for policy in self.policies if isinstance(policy, Fallback)), None)

    @property
    def pack(self) -> Pack | None:
        """The policy that asks several rows in one request, if the stack has one."""
        return next((policy for policy in self.policies if isinstance(policy, Pack)), None)

    @property
    def slots(self) -> Slots | Adaptive | None:
        """The rule that limits requests in flight, if the stack has one."""
        rules = () if self.admit is None else self.admit.rules
        return next((rule for rule in rules if isinstance(rule, Slots | Adaptive)), None)

    def __str__(self) -> str:
        return f"{self.name}: " + " > ".join(map(repr, self.policies))


def _slots(concurrency: int | Controller | Literal["auto"]) -> Slots | Adaptive:
    if concurrency == "auto":
        return Adaptive(Elastic())
    if isinstance(concurrency, int):
        return Slots(concurrency)
    if not hasattr(concurrency, "finish"):
        raise TypeError(f"concurrency must be a whole number, 'auto' or a controller, not {concurrency!r}")
    return Adaptive(concurrency)


Strategies: TypeAlias = Mapping[str, Strategy] | Iterable[Strategy]
"""By name, or with the names they have."""


def read_strategies(strategies: object) -> dict[str, Strategy]:
    """Strategies by name.

    Raises:
        TypeError, ValueError: they are not strategies, or none, or two have one name.
    """
    if isinstance(strategies, Strategy | str) or not isinstance(strategies, Iterable):
        raise TypeError('strategies must be a dict, {"mine": Strategy.default()}, or a list of Strategy')
    if isinstance(strategies, Mapping):
        pairs = list(strategies.items())
    else:
        pairs = [(_named(each), each) for each in strategies]
    if not pairs:
        raise ValueError("strategies: there is none")
    for name, strategy in pairs:
        if not isinstance(name, str):
            raise TypeError(f"strategies: names must be texts, not {name!r}")
        if not isinstance(strategy, Strategy):
            raise TypeError(f"strategies: {name!r} must be a Strategy, not {type(strategy).__name__}")
    if twice := [name for name in dict(pairs) if sum(other == name for other, _ in pairs) > 1]:
        raise ValueError(f"strategies: two have the name {twice[0]!r}; give a dict of name -> Strategy")
    return dict(pairs)


def _named(strategy: object) -> object:
    return strategy.name if isinstance(strategy, Strategy) else type(strategy).__name__


def _rows_own(policies: tuple[Policy, ...]) -> int:
    """How many of the outermost policies hold for a row as a whole, over all its targets."""
    whole = [
        isinstance(each, Cache | Pack) or (isinstance(each, Timeout) and each.total is not None) for each in policies
    ]
    return whole.index(False) if False in whole else len(whole)


def _spilling(policy: Policy) -> Policy:
    if not isinstance(policy, Admit):
        return cast("Policy", _fresh(policy))
    rules = tuple(replace(rule, give_up_after=0.0) if isinstance(rule, Breaker) else rule for rule in policy.rules)
    return replace(policy, rules=rules)


def _fresh(policy: Any) -> Any:
    # Dataclass policies carry their state in init=False fields, so replace() leaves it behind.
    return replace(policy) if hasattr(policy, "__dataclass_fields__") else policy
