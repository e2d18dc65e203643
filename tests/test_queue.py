"""Who waits how long: the scenarios of `tests.queue_scenarios`, held to figures."""

import pytest

from tests.queue_scenarios import Urgent, quantile, starving, urgent


@pytest.fixture(scope="module")
def critical() -> Urgent:
    return urgent(priority=0)


def test_a_critical_question_hardly_waits_while_hundreds_of_rows_do(critical: Urgent) -> None:
    assert min(critical.batch_left) > 250
    assert critical.batch_s > 100
    assert quantile(critical.seconds, 0.5) < 1.5
    assert max(critical.seconds) < 3.5  # an answer takes 1.2 s in the middle, and up to 2.8 s


def test_the_batch_beside_it_loses_neither_rows_nor_time(critical: Urgent) -> None:
    alone = urgent(questions=0)
    assert critical.batch_ok == 600
    assert critical.batch_s < alone.batch_s * 1.10  # thirty questions are 5% more work


def test_without_priority_over_a_batch_a_question_takes_turns_with_it() -> None:
    assert max(urgent(priority=2).seconds) < 4.0


def test_a_low_question_beside_a_batch_waits_a_minute_and_then_takes_turns() -> None:
    found = urgent(priority=3)
    assert 60 < quantile(found.seconds, 0.5) < 65
    assert min(found.batch_left) > 200


@pytest.mark.parametrize(("stream", "minutes"), [(0, 3), (1, 2), (2, 1)])
def test_low_questions_are_answered_under_a_stream_of_urgent_ones_that_never_ends(stream: int, minutes: int) -> None:
    found = starving(stream=stream)
    assert len(found.waited) == 5
    assert 60 * minutes < min(found.waited) <= max(found.waited) < 60 * minutes + 10
    assert found.urgent_done > 400 * minutes - 100  # the others went on meanwhile
    assert found.line[-1] > 40, "more urgent ones stood in line all the time"


def test_the_same_seed_gives_the_same_waiting() -> None:
    assert urgent(rows=100, questions=5).seconds == urgent(rows=100, questions=5).seconds
