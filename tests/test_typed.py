"""What `schema=` may be, and how answers are read into it."""

import datetime as dt
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, RootModel, field_validator

from llmlab.errors import SchemaMismatch
from llmlab.typed import typed
from llmlab.types import Reply
from tests.kinds import GOOD, JSON, Aliased, Mood, Nested, Node, Point, Review, Typing, asked, parsed, refused

# -- what may be asked for --------------------------------------------------------------------------------------

VALUES: list[tuple[object, str, object]] = [
    (Review, '{"mood": "good", "stars": 4}', Review(mood=Mood.GOOD, stars=4)),
    (Point, '{"x": 1, "y": 2.5}', Point(1, 2.5)),
    (Typing, '{"a": 1}', {"a": 1}),
    (Typing, '{"a": 1, "b": "c"}', {"a": 1, "b": "c"}),
    (Nested, '{"inner": [{"a": 1}]}', {"inner": [{"a": 1}]}),
    (list[Typing], '{"value": [{"a": 1}]}', [{"a": 1}]),
    (Mood, '{"value": "bad"}', Mood.BAD),
    (Literal["x", "y"], '{"value": "y"}', "y"),
    (int, '{"value": 3}', 3),
    (float, '{"value": 3}', 3.0),
    (bool, '{"value": true}', True),
    (str, '{"value": "text"}', "text"),
    (list[int], '{"value": [1, 2]}', [1, 2]),
    (int | None, '{"value": null}', None),
    (Typing | None, '{"value": {"a": 1}}', {"a": 1}),
    (int | str, '{"value": "a"}', "a"),
    (Point | Typing, '{"value": {"x": 1}}', Point(1)),
    (dict[str, int], '{"value": {"a": 1}}', {"a": 1}),
    (RootModel[list[int]], '{"value": [1]}', RootModel[list[int]]([1])),
    (Annotated[int, Field(ge=3)], '{"value": 3}', 3),
    (tuple[int, str], '{"value": [1, "a"]}', (1, "a")),
    (dt.date, '{"value": "2026-01-02"}', dt.date(2026, 1, 2)),
    (Node, '{"name": "a", "next": {"name": "b"}}', Node(name="a", next=Node(name="b"))),
    (Aliased, '{"firstOne": 2}', Aliased(firstOne=2)),
    (JSON, '{"a": 1, "b": "x"}', {"a": 1, "b": "x"}),
    ({"type": "array", "items": {"type": "integer"}}, '{"value": [1]}', [1]),
    ({"enum": ["x", "y"]}, '{"value": "x"}', "x"),
]


@pytest.mark.parametrize(("schema", "text", "value"), VALUES, ids=[str(each[0])[:40] for each in VALUES])
def test_an_answer_that_fits_is_read(schema: object, text: str, value: object) -> None:
    assert parsed(schema, text) == value


@pytest.mark.parametrize("schema", [each[0] for each in VALUES], ids=[str(each[0])[:40] for each in VALUES])
def test_what_is_asked_for_is_an_object_with_properties(schema: object) -> None:
    root = asked(schema)
    assert root["type"] == "object"
    assert root["properties"]
    assert "$ref" not in root


@pytest.mark.parametrize(
    "schema", [None, 5, "int", object(), lambda: 0, len, Point(1), Review(mood=Mood.BAD, stars=1), [int]]
)
def test_what_is_no_type_is_refused_by_name(schema: object) -> None:
    with pytest.raises(TypeError, match=r"^schema must be a type that pydantic knows"):
        typed(schema)


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "objekt"}, "no valid JSON schema"),
        ({"type": "object", "properties": {"a": {1, 2}}}, "no JSON"),
        ({"$ref": "#/$defs/none"}, "leads to nothing"),
        ({"type": "array", "items": {"$ref": "http://127.0.0.1:9/x"}}, "leads out of the schema"),
        ({"$ref": "#"}, "round in circles"),
    ],
)
def test_a_json_schema_that_is_none_is_refused(schema: object, why: str) -> None:
    with pytest.raises(ValueError, match=f"^schema.*{why}"):
        typed(schema)


@pytest.mark.parametrize(("reask", "kind"), [(-1, ValueError), (1.5, TypeError), (True, TypeError)])
def test_the_number_of_times_to_ask_again_is_checked(reask: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="reask must be"):
        typed(int, reask=reask)


def test_references_go_on_leading_where_they_led_when_a_value_is_wrapped() -> None:
    tree = {"type": "array", "items": {"anyOf": [{"type": "integer"}, {"$ref": "#"}]}}
    assert asked(tree)["properties"]["value"]["items"]["anyOf"][1] == {"$ref": "#/properties/value"}
    assert parsed(tree, '{"value": [1, [2, [3]]]}') == [1, [2, [3]]]
    shared = {"type": "array", "items": {"$ref": "#/$defs/n"}, "$defs": {"n": {"type": "integer"}}}
    assert asked(shared)["$defs"] == {"n": {"type": "integer"}}


def test_names_are_fit_for_providers() -> None:
    assert typed(Review).schema.name == "Review"
    assert typed(list[int]).schema.name == "list"
    assert typed({**JSON, "title": "What is it?"}).schema.name == "What_is_it"
    assert typed(JSON).schema.name == "answer"


def test_titles_that_repeat_names_are_not_sent_but_properties_of_that_name_are() -> None:
    class Book(BaseModel):
        title: str

    assert asked(Book) == {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]}


def test_two_calls_of_one_type_ask_the_same() -> None:
    assert typed(Review).schema == typed(Review).schema


