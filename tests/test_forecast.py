"""A dry run: what a map-reduce will come to, with nothing sent."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llmlab
from llmlab.clock import run_virtual
from llmlab.errors import TooLong
from llmlab.forecast import LEVELS, Forecast
from llmlab.sim.physics import Physics
from llmlab.sim.transport import Simulator
from tests.echo import Model, lab_on

ASK: dict[str, Any] = {"map": "m {item}", "reduce": "r {mapped_outputs}"}


def test_a_dry_run_sends_nothing_and_says_what_it_would_come_to() -> None:
    model = Model()
    lab = lab_on(model, prices={"m": (10.0, 100.0)})
    forecast = lab.map_reduce(["x" * 398] * 25, **ASK, map_max_tokens=40, dry_run=True)
    assert model.asked == []
    assert (forecast.calls, forecast.left_out) == (25 + 3 + 1, 0)
    assert list(forecast.levels.columns) == [column.name for column in LEVELS]
    assert forecast.levels.calls.tolist() == [25, 3, 1]
    assert forecast.levels.input_tokens[0] == 25 * (100 + 4 + 3)
    assert forecast.levels.output_tokens.tolist() == [25 * 40, 3 * 256, 256]
    assert forecast.cost_usd == pytest.approx(forecast.input_tokens * 1e-5 + forecast.output_tokens * 1e-4, rel=0.01)
    assert "29 calls" in str(forecast)
    assert "Assumes" in repr(forecast)


def test_it_may_be_awaited_as_if_it_were_a_job() -> None:
    async def main() -> Forecast:
        return await lab_on(Model()).map_reduce(["a", "b"], **ASK, dry_run=True)

    assert run_virtual(main).calls == 3
    assert lab_on(Model()).map_reduce(["a"], **ASK, dry_run=True).result().calls == 1


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=60), st.integers(2, 5) | st.none(), st.integers(300, 900))
def test_calls_made_are_calls_foreseen_if_answers_are_as_long_as_assumed(
    sizes: list[int], fan_in: int | None, room: int
) -> None:
    items, model = ["x" * size for size in sizes], Model(0, answer=lambda _: "wor " * 100)
    given: dict[str, Any] = {**ASK, "fan_in": fan_in, "max_input_tokens": room, "max_tokens": 100}
    forecast = lab_on(model).map_reduce(items, **given, dry_run=True)

    async def main() -> int:
        answer: llmlab.reduce.Answer = await lab_on(model).map_reduce(items, **given)
        return answer.calls

    assert run_virtual(main) == forecast.calls == len(model.asked)


def test_a_lab_that_has_had_answers_foresees_better() -> None:
    items = [f"Question {n}: what about tea?" for n in range(40)]
    simulator = Simulator(seed=1, physics=Physics.instant())

    async def main() -> tuple[Forecast, llmlab.reduce.Answer, Forecast]:
        lab = llmlab.Lab("openai:m", transport=simulator, seed=1, prices={"m": (1.0, 2.0)}, progress=False)
        before = lab.map_reduce(items, **ASK, dry_run=True)
        answer = await lab.map_reduce(items, **ASK)
        return before, answer, lab.map_reduce(items, **ASK, dry_run=True)

    before, answer, after = run_virtual(main)
    assert before.calls == answer.calls == after.calls
    real = answer.usage.output_tokens
    assert abs(after.output_tokens - real) < abs(before.output_tokens - real)
    assert after.cost_usd == pytest.approx(answer.cost_usd, rel=0.8)


def test_prices_that_are_not_known_are_not_0() -> None:
    assert lab_on(Model()).map_reduce(["a"], **ASK, dry_run=True).cost_usd is None
    lab = lab_on(Model(), prices={"m": (1.0, 1.0)})
    assert lab.map_reduce(["a", "b"], **ASK, reduce_model="other", dry_run=True).cost_usd is None


def test_items_too_long_are_counted() -> None:
    forecast = lab_on(Model()).map_reduce(["a", "b" * 4000, "c"], **ASK, max_input_tokens=600, dry_run=True)
    assert (forecast.calls, forecast.left_out) == (3, 1)
    assert "left out: 1 of the items" in str(forecast)


def test_a_tree_that_could_not_end_is_said_before_it_is_paid_for() -> None:
    with pytest.raises(TooLong, match="max_input_tokens"):
        lab_on(Model()).map_reduce(list("abc"), **ASK, max_input_tokens=300, dry_run=True)


def test_a_generator_cannot_be_foreseen() -> None:
    with pytest.raises(TypeError, match="dry_run needs items that are all there"):
        lab_on(Model()).map_reduce(iter("abc"), **ASK, dry_run=True)
