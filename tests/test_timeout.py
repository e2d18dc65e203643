import asyncio

import pytest

from llmlab.call import Call
from llmlab.errors import TimedOut
from llmlab.events import Delta
from llmlab.policies.timeout import Timeout
from llmlab.types import Reply
from tests.conftest import reply


class Stream:
    """Emits a piece after each of these pauses, then answers."""

    def __init__(self, *pauses: float) -> None:
        self.pauses = pauses

    async def __call__(self, call: Call) -> Reply:
        for pause in self.pauses:
            await asyncio.sleep(pause)
            call.emit(Delta(call.index, "x"))
        return reply()


def phase_of(raised: pytest.ExceptionInfo[TimedOut]) -> str:
    return raised.value.phase


def test_an_answer_in_time_passes(virtual, make_call, script) -> None:
    assert virtual(lambda: Timeout(attempt=2.0)(make_call(), script(1.9))).content == "answer"


def test_a_slow_attempt_is_a_failure_that_may_be_retried(virtual, make_call, script) -> None:
    with pytest.raises(TimedOut, match="within 2 s") as raised:
        virtual(lambda: Timeout(attempt=2.0)(make_call(), script(3.0)))
    assert phase_of(raised) == "attempt"
    assert raised.value.verdict.retry


def test_the_total_deadline_is_the_rows_last_word(virtual, make_call, script) -> None:
    with pytest.raises(TimedOut) as raised:
        virtual(lambda: Timeout(total=2.0)(make_call(), script(3.0)))
    assert phase_of(raised) == "total"
    assert not raised.value.verdict.retry


def test_the_total_deadline_is_known_to_the_layers_below(virtual, make_call, script) -> None:
    call = make_call()
    virtual(lambda: Timeout(total=30.0)(call, script()))
    assert call.deadline == pytest.approx(30.0, abs=1e-3)


def test_a_stream_that_does_not_begin_is_given_up(virtual, make_call) -> None:
    policy = Timeout(attempt=100, first_token=5, between_tokens=2)
    with pytest.raises(TimedOut) as raised:
        virtual(lambda: policy(make_call(stream=True), Stream(6.0)))
    assert phase_of(raised) == "first_token"


def test_a_stream_that_stops_is_given_up_soon_even_if_it_began_early(virtual, make_call) -> None:
    policy = Timeout(attempt=100, first_token=60, between_tokens=2)

    async def main() -> float:
        loop = asyncio.get_running_loop()
        with pytest.raises(TimedOut) as raised:
            await policy(make_call(stream=True), Stream(1.0, 1.0, 1.0, 50.0))
        assert phase_of(raised) == "between_tokens"
        return loop.time()

    assert virtual(main) == pytest.approx(5.0, abs=0.01)


def test_a_long_stream_that_keeps_coming_is_left_alone(virtual, make_call) -> None:
    policy = Timeout(first_token=2, between_tokens=2)
    assert virtual(lambda: policy(make_call(stream=True), Stream(*[1.5] * 100))).content == "answer"


def test_token_deadlines_do_not_touch_plain_answers(virtual, make_call, script) -> None:
    assert virtual(lambda: Timeout(first_token=1, between_tokens=1)(make_call(), script(50.0)))


def test_the_calls_own_emit_is_put_back(virtual, make_call) -> None:
    call = make_call(stream=True)
    before = call.emit
    virtual(lambda: Timeout(first_token=2)(call, Stream(1.0)))
    assert call.emit is before


def test_a_timeout_of_the_users_own_is_not_taken_for_ours(virtual, make_call) -> None:
    async def fails(_: Call) -> Reply:
        raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match="mine"):
        virtual(lambda: Timeout(attempt=5)(make_call(), fails))


def test_the_connect_deadline_is_handed_to_the_sender(virtual, make_call, script) -> None:
    call = make_call()
    virtual(lambda: Timeout(connect=3)(call, script()))
    assert call.connect_timeout == 3


@pytest.mark.parametrize("fields", [{"attempt": 0}, {"total": -1}, {"connect": float("nan")}, {"first_token": "5"}])
def test_a_senseless_deadline_is_refused_by_name(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        Timeout(**fields)  # type: ignore[arg-type]


def test_a_total_does_not_mix_with_an_attempts_deadlines() -> None:
    with pytest.raises(ValueError, match="outermost"):
        Timeout(total=10, attempt=5)
