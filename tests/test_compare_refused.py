"""What `lab.compare` refuses, what it says of a comparison that shows nothing, and on whose account it runs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llmlab
from llmlab import Strategy
from llmlab.scenario import SCENARIOS, Scenario
from tests.comparing import TWO, compared


@pytest.fixture
def lab() -> llmlab.Lab:
    return llmlab.Lab(progress=False)


@pytest.mark.parametrize(
    ("strategies", "fields", "error", "match"),
    [
        (Strategy.bare(), {}, TypeError, "strategies must be a dict"),
        (3, {}, TypeError, "strategies must be a dict"),
        ({}, {}, ValueError, "strategies: there is none"),
        ({"a": "bare"}, {}, TypeError, "'a' must be a Strategy, not str"),
        ({1: Strategy.bare()}, {}, TypeError, "names must be texts"),
        ([Strategy.bare(), Strategy.bare()], {}, ValueError, "two have the name 'bare'"),
        (TWO, {"n": 0}, ValueError, "n must be a whole number of at least 1"),
        (TWO, {"n": 2.5}, ValueError, "n must be"),
        (TWO, {"prompts": ["a"], "n": 1}, ValueError, "give n or prompts"),
        (TWO, {"prompts": [], "n": None}, ValueError, "prompts: there is none"),
        (TWO, {"prompts": "one", "n": None}, TypeError, "prompts must be many, not one str"),
        (TWO, {"scenario": "outrage"}, ValueError, "did you mean 'outage'"),
        (TWO, {"scenario": 7}, TypeError, "a name or a Scenario"),
        ("bare", {}, TypeError, "strategies must be a dict"),
        (TWO, {"template": "Hi {name}"}, ValueError, "template is filled in from prompts="),
        (TWO, {"seeds": []}, ValueError, "seeds: there is none"),
        (TWO, {"seeds": [1, 1]}, ValueError, "each may come once"),
        (TWO, {"seeds": ["a"]}, TypeError, "seeds must be whole numbers"),
        (TWO, {"live": True}, ValueError, "live=True needs prompts="),
        (TWO, {"live": True, "prompts": ["a"], "n": None, "scenario": "steady"}, ValueError, "not together with live"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_sent(
    lab: llmlab.Lab, strategies: Any, fields: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        compared(lab, strategies, **fields)


def test_a_cache_on_disk_is_refused_in_virtual_time(lab: llmlab.Lab, tmp_path: Path) -> None:
    cached = Strategy.default(cache=llmlab.Cache(tmp_path / "answers.sqlite"))
    with pytest.raises(ValueError, match="'mine' has a Cache"):
        compared(lab, {"mine": cached})


def test_an_asynchronous_source_is_refused_as_it_can_be_read_only_once(lab: llmlab.Lab) -> None:
    async def source() -> Any:
        yield "a"

    with pytest.raises(TypeError, match="they are sent several times"):
        lab.compare(TWO, prompts=source())


@pytest.mark.parametrize("wrong", [{"prompt_tokens": 0}, {"prompt_sigma": 9}])
def test_a_scenario_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Scenario("odd", **wrong)


def test_work_that_is_over_before_the_outage_is_said_to_show_nothing(
    lab: llmlab.Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    compared(lab, n=100, scenario="outage")
    assert "'outage' begins to matter at second 20, and the longest trial took" in capsys.readouterr().err
    compared(lab, n=100, scenario="steady")
    compared(lab, n=1200, scenario="outage")
    assert "begins to matter" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["outage", "capacity_drop"])
def test_the_usual_number_of_rows_is_enough_for_what_a_scenario_does(lab: llmlab.Lab, name: str) -> None:
    out = lab.compare({"default": Strategy.default()}, scenario=name).result()
    assert (out.ok + out.failed).item() == 2000
    assert out.makespan_s.item() > SCENARIOS[name].turns_at + 30


def test_a_trial_without_any_answer_is_said_and_why(lab: llmlab.Lab, capsys: pytest.CaptureFixture[str]) -> None:
    class Broken:
        async def __call__(self, call: Any, inner: Any) -> Any:  # noqa: ARG002
            raise ZeroDivisionError("of mine")

    compared(lab, {"broken": Strategy("broken", (Broken(),)), "bare": Strategy.bare()}, n=4)
    said = capsys.readouterr().err
    assert "'broken' with seed 1: none of 4 rows was answered; most often ZeroDivisionError: of mine" in said
    assert "'bare'" not in said
    assert "begins to matter" not in said


def test_whole_numbers_of_numpy_are_whole_numbers(lab: llmlab.Lab) -> None:
    out = compared(lab, n=np.int64(3), seeds=np.arange(2))
    assert out.seed.tolist() == [0, 1, 0, 1]
    assert (out.ok == 3).all()


# -- on whose account -------------------------------------------------------------------------------------


def test_what_is_simulated_costs_the_lab_s_own_budget_nothing() -> None:
    real = llmlab.Lab("openai:m", api_key="sk-x", prices={"m": (1.0, 2.0)}, budget_usd=0.001, progress=False)
    out = compared(real, n=200, scenario="steady")
    assert out.ok.tolist() == [200, 200]
    assert len(real.sweep([1, 2], scenario="steady", n=60).result()) == 2
    assert real._budget is not None
    assert real._budget.spent_usd == 0


def test_a_budget_of_its_own_holds_for_simulated_trials_too(lab: llmlab.Lab) -> None:
    job = lab.compare({"default": Strategy.default()}, n=200, seeds=range(9), scenario="steady", budget_tokens=60_000)
    assert 0 < len(job.result()) < 9
    assert job.stopped == "the budget is spent"
    with pytest.raises(ValueError, match="'bare' cannot keep to a budget"):
        compared(lab, budget_tokens=1000)
