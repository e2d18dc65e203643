"""`llmlab demo` and `llmlab simulate`."""

import argparse
import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd

from llmlab.frame import Frame
from llmlab.lab import Lab
from llmlab.sim.faults import Faults
from llmlab.sim.physics import Physics
from llmlab.sim.server import Server, run_server, serve
from llmlab.sim.transport import Simulator
from llmlab.stats import summary
from llmlab.version import __version__

DEMO_FAULTS = "mixed:0.1"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the process's exit code."""
    args = _parser().parse_args(argv)
    try:
        return int(args.run(args))
    except (ValueError, TypeError) as error:
        print(f"llmlab: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"llmlab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="llmlab", description="Run columns of prompts through LLM APIs.")
    parser.add_argument("--version", action="version", version=f"llmlab {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    demo = commands.add_parser("demo", help="run a shipped CSV of prompts against a misbehaving simulated server")
    demo.add_argument("--out", type=Path, default=Path("demo-output"), help="folder for the results")
    demo.add_argument("--faults", default=DEMO_FAULTS, help=f"what goes wrong (default: {DEMO_FAULTS})")
    demo.add_argument("--rows", type=int, help="only so many of the prompts (default: all 360)")
    demo.add_argument("--concurrency", type=int, default=32, help="requests in flight at most (default: 32)")
    demo.add_argument("--seed", type=int, default=0, help="same seed, same faults and answers (default: 0)")
    demo.set_defaults(run=_demo)
    simulate = commands.add_parser("simulate", help="serve the simulated provider on a socket")
    simulate.add_argument("--port", type=_port, default=8080, help="0: any free port (default: 8080)")
    simulate.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    simulate.add_argument(
        "--anywhere",
        action="store_true",
        help="allow a host other than loopback; nobody is asked for a password",
    )
    simulate.add_argument("--faults", default="", help="what goes wrong, as mixed:0.1,outage:10+5")
    simulate.add_argument("--rpm", type=float, help="requests per minute (default: no limit)")
    simulate.add_argument("--tpm", type=float, help="tokens per minute (default: no limit)")
    simulate.add_argument("--seed", type=int, default=0, help="same seed, same faults and answers (default: 0)")
    simulate.set_defaults(run=_simulate)
    return parser


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port < 2**16:
        raise ValueError(text)
    return port


def _simulate(args: argparse.Namespace) -> int:
    physics = Physics(rpm=args.rpm, tpm=args.tpm)
    simulator = Simulator(seed=args.seed, physics=physics, faults=Faults.parse(args.faults))
    say = partial(print, flush=True)  # also into a pipe, where somebody waits for the address
    asyncio.run(run_server(simulator, args.host, args.port, announce=say, anywhere=args.anywhere))
    return 0


def _demo(args: argparse.Namespace) -> int:
    prompts = pd.read_csv(str(files("llmlab") / "data" / "prompts.csv"), index_col="id", nrows=args.rows)
    out, received = asyncio.run(_run_demo(prompts, args))
    print("\nSummary\n" + _numbers(summary(out)))
    print(f"\nThe server counted {received:,} requests; the frame's attempts sum to {out.attempts.sum():,}.")
    columns = ["prompt", "content", "status", "attempts", "latency_ms"]
    print("\nFirst rows\n" + out[columns].head(8).to_string(max_colwidth=36, float_format="{:.0f}".format))
    print("\nWritten")
    for path in _write(out, args.out):
        print(f"  {path}")
    return 0 if (out.status == "ok").all() else 1


async def _run_demo(prompts: Frame, args: argparse.Namespace) -> tuple[Frame, int]:
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
    axes = figure.subplots()
    axes.hist([out.latency_ms[out.attempts == 1], out.latency_ms[out.attempts > 1]], bins=40, stacked=True)
    axes.legend(["answered at once", "answered after retries"])
    axes.set(xlabel="latency of the successful attempt (ms)", ylabel="rows", title="Latency of the demo's rows")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
