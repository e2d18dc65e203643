"""`llmlab serve`: a lab behind HTTP, on loopback unless told otherwise."""

import argparse
import asyncio
import contextlib
import ipaddress
import logging
import os
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from llmlab.lab import Lab

KEYS = "LLMLAB_SERVICE_KEYS"
"""Environment variable with the service's keys: NAME=KEY, several separated by commas."""


def serve(args: argparse.Namespace) -> int:
    """Serve until interrupted; returns the exit code."""
    keys = _keys(args.keys, os.environ)
    if not keys and not _is_loopback(args.host):
        raise ValueError(f"--host {args.host} is not loopback, so keys are needed: --keys FILE, or the variable {KEYS}")
    service = import_module("llmlab.service.server")  # needs the extra "serve", which the other commands do not
    import_module("llmlab.service.logs").log_to(level=logging.WARNING if args.quiet else logging.INFO)
    try:
        asyncio.run(_serve(service.run_app, keys, args))
    except RuntimeError as error:  # its folder is in use
        raise OSError(str(error)) from None
    return 0


async def _serve(run_app: Any, keys: Mapping[str, str], args: argparse.Namespace) -> None:
    async with Lab(
        args.model,
        base_url=args.base_url,
        concurrency=args.concurrency,
        rpm=args.rpm,
        tpm=args.tpm,
        fallback=args.fallback,
        cache=args.cache,
        budget_usd=args.budget_usd,
        queue=args.queue,
        seed=args.seed,
    ) as lab:
        with _telemetry(lab, wanted=args.otel) as more:
            await _run(run_app, lab, keys, args, more)


@contextlib.contextmanager
def _telemetry(lab: Lab, *, wanted: bool) -> Iterator[Any]:
    if not wanted:
        yield {}
        return
    otel = import_module("llmlab.otel")  # needs the extra "otel"
    with otel.exporting() as (spans, figures):
        otel.instrument(lab, tracer_provider=spans, meter_provider=figures)
        yield {"middleware": [otel.Continuing]}


async def _run(run_app: Any, lab: Lab, keys: Mapping[str, str], args: argparse.Namespace, more: Any) -> None:
    await run_app(
        lab,
        host=args.host,
        port=args.port,
        keys=keys,
        models=args.allow_model,
        state_dir=args.state,
        rpm=args.rpm_per_key,
        max_pending=args.max_pending,
        deadline=args.deadline,
        grace=args.grace,
        cors=args.cors,
        log_prompts=args.log_prompts,
        **more,
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _keys(path: Path | None, environment: Mapping[str, str]) -> dict[str, str]:
    """Keys by name, from a file of lines NAME=KEY, or from the environment."""
    text = environment.get(KEYS, "").replace(",", "\n") if path is None else path.read_text(encoding="utf-8")
    keys: dict[str, str] = {}
    for place, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, found, key = (part.strip() for part in line.partition("="))
        if not (name and found and key):
            raise ValueError(f"{path or KEYS}, line {place}: write NAME=KEY")
        if name in keys:
            raise ValueError(f"{path or KEYS}: the name {name!r} stands there twice")
        keys[name] = key
    return keys


def add_serve(commands: Any) -> None:
    """Add the command to the program's parser."""
    parser = commands.add_parser(
        "serve",
        help="put a lab behind HTTP: completions, batches, long jobs, and the OpenAI API",
        description="Serve completions over HTTP, with llmlab's retries, limits, fallback and queue, until Ctrl-C.",
        epilog=(
            "examples:\n"
            "  llmlab serve                               the simulated provider on http://127.0.0.1:8000, no key\n"
            "  llmlab serve --model openai:MODEL --fallback anthropic:MODEL --state jobs/\n"
            '  curl http://127.0.0.1:8000/v1/completions --json \'{"prompt": "Hi"}\'\n'
            "  OpenAI clients: base_url=http://127.0.0.1:8000/v1; live numbers: /; API: /docs; Prometheus: /metrics"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _where(parser.add_argument_group("where and for whom"))
    _upstream(parser.add_argument_group("upstream"))
    parser.set_defaults(run=serve)


def _where(group: Any) -> None:
    group.add_argument("--port", type=port, default=8000, help="0: any free port (default: 8000)")
    group.add_argument("--host", default="127.0.0.1", help="another than loopback needs keys (default: 127.0.0.1)")
    group.add_argument("--keys", type=Path, metavar="FILE", help=(
        f"who may ask, by bearer key: lines NAME=KEY. Default: the variable {KEYS}, or no keys"))  # fmt: skip
    group.add_argument("--rpm-per-key", type=float, metavar="N", help="prompts per minute for each key")
    group.add_argument("--max-pending", type=int, default=10_000, metavar="N", help=(
        "prompts whose clients wait, at a time; more get 429 with Retry-After (default: 10,000)"))  # fmt: skip
    group.add_argument("--state", type=Path, metavar="DIR", help="keep long jobs there, so that they survive a restart")
    group.add_argument("--deadline", type=float, default=600.0, metavar="S", help="a request's seconds (default: 600)")
    group.add_argument("--grace", type=float, default=30.0, metavar="S", help=(
        "seconds that requests at work get when the service ends (default: 30)"))  # fmt: skip
    group.add_argument("--cors", action="append", default=[], metavar="ORIGIN", help="web pages that may ask")
    group.add_argument(
        "--log-prompts",
        action="store_true",
        help="put prompts' texts into the log, which has one JSON object a line, on standard output",
    )
    group.add_argument("--otel", action="store_true", help=(
        "send OpenTelemetry spans and metrics to a collector, as the variables OTEL_* say"))  # fmt: skip
    group.add_argument("--quiet", action="store_true", help="log warnings only")


def _upstream(group: Any) -> None:
    group.add_argument("--model", default="sim:small", metavar="PROVIDER:MODEL", help=(
        "as openai:MODEL; the key comes from the environment. Default: the simulated provider"))  # fmt: skip
    group.add_argument("--allow-model", action="append", metavar="MODEL", help=(
        "a further model that may be asked for; may be given several times. Default: any"))  # fmt: skip
    group.add_argument("--base-url", metavar="URL", help="where the API lives")
    group.add_argument("--fallback", action="append", default=[], metavar="PROVIDER:MODEL", help="where to go on")
    group.add_argument("--concurrency", type=_concurrency, metavar="N|auto", help="requests in flight (default: 32)")
    group.add_argument("--queue", type=int, metavar="N", help="requests that may wait in line (default: 10,000)")
    group.add_argument("--rpm", type=float, metavar="N", help="requests per minute to the provider at most")
    group.add_argument("--tpm", type=float, metavar="N", help="tokens per minute at most")
    group.add_argument("--cache", type=Path, metavar="FILE", help="keep answers; the same question costs nothing again")
    group.add_argument("--budget-usd", type=float, metavar="USD", help="stop before more than that is spent in all")
    group.add_argument("--seed", type=int, metavar="N", help="of jitter and of the simulated provider")


def port(text: str) -> int:
    """Read a port's number.

    Raises:
        ValueError: there is no such port.
    """
    number = int(text)
    if not 0 <= number < PORTS:
        raise ValueError(text)
    return number


PORTS = 2**16


def _concurrency(text: str) -> int | str:
    return text if text == "auto" else int(text)
