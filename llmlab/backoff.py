"""How other clients space their retries, by name, for comparisons: `Retry(backoff="openai")`.

Seconds before retry n (from 1); U(a, b) is drawn anew for each:

    openai     min(8, 0.5 2^(n-1)) (1 - U(0, 0.25))     the openai SDK's `_calculate_retry_timeout`
    stamina    min(5, 0.1 2^(n-1) + U(0, 1))            stamina's defaults; the cap comes after the jitter
    botocore   U(0, 1) min(20, 2^(n-1))                 AWS SDKs' standard mode

The same formulas as the libraries', not their other rules: how often they try and what they retry is Retry's business.
"""

import random
from collections.abc import Callable
from typing import TypeAlias

Backoff: TypeAlias = Callable[[int, float, random.Random], float]
"""Seconds before retry n (from 1), by n, the seconds before the last one (0: none) and a source of randomness."""

FAR = 64
"""Retries beyond which any cap holds; a float would overflow."""


def openai(n: int, previous: float, rng: random.Random) -> float:  # noqa: ARG001  the shape of all
    """Seconds as the openai SDK reckons them."""
    return min(8.0, 0.5 * 2.0 ** min(n - 1, FAR)) * (1.0 - 0.25 * rng.random())


def stamina(n: int, previous: float, rng: random.Random) -> float:  # noqa: ARG001
    """Seconds as stamina reckons them with its defaults."""
    return min(5.0, 0.1 * 2.0 ** min(n - 1, FAR) + rng.random())


def botocore(n: int, previous: float, rng: random.Random) -> float:  # noqa: ARG001
    """Seconds as botocore's standard mode reckons them."""
    return rng.random() * min(20.0, 2.0 ** min(n - 1, FAR))


BACKOFFS: dict[str, Backoff] = {"openai": openai, "stamina": stamina, "botocore": botocore}
"""By name."""
