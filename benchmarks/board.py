"""What a job's board costs a notebook's kernel at so many rows a second, beside the same job unseen.

The provider is a transport in the kernel that answers every request after 0.2 s: concurrency sets the pace. The kernel
is a real one, driven as JupyterLab does it, but nobody draws; see `grid.py`, whose ways and figures these are.
"""

import argparse
import json
from collections.abc import Sequence

from grid import WAYS, Sample, run, table
from jupyter_client.manager import start_new_kernel
from throughput import KEY, MODEL, child_env

LATENCY = 0.2

WARM_UP = """
import asyncio, json, os, time
import httpx
os.environ["LLMLAB_UI"] = {way!r}
import llmlab

class Provider(httpx.AsyncBaseTransport):
    async def handle_async_request(self, request):
        await asyncio.sleep({latency})
        message = {{"role": "assistant", "content": "yes"}}
        usage = {{"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}}
        choice = {{"index": 0, "message": message, "finish_reason": "stop"}}
        return httpx.Response(200, json={{"model": {model!r}, "choices": [choice], "usage": usage}})

def make():
    prices = {{{model!r}: (1.0, 2.0)}}
    return llmlab.Lab("openai:{model}", transport=Provider(), api_key={key!r}, concurrency={at_once}, prices=prices)

_ = await make().run_many([f"warm {{n}}" for n in range(2 * {at_once})])
lab = make()
"""
RUN = """
cpu, wall = time.process_time(), time.perf_counter()
out = await lab.run_many([f"row {{n}}" for n in range({rows})])
cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
print(json.dumps({{"cpu": cpu, "wall": wall, "ok": int((out.status == "ok").sum())}}))
"""


def sample(way: str, rows: int, pace: float) -> tuple[Sample, float]:
    """Run a job in a new kernel; what it cost, and rows per second.

    Raises:
        RuntimeError: a cell failed, or rows did.
    """
    manager, client = start_new_kernel(env=child_env())
    try:
        run(client, WARM_UP.format(way=way, at_once=round(pace * LATENCY), latency=LATENCY, model=MODEL, key=KEY))
        heard = run(client, RUN.format(rows=rows))
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    found = json.loads(heard.printed.splitlines()[-1])
    if found["ok"] != rows:
        raise RuntimeError(f"{found['ok']} of {rows} rows are ok")
    seconds = found["wall"]
    cost = Sample(way, 100 * found["cpu"] / seconds, heard.messages / seconds, heard.size / seconds / 1000)
    return cost, rows / seconds


def main(argv: Sequence[str] | None = None) -> None:
    """Measure each way to show and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=8000, help="default %(default)s")
    parser.add_argument("--pace", type=float, default=1000.0, help="rows/s at most (default %(default)s)")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each way (default %(default)s)")
    parser.add_argument("--only", nargs="+", choices=WAYS, default=list(WAYS), help="default all")
    args = parser.parse_args(argv)
    samples, paces = [], []
    for number in range(args.repeat):
        for way in args.only[:: -1 if number % 2 else 1]:
            cost, pace = sample(way, args.rows, args.pace)
            samples.append(cost)
            paces.append(pace)
    print(f"{args.rows:,} rows, {min(paces):,.0f} to {max(paces):,.0f} rows/s")
    print(table(samples))


if __name__ == "__main__":
    main()
