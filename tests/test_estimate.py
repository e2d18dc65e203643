import math
import pickle
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.estimate import HIGHEST, LOWEST, Estimate, Estimator, tokens
from llmlab.types import Message, Prompt, Usage

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def prompt(text: str = "x" * 372, most: int | None = None) -> Prompt:
    return Prompt.of(text, max_tokens=most)


def said(content: Any) -> float:
    """Tokens of one message, without what stands around it."""
    return tokens((Message("user", content),)) - 7


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0),
        ("x" * 200, 50),
        ("a\x00\x7f\n", 1),
        ("漢字かなカナ", 6),
        ("한국어", 3),
        ("\uff21\uff22", 2),
        ("éèüß", 2),
        ("привет", 3),
        ("漢" * 100 + "x" * 100, 125),
        ("é漢x" * 4, 2 + 4 + 1),
        ("🙂🙂", 1),
        ("\ud800", 0.5),
        ("—…", 1),
    ],
)
def test_each_script_has_its_density(text: str, expected: float) -> None:
    assert said(text) == pytest.approx(expected)


def test_messages_and_parts_have_their_own_costs() -> None:
    assert tokens(()) == 3
    assert tokens([Message("system", ""), Message("user", "")]) == 3 + 4 + 4
    assert said(({"type": "text", "text": "x" * 40}, IMAGE)) == 10 + 800
    assert said(({"type": "input_audio"}, {"type": "text", "text": None})) == 1600


def test_a_cost_names_every_dimension() -> None:
    cost = Estimator().cost(prompt(most=50), "m")
    assert cost == {"requests": 1, "input_tokens": 100, "output_tokens": 50, "total_tokens": 150}
    assert isinstance(cost, dict)
    cost["usd"] = 0.5
    assert (cost.model, cost.guess) == ("m", 100)
    copy = pickle.loads(pickle.dumps(cost))  # noqa: S301
    assert (copy, copy.guess) == (cost, 100)


def learned(*usages: Usage, **settings: Any) -> Estimator:
    estimator = Estimator(**settings)
    for usage in usages:
        estimator.learn(estimator.cost(prompt(), "m"), usage)
    return estimator


def test_the_input_is_corrected_by_what_it_really_was() -> None:
    estimator = learned(*[Usage(150, 10)] * 3)
    assert estimator.cost(prompt(), "m")["input_tokens"] == pytest.approx(150)
    assert estimator.cost(prompt(), "other")["input_tokens"] == 100


def test_many_answers_to_one_estimate_do_not_drive_it_away() -> None:
    """The estimates of all calls in flight were made before the first answer taught anything."""
    estimator = Estimator()
    costs = [estimator.cost(prompt(), "m") for _ in range(200)]
    for cost in costs:
        estimator.learn(cost, Usage(150, 10))
    assert estimator.cost(prompt(), "m")["input_tokens"] == pytest.approx(150)


def test_long_prompts_weigh_more() -> None:
    estimator = Estimator()
    for text, actual in (("x" * 40, 170), ("x" * 40_000, 10_007)):
        estimator.learn(estimator.cost(prompt(text), "m"), Usage(actual, 1))
    assert estimator.cost(prompt(), "m")["input_tokens"] == pytest.approx(100 * 10_177 / 10_024)


def test_the_new_outweighs_the_old() -> None:
    estimator = learned(*[Usage(100, 10)] * 200, *[Usage(200, 10)] * 100)
    assert estimator.cost(prompt(), "m")["input_tokens"] == pytest.approx(200, rel=0.01)
    slow = learned(*[Usage(100, 10)] * 200, *[Usage(200, 10)] * 100, forget=0.001)
    assert slow.cost(prompt(), "m")["input_tokens"] == pytest.approx(100 * (200 + 2 * 100) / 300, rel=0.01)


@pytest.mark.parametrize(("actual", "ratio"), [(1, LOWEST), (100_000, HIGHEST)])
def test_the_correction_has_bounds(actual: int, ratio: float) -> None:
    assert learned(Usage(actual, 10)).cost(prompt(), "m")["input_tokens"] == pytest.approx(100 * ratio)


