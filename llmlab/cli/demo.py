"""`llmlab demo`: the shipped prompts against a misbehaving simulated server, on a real socket."""

import argparse
import asyncio
import contextlib
from collections.abc import AsyncIterator
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd

from llmlab.frame import Frame
from llmlab.lab import Lab
from llmlab.sim.faults import Faults
from llmlab.sim.server import Server, serve
from llmlab.sim.transport import Simulator
from llmlab.stats import summary

FAULTS = "mixed:0.1"


def demo(args: argparse.Namespace) -> int:
    """Run it, say what came of it, write it down; returns the exit code."""
    prompts = pd.read_csv(str(files("llmlab") / "data" / "prompts.csv"), index_col="id", nrows=args.rows)
    out, received = asyncio.run(_run(prompts, args))
    print("\nSummary\n" + _numbers(summary(out)))
    print(f"\nThe server counted {received:,} requests; the frame's attempts sum to {out.attempts.sum():,}.")
    columns = ["prompt", "content", "status", "attempts", "latency_ms"]
    print("\nFirst rows\n" + out[columns].head(8).to_string(max_colwidth=36, float_format="{:.0f}".format))
    print("\nWritten")
    for path in _write(out, args.out):
        print(f"  {path}")
    return 0 if (out.status == "ok").all() else 1


async def _run(prompts: Frame, args: argparse.Namespace) -> tuple[Frame, int]:
    simulator = Simulator(seed=args.seed, faults=Faults.parse(args.faults))
    async with _served(simulator) as server:
        base = f"{server.base_url}/v1"
        print(f"simulated server on {base}, faults: {args.faults}; {len(prompts)} prompts, {args.concurrency} at once")
        async with Lab("openai:demo", base_url=base, api_key="demo", concurrency=args.concurrency) as lab:
            return await lab.run_many(prompts.prompt), simulator.requests


@contextlib.asynccontextmanager
async def _served(simulator: Simulator) -> AsyncIterator[Server]:
    server = await serve(simulator)
    try:
        yield server
    finally:
        await server.aclose()


def _numbers(numbers: "pd.Series[float]") -> str:
    return "\n".join(f"  {name:<16} {_number(value):>12}" for name, value in numbers.items())


def _number(value: Any) -> str:
    if pd.isna(value):
        return "not known"
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"


def _write(out: Frame, folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    csv, parquet, png = (folder / f"demo.{kind}" for kind in ("csv", "parquet", "png"))
    out.to_csv(csv)
    out.to_parquet(parquet)
    _plot(out, png)
    return [csv, parquet, png]


def _plot(out: Frame, path: Path) -> None:
    from matplotlib.figure import Figure  # noqa: PLC0415  an optional dependency, and slow to import

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    import_module("llmlab.plots").latency(out, ax=figure.subplots())  # likewise
    figure.savefig(path, dpi=120)