# -- how it is read ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"  {GOOD}\n",
        f"\ufeff{GOOD}",
        f"```json\n{GOOD}\n```",
        f"```\n{GOOD}\n```",
        f"Sure, {{here}} it is: {GOOD}\nAnything else?",
        f'An object {{"like": "this"}} does not fit. {GOOD}',
        f"{GOOD} and once more {GOOD}",
        f"<think>Perhaps {GOOD.replace('4', '2')}? No.</think>\n{GOOD}",
    ],
)
def test_what_stands_around_the_object_is_tolerated(text: str) -> None:
    assert parsed(Review, text) == Review(mood=Mood.GOOD, stars=4)


def test_a_null_where_something_may_be_left_out_counts_as_left_out() -> None:
    assert parsed(Review, '{"mood": "good", "stars": 4, "spam": null}').spam is False
    assert parsed(JSON, '{"a": 1, "b": null}') == {"a": 1}
    assert "Input should be a valid integer" in refused(Review, '{"mood": "good", "stars": null, "spam": null}')


@pytest.mark.parametrize("text", ["3", " 3 ", '{"value": 3}', "```json\n3\n```".replace("```json\n", "")[:1]])
def test_a_bare_value_needs_no_object(text: str) -> None:
    assert parsed(int, text) == 3


def test_a_choice_needs_no_quotes_but_prose_is_no_choice() -> None:
    assert parsed(Mood, "good\n") is Mood.GOOD
    assert parsed(Literal["x", "y"], '"x"') == "x"
    assert "no whole JSON object" in refused(Mood, "It is good")
    assert "no whole JSON object" in refused(str, "It is good")


@pytest.mark.parametrize(
    ("schema", "text", "why"),
    [
        (Review, "", "no whole JSON object"),
        (Review, "I would say good.", "no whole JSON object"),
        (Review, '{"mood": "good", "stars": 4', "no whole JSON object"),
        (Review, '{"mood": "so so", "stars": 4}', "mood: Input should be 'good' or 'bad', not \"so so\""),
        (Review, '{"mood": "good", "stars": 9}', "stars: Input should be less than or equal to 5, not 9"),
        (Review, '{"mood": "good"}', "stars: Field required"),
        (Review, f"{GOOD} or {GOOD.replace('4', '5')}", "several JSON objects"),
        (JSON, '{"a": "1"}', "a: '1' is not of type 'integer'"),
        (JSON, "{}", "'a' is a required property"),
        (int, '{"values": 3}', "value: Field required"),
        ({"enum": ["x"]}, '{"values": "x"}', "value: Field required"),
        ({"enum": ["x"]}, '{"value": "z"}', "value: 'z' is not one of"),
    ],
)
def test_what_does_not_fit_is_refused_with_where_and_why(schema: object, text: str, why: str) -> None:
    assert why in refused(schema, text)


def test_nothing_inside_an_answer_that_was_cut_off_is_taken_for_it() -> None:
    class Loose(BaseModel):
        inner: dict[str, int] | None = None
        n: int = 0

    assert "no whole JSON object" in refused(Loose, '{"inner": {"n": 3}, "n": ')
    assert "cut off at its limit of tokens" in refused(Loose, '{"inner": {"n": 3}, "n": ', "length")


def test_a_refusal_says_so() -> None:
    assert "refused to answer" in refused(Review, "I cannot help with that.", "content_filter")


def test_tokens_and_price_of_an_answer_that_does_not_fit_are_not_in_its_error() -> None:
    with pytest.raises(SchemaMismatch) as caught:
        typed(int).read(Reply("x", "stop", "sim", "small", cost_usd=1.0))
    assert caught.value.reply.cost_usd is None


def test_only_some_of_many_complaints_are_told() -> None:
    class Many(BaseModel):
        numbers: list[int]

    said = refused(Many, '{"numbers": [' + ", ".join(['"a"'] * 500) + "]}")
    assert said.count("\n") == 10
    assert said.endswith("and 490 more")


def test_a_users_own_validator_judges() -> None:
    class Even(BaseModel):
        n: int

        @field_validator("n")
        @classmethod
        def even(cls, n: int) -> int:
            if n % 2:
                raise ValueError("must be even")
            return n

    assert parsed(Even, '{"n": 2}').n == 2
    assert "n: Value error, must be even, not 3" in refused(Even, '{"n": 3}')


def test_a_validator_that_stumbles_refuses_the_answer_and_no_more() -> None:
    class Looked(BaseModel):
        n: int

        @field_validator("n")
        @classmethod
        def look(cls, n: int) -> int:
            return {1: 2}[n]

    assert parsed(Looked, '{"n": 1}').n == 2
    assert "it cannot be judged: KeyError: 5" in refused(Looked, '{"n": 5}')


@pytest.mark.parametrize(
    ("schema", "key"), [(Node, "next"), ({"type": "object", "properties": {"a": {"$ref": "#"}}}, "a")]
)
def test_what_is_nested_beyond_all_measure_is_refused(schema: object, key: str) -> None:
    refused(schema, f'{{"{key}": ' * 5000 + "1" + "}" * 5000)
    refused(schema, '{"a": ' * 900 + '{"a": 1}' + "}" * 900)
    refused(schema, '{"a": ' * 100_000)


@given(st.text(max_size=60), st.text(max_size=60), st.integers(-9, 9))
def test_prose_around_an_object_changes_nothing_or_is_refused(before: str, behind: str, n: int) -> None:
    text = f'{before}{{"a": {n}}}{behind}'
    try:
        assert parsed(JSON, text)["a"] == n
    except SchemaMismatch:
        assert set(before + behind) & set('{}"[]'), "only braces and quotes may confuse"


@given(st.integers(1, len(GOOD) - 1))
def test_no_beginning_of_an_answer_is_taken_for_the_whole(end: int) -> None:
    refused(Review, GOOD[:end])