def test_an_answer_without_input_tokens_teaches_nothing() -> None:
    assert learned(Usage(0, 10)).cost(prompt(), "m") == Estimator().cost(prompt(), "m")


@pytest.mark.parametrize(
    ("pessimistic", "answers", "most", "expected"),
    [
        (False, [], None, 256),
        (False, [], 1000, 1000),
        (False, [50], None, 50),
        (False, [50], 1000, 50),
        (False, [50], 20, 20),
        (False, [10, 20, 30, 40, 50], 1000, 40),
        (False, [50, 40, 30, 20, 10, 0, 0, 0, 0, 0], 1000, 30),
        (True, [], None, 256),
        (True, [50], 1000, 1000),
        (True, [50], None, 50),
        (True, [50], 20, 20),
    ],
)
def test_the_output_is_what_most_answers_were_or_the_most_allowed(
    pessimistic: bool, answers: list[int], most: int | None, expected: float
) -> None:
    estimator = learned(*(Usage(100, answer) for answer in answers), pessimistic=pessimistic)
    assert estimator.cost(prompt(most=most), "m")["output_tokens"] == expected


def test_only_recent_answers_count() -> None:
    estimator = learned(*[Usage(100, 900)] * 64, *[Usage(100, 10)] * 64)
    assert estimator.cost(prompt(), "m")["output_tokens"] == 10


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=200), st.integers(1, 40))
def test_four_of_five_recent_answers_are_no_longer(answers: list[int], window: int) -> None:
    estimator = learned(*(Usage(100, answer) for answer in answers), window=window)
    looked = len(answers) if len(answers) < 16 else len(answers) - len(answers) % 16
    recent = answers[max(0, looked - window) : looked]
    output = estimator.cost(prompt(), "m")["output_tokens"]
    assert output in recent
    assert sum(answer <= output for answer in recent) >= 0.8 * len(recent)
    assert sum(answer < output for answer in recent) < 0.8 * len(recent)


texts = st.text(max_size=300)
parts = st.fixed_dictionaries({"type": st.sampled_from(["text", "image_url", "x"])}, optional={"text": texts})
contents = st.one_of(texts, st.lists(parts, min_size=1, max_size=4).map(tuple))


@given(st.lists(contents, min_size=1, max_size=5), st.none() | st.integers(1, 10_000), st.lists(st.integers(0, 10**6)))
def test_any_prompt_has_a_finite_cost_that_adds_up(contents: list[Any], most: int | None, actual: list[int]) -> None:
    asked = Prompt(tuple(Message("user", content) for content in contents), max_tokens=most)
    estimator = Estimator()
    for figure in actual:
        estimator.learn(estimator.cost(asked, "m"), Usage(figure, figure))
    cost = estimator.cost(asked, "m")
    assert all(0 <= amount < math.inf for amount in cost.values())
    assert cost["total_tokens"] == cost["input_tokens"] + cost["output_tokens"]
    assert LOWEST * cost.guess <= cost["input_tokens"] * (1 + 1e-9)
    assert cost["input_tokens"] <= HIGHEST * cost.guess * (1 + 1e-9)
    assert most is None or cost["output_tokens"] <= most


def test_a_texts_tokens_are_the_sum_of_its_characters() -> None:
    rng = random.Random(1)
    text = "".join(chr(rng.choice([65, 233, 0x4E2D, 0xAC00, 0x1F600])) for _ in range(500))
    assert said(text) == pytest.approx(sum(map(said, text)))


@pytest.mark.parametrize(
    "settings", [{"default_output": 0}, {"window": 0}, {"forget": 0}, {"forget": 1.1}, {"forget": math.nan}]
)
def test_a_senseless_setting_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"Estimator: {next(iter(settings))} must be"):
        Estimator(**settings)


def test_equality_is_about_settings() -> None:
    assert learned(Usage(5, 5)) == Estimator()
    assert Estimator(pessimistic=True) != Estimator()
    assert isinstance(Estimator().cost(prompt(), "m"), Estimate)
