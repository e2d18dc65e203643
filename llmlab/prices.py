"""Usage -> US dollars, for models whose price is known."""

from collections.abc import Mapping
from dataclasses import dataclass

from llmlab.types import Usage

PER = 1_000_000


@dataclass(frozen=True, slots=True)
class Price:
    """A model's price, US dollars per million tokens.

    Raises:
        ValueError: a price is negative.
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
        if min(self.input, self.output, self.cached or 0, self.cache_write or 0) < 0:
            raise ValueError(f"a price is at least 0: {self}")

    def cost(self, usage: Usage) -> float:
        """US dollars for these tokens."""
        cached = self.input if self.cached is None else self.cached
        written = self.input if self.cache_write is None else self.cache_write
        fresh = usage.input_tokens - usage.cached_tokens - usage.cache_write_tokens
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
        TypeError: an entry is neither.
    """
    return {model: _price(model, entry) for model, entry in (prices or {}).items()}


def _price(model: str, entry: object) -> Price:
    if isinstance(entry, Price):
        return entry
    if isinstance(entry, tuple | list) and 2 <= len(entry) <= 4:  # noqa: PLR2004  Price's fields
        return Price(*entry)
    raise TypeError(
        f"prices[{model!r}] must be (input, output[, cached[, cache_write]]) in dollars per million tokens, "
        f"not {entry!r}"
    )
