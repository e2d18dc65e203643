import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.errors import BadRequest, LLMError, RateLimited, ServerError
from llmlab.events import Attempted, Bus, Finished, Retrying, Told
from llmlab.live import RECENT, SPARKS, Live, Look
from llmlab.progress import Progress
from llmlab.rules.breaker import Transition
from llmlab.rules.rate import Pause
from llmlab.types import Outcome, Prompt, Reply, Usage

NO_GAUGE: Mapping[str, Any] = {}


class Job:
    """A job as its events tell it; begun at 100 s of its loop's clock."""

    def __init__(self, total: int | None = None, *, begun: bool = True) -> None:
        self.bus = Bus()
        self.progress = Progress(self.bus, total)
        self.live = Live(self.bus, self.progress)
        self.rows = 0
        if begun:
            self.live.begin(100.0)

    def settle(self, count: int = 1, *, error: LLMError | None = None, latency_s: float = 1.0) -> None:
        for _ in range(count):
            reply = None if error else Reply("text", "stop", "test", "model", latency_s=latency_s)
            self.rows += 1
            outcome = Outcome(self.rows, Prompt.of("p"), "error" if error else "ok", reply, error)
            self.bus.emit(Finished(outcome))

    def tell(self, what: object, target: str = "openai:small") -> None:
        self.bus.emit(Told(target, what))

    def look(
        self, at: float, gauge: Mapping[str, Any] = NO_GAUGE, state: str = "running", bound_by: str | None = None
    ) -> Look:
        return self.live.look(100.0 + at, gauge, Look(state=state, bound_by=bound_by))


def breaker(new: Any, *, at: float = 100.0, lasts: float = 0.0) -> Transition:
    return Transition(at, "closed", new, "failure ratio", 1, 2, 3, lasts)


def test_rows_are_counted_by_what_became_of_them() -> None:
    job = Job(total=10)
    job.settle(3)
    job.settle(2, error=BadRequest("no", status=400))
    job.bus.emit(Finished(Outcome(9, Prompt.of("p"), "cancelled", None, None)))
    look = job.look(1.0)
    assert (look.total, look.done, look.ok, look.errors, look.cancelled) == (10, 6, 3, 2, 1)
    assert look.kinds == [("BadRequest", 2)]


def test_retries_are_named_the_most_frequent_first_and_five_kinds_at_most() -> None:
    job = Job()
    for times, number in enumerate(range(7), start=1):
        error = type(f"Error{number}", (ServerError,), {})("no", status=500)
        for _ in range(times):
            job.bus.emit(Retrying(0, 1, 0.5, error))
    look = job.look(1.0)
    assert look.retries == 28
    assert look.retried == [("Error6", 7), ("Error5", 6), ("Error4", 5), ("Error3", 4), ("Error2", 3)]


def test_tokens_and_dollars_of_failed_attempts_count() -> None:
    job = Job(total=4)
    job.bus.emit(Attempted(0, 1, 0.0, 1.0, RateLimited("slow", status=429), Usage(10, 5), 0.5))
    job.bus.emit(Attempted(0, 2, 1.0, 2.0, None, Usage(10, 7), 0.25))
    job.settle(2)
    look = job.look(2.0)
    assert (look.input_tokens, look.output_tokens, look.cost_usd) == (20, 12, 0.75)
    assert look.projected_usd == 1.5


def test_without_a_price_there_is_no_cost_and_no_projection() -> None:
    job = Job(total=4)
    job.settle()
    look = job.look(1.0)
    assert look.cost_usd is None
    assert look.projected_usd is None


def test_the_present_rate_is_that_of_the_last_ten_seconds() -> None:
    job = Job(total=1000)
    for second in range(1, 21):
        job.settle(5)
        look = job.look(second)
    assert look.rate == pytest.approx(5.0)
    assert look.eta_s == pytest.approx(900 / 5.0)
    for second in range(21, 32):
        look = job.look(second)
    assert look.rate == 0.0
    assert look.eta_s is None, "nobody can tell"
    assert look.rate_overall == pytest.approx(100 / 31)


def test_a_job_with_nothing_left_takes_no_more_time() -> None:
    job = Job(total=1)
    job.settle()
    assert job.look(50.0).eta_s == 0.0
    assert Job(total=0).look(1.0).eta_s == 0.0


def test_a_job_of_unknown_length_foretells_nothing() -> None:
    job = Job(total=None)
    job.settle()
    assert job.look(1.0).eta_s is None


def test_quantiles_are_those_of_recent_answers_in_milliseconds() -> None:
    job = Job()
    assert job.look(0.0).p50_ms is None
    job.settle(RECENT, latency_s=100.0)
    for hundredth in range(RECENT):
        job.settle(latency_s=(hundredth % 100) / 100.0)
    look = job.look(1.0)
    assert (look.p50_ms, look.p95_ms) == (500.0, 950.0)


def test_a_single_answer_is_both_quantiles() -> None:
    job = Job()
    job.settle(latency_s=0.25)
    look = job.look(1.0)
    assert (look.p50_ms, look.p95_ms) == (250.0, 250.0)


def test_errors_have_no_latency() -> None:
    job = Job()
    job.settle(error=BadRequest("no", status=400))
    assert job.look(1.0).p50_ms is None
    job.settle(latency_s=2.0)
    assert job.look(1.0).p50_ms == 2000.0


def test_the_limits_are_those_of_the_gauge() -> None:
    gauge = {"in_flight": 3.0, "waiting": 7.0, "limit": 8, "breaker": "open"}
    look = Job().look(1.0, gauge)
    assert (look.in_flight, look.waiting, look.limit, look.breaker) == (3, 7, 8, "open")
    assert Job().look(1.0).limit is None


