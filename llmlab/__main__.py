"""The command line: `llmlab run`, `serve`, `models`, `demo` and `simulate`."""

import argparse
import asyncio
import sys
import textwrap
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from llmlab.cli.demo import FAULTS, demo
from llmlab.cli.models import add_models
from llmlab.cli.run import add_run
from llmlab.cli.serve import add_serve, port
from llmlab.sim.batches import BatchPace
from llmlab.sim.faults import Faults
from llmlab.sim.kinds import KINDS
from llmlab.sim.physics import Physics
from llmlab.sim.server import run_server
from llmlab.sim.transport import Simulator
from llmlab.version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the process's exit code."""
    args = _parser().parse_args(argv)
    try:
        return int(args.run(args))
    except (ValueError, TypeError, ImportError) as error:
        print(f"llmlab: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"llmlab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llmlab",
        description="Run columns of prompts through LLM APIs.",
        epilog="`llmlab COMMAND --help` says all of a command. Without a key, to begin with: llmlab demo",
    )
    parser.add_argument("--version", action="version", version=f"llmlab {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_run(commands)
    add_serve(commands)
    add_models(commands)
    _add_demo(commands)
    _add_simulate(commands)
    return parser


def _add_demo(commands: Any) -> None:
    shown = commands.add_parser(
        "demo",
        help="run a shipped CSV of prompts against a misbehaving simulated server",
        description="Run 360 shipped prompts against a simulated server that fails one request in ten.",
        epilog="writes demo.csv, demo.parquet and demo.png; needs no key and no network",
    )
    shown.add_argument("--out", type=Path, default=Path("demo-output"), help="folder for the results")
    shown.add_argument("--faults", default=FAULTS, help=f"what goes wrong (default: {FAULTS})")
    shown.add_argument("--rows", type=int, help="only so many of the prompts (default: all 360)")
    shown.add_argument("--concurrency", type=int, default=32, help="requests in flight at most (default: 32)")
    shown.add_argument("--seed", type=int, default=0, help="same seed, same faults and answers (default: 0)")
    shown.set_defaults(run=demo)


def _add_simulate(commands: Any) -> None:
    simulate = commands.add_parser(
        "simulate",
        help="serve the simulated provider on a socket",
        description="Serve a provider that speaks OpenAI's and Anthropic's format, and misbehaves as it is told to.",
        epilog=(
            "example:\n"
            "  llmlab simulate --faults mixed:0.1,outage:10+5 --rpm 600\n"
            "  llmlab run prompts.csv --model openai:any --base-url http://127.0.0.1:8080/v1    needs no key\n\n"
            "--faults: KIND:SHARE, several separated by commas; outage:START+SECONDS; KIND is mixed, or one of\n"
            + textwrap.fill(", ".join(sorted(filter(None, KINDS))), 100, initial_indent="  ", subsequent_indent="  ")
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    simulate.add_argument("--port", type=port, default=8080, help="0: any free port (default: 8080)")
    simulate.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    simulate.add_argument(
        "--anywhere",
        action="store_true",
        help="allow a host other than loopback; nobody is asked for a password",
    )
    simulate.add_argument("--faults", default="", help="what goes wrong, as mixed:0.1,outage:10+5")
    simulate.add_argument("--rpm", type=float, help="requests per minute (default: no limit)")
    simulate.add_argument("--tpm", type=float, help="tokens per minute (default: no limit)")
    simulate.add_argument("--batches", default="", help="how fast batches go, as rows_per_s:100,start:1,window:60")
    simulate.add_argument("--seed", type=int, default=0, help="same seed, same faults and answers (default: 0)")
    simulate.set_defaults(run=_simulate)


def _simulate(args: argparse.Namespace) -> int:
    physics = Physics(rpm=args.rpm, tpm=args.tpm)
    faults, pace = Faults.parse(args.faults), BatchPace.parse(args.batches)
    simulator = Simulator(seed=args.seed, physics=physics, faults=faults, batches=pace)
    say = partial(print, flush=True)  # also into a pipe, where somebody waits for the address
    asyncio.run(run_server(simulator, args.host, args.port, announce=say, anywhere=args.anywhere))
    return 0


if __name__ == "__main__":
    sys.exit(main())
