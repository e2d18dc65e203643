"""`lab.map_reduce`: many into one, within limits, failures left out."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pandas as pd
import pytest

import llmlab
from llmlab.clock import run_virtual
from llmlab.errors import AuthFailed, BadRequest, BudgetSpent, TooLong
from llmlab.reduce import Answer, MapReduce
from llmlab.sim.faults import Faults
from llmlab.sim.transport import Simulator
from tests.echo import Model, lab_on
from tests.reducing import MAP, REDUCE, reduce_on

# -- answers ----------------------------------------------------------------------------------------------


def test_answers_are_combined_in_order_until_one_is_left() -> None:
    answer, job = reduce_on(Model(), list("abc"), fan_in=2)
    assert answer.content == "<r <r <m a>+<m b>>+<m c>>"
    assert str(answer) == answer.content
    assert (answer.items, answer.left_out, answer.calls, answer.levels) == (3, 0, 5, 2)
    assert answer.usage == llmlab.Usage(50, 10)
    assert (answer.finish_reason, answer.model, answer.cost_usd) == ("stop", "m", None)
    assert job.done


def test_levels_run_one_after_the_other_and_side_by_side_within() -> None:
    model = Model(seconds=10)
    _, job = reduce_on(model, [f"i{n}" for n in range(27)], fan_in=3)
    trace = job.trace
    starts = trace.groupby("level").started_at.agg(["min", "max"])
    seconds = (starts - starts["min"].min()).map(lambda gap: round(gap.total_seconds()))
    assert seconds["min"].tolist() == [0, 10, 20, 30]
    assert seconds["max"].tolist() == [0, 10, 20, 30]
    assert model.most == 27


def test_the_labs_concurrency_holds_within_a_level() -> None:
    model = Model(seconds=1)
    reduce_on(model, [f"i{n}" for n in range(40)], concurrency=7)
    assert model.most == 7


def test_one_item_needs_no_combining() -> None:
    model = Model()
    answer, _ = reduce_on(model, ["only"])
    assert (answer.content, answer.calls, answer.levels) == ("<m only>", 1, 0)
    assert model.asked == ["m only"]


def test_cost_and_tokens_count_every_attempt() -> None:
    async def main() -> tuple[Answer, pd.DataFrame]:
        simulator = Simulator(seed=3, faults=Faults.mixed(0.2))
        lab = llmlab.Lab("openai:m", transport=simulator, seed=1, prices={"m": (1.0, 2.0)}, progress=False)
        answer = await lab.map_reduce([f"Question {n}" for n in range(60)], map=MAP, reduce=REDUCE)
        assert lab.last is not None
        return answer, lab.last.frame

    answer, frame = run_virtual(main)
    assert answer.calls == 60 + 6 + 1
    assert frame.attempts.sum() > answer.calls
    assert answer.cost_usd == pytest.approx(frame.cost_usd.sum())
    assert answer.usage.input_tokens == frame.input_tokens.sum()


def test_each_stage_has_parameters_of_its_own() -> None:
    model = Model()
    reduce_on(model, ["a", "b"], model="both", reduce_model="big", map_max_tokens=5, max_tokens=9, temperature=0.5)
    got = [(body["model"], body.get("max_completion_tokens", body.get("max_tokens"))) for body in model.bodies]
    assert got == [("both", 5), ("both", 5), ("big", 9)]
    assert {body["temperature"] for body in model.bodies} == {0.5}


# -- items and placeholders -------------------------------------------------------------------------------


def test_items_of_a_series_have_its_labels() -> None:
    model = Model()
    _, job = reduce_on(model, pd.Series(["x", "y"], index=["left", "right"]), map="{index}: {item}")
    assert model.asked[:2] == ["left: x", "right: y"]
    assert job.trace.item.tolist() == ["left", "right", None]


def test_columns_of_a_frame_and_rows_own_parameters() -> None:
    model = Model()
    table = pd.DataFrame({"title": ["T1", "T2"], "body": ["B1", "B2"], "temperature": [0.1, None]}, index=[7, 7])
    reduce_on(model, table, map="{title} ({index}): {body}")
    assert model.asked[:2] == ["T1 (7): B1", "T2 (7): B2"]
    assert [body.get("temperature") for body in model.bodies] == [0.1, None, None]


@pytest.mark.parametrize("columns", [{"text": ["x", "y"]}, {"id": [1, 2], "prompt": ["x", "y"]}])
def test_of_a_frame_the_item_is_its_only_column_or_its_prompt(columns: dict[str, Any]) -> None:
    model = Model()
    reduce_on(model, pd.DataFrame(columns), map="{item}")
    assert model.asked[:2] == ["x", "y"]


def test_what_a_function_gets_wrong_names_the_function_and_the_row() -> None:
    with pytest.raises(TypeError, match="row 0: map is a function that gave no prompt"):
        reduce_on(Model(), ["a"], map=lambda _: 3)
    with pytest.raises(ValueError, match="reduce is a function that gave no prompt"):
        reduce_on(Model(), ["a", "b"], reduce=lambda _: None)
    with pytest.raises(ZeroDivisionError) as caught:
        reduce_on(Model(), ["a"], map=lambda _: 1 / 0)
    assert caught.value.__notes__ == ["llmlab: raised for row 0"]


def test_a_function_gets_the_item_or_the_row() -> None:
    model = Model()
    table = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})
    reduce_on(model, table, map=lambda row: f"{row['a']}{row['b']}", reduce=" & ".join)
    assert model.asked == ["1x", "2y", "<1x> & <2y>"]
    asked = Model()
    reduce_on(asked, ["p", "q"], map=str.upper, reduce=lambda texts: llmlab.Prompt.of(texts[0], model="other"))
    assert asked.asked == ["P", "Q", "<P>"]
    assert asked.bodies[2]["model"] == "other"


def test_a_function_is_called_once_for_an_item() -> None:
    called: list[str] = []

    def ask(item: str) -> str:
        called.append(item)
        return item

    reduce_on(Model(), ["a", "b", "c"], map=ask)
    assert called == ["a", "b", "c"]


@pytest.mark.parametrize("mappings", [True, False])
def test_generators_are_taken_as_they_come(mappings: bool) -> None:
    def source() -> Iterator[Any]:
        for n in range(25):
            yield {"text": f"t{n}"} if mappings else f"t{n}"

    answer, _ = reduce_on(Model(answer=lambda _: "s"), source(), map="{index} {text}" if mappings else "{index} {item}")
    assert (answer.items, answer.calls) == (25, 25 + 3 + 1)


def test_an_asynchronous_source_may_be_slow() -> None:
    async def source() -> AsyncIterator[str]:
        for text in "abc":
            await asyncio.sleep(100)
            yield text

    answer, job = reduce_on(Model(), source())
    assert answer.content == "<r <m a>+<m b>+<m c>>"
    assert job.bound_by == "source"


def test_an_answer_is_no_template() -> None:
    model = Model(answer=lambda _: "{item} {mapped_outputs} {0} {{}}")
    reduce_on(model, ["{item}", "b"])
    assert model.asked == ["m {item}", "m b", "r {item} {mapped_outputs} {0} {{}}+{item} {mapped_outputs} {0} {{}}"]


def test_many_items_never_become_as_many_tasks() -> None:
    most = 0

    def source() -> Iterator[str]:
        nonlocal most
        for n in range(3000):
            if n % 100 == 0:
                most = max(most, len(asyncio.all_tasks()))
            yield f"i{n}"

    answer, _ = reduce_on(Model(0.1, answer=lambda _: "s"), source(), concurrency=50, fan_in=100)
    assert answer.items == 3000
    assert most < 300


# -- failures ---------------------------------------------------------------------------------------------


def test_failed_items_are_left_out_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    answer, job = reduce_on(Model(bad=("BAD",)), ["a", "BAD", "c", "BAD too"])
    assert answer.content == "<r <m a>+<m c>>"
    assert (answer.items, answer.left_out) == (4, 2)
    trace = job.trace
    assert trace.status.tolist() == ["ok", "error", "ok", "error", "ok"]
    assert trace.left_out.tolist() == [False, True, False, True, False]
    assert trace["items"].tolist() == [1, 0, 1, 0, 2]
    assert "2 of 4 items are left out" in capsys.readouterr().err


def test_what_a_failed_combination_speaks_for_is_left_out() -> None:
    model = Model(bad=("r <m BAD>",))
    answer, job = reduce_on(model, ["BAD", "b", "c", "d"], fan_in=2)
    assert answer.content == "<r <m c>+<m d>>"
    assert answer.left_out == 2
    assert job.trace.left_out.tolist() == [True, True, False, False, True, False]


def test_with_raise_the_first_failure_ends_the_job_and_the_trace_is_kept() -> None:
    model = Model(bad=("BAD",))

    async def main() -> MapReduce:
        job = lab_on(model, concurrency=4).map_reduce(
            [*"abc", "BAD", *map(str, range(50))], map=MAP, reduce=REDUCE, on_error="raise"
        )
        with pytest.raises(BadRequest):
            await job
        return job

    job = run_virtual(main)
    assert len(model.asked) < 12, "what was in flight ends by itself, nothing more is sent"
    assert job.trace.status.value_counts()["ok"] >= 3
    assert len(job.trace) == 54, "every item has its row"


def test_if_all_fail_there_is_nothing_to_answer_with() -> None:
    with pytest.raises(llmlab.LLMError, match=r"nothing is left of 3 calls.*first failure: BadRequest.*no"):
        reduce_on(Model(bad=("BAD",)), ["BAD 1", "BAD 2", "BAD 3"])
    with pytest.raises(BadRequest, match="no"):
        reduce_on(Model(bad=("BAD",)), ["BAD"])


def test_what_no_call_can_escape_is_raised_whatever_on_error_says() -> None:
    async def main() -> int:
        lab = llmlab.Lab("openai:m", api_key="k", transport=Simulator(seed=1, faults=Faults(rates={"auth": 1.0})))
        job = lab.map_reduce([f"i{n}" for n in range(500)], map=MAP, reduce=REDUCE, progress=False)
        with pytest.raises(AuthFailed):
            await job
        return len(job.trace)

    assert run_virtual(main) == 500


def test_a_spent_budget_ends_the_job_and_keeps_the_trace() -> None:
    async def main() -> pd.DataFrame:
        lab = lab_on(Model(), prices={"m": (1.0, 1.0)})
        job = lab.map_reduce([f"i{n}" for n in range(50)], map=MAP, reduce=REDUCE, budget_tokens=400, max_tokens=2)
        with pytest.raises(BudgetSpent):
            await job
        return job.trace

    assert set(run_virtual(main).status) == {"ok", "error", "cancelled"}


def test_an_item_longer_than_the_limit_is_left_out_or_an_error_that_names_it() -> None:
    items, model = pd.Series(["short", "long " * 500, "short"], index=["x", "y", "z"]), Model()
    answer, job = reduce_on(model, items, max_input_tokens=200)
    assert answer.left_out == 1
    assert job.trace.error_type.tolist()[1] == "TooLong"
    assert "item 'y' makes a prompt of about 632 tokens" in job.trace.error[1]
    before = len(model.asked)
    with pytest.raises(ValueError, match=r"row 'y'.*about 632 tokens, more than max_input_tokens=200"):
        reduce_on(model, items, max_input_tokens=200, on_error="raise")
    assert len(model.asked) == before, "nothing was sent"


def test_answers_that_fit_nowhere_end_the_job_with_words_that_help() -> None:
    model = Model(answer=lambda _: "x" * 500)

    async def main() -> int:
        job = lab_on(model).map_reduce(list("abc"), map=MAP, reduce=REDUCE, max_input_tokens=200)
        with pytest.raises(TooLong, match="map_max_tokens"):
            await job
        return len(job.trace)

    assert run_virtual(main) == 3


def test_what_a_function_raises_while_combining_is_the_jobs_failure() -> None:
    def combine(_: list[str]) -> str:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        reduce_on(Model(), list("abc"), reduce=combine)


def test_items_of_a_generator_that_cannot_be_asked_are_data() -> None:
    def ask(item: str) -> str:
        return item[5]

    answer, job = reduce_on(Model(), iter(["abcdef", "x", "ghijkl"]), map=ask)
    assert answer.left_out == 1
    assert job.trace.error_type.tolist()[1] == "IndexError"


@pytest.mark.parametrize(
    ("items", "settings", "error", "words"),
    [
        ([], {}, ValueError, "items is empty"),
        (pd.DataFrame({"a": []}), {"map": "{a}"}, ValueError, "items is empty"),
        ("text", {}, TypeError, "put it into a list"),
        (5, {}, TypeError, "takes a Series"),
        (["a"], {"map": "{itm}"}, ValueError, "map: .*did you mean 'item'"),
        (["a"], {"map": "no name"}, ValueError, "map: "),
        (["a"], {"map": None}, TypeError, "map must be a template or a function"),
        (["a"], {"reduce": "{outputs}"}, ValueError, "reduce: .*mapped_outputs"),
        (["a"], {"reduce": "no name"}, ValueError, "reduce: "),
        (["a", None], {}, ValueError, "row 1: .*'item' is missing"),
        ([{"x": 1}, {"y": 1}], {"map": "{x}"}, ValueError, "row 1: .*no column 'x'"),
        (pd.DataFrame({"a": ["x"], "b": ["y"]}), {"map": "{item}"}, ValueError, "which column is {item}.*'a', 'b'"),
        (["a"], {"on_error": "ignore"}, ValueError, "on_error must be 'skip' or 'raise'"),
        (["a"], {"separator": 1}, TypeError, "separator"),
        (["a"], {"fan_in": 1}, ValueError, "fan_in"),
        (["a"], {"max_input_tokens": 5}, ValueError, "leaves no room"),
        (["a"], {"map_max_tokens": 0}, ValueError, "max_tokens must be at least 1"),
        (["a"], {"priority": 9}, ValueError, "priority"),
    ],
)
def test_bad_input_is_an_error_before_anything_is_sent(items: Any, settings: Any, error: type, words: str) -> None:
    model = Model()
    with pytest.raises(error, match=words):
        lab_on(model).map_reduce(items, **{"map": MAP, "reduce": REDUCE, **settings})
    assert model.asked == []


def test_an_empty_generator_is_an_error_too() -> None:
    with pytest.raises(ValueError, match="items is empty"):
        reduce_on(Model(), iter([]))
