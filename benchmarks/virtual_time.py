"""The same job on both clocks: in virtual time, and for real; how far apart they are, in percent.

    python -m benchmarks.virtual_time [--rows 1200] [--seed 1]

The provider allows 20 requests/s, slows down under load, takes ten times as long to begin once in a hundred times, and
fails one request in twenty, so that 1,200 rows take about a minute: makespan and quantiles should be within 5%. Nothing
in it turns on chance: where a stray 429 parks the line or a breaker opens, two real runs differ as well.
"""

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable

import pandas as pd

from llmlab import Strategy
from llmlab.clock import run_virtual
from llmlab.frame import read_rows
from llmlab.loops import Home
from llmlab.scenario import Scenario
from llmlab.sim import Faults, Physics
from llmlab.trial import Trial, simulated

SCENE = Scenario(
    "minute",
    Physics(slots=32, load=0.0002, rpm=1200, burst=5, reply_tokens=50, tail=0.01),
    Faults({"server_error": 0.03, "cut": 0.02}),
)


def job(rows: int, seed: int) -> Callable[[], Awaitable[pd.DataFrame]]:
    """The job, to be run on either clock."""

    async def main() -> pd.DataFrame:
        home = Home()
        trial = Trial({}, read_rows(SCENE.prompts(rows, seed=seed)), seed)
        route, _ = simulated(SCENE, Strategy.default(concurrency=32, rpm=1200), seed=seed, home=home)
        return await trial.run(route, home, lambda _: None)

    return main


def figures(out: pd.DataFrame) -> "pd.Series[float]":
    """Makespan and quantiles, and how many rows were answered."""
    ok = out[out["status"] == "ok"]
    seconds = (out["finished_at"].max() - out["started_at"].min()).total_seconds()
    quantiles = {f"p{round(100 * q)}_ms": ok["latency_ms"].quantile(q) for q in (0.5, 0.95, 0.99)}
    return pd.Series({"ok": len(ok), "makespan_s": seconds, **quantiles, "attempts": out["attempts"].sum()})


def main() -> None:
    """Print both, and the difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    began = time.perf_counter()
    virtual = figures(run_virtual(job(given.rows, given.seed)))
    took = time.perf_counter() - began

    async def real() -> pd.DataFrame:
        return await job(given.rows, given.seed)()

    table = pd.DataFrame({"virtual": virtual, "real": figures(asyncio.run(real()))})
    table["difference_%"] = 100 * (table["real"] / table["virtual"] - 1)
    print(table.round(2).to_string())
    print(f"\nin virtual time it took {took:.1f} s")


if __name__ == "__main__":
    main()
