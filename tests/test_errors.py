"""The tree drawn in errors.py, and table G of the providers' fact sheet held against the verdicts."""

import copy
import inspect
import pickle
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab import errors
from llmlab.errors import LLMError, StreamTruncated, TimedOut, Verdict


def drawn() -> list[tuple[str, str | None]]:
    """The classes of the drawing, each with the class that it is drawn below."""
    lines = [line for line in (errors.__doc__ or "").splitlines() if re.match(r" {4}\s*[A-Z]\w+(\s{2,}|$)", line)]
    tree: list[tuple[str, str | None]] = []
    above: list[tuple[int, str]] = []
    for line in lines:
        depth, name = len(line) - len(line.lstrip()), line.split()[0]
        above = [(d, n) for d, n in above if d < depth]
        tree.append((name, above[-1][1] if above else None))
        above.append((depth, name))
    return tree


def grown(root: type[LLMError], parent: str | None = None) -> Iterator[tuple[str, str | None]]:
    """The classes there are, in the order of their definition, each with its base."""
    yield root.__name__, parent
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from grown(child, root.__name__)


def make(name: str, **details: Any) -> LLMError:
    kind: Callable[..., LLMError] = getattr(errors, name)
    return kind("what happened", **({"phase": "attempt"} if name == "TimedOut" else {}), **details)


NAMES = [name for name, _ in grown(LLMError)]


def test_the_drawing_is_the_tree() -> None:
    assert drawn() == list(grown(LLMError))


def test_every_error_has_one_base_only() -> None:
    assert [name for name in NAMES if len(getattr(errors, name).__bases__) != 1] == []


# R: the same target again may help. at most: so many times. L: a rate signal. B: speaks against the target's health.
# F: another target may do better. Fatal: no row can succeed. Rows and columns of table G, by the names used here;
# a "soft" rate signal (Overloaded) counts as none, an "optional" fallback as none.
TABLE_G = {
    #                    R      at most L      B      F      fatal      row of table G
    "LLMError":         (False, None,   False, False, False, False),  # the base: nothing is known
    "Rejected":         (False, None,   False, False, False, False),  # never left the process
    "Unsendable":       (False, None,   False, False, False, False),  # LocalPool
    "ProviderDown":     (False, None,   False, False, True,  True),   # the breaker gave up
    "QueueFull":        (False, None,   False, False, True,  False),  # our own line is full: another's may not be
    "BudgetSpent":      (False, None,   False, False, False, True),   # the user's own cap
    "NotAsked":         (False, None,   False, False, False, False),  # a chain that has ended before
    "TooLong":          (False, None,   False, False, False, False),  # the user's own cap
    "Unreachable":      (True,  None,   False, True,  True,  False),  # as its children
    "ConnectFailed":    (True,  None,   False, True,  True,  False),  # ConnectFailure
    "Dropped":          (True,  None,   False, True,  True,  False),  # TransportDropped
    "TimedOut":         (True,  None,   False, True,  True,  False),  # Timeout; the row's own deadline: see below
    "Refused":          (False, None,   False, False, False, False),  # the base: nothing is known
    "RateLimited":      (True,  None,   True,  False, True,  False),
    "QuotaExhausted":   (False, None,   False, False, True,  True),   # "mark provider and key as exhausted"
    "Overloaded":       (True,  None,   False, True,  True,  False),
    "ServerError":      (True,  None,   False, True,  True,  False),
    "Conflict":         (True,  None,   False, False, False, False),
    "BadRequest":       (False, None,   False, False, False, False),
    "UnsupportedParam": (False, None,   False, False, False, False),
    "NoStructuredOutput": (False, None, False, False, False, False),  # asked again in another form, not the same one
    "ContentBlocked":   (False, None,   False, False, False, False),
    "ContextTooLong":   (False, None,   False, False, True,  False),
    "RequestTooLarge":  (False, None,   False, False, True,  False),
    "AuthFailed":       (False, None,   False, False, True,  True),   # Auth: "mark the key bad"
    "PermissionDenied": (False, None,   False, False, True,  False),  # Permission
    "NotFound":         (False, None,   False, False, True,  False),  # ModelNotFound
    "BatchExpired":     (True,  None,   False, False, True,  False),  # section C: resend
    "Garbled":          (True,  None,   False, True,  True,  False),  # as StreamTruncated
    "BadPayload":       (True,  None,   False, True,  True,  False),  # the table says once; see errors.py
    "StreamTruncated":  (True,  None,   False, True,  True,  False),  # while nothing is shown: Retry's part
    "SchemaMismatch":   (False, None,   False, False, True,  False),  # asked again as often as was wanted
    "PackGarbled":      (True,  None,   False, False, True,  False),  # the row alone: Pack's part
    "LabClosed":        (False, None,   False, False, False, False),  # our own end, not the provider's
}  # fmt: skip


