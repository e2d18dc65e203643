import math
import time
from datetime import UTC, datetime
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.providers.limits import duration, levels, retry_after, spoken

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


def x_ratelimit(name: str, limit: str, remaining: str, reset: str) -> dict[str, str]:
    figures = {"limit": limit, "remaining": remaining, "reset": reset}
    return {f"x-ratelimit-{part}-{name}": text for part, text in figures.items()}


def anthropic(name: str, limit: str, remaining: str, reset: str) -> dict[str, str]:
    figures = {"limit": limit, "remaining": remaining, "reset": reset}
    return {f"anthropic-ratelimit-{name}-{part}": text for part, text in figures.items()}


CAPTURED_429 = (
    {"date": "Mon, 02 Jun 2025 15:14:45 GMT"}
    | anthropic("requests", "4000", "4000", "2025-06-02T15:14:45Z")
    | anthropic("input-tokens", "200000", "0", "2025-06-02T15:15:48Z")
    | anthropic("output-tokens", "80000", "80000", "2025-06-02T15:14:45Z")
    | anthropic("tokens", "280000", "80000", "2025-06-02T15:14:45Z")
)


def test_openai_levels_as_captured() -> None:
    headers = x_ratelimit("requests", "500", "499", "120ms") | x_ratelimit("tokens", "30000", "29996", "8ms")
    assert levels(headers) == {"requests": (500, 499, 0.12), "total_tokens": (30_000, 29_996, 0.008)}


def test_anthropic_levels_as_captured() -> None:
    assert levels(CAPTURED_429) == {
        "requests": (4000, 4000, 0),
        "input_tokens": (200_000, 0, 63),
        "output_tokens": (80_000, 80_000, 0),
    }


@pytest.mark.parametrize("kind", ["input-tokens", "output-tokens"])
def test_anthropic_tokens_count_only_where_no_kind_is_told_apart(kind: str) -> None:
    total = {"date": NOON} | anthropic("tokens", "1000", "500", "2026-11-21T12:00:30Z")
    assert levels(total) == {"total_tokens": (1000, 500, 30)}
    one = levels(total | anthropic(kind, "800", "400", "2026-11-21T12:00:30Z"))
    assert one == {kind.replace("-", "_"): (800, 400, 30)}


def test_the_tighter_of_organization_and_project_counts() -> None:
    headers = x_ratelimit("tokens", "150000", "75000", "30s") | x_ratelimit("project-tokens", "60000", "57000", "3s")
    assert levels(headers) == {"total_tokens": (60_000, 57_000, 30)}
    assert levels(x_ratelimit("project-tokens", "60000", "57000", "3s")) == {"total_tokens": (60_000, 57_000, 3)}


@pytest.mark.parametrize(
    ("limit", "remaining", "reset"),
    [
        ("60", "59", "1s"),
        ("60", "59", "1"),
        ("60", "59", "1.0"),
        ("120", "119", "0"),
        ("600", "590", "0"),
        ("600", "599", "1"),
        ("1000", "0", "60"),
        ("1000", "0", "1m0s"),
        ("500", "500", "0s"),
        ("10", "9", "600ms"),
        ("600", "0", "59.9s"),
        ("600", "1", "2m2.5s"),
    ],
)
def test_a_limit_per_minute_is_told_by_its_window(limit: str, remaining: str, reset: str) -> None:
    found = levels(x_ratelimit("requests", limit, remaining, reset))
    assert found == {"requests": (float(limit), float(remaining), duration(reset))}


@pytest.mark.parametrize(
    ("limit", "remaining", "reset"),
    [
        ("14400", "14370", "2m59.56s"),
        ("14400", "14399", "6s"),
        ("1000", "999", "1m26.4s"),
        ("200", "199", "7m12s"),
        ("50", "0", "24h"),
        ("10", "5", "500ms"),
        ("1000", "500", "1800s"),
        ("150000", "149984", "6m0s"),
        ("500", "500", "6h"),
    ],
)
def test_a_limit_per_day_hour_or_second_is_left_out(limit: str, remaining: str, reset: str) -> None:
    assert levels(x_ratelimit("requests", limit, remaining, reset)) is None
    tokens = x_ratelimit("tokens", "30000", "29996", "8ms")
    assert levels(x_ratelimit("requests", limit, remaining, reset) | tokens) == levels(tokens)


