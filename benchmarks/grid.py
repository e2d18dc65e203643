"""What the grid of `lab.show` costs a notebook's kernel: CPU, messages and bytes, beside the same streams unseen.

A local server (that of `streaming.py`) gives each pane 50 tokens a second; the kernel is a real one, in a process of
its own, driven as JupyterLab does it, but nobody draws. Its user and system time is taken from before `lab.show` until
after the cell's last message, the still picture in the end included. What one way to show costs is the difference to
`none`, which reads the same streams.

    widget   panes of one widget, one message each tenth of a second
    html     one output, redrawn twice a second
    none     nothing is shown
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jupyter_client.manager import start_new_kernel
from streaming import TOKENS, server
from throughput import KEY, MODEL, PATIENCE, child_env

WAYS = ("widget", "html", "none")

WARM_UP = """
import json, os, time
os.environ["LLMLAB_UI"] = {way!r}
import llmlab
from llmlab.sim import Physics, Simulator
warm = llmlab.Lab("openai:{model}", transport=Simulator(physics=Physics.instant()), concurrency={panes})
await warm.show([f"warm {{n}}" for n in range({panes})])
lab = llmlab.Lab("openai:{model}", base_url="http://127.0.0.1:{port}/v1", api_key={key!r}, concurrency={panes})
"""
RUN = """
cpu, wall = time.process_time(), time.perf_counter()
out = await lab.show([f"pane {{n}}" for n in range({panes})])
cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
print(json.dumps({{"cpu": cpu, "wall": wall, "tokens": int(out.output_tokens.sum())}}))
"""


@dataclass(frozen=True)
class Sample:
    """One run."""

    way: str
    """How it was shown."""
    cpu: float
    """The kernel's user and system time per second, percent."""
    messages: float
    """Messages from the kernel per second."""
    kilobytes: float
    """Their contents per second, kB."""


class Heard:
    """The kernel's messages while a cell runs."""

    def __init__(self) -> None:
        self.printed, self.messages, self.size = "", 0, 0

    def take(self, message: dict[str, Any]) -> None:
        """Note one."""
        self.messages += 1
        self.size += len(json.dumps(message["content"]))
        if message["msg_type"] == "stream":
            self.printed += message["content"]["text"]


def sample(way: str, panes: int, port: int) -> Sample:
    """Show so many panes in a new kernel.

    Raises:
        RuntimeError: a cell failed, or answers are not the server's.
    """
    manager, client = start_new_kernel(env=child_env())
    try:
        run(client, WARM_UP.format(way=way, panes=panes, port=port, model=MODEL, key=KEY))
        heard = run(client, RUN.format(panes=panes))
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    found = json.loads(heard.printed.splitlines()[-1])
    if found["tokens"] != panes * TOKENS:
        raise RuntimeError(f"{found['tokens']} tokens came instead of {panes * TOKENS}")
    seconds = found["wall"]
    return Sample(way, 100 * found["cpu"] / seconds, heard.messages / seconds, heard.size / seconds / 1000)


def run(client: Any, code: str) -> Heard:
    """Run a cell to its end.

    Raises:
        RuntimeError: it failed.
    """
    heard = Heard()
    reply = client.execute_interactive(code, timeout=PATIENCE, output_hook=heard.take, allow_stdin=False)
    if reply["content"]["status"] != "ok":
        raise RuntimeError(f"{reply['content'].get('ename')}: {reply['content'].get('evalue')}")
    return heard


def table(samples: Sequence[Sample]) -> str:
    """Format the medians."""
    lines = [f"{'shown by':<10}{'CPU %':>8}{'lowest':>8}{'highest':>9}{'messages/s':>12}{'kB/s':>8}"]
    for way in dict.fromkeys(one.way for one in samples):
        group = [one for one in samples if one.way == way]
        cpu = [one.cpu for one in group]
        figures = f"{statistics.median(cpu):>8.1f}{min(cpu):>8.1f}{max(cpu):>9.1f}"
        rest = [statistics.median(getattr(one, name) for one in group) for name in ("messages", "kilobytes")]
        lines.append(f"{way:<10}{figures}{rest[0]:>12.1f}{rest[1]:>8.1f}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure each way to show and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--panes", type=int, default=16, help="default %(default)s")
    parser.add_argument("--pace", type=float, default=50.0, help="tokens/s of each pane (default %(default)s)")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each way (default %(default)s)")
    parser.add_argument("--only", nargs="+", choices=WAYS, default=list(WAYS), help="default all")
    args = parser.parse_args(argv)
    samples = []
    with server(args.pace) as port:
        for number in range(args.repeat):
            samples += [sample(way, args.panes, port) for way in args.only[:: -1 if number % 2 else 1]]
    print(f"{args.panes} panes, {args.pace:g} tokens/s each")
    print(table(samples))


if __name__ == "__main__":
    main()