def test_table_g_has_a_row_for_every_class() -> None:
    assert list(TABLE_G) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_verdict_is_as_table_g_says(name: str) -> None:
    retry, at_most, throttle, breaker, fallback, fatal = TABLE_G[name]
    assert make(name).verdict == Verdict(
        retry=retry, retries=at_most, throttle=throttle, breaker=breaker, fallback=fallback, fatal=fatal
    )


@pytest.mark.parametrize("name", NAMES)
def test_what_is_fatal_is_never_retried(name: str) -> None:
    verdict = make(name).verdict
    assert not (verdict.fatal and verdict.retry)


def test_a_rows_own_deadline_is_the_last_word() -> None:
    verdict = TimedOut("late", phase="total").verdict
    assert not verdict.retry
    assert verdict.breaker
    assert verdict.fallback


@pytest.mark.parametrize("phase", ["attempt", "connect", "read", "first_token", "between_tokens"])
def test_an_attempts_deadline_leaves_room_for_another_attempt(phase: errors.Phase) -> None:
    error = TimedOut("late", phase=phase)
    assert error.phase == phase
    assert error.verdict.retry


def test_judging_one_error_leaves_its_class_alone() -> None:
    error = make("ServerError")
    error.judge(retry=False, retries=2)
    assert error.verdict == Verdict(retry=False, retries=2, breaker=True, fallback=True)
    assert make("ServerError").verdict.retry


def test_judging_by_an_unknown_word_is_refused() -> None:
    with pytest.raises(TypeError, match="again"):
        make("ServerError").judge(again=True)


# -- what is shown ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("details", "shown"),
    [
        ({}, "what happened"),
        ({"status": 503}, "HTTP 503: what happened"),
        ({"code": "overloaded"}, "overloaded: what happened"),
        ({"status": 503, "code": "overloaded"}, "HTTP 503 overloaded: what happened"),
        ({"hint": "wait"}, "what happened (wait)"),
        ({"status": 401, "code": "bad_key", "hint": "set it"}, "HTTP 401 bad_key: what happened (set it)"),
    ],
)
def test_an_error_says_status_code_message_and_hint(details: dict[str, Any], shown: str) -> None:
    assert str(make("Refused", **details)) == shown


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"TimedOut"}))
def test_an_error_without_words_says_its_class(name: str) -> None:
    assert str(getattr(errors, name)("")) == name


# In private-use code points, so that none of the secrets occurs in the shown parts by chance.
plain, secret = st.text("abc ", max_size=8), st.text("\ue000\ue001\ue002", min_size=1)


@given(
    plain,
    st.none() | st.integers(100, 599),
    st.none() | plain,
    st.none() | plain,
    secret,
    secret,
    st.floats(0, 1e6),
)
def test_an_error_never_shows_more_than_message_status_code_and_hint(
    message: str,
    status: int | None,
    code: str | None,
    hint: str | None,
    request_id: str,
    cause: str,
    wait: float,
) -> None:
    error = LLMError(message, status=status, code=code, request_id=request_id, retry_after=wait, hint=hint)
    error.__cause__ = ValueError(cause)
    vars(error)["headers"] = {"authorization": request_id}  # whatever somebody hangs on it
    shown = str(error)
    head = " ".join(filter(None, (f"HTTP {status}" if status else "", code)))
    text = ": ".join(filter(None, (head, message))) or "LLMError"
    assert shown == (f"{text} ({hint})" if hint else text)
    assert request_id not in shown + repr(error)
    assert cause not in shown + repr(error)


def test_a_truncated_stream_keeps_its_text_to_itself() -> None:
    error = StreamTruncated("cut off", partial="private words")
    assert error.partial == "private words"
    assert "private" not in str(error) + repr(error)


# -- travelling -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("travel", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])  # noqa: S301
@pytest.mark.parametrize("name", NAMES)
def test_an_error_keeps_everything_when_it_is_copied_or_sent(name: str, travel: Callable[[Any], Any]) -> None:
    error = make(name)
    for field, value in {
        "status": 500,
        "code": "c",
        "request_id": "r",
        "retry_after": 2.0,
        "hint": "h",
    }.items():
        setattr(error, field, value)
    error.judge(retry=False)
    there = travel(error)
    assert type(there) is type(error)
    assert vars(there) == vars(error)
    assert str(there) == str(error)


def test_a_copied_deadline_is_still_the_last_word() -> None:
    there = copy.copy(TimedOut("late", phase="total"))
    assert there.phase == "total"
    assert not there.verdict.retry


@pytest.mark.parametrize("name", NAMES)
def test_details_are_given_by_name(name: str) -> None:
    parameters = inspect.signature(getattr(errors, name)).parameters.values()
    assert [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY] == ["message"]
