import copy
import pickle
from collections import UserDict
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.types import JSON, ROLES, Message, Outcome, Prompt, Reply, Usage, is_missing

PARTS: list[JSON] = [{"type": "text", "text": "What is "}, {"type": "image_url", "image_url": {"url": "data:"}},
         {"type": "text", "text": "this?"}]  # fmt: skip

# -- Message ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ROLES)
def test_each_role_may_speak(role: str) -> None:
    assert Message.of({"role": role, "content": "hi"}) == Message(role, "hi")  # type: ignore[arg-type]


def test_a_message_is_returned_as_it_is() -> None:
    message = Message("user", "hi")
    assert Message.of(message) is message


@pytest.mark.parametrize("kind", [dict, UserDict, MappingProxyType])
def test_any_mapping_can_be_a_message(kind: Any) -> None:
    assert Message.of(kind({"role": "user", "content": "hi"})).text == "hi"


def test_parts_are_passed_through_and_their_texts_are_joined() -> None:
    message = Message.of({"role": "user", "content": PARTS})
    assert message.content == tuple(PARTS)
    assert message.text == "What is this?"


@pytest.mark.parametrize("odd", [{"type": "text"}, {"type": "text", "text": None}, {"type": "text", "text": 5}, {}])
def test_a_part_without_text_has_no_say_in_the_text(odd: dict[str, Any]) -> None:
    """The frame reads it after the answers are paid for: it must not raise."""
    assert Message.of({"role": "user", "content": [odd, *PARTS]}).text == "What is this?"


