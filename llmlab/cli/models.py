"""`llmlab models`: which providers there are and whether their keys are set; which models one of them has."""

import argparse
import asyncio
import os
from collections.abc import Mapping
from typing import Any

import orjson

from llmlab.errors import LLMError
from llmlab.lab import Lab
from llmlab.prices import Price
from llmlab.providers.endpoint import Provider
from llmlab.providers.presets import PRESETS

PAGE = 1000
"""Models asked for at a time, where a provider gives them out by pages."""


def models(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    rows: list[tuple[str, ...]]
    if args.provider is None:
        rows = [("provider", "key", "address"), *_providers(os.environ)]
    else:
        try:
            found = asyncio.run(_ask(args.provider, args.base_url))
        except LLMError as error:
            raise OSError(f"{args.provider}: {error}") from None
        rows = [("model", "USD per million tokens, input / output"), *found]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _providers(environment: Mapping[str, str]) -> list[tuple[str, str, str]]:
    rows = [("sim", "none needed", "in this process: the simulated provider")]
    for name, preset in PRESETS.items():
        variables = " or ".join(preset.key_vars)
        if any(environment.get(variable) for variable in preset.key_vars):
            key = f"{variables}: set"
        else:
            key = f"{variables}: not set" if preset.key_required else "none needed"
        rows.append((name, key, preset.base_url or "give --base-url"))
    return rows


async def _ask(name: str, base_url: str | None) -> list[tuple[str, str]]:
    async with Lab(f"{name}:any", base_url=base_url) as lab:
        provider = lab.target.provider
        return [(model, _priced(provider.prices.get(model))) for model in sorted(await _names(provider))]


async def _names(provider: Provider) -> list[str]:
    """All models, page by page."""
    path, names = provider.codec.path.rpartition("/")[0], list[str]()
    path = path.removesuffix("/chat") + "/models"
    after = ""
    while True:
        page = await _page(provider, f"{path}?limit={PAGE}{after}" if provider.name == "anthropic" else path)
        names += [str(model["id"]) for model in page["data"]]
        if not page.get("has_more"):
            return names
        after = f"&after_id={page['last_id']}"


async def _page(provider: Provider, path: str) -> dict[str, Any]:
    body = await provider.request("GET", path, kind="application/json")
    try:
        page = orjson.loads(body)
        _ = [model["id"] for model in page["data"]]
    except (ValueError, TypeError, KeyError):
        raise LLMError("what it answers is no list of models") from None
    return dict(page)


def _priced(price: Any) -> str:
    return f"{price.input:g} / {price.output:g}" if isinstance(price, Price) else "not known"


def add_models(commands: Any) -> None:
    """Add the command to the program's parser."""
    parser = commands.add_parser(
        "models",
        help="list the providers and their keys, or the models of one",
        description="Without a provider: which there are and whether keys are set. With one: its models and prices.",
        epilog="The key is read from the environment; it is never shown.",
    )
    parser.add_argument("provider", nargs="?", metavar="PROVIDER", help="as openai, anthropic, ollama")
    parser.add_argument("--base-url", metavar="URL", help="where its API lives, as http://127.0.0.1:8000/v1")
    parser.set_defaults(run=models)
