"""Usage -> US dollars, for models whose price is known."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from llmlab.types import Usage

PER = 1_000_000


@dataclass(frozen=True, slots=True)
class Price:
    """A model's price, US dollars per million tokens.

    Raises:
        TypeError, ValueError: a price is no finite number of at least 0.
    """

    input: float
    """Input tokens."""
    output: float
    """Output tokens, reasoning included."""
    cached: float | None = None
    """Input tokens read from the provider's prompt cache. None: as `input`."""
    cache_write: float | None = None
    """Input tokens written to the provider's prompt cache. None: as `input`."""

    def __post_init__(self) -> None:
        for name in ("input", "output", "cached", "cache_write"):
            value = getattr(self, name)
            if value is None and name.startswith("cache"):
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"Price: {name} must be a number, dollars per million tokens, not {value!r}")
            if not 0 <= value < math.inf:
                raise ValueError(f"Price: {name} must be a finite number of at least 0, not {value!r}")

    def cost(self, usage: Usage) -> float:
        """US dollars for these tokens."""
        cached = self.input if self.cached is None else self.cached
        written = self.input if self.cache_write is None else self.cache_write
        fresh = max(0, usage.input_tokens - usage.cached_tokens - usage.cache_write_tokens)
        return (
            fresh * self.input
            + usage.cached_tokens * cached
            + usage.cache_write_tokens * written
            + usage.output_tokens * self.output
        ) / PER


Prices = Mapping[str, Price]


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
