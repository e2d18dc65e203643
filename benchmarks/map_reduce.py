"""Map-reduce over real documents: the documentation strings of thirty standard-library modules, found at run time.

On the simulated provider by default; on a real one with `--model llamacpp:NAME --base-url http://…/v1`, for instance a
small local model behind `python -m llama_cpp.server`. Prints the forecast, the answer, and the trace by level.
"""

import argparse
import asyncio
import importlib
import inspect

import pandas as pd

import llmlab

MODULES = (
    *("argparse", "ast", "asyncio", "calendar", "collections", "contextlib", "copy", "csv", "dataclasses", "datetime"),
    *("decimal", "difflib", "doctest", "enum", "fractions", "functools", "heapq", "inspect", "itertools", "json"),
    *("logging", "operator", "pathlib", "pickle", "random", "re", "sqlite3", "statistics", "string", "threading"),
)
MAP = "What is Python's module {index} for? Answer in one sentence.\n\n{item}\n\nThe module {index} is for"
REDUCE = "Combine these notes on Python's modules into one short paragraph:\n\n{mapped_outputs}\n\nIn short,"
SHOWN = ["level", "item", "items", "parent", "children", "input_tokens", "output_tokens", "latency_ms", "status"]


def documentation(name: str, characters: int) -> str:
    """The documentation of a module, its classes and functions, cut at a length."""
    module = importlib.import_module(name)
    parts = [inspect.getdoc(module) or ""]
    for each, value in vars(module).items():
        if not each.startswith("_") and (inspect.isclass(value) or inspect.isroutine(value)):
            parts.append(f"{each}: {inspect.getdoc(value) or ''}")
    return "\n\n".join(parts)[:characters]


async def main(options: argparse.Namespace) -> None:
    """Ask, and print what came of it."""
    docs = pd.Series({name: documentation(name, options.characters) for name in MODULES})
    print(f"{len(docs)} documents, {docs.str.len().sum():,} characters, {docs.str.len().max():,} at most")
    asked = {
        "map": MAP,
        "reduce": REDUCE,
        "max_input_tokens": options.max_input_tokens,
        "fan_in": options.fan_in,
        "map_max_tokens": 40,
        "reduce_max_tokens": 80,
    }
    settings = {} if options.base_url is None else {"base_url": options.base_url}
    async with llmlab.Lab(options.model, seed=1, concurrency=options.concurrency, progress=False, **settings) as lab:
        print(lab.map_reduce(docs, **asked, dry_run=True), end="\n\n")
        job = lab.map_reduce(docs, **asked, journal=options.journal)
        answer = await job
    print(answer.content.strip(), end="\n\n")
    print(f"speaks for {answer.items - answer.left_out} of {answer.items} documents; {answer.calls} calls,", end=" ")
    print(f"{len(job.attempts)} requests, {answer.usage.input_tokens} tokens in, {answer.usage.output_tokens} out")
    trace = job.trace
    by_level = trace.groupby("level")
    print(by_level.agg(calls=("node", "size"), input_tokens=("input_tokens", "sum"), ms=("latency_ms", "median")))
    print(trace[SHOWN].to_string() if options.trace else trace.loc[trace.level > 0, SHOWN].to_string())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="sim:small", help='"provider:model" (default %(default)s)')
    parser.add_argument("--base-url", help="where the provider is, if not at its usual place")
    parser.add_argument("--characters", type=int, default=3000, help="of a document at most (default %(default)s)")
    parser.add_argument("--max-input-tokens", type=int, default=1500, help="of a prompt (default %(default)s)")
    parser.add_argument("--fan-in", type=int, default=6, help="answers combined at a time (default %(default)s)")
    parser.add_argument("--concurrency", type=int, default=8, help="requests in flight (default %(default)s)")
    parser.add_argument("--journal", help="go on where a run before was stopped")
    parser.add_argument("--trace", action="store_true", help="print every call, items' too")
    asyncio.run(main(parser.parse_args()))
