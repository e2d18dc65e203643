"""What several rows have used together, shared out among them: the shares add up to the bill, to the last token.

    share of row i = total * weight i / sum of weights, in whole numbers by largest remainders (Hamilton's method)

Parts of a count (cached input, reasoning) are shared out by the shares of that count, so that no row has more of the
part than of the whole.
"""

import math
from collections.abc import Sequence

from llmlab.call import Tariff
from llmlab.types import Usage


def apportion(total: int, weights: Sequence[float]) -> list[int]:
    """Share out a whole number in proportion to weights, none below 0; evenly if all are 0."""
    if not sum(weights) > 0:
        weights = [1.0] * len(weights)
    whole = math.fsum(weights)
    quotas = [total * weight / whole for weight in weights]
    shares = [math.floor(quota) for quota in quotas]
    by_rest = sorted(range(len(quotas)), key=lambda n: shares[n] - quotas[n])
    for n in by_rest[: total - sum(shares)]:
        shares[n] += 1
    return shares


def share_usage(usage: Usage, read: Sequence[float], written: Sequence[float]) -> list[Usage]:
    """Share out a request's tokens: its input by the weights `read`, its output by `written`."""
    inputs, outputs = apportion(usage.input_tokens, read), apportion(usage.output_tokens, written)
    cached = _part(usage.cached_tokens, inputs)
    fresh = [a - b for a, b in zip(inputs, cached, strict=True)]
    columns = inputs, outputs, cached, _part(usage.cache_write_tokens, fresh), _part(usage.reasoning_tokens, outputs)
    return [Usage(*row) for row in zip(*columns, strict=True)]


def _part(total: int, shares: Sequence[int]) -> list[int]:
    return apportion(total, shares) if total else [0] * len(shares)


def share_cost(cost: float | None, usages: Sequence[Usage], price: Tariff | None) -> list[float | None]:
    """Share out a request's dollars by what each row's tokens cost; the last one has what is left.

    Args:
        cost: The request's. None: not known.
        usages: The rows' shares of its tokens.
        price: What tokens cost. None: not known, all tokens count the same.
    """
    if cost is None:
        return [None] * len(usages)
    weights = [u.input_tokens + u.output_tokens if price is None else price.cost(u) for u in usages]
    whole = math.fsum(weights)
    shares = [cost * w / whole if whole > 0 else cost / len(usages) for w in weights[:-1]]
    return [*shares, max(0.0, cost - math.fsum(shares))]
