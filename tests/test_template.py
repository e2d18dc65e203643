import datetime as dt
import string
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.template import Template, did_you_mean

plain = st.text().map(lambda text: text.replace("{", "").replace("}", ""))
names = st.text(string.ascii_letters + string.digits + " _-.,äλ漢", min_size=1)


def fill(text: str, **row: Any) -> str:
    return Template(text).fill(row)


# -- filling ----------------------------------------------------------------------------------------------


@given(plain)
def test_a_template_without_braces_fills_to_itself(text: str) -> None:
    template = Template(text)
    assert template.columns == ()
    assert template.fill({}) == text


@given(st.text())
def test_doubled_braces_are_braces(text: str) -> None:
    assert Template(text.replace("{", "{{").replace("}", "}}")).fill({}) == text


@given(st.lists(st.tuples(plain, names, st.text()), max_size=8), plain)
def test_columns_stand_where_their_names_stood(pieces: list[tuple[str, str, str]], end: str) -> None:
    row = {name: value for _, name, value in pieces}
    text = "".join(f"{before}{{{name}}}" for before, name, _ in pieces) + end
    template = Template(text)
    assert template.columns == tuple(row)
    assert template.fill(row) == "".join(before + row[name] for before, name, _ in pieces) + end


@given(st.text())
def test_a_value_is_never_read_as_a_template(value: str) -> None:
    assert fill("<{a}>", a=value, b="secret") == f"<{value}>"


@given(st.text("{}ab!:.[]", max_size=12))
def test_a_template_is_read_or_refused_with_a_reason(text: str) -> None:
    try:
        template = Template(text)
    except ValueError as error:
        assert str(error).startswith(f"template {text!r}: ")  # noqa: PT017  most texts are no templates
    else:
        assert all(template.columns)


def test_a_column_may_be_used_often_and_is_named_once() -> None:
    template = Template("{b} {a} {b}")
    assert template.columns == ("b", "a")
    assert template.fill({"a": 1, "b": 2, "c": 3}) == "2 1 2"


@pytest.mark.parametrize("name", ["customer review", "first-name", "Größe (cm)", "価格", "class", "0", "a,b", "x'y"])
def test_a_column_may_have_any_name_that_braces_can_hold(name: str) -> None:
    template = Template(f"about {{{name}}}.")
    template.check([name, "other"])
    assert template.fill({name: "it"}) == "about it."


def test_blanks_belong_to_the_name() -> None:
    with pytest.raises(ValueError, match=r"no column ' review '; did you mean 'review'\?"):
        Template("{ review }").check(["review", "score"])


@pytest.mark.parametrize(
    ("text", "value", "filled"),
    [
        ("{a}", 50.0, "50.0"),
        ("{a:.2f}", 3.14159, "3.14"),
        ("{a:.2f}", np.float32(3.14159), "3.14"),
        ("{a:>5}|", "x", "    x|"),
        ("{a:,}", 1_234_567, "1,234,567"),
        ("{a:,}", np.int64(1_234_567), "1,234,567"),
        ("{a:%Y-%m-%d}", pd.Timestamp("2024-02-29"), "2024-02-29"),
        ("{a:%H:%M}", dt.time(9, 5), "09:05"),
        ("{a:.1%}", Decimal("0.125"), "12.5%"),
        ("{a!r}", "it's", '"it\'s"'),
        ("{a!s:>4}", 7, "   7"),
        ("{a!a}", "é", "'\\xe9'"),
        ("{{{a}}}", 1, "{1}"),
        ("{a}", ["x", None], "['x', None]"),
        ("{a}", "", ""),
        ("{a}", False, "False"),
        ("{a}", np.array([1, 2]), "[1 2]"),
    ],
)
def test_values_take_conversions_and_formats_as_in_python(text: str, value: Any, filled: str) -> None:
    assert fill(text, a=value) == filled


# -- missing and unfit values -----------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [None, float("nan"), np.nan, pd.NA, pd.NaT, Decimal("NaN")], ids=repr)
@pytest.mark.parametrize("text", ["{a}", "{a:.2f}", "{a!r}"])
def test_a_missing_value_is_refused_with_its_column_and_a_remedy(text: str, missing: Any) -> None:
    with pytest.raises(ValueError, match=r"column 'a' is missing \(None or NaN\): drop or fill it first"):
        fill(text, a=missing)


def test_a_missing_value_that_is_not_used_does_no_harm() -> None:
    assert fill("{a}", a="x", b=None) == "x"


