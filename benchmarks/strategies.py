"""How retry strategies compare in an outage: 3,000 rows, 200 in flight, 40 requests/s, down for 30 s.

Most clients retry inside of their slot, count 429s as failures, and keep to no limit; the last two rows keep to the
provider's limit, and the last one has llmlab's default stack. Eight attempts, base 0.5 s, cap 30 s.

    python -m benchmarks.strategies [--seeds 1 2 3] [--json FILE]

prints the table, and how much computing eight strategies of 3,000 rows take.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd

import llmlab
from llmlab import Admit, Rate, Retry, Slots, Strategy
from llmlab.scenario import SCENARIOS, Scenario

ROWS, IN_FLIGHT, RPM = 3000, 200, 2400


def scenario() -> Scenario:
    """The ready-made outage, at a provider that says nothing of its limits."""
    outage = SCENARIOS["outage"]
    return replace(outage, physics=replace(outage.physics, hint="none"))


def plain(retry: Retry) -> Strategy:
    """Slots around retries: who sleeps holds one."""
    return Strategy("plain", (Admit((Slots(IN_FLIGHT),)), replace(retry, throttled=None)))


def jitters() -> dict[str, Strategy]:
    """The eight formulas."""
    tries = Retry(attempts=8, base=0.5, cap=30.0)
    return {
        "constant 1 s": plain(replace(tries, growth="constant", jitter="none", base=1.0)),
        "linear": plain(replace(tries, growth="linear", jitter="none")),
        "exponential": plain(replace(tries, jitter="none")),
        "full jitter": plain(tries),
        "equal jitter": plain(replace(tries, jitter="equal")),
        "decorrelated": plain(replace(tries, jitter="decorrelated")),
        "openai SDK": plain(replace(tries, backoff="openai")),
        "stamina": plain(replace(tries, backoff="stamina")),
    }


def others() -> dict[str, Strategy]:
    """An SDK's three attempts, a limiter, and a limiter with a breaker."""
    limiter = (Retry(attempts=8), Admit((Slots(IN_FLIGHT), Rate(rpm=RPM))))
    return {
        "full, 3 attempts": plain(Retry(attempts=3, cap=30.0)),
        "full + limiter": Strategy("limiter", limiter),
        "default": Strategy.default(concurrency=IN_FLIGHT, rpm=RPM),
    }


def table(seeds: list[int]) -> tuple[pd.DataFrame, float, float]:
    """Means over the seeds, and CPU and wall seconds of the eight formulas per seed."""
    lab = llmlab.Lab("sim:small", progress=False)
    cpu, wall = time.process_time(), time.perf_counter()
    first = lab.compare(jitters(), n=ROWS, scenario=scenario(), seeds=seeds).result()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    second = lab.compare(others(), n=ROWS, scenario=scenario(), seeds=seeds).result()
    columns = ["makespan_s", "attempts_per_ok", "ok", "throttled", "calls_in_outage"]
    both = pd.concat([first, second])
    return both.groupby("strategy", sort=False)[columns].mean(), cpu / len(seeds), wall / len(seeds)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found, cpu, wall = table(given.seeds)
    print(found.round(2).to_string())
    print(f"\n8 strategies x {ROWS} rows: {cpu:.1f} s of computing, {wall:.1f} s in all")
    if given.json:
        given.json.write_text(json.dumps({"table": found.to_dict("index"), "cpu_s": cpu, "wall_s": wall}))


if __name__ == "__main__":
    main()