def test_a_pause_is_told_in_whole_seconds_until_it_is_over() -> None:
    job = Job()
    job.tell(Pause(100.0, 102.5, ("requests",), "the provider asked to wait 2.5 s"))
    assert job.look(0.0).notes == ["parked 3 s: the provider asked to wait 2.5 s"]
    assert job.look(2.4).notes == ["parked 1 s: the provider asked to wait 2.5 s"], "never 0 s"
    assert job.look(2.5).notes == []


def test_a_pause_that_grows_is_told_once() -> None:
    job = Job()
    job.tell(Pause(100.0, 101.0, ("requests",), "shorter"))
    job.tell(Pause(100.5, 110.0, ("requests",), "longer"))
    assert job.look(1.0).notes == ["parked 9 s: longer"]


def test_an_open_breaker_is_told_until_it_is_closed() -> None:
    job = Job()
    job.tell(breaker("open", lasts=5.0))
    assert job.look(1.0).notes == ["parked 4 s: the provider is down, 1 of 2 calls failed"]
    job.tell(breaker("half_open", at=105.0))
    assert job.look(60.0).notes == ["trying whether the provider is back"]
    job.tell(breaker("closed", at=106.0))
    assert job.look(61.0).notes == []


@pytest.mark.parametrize(
    ("gauge", "note"),
    [
        ({"requests_limit": 900.0, "requests_level": -30.0}, "parked 2 s: 900 requests a minute are used up"),
        ({"total_tokens_limit": 6000.0, "total_tokens_level": -150.0}, "parked 2 s: 6,000 tokens a minute are used up"),
        (
            {"input_tokens_limit": 60.0, "input_tokens_level": -60.5},
            "parked 61 s: 60 input tokens a minute are used up",
        ),
        ({"requests_limit": 900.0, "requests_level": -1.0}, None),
        ({"requests_limit": 900.0, "requests_level": 3.0}, None),
    ],
)
def test_a_limit_that_is_used_up_for_a_second_or_more_is_told(gauge: dict[str, float], note: str | None) -> None:
    job = Job()
    assert job.look(1.0, gauge, bound_by="rate limit").notes == ([] if note is None else [note])
    assert job.look(1.0, gauge, bound_by="concurrency").notes == []
    job.tell(Pause(100.0, 102.5, ("requests",), "the provider asked to wait 2.5 s"))
    assert job.look(0.0, gauge, bound_by="rate limit").notes == ["parked 3 s: the provider asked to wait 2.5 s"]


def test_targets_are_parked_each_for_itself() -> None:
    job = Job()
    job.tell(breaker("open", lasts=5.0), "openai:small")
    job.tell(breaker("open", lasts=9.0), "anthropic:large")
    assert len(job.look(0.0).notes) == 2
    job.tell(breaker("closed"), "openai:small")
    assert job.look(0.0).notes == ["parked 9 s: the provider is down, 1 of 2 calls failed"]


@pytest.mark.parametrize("state", ["paused", "stopped", "done", "waiting"])
def test_a_job_that_does_not_run_is_not_parked(state: str) -> None:
    job = Job()
    job.tell(breaker("open", lasts=5.0))
    assert job.look(1.0, state=state).notes == []


def test_a_look_taken_before_the_job_began_leaves_no_trace() -> None:
    # A job is displayed while its journal is still being opened: the loop's clock is far from 0 then.
    early, usual = Job(begun=False), Job(begun=False)
    look = early.look(-1.0)
    assert (look.elapsed_s, look.rate, look.spark) == (0.0, 0.0, [])
    for job in (early, usual):
        job.live.begin(100.0)
        job.settle(4)
    assert early.look(2.0).spark == usual.look(2.0).spark == [2.0, 2.0, 2.0, 2.0]


@given(st.lists(st.tuples(st.floats(0.01, 400.0), st.integers(0, 50)), min_size=1, max_size=60))
def test_the_line_loses_no_row_however_seldom_somebody_looks(steps: list[tuple[float, int]]) -> None:
    job, at = Job(), 0.0
    for pause, rows in steps:
        at += pause
        job.settle(rows)
        look = job.look(at)
    for _ in range(2):  # the rows of a bucket that is not yet full are taken in when it is, or the one after
        at += 2 * job.live._line._width
        look = job.look(at)
    width = job.live._line._width
    assert len(look.spark) < 2 * SPARKS
    assert all(rate >= 0 for rate in look.spark)
    assert sum(look.spark) * width == pytest.approx(job.rows, abs=0.001 * width * len(look.spark))


def test_an_even_pace_stays_an_even_line_when_its_points_grow_wider() -> None:
    job = Job()
    for half_second in range(1, 4 * SPARKS + 1):
        job.settle(3)
        spark = job.look(half_second / 2).spark
        assert spark == [6.0] * len(spark)
    assert len(spark) == SPARKS


def test_the_line_is_even_where_nobody_looked() -> None:
    job = Job()
    job.settle(40)
    assert job.look(10.0).spark == [4.0] * 20


def test_a_look_goes_to_a_browser_as_it_is() -> None:
    job = Job(total=3)
    job.settle(error=BadRequest("no", status=400))
    job.tell(Pause(100.0, 102.5, ("requests",), "the provider asked to wait"))
    plain = json.loads(json.dumps(asdict(job.look(1.0))))
    assert plain["kinds"] == [["BadRequest", 1]]
    assert plain["notes"] == ["parked 2 s: the provider asked to wait"]
    assert plain["total"] == 3
