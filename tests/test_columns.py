"""`COLUMNS` is public: its names and their order, the dtypes it promises, and the README's table."""

from pathlib import Path

import pandas as pd
import pytest

from llmlab.errors import ServerError
from llmlab.frame import COLUMNS, columns_table, record, to_frame
from llmlab.types import Outcome, Prompt, Reply, Usage

README = Path(__file__).parent.parent / "README.md"

# As in DESIGN section 2, "The frame".
NAMES = [
    "prompt", "content", "status", "error", "error_type", "latency_ms", "ttft_ms", "queue_ms", "wait_ms", "attempts",
    "finish_reason", "provider", "model", "input_tokens", "output_tokens", "cached_tokens", "cost_usd", "cache_hit",
    "request_id", "started_at", "finished_at",
]  # fmt: skip

HI = Prompt.of("hi")
FULL = Outcome(
    0, HI, "ok",
    Reply("answer", "stop", "sim", "small", Usage(1, 2, 3), "r",
          latency_s=1.0, ttft_s=0.1, cost_usd=0.5, cache_hit=True),
    None, 1, 0.1, 0.2, 1.7e9, 1.7e9 + 1,
)  # fmt: skip
BARE = Outcome(0, HI, "ok", Reply("answer", "stop", "sim", "small"), None)
FAILED = Outcome(0, HI, "error", None, ServerError("boom"), 3, 0.1, 0.2, 1.7e9, 1.7e9 + 1)
NEVER = Outcome(0, None, "cancelled", None, None)

INPUTS = {
    "empty": [],
    "full": [FULL, FULL],
    "bare": [BARE],
    "failed": [FAILED],
    "never started": [NEVER, NEVER],
    "mixed": [FULL, BARE, FAILED, NEVER],
}


def frame_of(name: str) -> pd.DataFrame:
    return to_frame([record(outcome) for outcome in INPUTS[name]])


def test_the_columns_are_those_of_the_design_in_its_order() -> None:
    assert [column.name for column in COLUMNS] == NAMES


@pytest.mark.parametrize("name", INPUTS)
def test_every_frame_has_these_columns_with_these_dtypes(name: str) -> None:
    out = frame_of(name)
    assert out.columns.tolist() == NAMES
    expected = {column.name: pd.api.types.pandas_dtype(column.dtype) for column in COLUMNS}
    assert out.dtypes.to_dict() == expected


def test_an_outcome_becomes_one_value_per_column() -> None:
    for outcomes in INPUTS.values():
        for outcome in outcomes:
            assert len(record(outcome)) == len(COLUMNS)


def test_a_full_row_fills_every_column_but_the_errors() -> None:
    row = frame_of("full").iloc[0]
    assert row.index[row.isna()].tolist() == ["error", "error_type"]


def test_a_name_ends_in_its_unit() -> None:
    endings = {"ms": "_ms", "tokens": "_tokens", "USD": "_usd"}
    for column in COLUMNS:
        assert column.unit in {"", *endings}
        for unit, ending in endings.items():
            assert (column.unit == unit) == column.name.endswith(ending), column.name


def test_every_column_says_what_it_means_in_a_form_that_a_table_can_hold() -> None:
    for column in COLUMNS:
        assert column.meaning
        assert not set(column.meaning) & set("|\n"), column.name


def test_the_table_has_a_line_for_every_column() -> None:
    head, rule, *lines = columns_table().splitlines()
    assert head == "| column | dtype | unit | meaning |"
    assert rule == "|---|---|---|---|"
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells == [[f"`{c.name}`", c.dtype, c.unit, c.meaning] for c in COLUMNS]


def test_the_readme_has_the_table_between_its_markers() -> None:
    text = README.read_text(encoding="utf-8")
    assert text.count("<!-- columns -->") == text.count("<!-- /columns -->") == 1
    between = text.partition("<!-- columns -->")[2].partition("<!-- /columns -->")[0]
    assert between.strip() == columns_table()
