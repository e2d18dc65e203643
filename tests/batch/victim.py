"""A program to be killed: submits a batch, says its id on stdout, and waits for it; or takes one up and prints it.

python -m tests.batch.victim DIALECT URL submit [--journal PATH]    prints the id, then waits for what comes of it
python -m tests.batch.victim DIALECT URL attach ID                  prints the frame as JSON
"""

import argparse
import asyncio
import os

from llmlab.lab import Lab
from tests.batch.labs import KEY, PRICES

ROWS = 40


def prompts() -> list[str]:
    return [f"prompt {n}" for n in range(ROWS)]


def tell(line: str) -> None:
    os.write(1, f"{line}\n".encode())


async def main(dialect: str, url: str, batch: str | None, journal: str | None) -> None:
    async with Lab(f"{dialect}:m", base_url=url, api_key=KEY, prices=PRICES, progress=False) as lab:
        if batch is None:
            job = lab.submit_batch(prompts(), most_rows=15, poll=0.1, journal=journal)
            tell(await job.submitted())
            await job
            tell("survived")
        else:
            tell((await lab.attach_batch(batch, poll=0.1)).to_json(orient="split"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("dialect")
    parser.add_argument("url")
    parser.add_argument("what", choices=("submit", "attach"))
    parser.add_argument("batch", nargs="?")
    parser.add_argument("--journal")
    args = parser.parse_args()
    asyncio.run(main(args.dialect, args.url, args.batch, args.journal))
