"""Where prices come from: the user's own table, or else the list that the optional package genai-prices carries.

    a model                                              its price
    of the user's own table                              as it stands there
    else, of a provider that has a price list            the list's, as of this minute: some change with date or hour
    else: self-hosted, simulated, not found              none, and `PriceBook.unknown` remembers the model

    a charge on the list                                 what becomes of it
    input, output, cache read, cache write               the four figures of `Price`, and its tiers
    audio or images in the prompt, searches, a cache     left out, as usage does not tell of them: text costs what is
    kept for an hour                                     said here, a request that uses them more
    anything else: requests, reasoning or pictures at    the model has no price, which is better than a wrong one
    a rate of their own
    none at all: free of charge, or no longer sold       no price either: the list does not say which

The list is on disk, in the package. Nothing is ever fetched.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from time import time
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias

from llmlab.prices import Price, read_prices

if TYPE_CHECKING:
    from genai_prices.types import ModelPrice, TieredPrices

    Figure: TypeAlias = Decimal | TieredPrices | None

LISTS: Mapping[str, str] = {
    "openai": "openai",
    "anthropic": "anthropic",
    "azure": "azure",
    "deepseek": "deepseek",
    "gemini": "google",
    "groq": "groq",
    "mistral": "mistral",
    "openrouter": "openrouter",
    "together": "together",
    "xai": "x-ai",
}
"""Provider, as in `Lab("provider:model")` -> its name in genai-prices."""
SELF_HOSTED = frozenset({"sim", "llamacpp", "lmstudio", "ollama", "sglang", "vllm"})
"""Providers that bill nobody by the token."""

MINUTE = 60
"""Seconds for which a listed price is kept: some change at the hour or half hour, and a look-up takes 0.1 ms."""

_FIGURES = {
    "input": "input_mtok",
    "output": "output_mtok",
    "cached": "cache_read_mtok",
    "cache_write": "cache_write_mtok",
}
_CHAT = {"input_mtok", "output_mtok"}
_LEFT_OUT = frozenset({
    "input_audio_mtok", "input_image_mtok", "input_video_mtok", "cache_audio_read_mtok", "cache_image_read_mtok",
    "cache_write_1h_mtok",
    "web_searches_kcount", "storage_searches_kcount", "social_searches_kcount", "code_executions_kcount",
})  # fmt: skip


@dataclass
class PriceBook:
    """The prices of one provider's models.

    Looking up a model that the user's own table lacks imports genai-prices, once, which takes 0.2 to 0.3 s.

    Raises:
        TypeError, ValueError: `own` is no table of prices; see `llmlab.prices.read_prices`.
    """

    own: Mapping[str, Price | tuple[float, ...]] = field(default_factory=dict)
    """The user's own table, dollars per million tokens by model; it goes before any list. Read once, when made."""
    provider: str | None = None
    """Whose list is consulted, as in `Lab("provider:model")`. None, or a name without a list: nobody's."""
    unknown: set[str] = field(default_factory=set, init=False, compare=False)
    """Models that were asked for in vain."""
    _own: dict[str, Price] = field(init=False, repr=False, compare=False)
    _told: set[str] = field(default_factory=set, init=False, repr=False, compare=False)
    _listed: dict[str, Price | None] = field(default_factory=dict, init=False, repr=False, compare=False)
    _minute: float = field(default=-1.0, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._own = read_prices(self.own)

    def get(self, model: str) -> Price | None:
        """The present price of a model, by its name without the provider's. None: not known, which is not free."""
        own = self._own.get(model)
        if own is not None:
            return own
        minute = time() // MINUTE
        if minute != self._minute:
            self._listed.clear()
            self._minute = minute
        try:
            return self._listed[model]
        except KeyError:
            return self._look_up(model)

    def tell_unknown(self) -> str | None:
        """Name the models asked for in vain and what to do about it, in one line; each model once.

        None: there is nothing new to say, or the provider is one that bills nobody.
        """
        new = sorted(self.unknown - self._told)
        if not new or self.provider in SELF_HOSTED:
            return None
        self._told.update(new)
        remedy = f"pass Lab(prices={{{new[0]!r}: (input, output)}}), dollars per million tokens"
        if self.provider in LISTS and _package() is None:
            remedy += ', or pip install "llmlab[prices]" for a list of them'
        return f"no price is known for {', '.join(map(repr, new))}, so its cost is missing: {remedy}"

    def _look_up(self, model: str) -> Price | None:
        name = LISTS.get(self.provider or "")
        price = None if name is None else list_price(model, name, datetime.fromtimestamp(time(), UTC))
        if price is None:
            self.unknown.add(model)
        self._listed[model] = price
        return price


def list_price(model: str, provider: str, at: datetime) -> Price | None:
    """Look a model up in genai-prices' list.

    Args:
        model: As requests name it; the list knows many spellings and dated versions.
        provider: As genai-prices names it.
        at: When the request is sent, with its time zone.

    Returns:
        None: the package is not installed, the model is not listed, or `Price` cannot say what it costs.
    """
    package = _package()
    if package is None:
        return None
    try:
        found = package.calc_price(package.Usage(), model, provider_id=provider, genai_request_timestamp=at)
    except (LookupError, ValueError):  # not listed, or an entry that the package itself finds faulty
        return None
    return to_price(found.model_price)


def to_price(listed: "ModelPrice") -> Price | None:
    """Read an entry of genai-prices' list. None: `Price` cannot say what such a model costs."""
    charges = {key for key, value in vars(listed).items() if value is not None}
    if not charges >= _CHAT or not charges <= _LEFT_OUT.union(_FIGURES.values()):
        return None
    figures: dict[str, Figure] = {each: getattr(listed, name) for each, name in _FIGURES.items()}
    tiered = [figure for figure in figures.values() if figure is not None and not isinstance(figure, Decimal)]
    starts = sorted({tier.start for figure in tiered for tier in figure.tiers})
    tiers = tuple((start, Price(**_rates(figures, start + 1))) for start in starts)
    return Price(**_rates(figures, 0), tiers=tiers)


def _rates(figures: "Mapping[str, Figure]", input_tokens: int) -> dict[str, Any]:
    return {each: _rate(figure, input_tokens) for each, figure in figures.items()}


def _rate(figure: "Figure", input_tokens: int) -> float | None:
    """What a token costs in a request of so many input tokens; a tier's figure then holds for all of its tokens."""
    if figure is None or isinstance(figure, Decimal):
        return None if figure is None else float(figure)
    passed = [tier.price for tier in figure.tiers if input_tokens > tier.start]
    return float([figure.base, *passed][-1])


def _package() -> ModuleType | None:
    try:
        import genai_prices  # noqa: PLC0415  optional, and slow to import
    except ImportError:
        return None
    return genai_prices
