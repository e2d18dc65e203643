"""Labs for the tests of Batch APIs: both dialects, in process, in virtual time."""

from typing import Any

import pytest

from llmlab.lab import Lab
from llmlab.sim.batches import BatchPace
from llmlab.sim.physics import Physics
from llmlab.sim.transport import Simulator

KEY = "sk-very-secret-key"
DIALECTS = ("openai", "anthropic")
both = pytest.mark.parametrize("dialect", DIALECTS)
PRICES = {"m": (3.0, 12.0)}


def make_sim(pace: BatchPace | None = None, **settings: Any) -> Simulator:
    defaults: dict[str, Any] = {"physics": Physics.instant(), "keys": [KEY], "batches": pace}
    return Simulator(**defaults | settings)


def make_lab(sim: Simulator, dialect: str = "openai", **settings: Any) -> Lab:
    base = "http://simulated/v1" if dialect == "openai" else "http://simulated"
    defaults: dict[str, Any] = {
        "base_url": base,
        "api_key": KEY,
        "transport": sim,
        "prices": PRICES,
        "seed": 1,
        "progress": False,
    }
    return Lab(f"{dialect}:m", **defaults | settings)
