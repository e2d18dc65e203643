"""Measured numbers as arrays for a fit."""

from typing import Any

import numpy as np

from llmlab.curves import Array


def floats(column: Any, name: str) -> Array:
    """A column as floats, NaN where nothing is known; what is not finite is not known either."""
    try:
        values = column.to_numpy("float64", na_value=np.nan)
    except (TypeError, ValueError):
        raise TypeError(f"column {name!r} of the sweep must be numbers, not {column.dtype}") from None
    return np.where(np.isfinite(values), values, np.nan)


def positive(name: str, values: Any) -> Array:
    """Numbers above 0, or a ValueError that names them."""
    try:
        found = np.asarray(values, dtype="float64")
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be numbers above 0") from None
    if not (np.isfinite(found) & (found > 0)).all():
        raise ValueError(f"{name} must be numbers above 0")
    return found
