"""A map-reduce, or chains, whose last answer is typed."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import llmlab
from llmlab.clock import run_virtual
from llmlab.columns import COLUMNS
from llmlab.logbook import JournalMismatch
from llmlab.reduce import TREE, Answer
from tests.echo import Model, lab_on
from tests.reducing import MAP, REDUCE, reduce_on

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


FREE = ("m ", "a ")
"""What the prompts begin with that no schema is asked of."""


def answering(good: str = '{"n": 7}', *, bad: int = 0) -> Model:
    """Says "text", and to what asks for a schema an object, after so many that are none."""
    left = iter([*["no object"] * bad, *[good] * 99])
    model = Model()
    model.answer = lambda prompt: "text" if prompt.startswith(FREE) else next(left)
    return model


def formed(model: Model) -> list[bool]:
    return ["response_format" in body for body in model.bodies]


def test_only_the_last_answer_is_typed() -> None:
    model = answering()
    answer, job = reduce_on(model, list("abcd"), fan_in=2, schema=SCHEMA)
    assert answer.parsed == {"n": 7}
    assert answer.content == '{"n": 7}'
    assert formed(model) == [False] * 6 + [True]
    assert job.frame.n.tolist()[-1] == 7
    assert list(job.trace.columns) == [column.name for column in (*TREE, *COLUMNS)]


@pytest.mark.parametrize(("items", "bad"), [(["a"], ()), (["a", "BAD"], ("BAD",))])
def test_what_is_left_alone_is_asked_for_in_its_type(items: list[str], bad: tuple[str, ...]) -> None:
    model = answering()
    model.bad = bad
    answer, _ = reduce_on(model, items, schema=SCHEMA)
    assert formed(model)[-1]
    assert (answer.parsed, answer.levels, answer.items - answer.left_out) == ({"n": 7}, 1, 1)


def test_a_last_answer_that_does_not_fit_is_asked_for_again_and_counted() -> None:
    model = answering(bad=1)
    answer, job = reduce_on(model, ["a", "b"], schema=SCHEMA)
    assert answer.parsed == {"n": 7}
    assert job.attempts.kind.tolist() == ["first", "first", "first", "reask"]
    assert answer.usage.input_tokens == 4 * 10


def test_if_the_last_answer_never_fits_the_job_says_so() -> None:
    with pytest.raises(llmlab.LLMError, match="SchemaMismatch"):
        reduce_on(answering(bad=9), ["a", "b"], schema=SCHEMA, reask=1)


def test_a_dry_run_has_the_call_that_types_a_single_answer() -> None:
    forecast = lab_on(Model()).map_reduce(["a"], map=MAP, reduce=REDUCE, schema=SCHEMA, dry_run=True)
    assert forecast.calls == 2


def test_a_journal_gives_the_typed_answer_back(tmp_path: Path) -> None:
    def ask(model: Model, schema: Any = SCHEMA) -> Answer:
        lab = lab_on(model)
        model.seconds = 0
        found: Answer = lab.map_reduce(
            ["a", "b"], map=MAP, reduce=REDUCE, schema=schema, journal=tmp_path / "run.sqlite"
        ).result()
        return found

    again = answering()
    assert ask(answering()) == ask(again)
    assert again.asked == []
    with pytest.raises(JournalMismatch):
        ask(answering(), int)


def test_the_last_step_of_each_chain_is_typed() -> None:
    async def main() -> pd.DataFrame:
        out: pd.DataFrame = await lab_on(answering()).run_chains(
            "x", {"one": ["a {context}"], "two": ["a {context}", "b {context}"]}, schema=SCHEMA
        )
        return out

    out = run_virtual(main)
    assert out.content.tolist() == ['{"n": 7}', "text", '{"n": 7}']
    assert out.n.isna().tolist() == [False, True, False]
    assert out.n.dtype == "Int64"
