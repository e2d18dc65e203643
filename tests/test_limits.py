import time
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.providers.limits import duration, retry_after, spoken

NOON = "Sat, 21 Nov 2026 12:00:00 GMT"
LATER = "Sat, 21 Nov 2026 12:00:30 GMT"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1),
        ("6m0s", 360),
        ("12ms", 0.012),
        ("120ms", 0.12),
        ("8ms", 0.008),
        ("8.64s", 8.64),
        ("1m30.5s", 90.5),
        ("0s", 0),
        ("9m38.016s", 578.016),
        ("32s", 32),
        ("1h2m3s", 3723),
        ("2d", 172_800),
        ("5us", 5e-6),
        ("5µs", 5e-6),
        ("5μs", 5e-6),
        ("7ns", 7e-9),
        ("60", 60),
        ("0", 0),
        ("1.5", 1.5),
        (" 3s ", 3),
    ],
)
def test_every_form_of_a_go_duration_is_read(text: str, seconds: float) -> None:
    assert duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "s",
        "-1",
        "-1s",
        "+1s",
        "nan",
        "inf",
        "infinity",
        "1x",
        "1s junk",
        "1 s",
        "1_0",
        "1e3",
        "٣s",
        "1.s",
        "9" * 400,
        "9" * 400 + "s",
        "2025-08-21T12:40:59Z",
    ],
)
def test_what_is_no_duration_is_none(text: str) -> None:
    assert duration(text) is None


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "16"}, 16),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "0"}, 0),
        ({"retry-after": "200"}, 200),
        ({"retry-after": "1m5s"}, 65),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "12.5"}, 0.0125),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after-ms": "nan", "retry-after": "1"}, 1),
        ({"retry-after-ms": "-1", "retry-after": "2"}, 2),
        ({"retry-after": LATER, "date": NOON}, 30),
    ],
)
def test_headers_say_how_long_to_wait(headers: dict[str, str], seconds: float) -> None:
    assert retry_after(headers) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        *({"retry-after": text} for text in ("nan", "inf", "-5", "soon", "", " ", "Sat, 99 Foo 2026")),
        {"retry-after": NOON, "date": LATER},
        {"retry-after-ms": "soon"},
        {"retry-after-ms": "5s"},
    ],
)
def test_an_unreadable_wait_is_none(headers: dict[str, str]) -> None:
    assert retry_after(headers) is None


@pytest.mark.parametrize("date", [{}, {"date": "yesterday"}])
def test_a_date_counts_from_now_when_the_answer_has_no_date(date: dict[str, str]) -> None:
    asked = retry_after({"retry-after": formatdate(time.time() + 100, usegmt=True), **date})
    assert asked is not None
    assert 90 < asked <= 101


@pytest.mark.parametrize(
    ("message", "seconds"),
    [
        ("Limit 30000, Used 18928, Requested 11159. Please try again in 174ms. Visit https://x.y", 0.174),
        ("Please try again in 23.03s.", 23.03),
        ("Please try again in 9m38.016s", 578.016),
        ("Please retry after 86400 seconds.", 86_400),
        ("Please retry in 32.5s.", 32.5),
        ("try again in 1 minute", 60),
        ("Try again in 2 minutes, 30 seconds", 150),
        ("retry after 500 milliseconds", 0.5),
        ("try again in 3 mins", 180),
        ("wait for 1 hour", 3600),
        ("wait at least 2 days", 172_800),
        ("try again in 6m0s", 360),
    ],
)
def test_a_sentence_says_how_long_to_wait(message: str, seconds: float) -> None:
    assert spoken(message) == pytest.approx(seconds)
    assert retry_after({}, message) == pytest.approx(seconds)


@pytest.mark.parametrize("message", ["", "try again in 5 messages", "try again later", "in 5s", "try again in 1.2.3s"])
def test_a_sentence_without_a_time_is_none(message: str) -> None:
    assert spoken(message) is None


def test_headers_go_before_words() -> None:
    assert retry_after({"retry-after": "3"}, "try again in 9s") == 3
    assert retry_after({"retry-after": "never"}, "try again in 9s") == 9


@given(st.text(), st.text(), st.text(), st.text())
def test_no_text_makes_a_wait_that_cannot_be_slept(after: str, ms: str, date: str, message: str) -> None:
    asked = retry_after({"retry-after": after, "retry-after-ms": ms, "date": date}, "retry after " + message)
    assert asked is None or 0 <= asked < float("inf")
