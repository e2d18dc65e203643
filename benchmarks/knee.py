"""How near a sweep's knee and `lab.tune` come to an optimum that is known by arithmetic.

hard    so many slots, each as fast whatever the others do: throughput grows up to them and no further
soft    each other request in flight makes all slower by a share r of their time: throughput is N / (1 + r (N - 1)),
its elasticity (1 - r) / (1 - r + r N), which is e at N = (1 - r) (1 / e - 1) / r

    python -m benchmarks.knee [--seeds 1 2 3]
"""

import argparse
import math
import time

import pandas as pd

import llmlab
from llmlab.sim import Physics, Simulator

ELASTICITY = 0.2
GRID = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)


def physics(**fields: float) -> Physics:
    """A provider that is a second for each answer of 40 tokens, when it is alone."""
    plain = {"rtt": 0.0, "ttft": 0.2, "itl": 0.02, "prefill": math.inf, "jitter": 0.0, "load": 0.0}
    return Physics(reply_tokens=40, **(plain | fields))  # type: ignore[arg-type]


def providers() -> dict[str, tuple[Physics, float]]:
    """Each with its optimum."""
    hard = {f"hard, {slots} slots": (physics(slots=slots), float(slots)) for slots in (8, 16, 32, 64)}
    soft = {f"soft, r = {r:g}": (physics(slots=1000, load=0.02 * r), optimum(r)) for r in (0.05, 0.1, 0.25)}
    return hard | soft


def optimum(r: float) -> float:
    """Where the elasticity of a soft provider has fallen to ELASTICITY."""
    return (1 - r) * (1 / ELASTICITY - 1) / r


def main(seeds: list[int]) -> pd.DataFrame:
    """Measure all of them."""
    rows = []
    for name, (world, wanted) in providers().items():
        for seed in seeds:
            lab = llmlab.Lab(transport=Simulator(physics=world), progress=False)
            began = time.process_time()
            knee = llmlab.fits.knee(lab.sweep(GRID, seed=seed).result(), elasticity=ELASTICITY)
            swept = time.process_time()
            found = lab.tune(seed=seed, elasticity=ELASTICITY).result()
            rows.append({
                "provider": name, "seed": seed, "optimum": wanted, "knee": knee.n,
                "knee_error": (knee.n or math.nan) / wanted - 1, "tuned": found.concurrency,
                "tune_error": found.concurrency / wanted - 1, "sweep_cpu_s": swept - began,
                "tune_cpu_s": time.process_time() - swept,
            })  # fmt: skip
    return pd.DataFrame(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    table = main(parser.parse_args().seeds)
    print(table.round(3).to_string(index=False))
    worst = table[["knee_error", "tune_error"]].abs()
    print(f"\nmedian and worst error: knee {worst.knee_error.median():.1%}, {worst.knee_error.max():.1%}; "
          f"tune {worst.tune_error.median():.1%}, {worst.tune_error.max():.1%}")  # fmt: skip
