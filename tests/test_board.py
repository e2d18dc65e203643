from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.board import as_html, as_text, bundle, count, kinds, lines, milliseconds, seconds
from llmlab.live import Look

HOSTILE = '<img src=x onerror="pwned()">'


def said(**fields: Any) -> dict[str, str]:
    return dict(lines(Look(**fields)))


def test_an_empty_look_says_the_least() -> None:
    assert said() == {"rows": "0", "time": "0.0 s", "throughput": "0.0 rows/s"}


def test_rows_say_what_became_of_them() -> None:
    assert said(done=1200, total=3000)["rows"] == "1,200 of 3,000"
    assert said(done=9, total=9, errors=1, cancelled=2)["rows"] == "9 of 9, 1 error, 2 cancelled"
    assert said(done=2000, errors=1500)["rows"] == "2,000, 1,500 errors"


def test_the_time_left_is_told_while_it_runs_and_somebody_knows() -> None:
    assert said(state="running", elapsed_s=3.0, eta_s=9.96)["time"] == "3.0 s, 10.0 s left"
    assert said(state="running", elapsed_s=3.0)["time"] == "3.0 s"
    assert said(state="done", elapsed_s=3.0, eta_s=0.0)["time"] == "3.0 s"


def test_the_throughput_is_that_of_the_whole_job() -> None:
    assert said(rate=9.0, rate_overall=2.25)["throughput"] == "2.2 rows/s"
    assert said(rate_overall=1234.5)["throughput"] == "1,234 rows/s"


def test_what_there_is_to_say_is_said() -> None:
    found = said(
        p50_ms=120.4,
        p95_ms=2500.0,
        retries=1200,
        retried=[("Dropped", 1100), ("ServerError", 100)],
        errors=3,
        kinds=[("BadRequest", 3)],
        input_tokens=5,
        output_tokens=0,
        cost_usd=0.00005,
        bound_by="rate limit",
    )
    assert found["latency"] == "p50 120 ms, p95 2.5 s"
    assert found["retries"] == "1200 (Dropped 1,100, ServerError 100)"
    assert found["errors"] == "BadRequest 3"
    assert found["tokens"] == "5 in, 0 out"
    assert found["cost"] == "$0.000050"
    assert found["bound by"] == "rate limit"


def test_every_note_has_a_line() -> None:
    assert lines(Look(notes=["one", "two"]))[-2:] == [("note", "one"), ("note", "two")]


def test_the_text_has_a_head_and_a_line_each() -> None:
    text = as_text(Look(name="run_many", state="done", done=2, total=2))
    assert text.splitlines()[:2] == ["llmlab run_many: done", "  rows        2 of 2"]


def test_the_table_says_what_the_text_says() -> None:
    look = Look(name="run_many", state="stopped", done=2, total=2, notes=["a note"], bound_by="provider")
    for what, value in lines(look):
        assert f">{what}</td>" in as_html(look)
        assert f">{value}</td>" in as_html(look)
    assert "llmlab run_many: stopped" in as_html(look)


def test_text_from_outside_is_escaped_in_the_table() -> None:
    look = Look(name=HOSTILE, state=HOSTILE, retries=1, retried=[(HOSTILE, 1)], kinds=[(HOSTILE, 1)],
                notes=[HOSTILE], bound_by=HOSTILE)  # fmt: skip
    assert "<img" not in as_html(look)
    assert as_html(look).count("&lt;img src=x onerror=&quot;pwned()&quot;&gt;") == 6


@given(st.text())
def test_no_text_from_outside_makes_markup(text: str) -> None:
    plain, hostile = Look(notes=["note"]), Look(notes=[text])
    for sign in "<>\"'":
        assert as_html(hostile).count(sign) == as_html(plain).count(sign)


def test_mathjax_of_any_version_passes_over_the_table() -> None:
    classes = as_html(Look()).partition('class="')[2].partition('"')[0].split()
    assert {"tex2jax_ignore", "mathjax_ignore"} <= set(classes)


def test_an_output_says_it_both_ways() -> None:
    look = Look(name="run_many")
    assert bundle(look) == {"text/plain": as_text(look), "text/html": as_html(look)}


@pytest.mark.parametrize(
    ("number", "words"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (10.4, "10 s"), (59.4, "59 s"), (60, "1 min 0 s"), (61.9, "1 min 1 s"),
     (3599.9, "59 min 59 s"), (3600, "1 h 0 min"), (9000, "2 h 30 min"), (360_000, "100 h 0 min")],
)  # fmt: skip
def test_spans_are_said_as_people_do(number: float, words: str) -> None:
    assert seconds(number) == words


@pytest.mark.parametrize(("number", "words"), [(0.4, "0 ms"), (999.4, "999 ms"), (1000, "1.0 s"), (61_000, "61.0 s")])
def test_latencies_are_said_in_milliseconds_or_seconds(number: float, words: str) -> None:
    assert milliseconds(number) == words


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "0"), (9999, "9999"), (10_000, "10.0k"), (12_345, "12.3k"), (1e6, "1.0M"), (2.5e9, "2.5G")],
)
def test_large_counts_are_shortened(number: float, words: str) -> None:
    assert count(number) == words


def test_no_kinds_are_no_words() -> None:
    assert kinds([]) == ""
