from typing import Any

import pandas as pd
import pytest

from llmlab.stats import levels, shares, spans
from tests.frames import limits


def told(frame: pd.DataFrame) -> list[tuple[Any, ...]]:
    return list(frame[["target", "value", "begin_s", "end_s"]].itertuples(index=False, name=None))


def test_a_sample_holds_until_the_next_one() -> None:
    seen = limits(
        {"begin": 0, "breaker": "closed"}, {"begin": 1, "breaker": "closed"}, {"begin": 2, "breaker": "open"},
        {"begin": 5, "breaker": "half_open"}, {"begin": 6, "breaker": "closed"},
    )  # fmt: skip
    assert told(spans(seen, "breaker")) == [
        ("p:m", "closed", 0, 2), ("p:m", "open", 2, 5), ("p:m", "half_open", 5, 6), ("p:m", "closed", 6, 6),
    ]  # fmt: skip


def test_targets_are_told_apart() -> None:
    seen = limits(
        {"begin": 0, "target": "a", "breaker": "open"}, {"begin": 0, "target": "b"},
        {"begin": 4, "target": "a", "breaker": "closed"}, {"begin": 4, "target": "b"},
    )  # fmt: skip
    assert told(spans(seen, "breaker"))[0] == ("a", "open", 0, 4)
    assert [row for row in told(spans(seen, "breaker")) if row[0] == "b"] == [("b", "closed", 0, 4)]


def test_where_there_is_no_value_there_is_no_span() -> None:
    seen = limits({"begin": 0, "breaker": None}, {"begin": 1, "breaker": None})
    assert spans(seen, "breaker").empty


def test_pauses_are_spans_whatever_is_left_of_them() -> None:
    seen = limits(
        {"begin": 0}, {"begin": 1, "paused_ms": 2000.0}, {"begin": 2, "paused_ms": 1000.0}, {"begin": 3}, {"begin": 9}
    )
    assert told(spans(seen, "paused")) == [("p:m", "paused", 1, 3)]


def test_shares_by_hand() -> None:
    seen = limits(
        {"begin": 0, "bound_by": "provider"},
        {"begin": 1, "bound_by": "rate limit"},
        {"begin": 4, "bound_by": "provider"},
    )
    assert shares(seen).to_dict("list") == {
        "bound_by": ["rate limit", "provider"], "seconds": [3, 1], "share": [0.75, 0.25],
    }  # fmt: skip


def test_two_targets_do_not_count_the_time_twice() -> None:
    seen = limits(*({"begin": at, "target": name} for at in (0, 2) for name in "ab"))
    assert shares(seen)["seconds"].tolist() == [2]


def test_levels_by_hand() -> None:
    seen = limits(
        {"begin": 0, "requests_limit": 60.0, "requests_level": 6.0},
        {"begin": 1, "requests_limit": 60.0, "requests_level": -3.0, "total_tokens_limit": 100.0,
         "total_tokens_level": 50.0},
        {"begin": 2},
    )  # fmt: skip
    out = levels(seen)
    assert out["dimension"].tolist() == ["requests", "requests", "total_tokens"]
    assert out["share"].tolist() == pytest.approx([0.1, -0.05, 0.5])
    assert out["at_s"].tolist() == [0, 1, 1]


@pytest.mark.parametrize("column", ["bound_by", "breaker", "paused"])
def test_of_no_samples_nothing_is_told(column) -> None:
    assert list(spans(limits(), column)) == ["target", "value", "begin_s", "end_s"]
    assert shares(limits()).empty
    assert levels(limits()).empty


def test_one_sample_took_no_time() -> None:
    assert told(spans(limits({}))) == [("p:m", "provider", 0, 0)]
    assert shares(limits({})).empty


@pytest.mark.parametrize(("function", "column"), [(spans, "bound_by"), (shares, "at"), (levels, "usd_level")])
def test_a_frame_that_lacks_a_column_is_refused_with_its_name(function, column) -> None:
    with pytest.raises(
        ValueError, match=f"^{function.__name__} takes job.limits; this frame has no column '{column}'$"
    ):
        function(limits({}).drop(columns=column))
