"""Chains: steps in sequence, chains side by side, a failed step ends its own chain only."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import llmlab
from llmlab.clock import run_virtual
from llmlab.columns import COLUMNS
from llmlab.errors import NotAsked
from llmlab.logbook import JournalMismatch
from tests.echo import Model, lab_on

NAMES = [column.name for column in COLUMNS]


def run_many(model: Model, rows: Any, *, concurrency: int = 8, **settings: Any) -> pd.DataFrame:
    async def main() -> pd.DataFrame:
        return await lab_on(model, concurrency=concurrency).run_many(rows, **settings)

    return run_virtual(main)


def run_chains(model: Model, text: str, chains: Any, **settings: Any) -> pd.DataFrame:
    async def main() -> pd.DataFrame:
        return await lab_on(model).run_chains(text, chains, **settings)

    return run_virtual(main)


TWO = ["a {context}", "b {context}"]


# -- run_chains -------------------------------------------------------------------------------------------


def test_each_step_asks_with_the_answer_before_and_has_a_row() -> None:
    out = run_chains(Model(), "tea", [TWO, ["c {context}", "d {context}", "e {context}"]])
    assert list(out.columns) == ["chain", "step", *NAMES]
    assert out[["chain", "step"]].to_numpy().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1], [1, 2]]
    assert out.prompt.tolist() == ["a tea", "b <a tea>", "c tea", "d <c tea>", "e <d <c tea>>"]
    assert out.content.tolist() == [f"<{prompt}>" for prompt in out.prompt]
    assert out.index.tolist() == [0, 1, 2, 3, 4]


def test_steps_run_in_sequence_and_chains_side_by_side() -> None:
    model = Model(seconds=10)
    out = run_chains(model, "tea", [TWO] * 4)
    assert model.most == 4
    seconds = (out.finished_at.max() - out.started_at.min()).total_seconds()
    assert 20 <= seconds < 20.1


def test_a_failed_step_ends_its_chain_only() -> None:
    out = run_chains(Model(bad=("POISON",)), "tea", [["POISON {context}", *TWO], TWO])
    assert out.status.tolist() == ["error", "cancelled", "cancelled", "ok", "ok"]
    assert out.error_type.tolist()[:3] == ["BadRequest", "NotAsked", "NotAsked"]
    assert out.error[1] == "not asked: step 0 of its chain has no answer"
    assert issubclass(NotAsked, llmlab.LLMError)


def test_chains_may_have_names() -> None:
    out = run_chains(Model(), "tea", {"short": TWO[:1], "long": TWO})
    assert out.chain.tolist() == ["short", "long", "long"]
    assert out.chain.dtype == "string"


def test_a_step_may_be_a_function_that_makes_any_prompt() -> None:
    model = Model()

    def ask(context: str) -> llmlab.Prompt:
        return llmlab.Prompt.of(context.upper(), model="other", temperature=0.5)

    out = run_chains(model, "tea", [["a {context}", ask, lambda context: [{"role": "user", "content": context * 2}]]])
    assert out.prompt.tolist() == ["a tea", "<A TEA>", "<<A TEA>><<A TEA>>"]
    assert [body["model"] for body in model.bodies] == ["m", "other", "m"]


def test_what_a_function_raises_is_its_steps_error() -> None:
    def parse(context: str) -> str:
        raise KeyError(context)

    out = run_chains(Model(), "tea", [["a {context}", parse, "c {context}"], TWO])
    assert out.status.tolist() == ["ok", "error", "cancelled", "ok", "ok"]
    assert out.error_type[1] == "KeyError"


def test_an_answer_is_no_template() -> None:
    out = run_chains(Model(answer=lambda _: "{context} {0} {{x}} {__class__}"), "{tea}", [TWO])
    assert out.prompt.tolist() == ["a {tea}", "b {context} {0} {{x}} {__class__}"]


@pytest.mark.parametrize(
    ("text", "chains", "error", "words"),
    [
        (["a"], [TWO], TypeError, "run_many"),
        ("a", TWO, TypeError, r"chains=\[\[…\]\]"),
        ("a", "x {context}", TypeError, "list of chains"),
        ("a", [], ValueError, "at least one chain"),
        ("a", [[]], ValueError, r"chains\[0\] must have at least one step"),
        ("a", [["{kontext}"]], ValueError, r"chains\[0\]\[0\].*did you mean 'context'"),
        ("a", [["no name"]], ValueError, "uses no column"),
        ("a", [["{context"]], ValueError, r"chains\[0\]\[0\]"),
        ("a", [[1]], TypeError, r"chains\[0\]\[0\] must be a template or a function"),
        ("a", {1: TWO}, TypeError, "names"),
    ],
)
def test_bad_chains_are_an_error_before_anything_is_sent(text: Any, chains: Any, error: type, words: str) -> None:
    model = Model()
    with pytest.raises(error, match=words):
        lab_on(model).run_chains(text, chains)
    assert model.asked == []


# -- run_many(chain=…) ------------------------------------------------------------------------------------


def test_each_row_of_a_table_goes_through_the_chain_and_columns_may_be_used() -> None:
    table = pd.DataFrame({"prompt": ["x", "y"], "lang": ["fr", "de"]}, index=pd.Index(["r", "r"], name="id"))
    out = run_many(Model(), table, chain=["To {lang}: {context}", "Back ({index}): {context}"])
    assert out.index.tolist() == ["r"] * 4, "duplicates and all"
    assert out.index.name == "id"
    assert out.chain.tolist() == [0, 0, 1, 1]
    assert out.prompt.tolist() == ["To fr: x", "Back (r): <To fr: x>", "To de: y", "Back (r): <To de: y>"]
    last = out[out.step == 1].content
    assert last.index.equals(table.index), "one step's rows fit the input"


def test_a_table_needs_no_input_column_if_the_first_step_uses_columns() -> None:
    out = run_many(
        Model(), pd.DataFrame({"review": ["x"], "context_length": [3]}), chain=["Sum up {review}", "b {context}"]
    )
    assert out.prompt.tolist() == ["Sum up x", "b <Sum up x>"]


def test_rows_own_parameters_hold_for_all_steps() -> None:
    model = Model()
    run_many(model, pd.DataFrame({"prompt": ["x", "y"], "temperature": [0.5, None]}), chain=TWO, temperature=1.0)
    assert sorted(body["temperature"] for body in model.bodies) == [0.5, 0.5, 1.0, 1.0]


@pytest.mark.parametrize("make", [list, pd.Series, iter], ids=["list", "Series", "iterator"])
def test_texts_begin_chains(make: Callable[[Any], Any]) -> None:
    out = run_many(Model(), make(["x", "y"]), chain=TWO)
    assert out.prompt.tolist() == ["a x", "b <a x>", "a y", "b <a y>"]
    assert out.index.tolist() == [0, 0, 1, 1]


def test_an_asynchronous_source_may_be_slower_than_the_chains() -> None:
    async def source() -> AsyncIterator[str]:
        for text in "xyz":
            await asyncio.sleep(100)
            yield text

    async def main() -> tuple[pd.DataFrame, str | None]:
        lab = lab_on(Model())
        out = await lab.run_many(source(), chain=TWO)
        assert lab.last is not None
        return out, lab.last.bound_by

    out, bound_by = run_virtual(main)
    assert out.prompt.tolist() == ["a x", "b <a x>", "a y", "b <a y>", "a z", "b <a z>"]
    assert bound_by == "source"


def test_waiting_for_answers_is_not_waiting_for_the_source() -> None:
    async def main() -> str | None:
        lab = lab_on(Model(seconds=100))
        await lab.run_many(["x"], chain=TWO * 3)
        assert lab.last is not None
        return lab.last.bound_by

    assert run_virtual(main) == "provider"


def test_a_long_source_is_taken_only_as_fast_as_chains_end() -> None:
    taken = 0
    behind: list[int] = []

    def source() -> Iterator[str]:
        nonlocal taken
        for n in range(1000):
            taken += 1
            yield f"p{n}"

    async def main() -> int:
        lab = lab_on(Model(), concurrency=10)
        job = lab.run_many(source(), chain=TWO)
        ended = 0
        async for outcome in job:
            ended += outcome.index % 2
            behind.append(taken - ended)
        return ended

    assert run_virtual(main) == 1000
    assert max(behind) < 60, "chains begun are brought to their end first"


def test_bad_rows_of_a_generator_are_data() -> None:
    out = run_many(Model(), iter(["x", None, 5]), chain=TWO)
    assert out.status.tolist() == ["ok", "ok", "error", "cancelled", "error", "cancelled"]
    assert "missing value" in out.error.iloc[2]
    assert "not int" in out.error.iloc[4]


@pytest.mark.parametrize(
    ("rows", "settings", "words"),
    [
        (["x", None], {"chain": TWO}, "row 1: a chain begins with a text, not a missing value"),
        ([[{"role": "user", "content": "x"}]], {"chain": TWO}, "begins with a text"),
        (["x"], {"chain": TWO, "template": "{x}"}, "exclude each other"),
        (["x"], {"chain": "a {context}"}, "list of steps"),
        (["x"], {"chain": ["a {contxt}"]}, "did you mean 'context'"),
        (pd.DataFrame({"review": ["x"]}), {"chain": TWO}, r"chain\[0\].*no column 'context'"),
        (pd.DataFrame({"prompt": ["x"], "a": [None]}), {"chain": ["a {context}", "{a} {context}"]}, "'a' is missing"),
        (pd.DataFrame({"prompt": ["x"], "context": ["y"]}), {"chain": TWO}, "rename"),
        ([{"prompt": "x", "context": "y"}], {"chain": TWO}, "rename"),
        (pd.DataFrame({"review": ["x"]}), {"chain": [str.upper]}, "'prompt'"),
    ],
)
def test_bad_input_is_an_error_before_anything_is_sent(rows: Any, settings: Any, words: str) -> None:
    model = Model()
    with pytest.raises((TypeError, ValueError), match=words):
        lab_on(model).run_many(rows, **settings)
    assert model.asked == []


# -- stopping and going on --------------------------------------------------------------------------------


def test_a_cancelled_job_has_a_row_for_every_step() -> None:
    async def main() -> pd.DataFrame:
        job = lab_on(Model(seconds=10), concurrency=2).run_many([f"p{n}" for n in range(4)], chain=TWO)
        asyncio.get_running_loop().call_later(15, job.cancel)
        return await job

    out = run_virtual(main)
    assert out[["chain", "step"]].to_numpy().tolist() == [[n, step] for n in range(4) for step in (0, 1)]
    assert out.status.tolist() == ["ok", "cancelled"] * 2 + ["cancelled"] * 4


def test_leaving_a_job_with_a_slow_source_leaves_nothing_behind(recwarn: pytest.WarningsRecorder) -> None:
    async def source() -> AsyncIterator[str]:
        yield "x"
        await asyncio.sleep(1000)

    async def main() -> int:
        job = lab_on(Model()).run_many(source(), chain=TWO)
        asyncio.get_running_loop().call_later(15, job.cancel)
        out = await job
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return len(out)

    assert run_virtual(main) == 2
    assert not recwarn.list


def test_what_a_source_raises_is_the_jobs_failure() -> None:
    async def source() -> AsyncIterator[str]:
        yield "x"
        raise OSError("the disk is gone")

    async def main() -> None:
        job = lab_on(Model()).run_many(source(), chain=TWO)
        with pytest.raises(OSError, match="the disk is gone"):
            await job
        assert job.frame.status.tolist()[0] == "ok", "the rows taken before are settled"

    run_virtual(main)


def test_a_journal_pays_for_no_step_twice(tmp_path: Path) -> None:
    rows = [f"p{n % 3}" for n in range(700)]  # with repetitions: occurrences count
    first, again = Model(0), Model(0)
    out = lab_on(first).run_many(rows, chain=TWO, journal=tmp_path / "run.sqlite").result()
    back = lab_on(again).run_many(rows, chain=TWO, journal=tmp_path / "run.sqlite").result()
    assert len(first.asked) == 1400
    assert again.asked == []
    pd.testing.assert_frame_equal(out, back)


def test_a_job_stopped_half_way_goes_on_where_it_was(tmp_path: Path) -> None:
    path, rows = tmp_path / "run.sqlite", [f"p{n}" for n in range(200)]
    first, again = Model(0.01), Model(0)

    async def stopped() -> pd.DataFrame:
        job = lab_on(first, concurrency=8).run_many(iter(rows), chain=TWO, journal=path)
        async for outcome in job:
            if outcome.index == 151:
                job.cancel()
        return await job

    part = asyncio.run(stopped())
    done = int((part.status == "ok").sum())
    assert 100 < done < 400
    out = lab_on(again).run_many(iter(rows), chain=TWO, journal=path).result()
    assert (out.status == "ok").all()
    assert len(again.asked) == 400 - done
    assert out.content.tolist() == [text for n in range(200) for text in (f"<a p{n}>", f"<b <a p{n}>>")]


def test_other_steps_on_the_same_journal_are_an_error_that_shows_them(tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    lab_on(Model(0)).run_chains("tea", [TWO], journal=path).result()
    with pytest.raises(JournalMismatch) as bad:
        lab_on(Model(0)).run_chains("tea", [["other {context}"]], journal=path).result()
    assert "other {context}" in str(bad.value)