@pytest.mark.parametrize(
    ("text", "value"),
    [("{a:.2f}", "abc"), ("{a:d}", 1.5), ("{a:c}", 10**9), ("{a:>5}", [1]), ("{a:.2q}", 1.0)],
)
def test_a_value_that_does_not_take_its_format_is_refused_with_column_and_value(text: str, value: Any) -> None:
    with pytest.raises(ValueError, match="template: column 'a' with value ") as raised:
        fill(text, a=value)
    assert repr(value) in str(raised.value)


# -- what a template cannot reach -------------------------------------------------------------------------


class Sealed:
    """An object that shows its insides to nobody."""

    secret = "hunter2"

    def __getitem__(self, key: object) -> str:
        raise AssertionError(f"indexed with {key!r}")

    def __str__(self) -> str:
        return "sealed"


@pytest.mark.parametrize(
    "field",
    ["a.b", "a.secret", "a[0]", "a[key]", "a.__class__", "a.__class__.__mro__", "a[0].b", "a.b[c]", "0.x"],
)
def test_attributes_and_indices_are_column_names_and_refused_unless_there_is_such_a_column(
    field: str,
) -> None:
    template = Template(f"{{{field}}}")
    assert template.columns == (field,)
    with pytest.raises(ValueError, match="template: no column ") as raised:
        template.check(["a", "other"])
    assert repr(field) in str(raised.value)
    assert "'a'" in str(raised.value)
    template.check(["a", field])
    assert template.fill({"a": Sealed(), field: "a column"}) == "a column"


@pytest.mark.parametrize("field", ["a.secret", "a[0]", "a.__class__"])
def test_filling_unchecked_reaches_nothing_but_the_row(field: str) -> None:
    with pytest.raises(KeyError):
        Template(f"{{{field}}}").fill({"a": Sealed()})


@pytest.mark.parametrize("text", ["{a:{b}}", "{a:{a.secret}}", "{a!r:{b}}", "{a:>{b}}"])
def test_no_braces_stand_inside_a_format(text: str) -> None:
    with pytest.raises(ValueError, match="no braces inside the format of column 'a'"):
        Template(text)


# -- refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["{", "}", "{a", "a}", "{a}}", "{{a}", "x { y", "{a[}", "{a!}", "{a!rr}"])
def test_an_unbalanced_brace_is_refused_with_the_way_to_write_one(text: str) -> None:
    with pytest.raises(ValueError, match=r"write \{\{ and \}\} for literal braces"):
        Template(text)


@pytest.mark.parametrize("text", ["{}", "a {} b", "{!r}", "{:>5}", "{a} {}"])
def test_an_empty_field_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a pair of braces is empty; put a column's name in it"):
        Template(text)


@pytest.mark.parametrize("letter", ["x", "R", "1"])
def test_an_unknown_conversion_is_refused_before_any_row_is_filled(letter: str) -> None:
    with pytest.raises(ValueError, match=f"a conversion is !r, !s or !a, not !{letter}"):
        Template(f"{{a!{letter}}}")


@pytest.mark.parametrize("text", [None, 5, b"{a}", ["{a}"]])
def test_what_is_no_text_is_no_template(text: Any) -> None:
    with pytest.raises(TypeError, match="template must be a str with column names in braces, not"):
        Template(text)


def test_a_template_that_uses_no_column_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="every row would ask the same; there are: 'review', 'score'"):
        Template("Classify: {{review}}").check(["review", "score"])


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("reviw", "did you mean 'review'?"),
        ("Review", "did you mean 'review'?"),
        ("text", "there are: 'review', 'id'"),
    ],
)
def test_an_unknown_column_is_refused_with_the_one_that_was_perhaps_meant(name: str, says: str) -> None:
    with pytest.raises(ValueError, match="template: no column ") as raised:
        Template(f"{{{name}}}").check(["review", "id"])
    assert str(raised.value).endswith(says)


@given(st.text(), st.lists(st.text()))
def test_a_guess_is_one_of_the_known_names(name: str, known: list[str]) -> None:
    said = did_you_mean(name, iter(known))
    assert said in {f"did you mean {each!r}?" for each in known} | {f"there are: {', '.join(map(repr, known))}"}


@pytest.mark.parametrize("text", ['Answer as {"label": "good"}: {review}', "{{review}} is {'x'}"])
def test_json_in_a_template_is_told_how_to_be_written(text: str) -> None:
    with pytest.raises(ValueError, match=r"no column .*write \{\{ and \}\} for literal braces, as of JSON"):
        Template(text).check(["review"])
