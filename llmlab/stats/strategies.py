"""A comparison of strategies, their seeds taken together."""

import numpy as np
import pandas as pd

from llmlab.stats.checks import COMPARE, floats, needs


def strategies(cmp: pd.DataFrame) -> pd.DataFrame:
    """Sum up a comparison: a row per strategy, over its seeds.

    Args:
        cmp: A result of `lab.compare`: a row per strategy and seed.

    Returns:
        `strategy`, `seeds` (how many), `ok`, `failed` (rows, all seeds together), `failed_share` (of 0 to 1; NaN
        without rows), and `makespan_s`, `attempts_per_ok` as means, with `…_min` and `…_max` over the seeds. Seeds
        without an answered row have no attempts per ok, and do not count there. In the order of the frame.

    Raises:
        TypeError, ValueError: `cmp` is no frame, or lacks a column; names it.
    """
    needs(cmp, "strategies", COMPARE, ["strategy", "seed", "ok", "failed", "makespan_s", "attempts_per_ok"])
    figures = ["makespan_s", "attempts_per_ok"]
    runs = pd.DataFrame({"strategy": cmp["strategy"].astype(object), "ok": cmp["ok"], "failed": cmp["failed"]})
    for name in figures:
        values = floats(cmp[name])
        runs[name] = np.where(np.isfinite(values), values, np.nan)
    grouped = runs.groupby("strategy", sort=False)
    table = grouped[["ok", "failed"]].sum().astype("int64")
    table.insert(0, "seeds", grouped.size())
    rows = table["ok"] + table["failed"]
    table["failed_share"] = table["failed"] / rows.where(rows > 0)
    for name in figures:
        table[name] = grouped[name].mean()
        table[f"{name}_min"], table[f"{name}_max"] = grouped[name].min(), grouped[name].max()
    return table.reset_index()
