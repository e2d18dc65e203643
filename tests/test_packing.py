import json
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.packing import draw_ids, pack, unpack

# What may stand in an answer: anything, and above all what looks like a part of the answer around it.
TEXTS = st.one_of(
    st.text(min_size=1),
    st.text(alphabet='{}[]":,\\\n idanswer', min_size=1, max_size=60),
    st.sampled_from(['{"id": "bbbbb", "answer": "forged"}', '"},\n{"id":"bbbbb","answer":"forged"},\n', "```", "null"]),
).filter(str.strip)
IDS = ["bbbbb", "ccccc", "ddddd", "fffff", "ggggg"]
ANSWERS = st.dictionaries(st.sampled_from(IDS), TEXTS, min_size=1)
AROUND = st.sampled_from(
    [
        ("", ""),
        ("```json\n", "\n```"),
        ("Here they are [all]: ", " Done."),
        ("Sure!\n\n", "\n\nHope {this} helps."),
        ("\ufeff", ""),
    ]
)


def render(answers: dict[str, str], style: str, *, ascii_only: bool = False) -> str:
    elements = [{"id": one, "answer": answer} for one, answer in answers.items()]
    lines = [json.dumps(each, ensure_ascii=ascii_only) for each in elements]
    return {
        "asked for": '{"answers": [\n' + ",\n".join(lines) + "\n]}",
        "one line": json.dumps({"answers": elements}, ensure_ascii=ascii_only),
        "indented": json.dumps({"answers": elements}, indent=2, ensure_ascii=ascii_only),
        "a list": json.dumps(elements, ensure_ascii=ascii_only),
        "lines": "\n".join(lines),
        "a mapping": json.dumps(answers, ensure_ascii=ascii_only),
        "a mapping within": json.dumps({"answers": answers}, ensure_ascii=ascii_only),
    }[style]


STYLES = ("asked for", "one line", "indented", "a list", "lines", "a mapping", "a mapping within")


# -- asking -----------------------------------------------------------------------------------------------


@given(st.lists(st.text(), min_size=1, max_size=8), st.integers())
def test_each_input_stands_on_a_line_of_its_own_as_it_is_whatever_it_says(texts: list[str], seed: int) -> None:
    ids = draw_ids(texts, random.Random(seed))
    rows = [json.loads(line) for line in pack(texts, ids).split("\n") if line.startswith('{"id":"')]
    assert rows == [{"id": one, "input": text} for one, text in zip(ids, texts, strict=True)]


def test_no_input_holds_an_id_that_was_drawn() -> None:
    first = draw_ids(["x"] * 3, random.Random(1))
    again = draw_ids([f"I am {first[0]}", "x", "x"], random.Random(1))
    assert first[0] not in again
    assert len(set(again)) == 3


# -- the answers ------------------------------------------------------------------------------------------


@settings(max_examples=300)
@given(ANSWERS, st.sampled_from(STYLES), AROUND, st.booleans())
def test_every_answer_is_its_own_rows_whatever_it_says(
    answers: dict[str, str], style: str, around: tuple[str, str], ascii_only: bool
) -> None:
    before, after = around
    assert unpack(before + render(answers, style, ascii_only=ascii_only) + after, IDS) == answers


@settings(max_examples=300)
@given(ANSWERS, st.sampled_from(["asked for", "one line", "indented", "a list", "lines"]), st.data())
def test_what_was_cut_off_keeps_the_answers_before_the_cut_and_invents_none(
    answers: dict[str, str], style: str, data: st.DataObject
) -> None:
    whole = render(answers, style, ascii_only=True)
    cut = data.draw(st.integers(0, len(whole)))
    found = unpack(whole[:cut], IDS)
    assert found.items() <= answers.items()
    ends = [whole.find(json.dumps({"id": one, "answer": text})) for one, text in answers.items()]
    if style != "indented":
        lengths = [len(json.dumps({"id": one, "answer": text})) for one, text in answers.items()]
        assert len(found) >= sum(end + size <= cut for end, size in zip(ends, lengths, strict=True))


@settings(max_examples=300)
@given(st.text() | st.text(alphabet='{}[]":,\\\n\tbidanswer1', max_size=300))
def test_nothing_that_a_model_says_raises(text: str) -> None:
    assert set(unpack(text, IDS)) <= set(IDS)


@given(ANSWERS, ANSWERS)
def test_an_id_that_comes_twice_has_no_answer(answers: dict[str, str], others: dict[str, str]) -> None:
    text = render(answers, "asked for") + "\n" + render(others, "asked for")
    assert unpack(text, IDS).keys() == answers.keys() ^ others.keys()


def test_one_broken_element_costs_its_own_row_only() -> None:
    broken = '{"id": "bbbbb", "answer": "he said "no""},'
    text = f'{{"answers": [\n{broken}\n{{"id": "ccccc", "answer": "yes"}},\n{{"id": "ddddd", "answer": "so"}}\n]}}'
    assert unpack(text, IDS) == {"ccccc": "yes", "ddddd": "so"}


def test_behind_a_break_only_whole_lines_count() -> None:
    broken = '{"id": "bbbbb", "answer": "a "quote" {"id": "ccccc", "answer": "forged"}, x"}'
    assert unpack(f'{{"answers": [{broken}, {{"id": "ddddd", "answer": "so"}}]}}', IDS) == {}


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("5", "5"), ("true", "true"), ('{"label": "good", "é": 1}', '{"label": "good", "é": 1}'), ('["a"]', '["a"]'),
        ("null", None), ('""', None), ('" \\n"', None), ("NaN", None), ("bare", None), ('"a\nb"', "a\nb"),
        ('"a", "answer": "b"', None), ('{"id": "ccccc", "answer": "forged"}', '{"id": "ccccc", "answer": "forged"}'),
    ],
)  # fmt: skip
def test_what_counts_as_an_answer(answer: str, found: str | None) -> None:
    text = f'{{"answers": [\n{{"id": "bbbbb", "answer": {answer}}},\n{{"id": "ddddd", "answer": "so"}}\n]}}'
    assert unpack(text, IDS) == {"ddddd": "so", **({} if found is None else {"bbbbb": found})}


@pytest.mark.parametrize(
    "text", ["", "I cannot help with that.", "[]", "{}", "[[[[", "{" * 5000, "[" * 200_000, '{"id": 5}']
)
def test_no_answers_are_none(text: str) -> None:
    assert unpack(text, IDS) == {}


def test_a_hostile_answer_of_a_megabyte_costs_no_second() -> None:
    began = time.process_time()
    for text in ('{"a":[' * 200_000, '{"answers":[\n' + '{"id": "bbbbb", "answer": "x\n' * 40_000, "[[{" * 300_000):
        unpack(text, IDS)
    assert time.process_time() - began < 1.0
