"""What the simulated model says."""

import random
import statistics
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.sim.formed import instance
from llmlab.sim.replies import answer, input_tokens, tokens
from llmlab.sim.wire import Answer, Ask


def say(prompt: str = "Tell me about lighthouses", *, seed: int = 0, text: str | None = None, **ask: Any) -> Answer:
    return answer(Ask("m", prompt, **ask), seed=seed, median=60, sigma=0.4, text=text)


@given(st.text())
def test_tokens_joined_are_the_text(text: str) -> None:
    assert "".join(tokens(text)) == text


def test_english_has_about_four_characters_per_token() -> None:
    texts = [say(f"prompt {i}").choices[0] for i in range(200)]
    ratio = sum(len(each.text) for each in texts) / sum(len(each.pieces) for each in texts)
    assert 3.5 < ratio < 4.7


def test_the_same_seed_and_prompt_give_the_same_answer() -> None:
    assert say() == say()
    assert say() != say(seed=1)
    assert say() != say("Tell me about harbours")


def test_lengths_are_lognormal_around_the_median() -> None:
    lengths = sorted(len(say(f"prompt {i}").choices[0].pieces) for i in range(1000))
    assert statistics.median(lengths) == pytest.approx(60, rel=0.15)
    assert lengths[50] > 20
    assert lengths[950] < 160


def test_max_tokens_cuts_the_answer_and_says_so() -> None:
    whole = say().choices[0]
    cut = say(max_tokens=7).choices[0]
    assert cut.pieces == whole.pieces[:7]
    assert cut.finish == "length"
    assert say(max_tokens=len(whole.pieces)).choices[0].finish == "stop"


def test_a_stop_text_ends_the_answer_before_it() -> None:
    choice = say(text="one two END three", stop=("three", "END")).choices[0]
    assert (choice.text, choice.finish, choice.stopped_by) == ("one two ", "stop_sequence", "END")


def test_a_stop_text_beyond_max_tokens_is_never_met() -> None:
    choice = say(text="one two END", stop=("END",), max_tokens=2).choices[0]
    assert (choice.text, choice.finish) == ("one two", "length")


def test_reasoning_comes_first_and_can_eat_all_of_max_tokens() -> None:
    thought = say(thinks=True)
    assert thought.reasoning
    assert thought.output_tokens == len(thought.reasoning) + len(thought.choices[0].pieces)
    starved = say(thinks=True, max_tokens=5)
    assert (len(starved.reasoning), starved.choices[0].text, starved.choices[0].finish) == (5, "", "length")


def test_several_choices_differ_and_are_billed_together() -> None:
    found = say(n=3)
    assert len({choice.text for choice in found.choices}) == 3
    assert found.output_tokens == sum(len(choice.pieces) for choice in found.choices)
    assert found.steps == max(len(choice.pieces) for choice in found.choices)


def test_a_json_answer_is_a_json_object() -> None:
    assert isinstance(orjson.loads(say(json=True).choices[0].text), dict)


def test_input_is_counted_by_text_turns_and_images() -> None:
    assert input_tokens(Ask("m", "one two", turns=2, images=1)) == 2 + 2 * 4 + 3 + 800


def test_a_schema_is_met() -> None:
    schema = {
        "type": "object",
        "properties": {
            "label": {"enum": ["good", "bad"]},
            "stars": {"type": "integer", "minimum": 1, "maximum": 5},
            "share": {"type": "number", "minimum": 0, "maximum": 1},
            "sure": {"type": "boolean"},
            "tags": {"type": "array", "items": {"type": "string"}, "minItems": 2},
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "place": {"$ref": "#/$defs/place"},
            "kind": {"const": "review"},
        },
        "$defs": {"place": {"type": "object", "properties": {"city": {"type": ["string", "null"], "maxLength": 9}}}},
    }
    for seed in range(50):
        value = instance(schema, random.Random(seed))
        assert set(value) == set(schema["properties"])
        assert value["label"] in ("good", "bad")
        assert 1 <= value["stars"] <= 5
        assert 0 <= value["share"] <= 1
        assert isinstance(value["sure"], bool)
        assert len(value["tags"]) >= 2
        assert all(isinstance(tag, str) for tag in value["tags"])
        assert value["note"] is None or isinstance(value["note"], str)
        assert len(value["place"]["city"]) <= 9
        assert value["kind"] == "review"


def test_a_schema_that_refers_to_itself_comes_to_an_end() -> None:
    schema = {
        "type": "object",
        "properties": {
            "children": {"type": "array", "items": {"$ref": "#"}},
            "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
        },
    }
    for seed in range(5):
        assert "children" in instance(schema, random.Random(seed))


def test_answers_hold_characters_outside_ascii_now_and_then() -> None:
    assert any(not say(f"prompt {i}").choices[0].text.isascii() for i in range(20))
