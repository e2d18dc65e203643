"""Typed answers from a provider of whose answers a share does not fit the schema: what asking again buys, and costs.

    python benchmarks/typed.py [--rows 2000] [--bad 0.2]

All counts in brackets are the provider's own. A row is right if it holds what the provider has meant to say to it.
Virtual time: the same figures on every machine.
"""

import argparse
from typing import Any, Literal
from zlib import crc32

from pydantic import BaseModel, Field

import llmlab
from llmlab.clock import run_virtual
from llmlab.sim import Simulator
from llmlab.sim.faults import MISFITS, Faults
from llmlab.sim.wire import Ask

PRICE = (3.0, 15.0)
"""Dollars per million tokens, input and output."""


class Review(BaseModel):
    """What is asked for."""

    label: Literal["good", "bad"]
    stars: int = Field(ge=1, le=5)
    words: list[str]


def due(prompt: str) -> Review:
    """The right answer to a prompt."""
    n = crc32(prompt.encode())
    return Review(label="good" if n % 2 else "bad", stars=1 + n % 5, words=prompt.split())


def say(ask: Ask) -> str:
    """The right answer to the first line of a conversation."""
    return due(ask.text.split("\n")[0]).model_dump_json()


def line(provider: str, rows: int, bad: float, reask: int) -> str:
    """Run once; a line of the table."""
    sim = Simulator(seed=5, faults=Faults.misfits(bad), say=say)
    lab = llmlab.Lab(f"{provider}:m", transport=sim, prices={"m": PRICE}, seed=1)
    job = lab.run_many([f"Review {n} is about tea" for n in range(rows)], schema=Review, reask=reask, progress=False)

    async def main() -> Any:
        return await job

    out, told = run_virtual(main), sim.stats()
    values = zip(out["prompt"], out["label"], out["stars"], out["words"], out["status"], strict=True)
    right = sum(
        status == "ok" and due(prompt) == Review(label=label, stars=stars, words=words)
        for prompt, label, stars, words, status in values
    )
    spoilt = sum(told["by_fault"].get(name, 0) for name in MISFITS)
    lost = int((out["status"] != "ok").sum())
    billed = (told["tokens"]["input"] * PRICE[0] + told["tokens"]["output"] * PRICE[1]) / 1e6
    cells = (
        provider,
        reask,
        f"{right} of {rows}",
        lost,
        f"{(job.attempts['kind'] == 'reask').sum()} [{spoilt - lost}]",
        f"{out['attempts'].sum()} [{told['received']}]",
        f"{out['input_tokens'].sum() + out['output_tokens'].sum()} [{sum(told['tokens'].values())}]",
        f"{out['cost_usd'].sum():.4f} [{billed:.4f}]",
    )
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--bad", type=float, default=0.2, help="share of answers that do not fit")
    options = parser.parse_args()
    print("| provider | reask | rows right | rows given up | asked again | requests | tokens | USD |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for provider in ("openai", "anthropic"):
        for reask in (0, 1, 2, 3):
            print(line(provider, options.rows, options.bad, reask))


if __name__ == "__main__":
    main()