@pytest.mark.parametrize(
    ("value", "error", "says"),
    [
        ("hi", TypeError, "'role' and 'content', not str"),
        (None, TypeError, "not NoneType"),
        ({"role": "robot", "content": "hi"}, ValueError, "system, developer, user, assistant, not 'robot'"),
        ({"content": "hi"}, ValueError, "not None"),
        ({"role": "user", "content": "hi", "name": "x"}, ValueError, r"unknown: \['name'\]"),
        ({"role": "user", "content": "hi", 5: "x"}, ValueError, r"unknown: \['5'\]"),
        ({"role": "user"}, TypeError, "missing value"),
        ({"role": "user", "content": float("nan")}, TypeError, "missing value"),
        ({"role": "user", "content": pd.NA}, TypeError, "missing value"),
        ({"role": "user", "content": []}, TypeError, "non-empty list of part dicts, not list"),
        ({"role": "user", "content": ["hi"]}, TypeError, "list of part dicts"),
        ({"role": "user", "content": b"hi"}, TypeError, "not bytes"),
        ({"role": "user", "content": 5}, TypeError, r"not int \(5\)"),
    ],
)
def test_what_is_no_message_is_refused_with_what_would_be_one(value: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        Message.of(value)


# -- Prompt -----------------------------------------------------------------------------------------------


@given(st.text())
def test_any_text_is_a_prompt(text: str) -> None:
    prompt = Prompt.of(text)
    assert prompt.messages == (Message("user", text),)
    assert prompt.text == text


def test_a_list_of_messages_is_a_prompt() -> None:
    prompt = Prompt.of([{"role": "system", "content": "be brief"}, Message("user", "hi")])
    assert [message.role for message in prompt.messages] == ["system", "user"]


def test_a_system_prompt_stands_first() -> None:
    prompt = Prompt.of([{"role": "user", "content": "hi"}], system="be brief")
    assert prompt.messages == (Message("system", "be brief"), Message("user", "hi"))


def test_a_prompt_is_returned_as_it_is() -> None:
    prompt = Prompt.of("hi")
    assert Prompt.of(prompt, system="ignored", temperature=1.0) is prompt


def test_the_text_is_what_the_user_said_last() -> None:
    turns = [("user", "first"), ("assistant", "answer"), ("user", "second"), ("assistant", "Sure, ")]
    assert Prompt.of([{"role": role, "content": text} for role, text in turns]).text == "second"


def test_without_a_user_the_text_is_the_last_message() -> None:
    assert Prompt.of([{"role": "system", "content": "a"}, {"role": "assistant", "content": "b"}]).text == "b"


@pytest.mark.parametrize("missing", [None, float("nan"), np.nan, np.float32("nan"), pd.NA, pd.NaT, Decimal("NaN")])
def test_a_missing_value_is_missing_and_no_prompt(missing: Any) -> None:
    assert is_missing(missing)
    with pytest.raises(ValueError, match=r"a prompt is missing .*: drop or fill it first"):
        Prompt.of(missing)


@pytest.mark.parametrize(
    "there",
    ["", "nan", "None", 0, 0.0, False, (), [], {}, [None], b"", np.array([]), np.array([1.0, np.nan]),
     pd.Series([np.nan, np.nan]), pd.Timestamp(0), object()],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_a_value_that_is_there_is_not_missing(there: Any) -> None:
    assert not is_missing(there)


@pytest.mark.parametrize(
    ("value", "error", "says"),
    [
        ([], ValueError, "an empty list of messages"),
        ((), ValueError, "an empty list of messages"),
        (5, TypeError, r"a str or a list of messages, not int \(5\)"),
        (b"hi", TypeError, "not bytes"),
        (bytearray(b"hi"), TypeError, "not bytearray"),
        ({"role": "user", "content": "hi"}, TypeError, "a list of messages, not dict"),
        (["hi"], TypeError, "a message is a mapping"),
        (np.array(["a", "b"]), TypeError, "not ndarray"),
        (pd.Series(["a", "b"]), TypeError, "not Series"),
    ],
    ids=str,
)
def test_what_is_no_prompt_is_refused_with_what_would_be_one(value: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        Prompt.of(value)


def test_a_long_value_is_shown_in_part() -> None:
    with pytest.raises(TypeError) as raised:
        Prompt.of({"x" * 1000: 1})  # type: ignore[arg-type]
    assert len(str(raised.value)) < 150


@pytest.mark.parametrize(
    ("parameters", "error", "says"),
    [
        ({"system": 5}, TypeError, "system must be a str, not int"),
        ({"model": ""}, TypeError, "model must be a non-empty str"),
        ({"model": 5}, TypeError, "model must be a non-empty str, not int"),
        ({"temperature": "hot"}, TypeError, "temperature must be a number, not str"),
        ({"temperature": True}, TypeError, "temperature must be a number, not bool"),
        ({"temperature": -0.1}, ValueError, "temperature must be between 0 and 2, not -0.1"),
        ({"temperature": 2.1}, ValueError, "temperature must be between 0 and 2"),
        ({"temperature": float("nan")}, ValueError, "temperature must be between 0 and 2"),
        ({"max_tokens": 1.5}, TypeError, "max_tokens must be an int, not float"),
        ({"max_tokens": True}, TypeError, "max_tokens must be an int, not bool"),
        ({"max_tokens": 0}, ValueError, "max_tokens must be at least 1, not 0"),
        ({"extra": "stop"}, TypeError, "extra must be a mapping of request fields, not str"),
        ({"extra": ["stop"]}, TypeError, "extra must be a mapping"),
    ],
)
def test_a_senseless_parameter_is_refused_by_name(parameters: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        Prompt.of("hi", **parameters)


@pytest.mark.parametrize("temperature", [0, 0.0, 2, 2.0, np.float64(0.7)])
def test_the_bounds_of_the_temperature_are_allowed(temperature: float) -> None:
    assert Prompt.of("hi", temperature=temperature).temperature == temperature


def test_parameters_that_are_not_given_are_not_sent() -> None:
    prompt = Prompt.of("hi")
    assert (prompt.model, prompt.temperature, prompt.max_tokens, dict(prompt.extra)) == (None, None, None, {})


def test_further_fields_are_kept_as_they_are() -> None:
    assert Prompt.of("hi", extra={"stop": ["\n"], "seed": 1}).extra == {"stop": ["\n"], "seed": 1}


# -- Usage and the rest -----------------------------------------------------------------------------------

counts = st.builds(Usage, *[st.integers(0, 10**9)] * 5)


@given(counts, counts)
def test_usages_add_up_field_by_field(one: Usage, two: Usage) -> None:
    total = one + two
    for name in Usage.__dataclass_fields__:
        assert getattr(total, name) == getattr(one, name) + getattr(two, name)


@given(counts)
def test_nothing_used_changes_no_sum(usage: Usage) -> None:
    assert usage + Usage() == usage


OUTCOME = Outcome(
    3,
    Prompt.of("hi", extra={"stop": ["x"]}),
    "ok",
    Reply("hi", "stop", "p", "m", Usage(1, 2)),
    None,
)


@pytest.mark.parametrize("value", [OUTCOME, OUTCOME.prompt, OUTCOME.reply, Message("user", tuple(PARTS)), Usage(1)])
def test_values_can_be_copied_and_sent_to_another_process(value: Any) -> None:
    assert copy.deepcopy(value) == value
    assert pickle.loads(pickle.dumps(value)) == value  # noqa: S301  our own bytes


@pytest.mark.parametrize(
    ("value", "field"),
    [(OUTCOME, "status"), (OUTCOME.prompt, "model"), (OUTCOME.reply, "content"), (Usage(), "input_tokens")],
)
def test_values_are_frozen(value: Any, field: str) -> None:
    with pytest.raises(AttributeError):
        setattr(value, field, "changed")
