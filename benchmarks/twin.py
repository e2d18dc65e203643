"""Predict a run, then do it: a twin fitted to two pilots over a socket, against runs in real time at other levels.

    python benchmarks/twin.py
    python benchmarks/twin.py --pilots 8 32 --runs 16 24 --far 96 --rows 1500 --json twin.json

The provider is `llmlab simulate` in a process of its own, with its default speed: 64 slots, slower the more are in
flight. The predictions are made, and printed, before the runs they are about. Within: makespan 5%, p99 10%; the far
one lies beyond what was measured (and beyond slots the pilots never saw) and must be flagged.
"""

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

import llmlab

SECONDS, TAIL = 0.05, 0.10
"""What makespan and p99 may be off by."""


@contextlib.contextmanager
def provider(seed: int) -> Iterator[str]:
    """Serve the simulated provider from a process of its own; gives its base URL."""
    command = [sys.executable, "-m", "llmlab", "simulate", "--port", "0", "--seed", str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout is not None  # noqa: S101
            yield child.stdout.readline().split()[-1]
        finally:
            child.terminate()


async def run(base: str, concurrency: int, rows: int, tag: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Run prompts in real time; gives the result and its attempts."""
    prompts = [f"{tag} {number}: " + "word " * (number * 7 % 60) for number in range(rows)]
    async with llmlab.Lab("openai:sim", base_url=base, api_key="none", concurrency=concurrency, progress=False) as lab:
        job = lab.run_many(prompts)
        return await job, job.attempts


def compare(predicted: "pd.Series[float]", out: pd.DataFrame) -> dict[str, float]:
    """Prediction over measurement, minus one, and whether the interval held it."""
    summary = llmlab.summary(out)
    seconds, tail = summary["total_time_ms"] / 1000, summary["p99_latency_ms"]
    return {
        "concurrency": int(predicted["concurrency"]),
        "makespan_s": seconds,
        "makespan_error": predicted["makespan_s"] / seconds - 1,
        "makespan_held": bool(predicted["makespan_low_s"] <= seconds <= predicted["makespan_high_s"]),
        "p50_error": predicted["p50_ms"] / summary["p50_latency_ms"] - 1,
        "p99_ms": tail,
        "p99_error": predicted["p99_ms"] / tail - 1,
        "p99_held": bool(predicted["p99_low_ms"] <= tail <= predicted["p99_high_ms"]),
        "outside": bool(predicted["outside"]),
    }


async def measure(args: argparse.Namespace) -> pd.DataFrame:
    """Pilots, predictions, runs."""
    levels = [*args.runs, args.far]
    with provider(args.seed) as base:
        pilots = [(await run(base, level, args.pilot_rows * level // 8, f"pilot {level}"))[1] for level in args.pilots]
        twin = llmlab.Twin.fit(pilots)
        print("fitted, seconds:", {name: round(value, 6) for name, value in twin.coefficients.items()})
        predicted = twin.predict(args.rows, levels)
        print(predicted[["concurrency", "makespan_low_s", "makespan_s", "makespan_high_s", "p99_ms", "outside", "why"]])
        found = []
        for place, level in enumerate(levels):
            out, _ = await run(base, level, args.rows, f"run {level}")
            found.append(compare(predicted.iloc[place], out))
    return pd.DataFrame(found)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pilots", type=int, nargs="+", default=[8, 32], help="their concurrencies (default 8 32)")
    parser.add_argument("--pilot-rows", type=int, default=250, help="rows of a pilot at 8 (default %(default)s)")
    parser.add_argument("--runs", type=int, nargs="+", default=[16, 24], help="inside the range (default 16 24)")
    parser.add_argument("--far", type=int, default=96, help="outside it (default %(default)s)")
    parser.add_argument("--rows", type=int, default=1500, help="rows of each run (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the provider (default %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and judge; 1 if a prediction is further off than it may be."""
    args = parse(argv)
    found = asyncio.run(measure(args))
    print(found.to_string(index=False, float_format="{:.3f}".format))
    if args.json:
        args.json.write_text(json.dumps(found.to_dict("records"), indent=1) + "\n")
    inside = found[found["concurrency"] != args.far]
    good = (inside["makespan_error"].abs() <= SECONDS).all() and (inside["p99_error"].abs() <= TAIL).all()
    flagged = found["outside"].tolist() == [level == args.far for level in found["concurrency"]]
    print("within" if good and flagged else "NOT within", f"makespan {SECONDS:.0%}, p99 {TAIL:.0%}; far one flagged")
    return 0 if good and flagged else 1


if __name__ == "__main__":
    sys.exit(main())
