"""What a twin reads of a run: from a result alone, from its attempts, from a job."""

import io

import numpy as np
import pandas as pd
import pytest

import llmlab
from llmlab.pilot import NotIdentified, read_pilot
from llmlab.pool import find_limit, make_pool, redraw
from tests.pilots import job, out

FLAKY = "server_error:0.2"


def test_a_result_tells_when_its_answers_were_sent() -> None:
    whole, alone = (read_pilot([each(8, 300), each(32, 700)]) for each in (job, out))
    assert len(whole.ok) == len(alone.ok) == 1000
    assert alone.sent == pytest.approx(whole.sent, abs=1e-3)
    assert alone.in_flight == pytest.approx(whole.in_flight, rel=1e-3)


def test_a_result_read_from_a_csv_is_the_same_result() -> None:
    frames = [out(8, 300), out(32, 700)]
    again = [pd.read_csv(io.StringIO(each.to_csv(index=False))) for each in frames]
    assert read_pilot(again).latency == pytest.approx(read_pilot(frames).latency, abs=1e-5)


def test_a_results_failed_attempts_are_counted_where_the_row_had_time_for_them() -> None:
    whole = read_pilot([job(8, 300, faults=FLAKY), job(32, 700, faults=FLAKY)])
    alone = read_pilot([out(8, 300, faults=FLAKY), out(32, 700, faults=FLAKY)])
    assert len(alone.ok) == len(whole.ok)
    assert (~alone.ok).sum() == (~whole.ok).sum() > 100
    assert alone.latency[~alone.ok].mean() == pytest.approx(whole.latency[~whole.ok].mean(), rel=0.05)
    retried = int(
        (out(8, 300, faults=FLAKY)["attempts"] > 1).sum() + (out(32, 700, faults=FLAKY)["attempts"] > 1).sum()
    )
    assert (alone.ok & ~alone.usable).sum() == pytest.approx(retried, abs=3), "their tokens are sums"


def test_answers_from_the_cache_are_no_attempts() -> None:
    frame = out(8, 300)
    frame["cache_hit"] = np.arange(300) < 100
    assert (read_pilot([frame, out(32, 700)]).run == 0).sum() == 200


def test_runs_are_apart_even_if_their_times_overlap() -> None:
    """Virtual runs all begin at the same moment; in-flight of one says nothing of the other's."""
    pilot = read_pilot([job(8, 300), job(32, 700)])
    assert pilot.in_flight[pilot.run == 0].max() <= 8.01


def test_a_block_is_drawn_in_the_order_in_which_it_was_sent() -> None:
    pilot = read_pilot([job(8, 300), job(32, 700)])
    drawn = redraw(pilot, np.random.default_rng(0))
    assert len(drawn.ok) == 1000
    assert (drawn.run == pilot.run).all()
    steps = np.diff(np.searchsorted(pilot.sent[:300], drawn.sent[:300]))
    assert np.mean(steps == 1) > 0.9


@pytest.mark.parametrize("of", ["job", "attempts", "rows"])
def test_each_point_of_a_sweep_is_a_run_of_its_own(of: str) -> None:
    job = llmlab.Lab(progress=False).sweep([2, 16], n=100)
    job.result()
    pilot = read_pilot(job if of == "job" else getattr(job, of))
    assert [pilot.in_flight[pilot.run == run].max().round() for run in (0, 1)] == [2, 16]


def test_each_trial_of_a_comparison_is_a_run_of_its_own() -> None:
    strategies = {str(n): llmlab.Strategy.default(concurrency=n) for n in (2, 16)}
    job = llmlab.Lab(progress=False).compare(strategies, n=60)
    job.result()
    pilot = read_pilot(job)
    assert [pilot.in_flight[pilot.run == run].max().round() for run in (0, 1)] == [2, 16]


def test_requests_that_rows_shared_tell_nothing_of_one_row() -> None:
    job = llmlab.Lab(progress=False).compare([llmlab.Strategy.default(pack=llmlab.Pack(5))], n=60)
    job.result()
    with pytest.raises(NotIdentified, match="without pack="):
        read_pilot(job)


def test_a_few_stray_429s_are_no_limit() -> None:
    faults = "rate_limited:0.03"
    pilot = read_pilot([job(8, 300, faults=faults), job(32, 700, faults=faults)])
    assert find_limit(pilot) is None
    pool = make_pool(pilot, None, limited=False)
    throttled = [draw for draw in pool.draws if draw.error]
    assert len(throttled) == pytest.approx(30, abs=15)
    assert all(draw.verdict.throttle and draw.retry_after for draw in throttled)
