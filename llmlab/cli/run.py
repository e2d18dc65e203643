"""`llmlab run`: a file of prompts in, the same file with answers out.

The exit code says how it went: 0 all rows are answered; 1 some are not (the output has them all, with their errors);
2 nothing was sent, because something was wrong with the call; 130 it was interrupted, and the output has what was done.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from llmlab.cli.files import check_place, format_of, read_table, write_table
from llmlab.frame import OVERRIDES, Frame
from llmlab.job import Job
from llmlab.lab import Lab
from llmlab.stats import summary

OK, FAILED, INTERRUPTED = 0, 1, 130


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    try:
        write_as = format_of(args.output, args.output_format)
        check_place(args.output, replace=args.force or args.journal is not None)
        table = _read(args)
        job = _start(args, table)
    except OSError as error:
        raise ValueError(str(error)) from None  # as other mistakes in the call: nothing was sent
    out = job.result()
    write_table(_joined(table, out, same=args.template is None and args.column == "prompt"), args.output, write_as)
    print(_told(out, job), file=sys.stderr)
    if job.stopped == "interrupted":
        print(_how_to_go_on(args), file=sys.stderr)
        return INTERRUPTED
    return OK if (out.status == "ok").all() else FAILED


def _read(args: argparse.Namespace) -> Frame:
    table = read_table(args.input, format_of(args.input, args.input_format)).head(args.rows)
    if args.template is None and args.column not in table:
        raise ValueError(_no_prompts(args, table))
    return table


def _start(args: argparse.Namespace, table: Frame) -> Job[Frame]:
    lab = Lab(
        args.model,
        base_url=args.base_url,
        concurrency=args.concurrency,
        rpm=args.rpm,
        tpm=args.tpm,
        fallback=args.fallback,
        cache=args.cache,
        system=args.system,
        temperature=args.temperature,
        max_tokens=args.max_tokens,
        extra=args.extra,
        seed=args.seed,
    )
    prompts = table.rename(columns={args.column: "prompt"}) if args.template is None else table
    return lab.run_many(
        prompts,
        template=args.template,
        overrides=() if args.no_overrides else OVERRIDES,
        schema=args.schema,
        stream=args.stream,
        pack=args.pack,
        journal=args.journal,
        budget_usd=args.budget_usd,
        budget_tokens=args.budget_tokens,
        priority=args.priority,
        progress=False if args.quiet else None,
    )


def _no_prompts(args: argparse.Namespace, table: Frame) -> str:
    known = ", ".join(map(repr, table.columns))
    return (
        f"{args.input} has no column {args.column!r}, it has {known}: name the one with the prompts by --column, "
        "or make them of columns by --template 'Classify: {review}'"
    )


def _joined(table: Frame, out: Frame, *, same: bool) -> Frame:
    """The input's columns, then the result's; where both have one, the input's is called input_NAME.

    `same`: the input's column `prompt` is the result's, and need not stand there twice.
    """
    given = table.drop(columns=["prompt"]) if same else table
    given = given.rename(columns={name: f"input_{name}" for name in given.columns if name in out.columns})
    return given.join(out)


def _told(out: Frame, job: Job[Frame]) -> str:
    numbers = summary(out)
    bad = out[out.status == "error"].error_type.value_counts()
    parts = [
        f"{numbers.success_count:,} of {numbers.rows:,} rows answered",
        *(f"{count:,} {kind}" for kind, count in bad.items()),
        f"{numbers.cancelled_count:,} not asked" if numbers.cancelled_count else "",
        f"{numbers.attempts:,} requests",
        f"{numbers.total_time_ms / 1000:,.1f} s",
        "" if numbers.cost_usd != numbers.cost_usd else f"${numbers.cost_usd:.4f}",
        f"bound by {job.bound_by}" if job.bound_by else "",
    ]
    return "llmlab: " + ", ".join(filter(None, parts))


def _how_to_go_on(args: argparse.Namespace) -> str:
    if args.journal is not None:
        return f"llmlab: interrupted; the same command goes on where it stopped ({args.journal} has what is answered)"
    return "llmlab: interrupted; with --journal FILE the same command would go on where it stopped"


def add_run(commands: Any) -> None:
    """Add the command to the program's parser."""
    parser = commands.add_parser(
        "run",
        help="run a file of prompts and write the answers",
        description="Run a file of prompts and write it again with an answer, latency and error columns for each row.",
        epilog=(
            "examples:\n"
            "  llmlab run prompts.csv -o answers.csv                      the simulated provider, no key\n"
            "  llmlab run reviews.csv --template 'Positive or negative? {review}' \\\n"
            "      --model openai:MODEL -o out.parquet --journal run.sqlite --concurrency auto\n"
            "  the same again                                             goes on where it was stopped\n\n"
            "exit code: 0 all rows answered; 1 some not (the output has their errors); 2 nothing was sent; 130 Ctrl-C"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _files(parser.add_argument_group("files"))
    _asking(parser.add_argument_group("what is asked"))
    _limits(parser.add_argument_group("how"))
    parser.set_defaults(run=run)


def _files(group: Any) -> None:
    group.add_argument("input", metavar="INPUT", help="a .csv, .jsonl or .parquet file; - for standard input (jsonl)")
    group.add_argument(
        "-o", "--output", default="-", help="where to: a file of any of these kinds. Default: standard output (jsonl)"
    )
    kinds: Any = {"choices": ("csv", "jsonl", "parquet")}
    group.add_argument("--input-format", **kinds, help="if the name does not say it")
    group.add_argument("--output-format", **kinds, help="if the name does not say it")
    group.add_argument("--journal", type=Path, metavar="FILE", help=(
        "write each row down when it is answered; the same command again pays only for what is missing"))  # fmt: skip
    group.add_argument("--force", action="store_true", help="replace the output if it is there already")
    group.add_argument(
        "--rows",
        type=_count,
        default=sys.maxsize,
        metavar="N",
        help="only the first N rows: try it out first",
    )
    group.add_argument("--quiet", action="store_true", help="no line of progress (it is shown in terminals only)")


def _asking(group: Any) -> None:
    group.add_argument("--model", default="sim:small", metavar="PROVIDER:MODEL", help=(
        "as openai:MODEL, anthropic:MODEL, ollama:MODEL; the key comes from the environment "
        "(OPENAI_API_KEY, …; `llmlab models` lists them). Default: a simulated provider"))  # fmt: skip
    group.add_argument("--base-url", metavar="URL", help="where the API lives, as http://127.0.0.1:8000/v1")
    group.add_argument("--column", default="prompt", metavar="NAME", help="the column of prompts (default: prompt)")
    group.add_argument("--template", metavar="TEXT", help="make the prompts: column names in braces, 'Sum up: {text}'")
    group.add_argument("--system", metavar="TEXT", help="system prompt")
    group.add_argument("--temperature", type=float, metavar="T", help="0 to 2")
    group.add_argument("--max-tokens", type=_count, metavar="N", help="output tokens at most, for each answer")
    group.add_argument("--extra", type=_json, metavar="JSON", help="further request fields, as '{\"top_p\": 0.9}'")
    group.add_argument("--schema", type=_schema, metavar="FILE", help=(
        "a JSON schema that each answer must fit; its fields are columns of the output"))  # fmt: skip
    group.add_argument("--no-overrides", action="store_true", help=(
        f"columns named {', '.join(OVERRIDES)} do not set a row's own parameters"))  # fmt: skip


def _limits(group: Any) -> None:
    group.add_argument("--concurrency", type=_concurrency, metavar="N|auto", help=(
        "requests in flight at most (default: 32); auto: as many as still buy throughput"))  # fmt: skip
    group.add_argument("--pack", type=_count, metavar="N", help=(
        "put up to N short rows into one request; what comes back unusable is asked again alone"))  # fmt: skip
    group.add_argument("--rpm", type=float, metavar="N", help="requests per minute at most")
    group.add_argument("--tpm", type=float, metavar="N", help="tokens per minute at most, input and output together")
    group.add_argument("--budget-usd", type=float, metavar="USD", help="stop before more than that is spent")
    group.add_argument("--budget-tokens", type=_count, metavar="N", help="stop before more tokens than that are used")
    group.add_argument("--fallback", action="append", default=[], metavar="PROVIDER:MODEL", help=(
        "where to go on when a row has failed for good; may be given several times"))  # fmt: skip
    group.add_argument("--cache", type=Path, metavar="FILE", help="keep answers; the same question costs nothing again")
    group.add_argument("--priority", type=int, default=2, choices=range(4), help=argparse.SUPPRESS)
    group.add_argument("--stream", action="store_true", help="ask for pieces: fills ttft_ms")
    group.add_argument("--seed", type=int, metavar="N", help="of jitter and of the simulated provider")


def _concurrency(text: str) -> Any:
    return text if text == "auto" else _count(text)


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def _schema(path: str) -> dict[str, Any]:
    try:
        return _json(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _json(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError("must be a JSON object")
    return found
