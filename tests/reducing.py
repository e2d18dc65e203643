"""A map-reduce on a model that answers with its prompt, in virtual time."""

from typing import Any

from llmlab.clock import run_virtual
from llmlab.reduce import Answer, MapReduce
from tests.echo import Model, lab_on

MAP, REDUCE = "m {item}", "r {mapped_outputs}"


def reduce_on(on: Model, items: Any, *, concurrency: int = 100, **settings: Any) -> tuple[Answer, MapReduce]:
    settings = {"map": MAP, "reduce": REDUCE, "separator": "+", **settings}

    async def main() -> tuple[Answer, MapReduce]:
        lab = lab_on(on, concurrency=concurrency)
        job = lab.map_reduce(items, **settings)
        return await job, job

    found: tuple[Answer, MapReduce] = run_virtual(main)
    return found
