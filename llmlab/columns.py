"""The shape of the result: `COLUMNS` is its single source, for the frame, the README's table and a test."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the result."""

    name: str
    """Its name."""
    dtype: str
    """Its pandas dtype, also when the frame is empty."""
    unit: str
    """Its unit; "" where there is none."""
    meaning: str
    """What a value says, and when it is missing."""
    choices: tuple[Any, ...] = ()
    """All values that a category has, in their order."""


COLUMNS: tuple[Column, ...] = (
    Column("prompt", "string", "", "the prompt's text as sent; of a conversation, its last user message"),
    Column("content", "string", "", "the answer's text, also if it does not fit its schema; else missing unless ok"),
    Column("status", "string", "", "ok, error or cancelled"),
    Column("error", "string", "", "why there is no answer, in words; missing when ok"),
    Column("error_type", "string", "", "the error's class, as in llmlab.errors; missing when ok"),
    Column(
        "latency_ms",
        "float64",
        "ms",
        "the successful attempt, from sending to the complete answer; missing from a batch",
    ),
    Column("ttft_ms", "float64", "ms", "time to the first piece of text; missing unless streamed"),
    Column("queue_ms", "float64", "ms", "waiting for admission, all attempts together"),
    Column("wait_ms", "float64", "ms", "backing off between attempts"),
    Column("attempts", "int64", "", "requests sent for this row"),
    Column(
        "finish_reason",
        "string",
        "",
        "why the model stopped: stop, length, tool_calls, content_filter, other",
    ),
    Column("provider", "string", "", "the provider that answered"),
    Column("model", "string", "", "the model that answered, as the provider names it"),
    Column("input_tokens", "Int64", "tokens", "input of all the row's attempts, as far as known; cached ones included"),
    Column("output_tokens", "Int64", "tokens", "output of all the row's attempts, as far as known; reasoning included"),
    Column("cached_tokens", "Int64", "tokens", "part of the input read from the provider's prompt cache"),
    Column("cost_usd", "float64", "USD", "price of those tokens; missing when it is not known, 0 from llmlab's cache"),
    Column("cache_hit", "bool", "", "answered from llmlab's own cache, at no cost"),
    Column("request_id", "string", "", "the provider's id of the answered request"),
    Column("started_at", "datetime64[us, UTC]", "", "when the row was taken up; missing if it never was"),
    Column("finished_at", "datetime64[us, UTC]", "", "when the row was settled"),
)


def columns_table(columns: Sequence[Column] = COLUMNS) -> str:
    """Columns as a Markdown table, for the README."""
    lines = ["| column | dtype | unit | meaning |", "|---|---|---|---|"]
    lines += [f"| `{c.name}` | {c.dtype} | {c.unit} | {c.meaning} |" for c in columns]
    return "\n".join(lines)