@pytest.mark.parametrize(
    ("limit", "remaining", "reset"),
    [
        ("-1", "-1", "-1"),
        ("0", "0", "0"),
        ("60", "-1", "1s"),
        ("60", "59", "-1"),
        ("-1", "59", "1s"),
        ("60", "61", "0s"),
        ("60", "59", ""),
        ("60", "", "1s"),
        ("", "59", "1s"),
        ("60.5", "59", "1s"),
        ("nan", "59", "1s"),
        ("inf", "59", "1s"),
        ("1e3", "59", "1s"),
        ("٦٠", "59", "1s"),
        ("6_0", "59", "1s"),
        ("9" * 400, "59", "1s"),
        ("60", "59", "soon"),
        ("60", "59", "2025-06-02T15:14:45Z"),
    ],
)
def test_figures_that_cannot_be_are_left_out(limit: str, remaining: str, reset: str) -> None:
    assert levels(x_ratelimit("requests", limit, remaining, reset)) is None


def test_more_left_than_there_is_cannot_be() -> None:
    assert levels({"date": NOON} | anthropic("requests", "50", "51", "2026-11-21T12:00:00Z")) is None
    assert levels({"date": NOON} | anthropic("requests", "0", "0", "2026-11-21T12:00:00Z")) is None


@pytest.mark.parametrize("reset", ["", "30", "30s", "soon", "2026-11-21T12:00:30", "2026-13-21T12:00:30Z", "0s"])
def test_an_anthropic_reset_is_a_date_with_its_zone(reset: str) -> None:
    assert levels({"date": NOON} | anthropic("requests", "50", "49", reset)) is None


@pytest.mark.parametrize(
    ("reset", "seconds"),
    [
        ("2026-11-21T12:00:30Z", 30),
        ("2026-11-21T12:00:30.5Z", 30.5),
        ("2026-11-21T13:00:30+01:00", 30),
        ("2026-11-21T11:59:00Z", 0),
    ],
)
def test_an_anthropic_reset_counts_from_the_date_of_the_answer(reset: str, seconds: float) -> None:
    assert levels({"date": NOON} | anthropic("requests", "50", "49", reset)) == {"requests": (50, 49, seconds)}


@pytest.mark.parametrize("date", [{}, {"date": "yesterday"}])
def test_an_anthropic_reset_counts_from_now_when_the_answer_has_no_date(date: dict[str, str]) -> None:
    reset = datetime.fromtimestamp(time.time() + 100, UTC).isoformat()
    found = levels(date | anthropic("requests", "50", "49", reset))
    assert found is not None
    assert 90 < found["requests"][2] <= 100


@pytest.mark.parametrize(
    "headers",
    [{}, {"date": NOON, "x-request-id": "r"}, {"x-ratelimit-limit-requests": "60"},
     {"anthropic-ratelimit-unified-limit": "5", "anthropic-ratelimit-unified-reset": "1764000000"}],
)  # fmt: skip
def test_without_figures_there_are_no_levels(headers: dict[str, str]) -> None:
    assert levels(headers) is None


NAMES = [
    "date",
    *x_ratelimit("requests", "", "", ""),
    *x_ratelimit("tokens", "", "", ""),
    *x_ratelimit("project-tokens", "", "", ""),
    *(key for name in ("requests", "tokens", "input-tokens", "output-tokens") for key in anthropic(name, "", "", "")),
]
TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(["0", "-1", "60", "59", "1s", "1m", "8ms", "nan", "9" * 30, NOON, "2026-11-21T12:00:30Z"]),
    st.integers().map(str),
    st.datetimes().map(lambda when: when.isoformat() + "Z"),
)


@given(st.dictionaries(st.sampled_from(NAMES), TEXTS))
def test_no_headers_make_levels_that_cannot_be(headers: dict[str, str]) -> None:
    for dimension, (limit, remaining, full) in (levels(headers) or {}).items():
        assert dimension in {"requests", "input_tokens", "output_tokens", "total_tokens"}
        assert 0 <= remaining <= limit < math.inf
        assert limit > 0
        assert 0 <= full < math.inf
