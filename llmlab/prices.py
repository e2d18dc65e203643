"""Usage -> US dollars, for models whose price is known."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from llmlab.types import Usage

PER = 1_000_000


@dataclass(frozen=True, slots=True)
class Price:
    """A model's price, US dollars per million tokens.

    Raises:
        TypeError, ValueError: a price is no finite number of at least 0, or `tiers` are not as described.
    """

    input: float
    """Input tokens."""
    output: float
    """Output tokens, reasoning included."""
    cached: float | None = None
    """Input tokens read from the provider's prompt cache. None: as `input`."""
    cache_write: float | None = None
    """Input tokens written to the provider's prompt cache. None: as `input`."""
    tiers: "tuple[tuple[int, Price], ...]" = ()
    """What long prompts cost: (N, price) means that a request of more than N input tokens costs `price`, all of its
    tokens included. N is a whole number of at least 0, rising; the prices have no tiers of their own."""

    def __post_init__(self) -> None:
        for name in ("input", "output", "cached", "cache_write"):
            value = getattr(self, name)
            if value is None and name.startswith("cache"):
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"Price: {name} must be a number, dollars per million tokens, not {value!r}")
            if not 0 <= value < math.inf:
                raise ValueError(f"Price: {name} must be a finite number of at least 0, not {value!r}")
        _check_tiers(self.tiers)

    def cost(self, usage: Usage) -> float:
        """US dollars for these tokens of one request. Where there are tiers, a sum of requests has another price."""
        price = self._of(usage.input_tokens) if self.tiers else self
        cached = price.input if price.cached is None else price.cached
        written = price.input if price.cache_write is None else price.cache_write
        fresh = max(0, usage.input_tokens - usage.cached_tokens - usage.cache_write_tokens)
        return (
            fresh * price.input
            + usage.cached_tokens * cached
            + usage.cache_write_tokens * written
            + usage.output_tokens * price.output
        ) / PER

    def most(self, input_tokens: float, output_tokens: float) -> float:
        """US dollars that a request of at most these tokens can cost, known before it is sent.

        Each input token is taken at the dearest rate that it can have: usually nothing is cached, and all is written to
        the cache if that is dearer than plain input. So is each tier that the request can come to.
        """
        most = self._most(input_tokens, output_tokens)
        for above, price in self.tiers:
            if input_tokens > above:
                most = max(most, price._most(input_tokens, output_tokens))  # noqa: SLF001  a price as this one
        return most

    def _of(self, input_tokens: int) -> "Price":
        found = self
        for above, price in self.tiers:
            if input_tokens > above:
                found = price
        return found

    def _most(self, input_tokens: float, output_tokens: float) -> float:
        dearest = max(self.input, self.cached or 0.0, self.cache_write or 0.0)
        return (input_tokens * dearest + output_tokens * self.output) / PER


def _check_tiers(tiers: object) -> None:
    last = -1
    for tier in tiers if isinstance(tiers, tuple) else (tiers,):
        above, price = tier if isinstance(tier, tuple) and len(tier) == 2 else (None, None)  # noqa: PLR2004  a pair
        if isinstance(above, bool) or not isinstance(above, int) or not isinstance(price, Price):
            raise TypeError(f"Price: tiers must be a tuple of (input tokens, Price), not {tiers!r}")
        if above <= last or price.tiers:
            raise ValueError(f"Price: tiers must rise from at least 0, their prices without tiers, not {tiers!r}")
        last = above


class Prices(Protocol):
    """A table or a book of prices."""

    def get(self, model: str, /) -> Price | None:
        """The price of a model; None: not known."""


def read_prices(prices: Mapping[str, Price | tuple[float, ...]] | None) -> dict[str, Price]:
    """Read a table of model -> Price or (input, output[, cached[, cache_write]]), dollars per million tokens.

    Raises:
        TypeError, ValueError: `prices` is no mapping, or an entry is neither; names the model.
    """
    if prices is not None and not isinstance(prices, Mapping):
        raise TypeError(f"prices must be a mapping of model -> (input, output), not {type(prices).__name__}")
    return {model: _price(model, entry) for model, entry in (prices or {}).items()}


def _price(model: str, entry: object) -> Price:
    if isinstance(entry, Price):
        return entry
    if isinstance(entry, tuple | list) and 2 <= len(entry) <= 4:  # noqa: PLR2004  Price's fields
        try:
            return Price(*entry)
        except (TypeError, ValueError) as error:
            raise type(error)(f"prices[{model!r}]: {error}") from None
    raise TypeError(
        f"prices[{model!r}] must be (input, output[, cached[, cache_write]]) in dollars per million tokens, "
        f"not {entry!r}"
    )


def dollars(amount: float) -> str:
    """An amount in words: in cents, or two figures of what is less than one."""
    digits = 2 if amount >= 0.01 or not amount else 1 - math.floor(math.log10(amount))  # noqa: PLR2004  a cent
    return f"${amount:,.{digits}f}"
