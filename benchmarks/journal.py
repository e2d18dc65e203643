"""What the journal costs a row: the same run without one and with one, in turn.

    python benchmarks/journal.py
    python benchmarks/journal.py --rows 20000 --repeat 9 --folder /mnt/disk --json runs.json

Conditions are those of llmlab's line in `throughput.py`: nginx as an instant local server, a process of its own for
each run, a warm-up of one prompt per connection (with a journal of its own), distinct prompts, every answer checked.
Each round runs without, with durability "process" and with "power", the next round in reverse. Ratio and differences
are taken within a round, so that what else the machine does touches both sides: the median of the rounds is shown,
and the least and the greatest of the ratio. CPU is user and system time of all threads of the run's process. Opening
and closing the file is part of a run; after it the file must hold each row.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict
from functools import partial
from importlib import import_module
from pathlib import Path

from throughput import (
    CLIENTS,
    KEY,
    MODEL,
    PATIENCE,
    Run,
    Sample,
    check_server,
    child_env,
    llmlab_run_many,
    measure,
    raise_file_limit,
    server,
)

WITHOUT = "none"
KINDS = (WITHOUT, "process", "power")
"""No journal, and a journal of each durability."""


@contextlib.asynccontextmanager
async def journalled(url: str, connections: int, *, durability: str, folder: str) -> AsyncIterator[Run]:
    """Use llmlab's full default stack with a journal, each time a new one.

    Raises:
        RuntimeError: the last journal does not hold each row of its run.
    """
    llmlab, journal = import_module("llmlab"), import_module("llmlab.journal")
    paths = (Path(folder, f"run-{number}.sqlite") for number in itertools.count())
    written: dict[Path, int] = {}
    async with llmlab.Lab(f"openai:{MODEL}", base_url=url, api_key=KEY, concurrency=connections) as lab:

        async def run(prompts: list[str]) -> list[str]:
            path = next(paths)
            written[path] = len(prompts)
            out = await lab.run_many(prompts, progress=False, journal=path, durability=durability)
            return list(out["content"].where(out["status"] == "ok", ""))

        yield run
    for path, rows in written.items():
        there = journal.read(path)
        if (whole := int((there["status"] == "ok").sum())) != rows:
            raise RuntimeError(f"the journal holds {whole} answers of {rows}")


async def run_child(kind: str, port: int, connections: int, rows: int, folder: str) -> Sample:
    """Measure one kind, in this process."""
    CLIENTS[kind] = llmlab_run_many if kind == WITHOUT else partial(journalled, durability=kind, folder=folder)
    return await measure(kind, f"http://127.0.0.1:{port}/v1", connections, rows)


def sample(kind: str, port: int, connections: int, rows: int, folder: Path | None) -> Sample:
    """Measure one kind in a new process, with its files in a new folder below `folder`.

    Raises:
        RuntimeError: the run failed.
        subprocess.TimeoutExpired: it took longer than `PATIENCE`.
    """
    command = [sys.executable, __file__, "--child", kind, "--port", str(port)]
    command += ["--connections", str(connections), "--rows", str(rows)]
    with tempfile.TemporaryDirectory(dir=folder) as files:
        command += ["--folder", files]
        done = subprocess.run(command, env=child_env(), capture_output=True, text=True, timeout=PATIENCE, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["died"])[-1])
    return Sample(**json.loads(done.stdout.splitlines()[-1]))


def collect(args: argparse.Namespace, port: int) -> list[dict[str, Sample]]:
    """Measure all kinds, round by round, every other round in reverse."""
    rounds = []
    for number in range(args.repeat):
        order = KINDS[:: -1 if number % 2 else 1]
        rounds.append({kind: sample(kind, port, args.connections, args.rows, args.folder) for kind in order})
    return rounds


def table(rounds: list[dict[str, Sample]]) -> str:
    """Format the medians; more wall and CPU time per row and the ratio are those beside the same round's plain run."""
    head = f"{'journal':<9}{'rows/s':>8}{'µs/row':>9}{'more':>8}{'CPU µs/row':>13}{'more':>8}{'/ none':>9}"
    return "\n".join([f"{head}  least..greatest", *(_line(rounds, kind) for kind in KINDS)])


def _line(rounds: list[dict[str, Sample]], kind: str) -> str:
    mid = statistics.median
    runs, plain = [each[kind] for each in rounds], [each[WITHOUT] for each in rounds]
    wall = [1e6 / one.rows_s for one in runs]
    figures = f"{kind:<9}{mid(one.rows_s for one in runs):>8,.0f}{mid(wall):>9,.1f}"
    cpu = f"{mid(one.cpu_us for one in runs):>13,.1f}"
    if kind == WITHOUT:
        return f"{figures}{'':>8}{cpu}"
    more = mid(each - 1e6 / other.rows_s for each, other in zip(wall, plain, strict=True))
    more_cpu = mid(one.cpu_us - other.cpu_us for one, other in zip(runs, plain, strict=True))
    ratios = [one.rows_s / other.rows_s for one, other in zip(runs, plain, strict=True)]
    spread = f"{mid(ratios):>9.2f}  {min(ratios):.2f}..{max(ratios):.2f}"
    return f"{figures}{more:>8,.1f}{cpu}{more_cpu:>8,.1f}{spread}"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=5_000, help="rows of each run (default %(default)s)")
    parser.add_argument("--connections", type=int, default=100, help="default %(default)s")
    parser.add_argument("--repeat", type=int, default=7, help="rounds (default %(default)s)")
    parser.add_argument("--folder", type=Path, help="where the journals go; default: the system's temporary folder")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single run to this file")
    parser.add_argument("--child", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and print a table."""
    args = parse(argv)
    if args.child:
        done = asyncio.run(run_child(args.child, args.port, args.connections, args.rows, str(args.folder)))
        print(json.dumps(asdict(done)))
        return
    raise_file_limit()
    with server(0.0) as port:
        check_server(port, args.connections, 0.0)
        rounds = collect(args, port)
    print(f"{args.rows:,} rows a run, {args.connections} connections, {args.repeat} rounds")
    print(table(rounds))
    if args.json:
        runs = [{kind: asdict(one) for kind, one in each.items()} for each in rounds]
        args.json.write_text(json.dumps({"rows": args.rows, "rounds": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
