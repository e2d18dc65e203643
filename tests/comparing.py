"""Comparisons in virtual time, for the tests of `lab.compare`."""

from typing import Any

import pandas as pd

import llmlab
from llmlab import Strategy

TWO = {"bare": Strategy.bare(), "default": Strategy.default()}


def compared(lab: llmlab.Lab, strategies: Any = None, **fields: Any) -> pd.DataFrame:
    """The frame of a comparison, of two strategies on 40 rows unless said otherwise."""
    return lab.compare(TWO if strategies is None else strategies, **{"n": 40, **fields}).result()
