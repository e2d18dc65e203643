"""`lab.compare` in virtual time: what its frame says, that it says the same each time, and what it refuses."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import llmlab
from llmlab import Admit, Hedge, Pack, Retry, Slots, Strategy
from llmlab.columns import columns_table
from llmlab.compare import COMPARED
from llmlab.frame import COLUMNS
from llmlab.history import ATTEMPTS, EVENTS
from llmlab.scenario import SCENARIOS, Scenario
from llmlab.sim import Change, Faults, Physics
from llmlab.sim.faults import Outage
from tests.comparing import TWO, compared

README = Path(__file__).parent.parent / "README.md"
NAMES = [
    "strategy", "seed", "ok", "failed", "makespan_s", "attempts_per_ok", "throttled", "calls_in_outage",
    "p50_ms", "p95_ms", "p99_ms", "wasted_tokens", "wasted_usd",
]  # fmt: skip
FAST = Physics.instant(ttft=1.0, reply_tokens=1, reply_sigma=0, slots=1)


@pytest.fixture
def lab() -> llmlab.Lab:
    return llmlab.Lab(progress=False)


# -- the frame --------------------------------------------------------------------------------------------


def test_there_is_one_row_per_strategy_and_seed_in_the_order_given(lab: llmlab.Lab) -> None:
    out = compared(lab, seeds=[3, 1, 2])
    assert out[["strategy", "seed"]].to_numpy().tolist() == [
        ["bare", 3], ["bare", 1], ["bare", 2], ["default", 3], ["default", 1], ["default", 2],
    ]  # fmt: skip
    assert out.index.tolist() == [0, 1, 2, 3, 4, 5]


def test_the_columns_are_those_of_the_table(lab: llmlab.Lab) -> None:
    out = compared(lab)
    assert [column.name for column in COMPARED] == NAMES == out.columns.tolist()
    assert out.dtypes.to_dict() == {each.name: pd.api.types.pandas_dtype(each.dtype) for each in COMPARED}


def test_the_readme_has_the_table_between_its_markers() -> None:
    between = README.read_text(encoding="utf-8").partition("<!-- compared -->")[2].partition("<!-- /compared -->")[0]
    assert between.strip() == columns_table(COMPARED)


def test_each_figure_is_what_the_detail_frames_say(lab: llmlab.Lab) -> None:
    job = lab.compare(TWO, n=300, scenario="flaky", seeds=[1, 2])
    out = {(each.strategy, each.seed): each for each in job.result().itertuples()}
    for key, rows in job.rows.groupby(["strategy", "seed"]):
        said: Any = out[key]  # type: ignore[index]
        ok = rows[rows.status == "ok"]
        assert (said.ok, said.failed) == (len(ok), 300 - len(ok))
        assert said.attempts_per_ok == pytest.approx(rows.attempts.sum() / len(ok))
        assert said.makespan_s == pytest.approx((rows.finished_at.max() - rows.started_at.min()).total_seconds())
        assert said.p95_ms == ok.latency_ms.quantile(0.95)
        attempts = job.attempts.query("strategy == @key[0] and seed == @key[1]")
        assert len(attempts) == rows.attempts.sum()
        assert said.throttled == (attempts.error_type == "RateLimited").sum() > 0


def test_the_detail_frames_have_strategy_and_seed_in_front(lab: llmlab.Lab) -> None:
    job = lab.compare(TWO, prompts=pd.Series(["a", "b"], index=["x", "y"]))
    assert job.rows.columns.tolist() == ["strategy", "seed", *(each.name for each in COLUMNS)], "before it has begun"
    job.result()
    assert job.rows.columns.tolist() == ["strategy", "seed", *(each.name for each in COLUMNS)]
    assert job.rows.index.tolist() == ["x", "y", "x", "y"]
    assert job.rows.prompt.tolist() == ["a", "b", "a", "b"]
    assert job.attempts.columns.tolist() == ["strategy", "seed", *(each.name for each in ATTEMPTS)]
    assert job.events.columns.tolist() == ["strategy", "seed", *(each.name for each in EVENTS)]


def test_rows_that_were_never_answered_have_failed(lab: llmlab.Lab) -> None:
    down = Scenario("down", faults=Faults(windows=(Outage(5, 1e6),)))
    gives_up = Strategy.default(breaker=llmlab.Breaker(give_up_after=30))
    (said,) = compared(lab, {"gives up": gives_up}, n=500, scenario=down).to_dict("records")
    assert 0 < said["ok"] < 500
    assert said["ok"] + said["failed"] == 500


def test_calls_in_an_outage_are_counted_where_they_arrive(lab: llmlab.Lab) -> None:
    scenario = Scenario("out", physics=replace(FAST, slots=10), faults=Faults(windows=(Outage(2.5, 3),)))
    (said,) = compared(lab, {"bare": Strategy.bare(concurrency=10)}, n=50, scenario=scenario).to_dict("records")
    assert said["calls_in_outage"] == said["failed"] == 20, "all who wait at second 3 and those who come after them"


def test_what_was_in_vain_is_counted_and_priced(lab: llmlab.Lab) -> None:
    cut = Scenario("cut", faults=Faults.only("cut", 0.5), price=llmlab.Price(1.0, 10.0))
    job = lab.compare(TWO, n=50, scenario=cut)
    out = job.result()
    for said in out.to_dict("records"):
        assert said["wasted_tokens"] > 0
        assert said["wasted_tokens"] / 1e6 < said["wasted_usd"] < 10 * said["wasted_tokens"] / 1e6
    free = compared(lab, n=50, scenario=replace(cut, price=None))
    assert free.wasted_usd.isna().all()
    assert free.wasted_tokens.tolist() == out.wasted_tokens.tolist()
    assert compared(lab, n=50).wasted_tokens.tolist() == [0, 0]


def test_a_request_that_rows_shared_is_one_request(lab: llmlab.Lab) -> None:
    busy = Scenario("busy", Physics(rpm=600, burst=1))
    job = lab.compare({"packs": Strategy.default(pack=Pack(5))}, n=100, scenario=busy)
    (row,) = job.result().to_dict("records")
    tried = job.attempts
    assert row["ok"] == 100
    assert row["attempts_per_ok"] == pytest.approx((1 / tried.rows).sum() / 100)
    assert row["throttled"] == round((1 / tried.rows[tried.http_status == 429]).sum()) > 0


def test_no_row_answered_gives_gaps_and_no_infinity(lab: llmlab.Lab) -> None:
    (said,) = compared(
        lab, {"bare": Strategy.bare()}, scenario=Scenario("off", faults=Faults.only("unavailable"))
    ).to_dict("records")
    assert said["ok"] == 0
    assert all(pd.isna(said[name]) for name in ("attempts_per_ok", "p50_ms", "p95_ms", "p99_ms"))


# -- the same work for all --------------------------------------------------------------------------------


def test_strategies_of_one_seed_have_the_same_work_and_other_seeds_have_other_work(lab: llmlab.Lab) -> None:
    strategies = {"slow": Strategy.bare(concurrency=1), "quick": Strategy.bare(concurrency=32)}
    unloaded = Scenario("unloaded", physics=Physics(load=0))
    job = lab.compare(strategies, n=60, seeds=[1, 2], scenario=unloaded)
    job.result()
    of = {key: rows for key, rows in job.rows.groupby(["strategy", "seed"])}  # noqa: C416  a groupby is no dict
    for seed in (1, 2):
        one, other = of["slow", seed], of["quick", seed]
        for column in ("prompt", "content", "output_tokens"):
            assert one[column].tolist() == other[column].tolist()
        assert one.latency_ms.round(0).tolist() == other.latency_ms.round(0).tolist(), "the provider is not loaded"
    assert of["slow", 1].prompt.tolist() != of["slow", 2].prompt.tolist()


def test_more_rows_begin_with_the_same_ones() -> None:
    scenario = SCENARIOS["steady"]
    assert scenario.prompts(50, seed=1)[:20] == scenario.prompts(20, seed=1)


EVERYTHING = """
import llmlab, hashlib
from llmlab import Strategy, Hedge, Elastic, Fallback
from llmlab.scenario import SCENARIOS
strategies = {
    "default": Strategy.default(),
    "hedge": Strategy.default(hedge=Hedge(share=0.1)),
    "elastic": Strategy.default(concurrency=Elastic()),
    "fallback": Strategy.default(fallback=Fallback()),
    "bare": Strategy.bare(),
}
for name, stream in (("flaky", True), ("outage", False), ("capacity_drop", False)):
    job = llmlab.Lab(progress=False).compare(strategies, n=150, scenario=name, stream=stream, seeds=[1])
    frames = (job.result(), job.rows, job.attempts, job.events)
    print(*(hashlib.sha256(each.to_csv().encode()).hexdigest()[:12] for each in frames))
"""


def test_two_runs_are_the_same_to_the_last_digit_in_processes_that_hash_differently() -> None:
    def run(seed: str) -> str:
        done = subprocess.run(  # noqa: S603  ourselves
            [sys.executable, "-c", EVERYTHING],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    first = run("1")
    assert len(first.split()) == 12
    assert run("2") == first


def test_two_runs_in_one_process_are_the_same(lab: llmlab.Lab) -> None:
    jobs = [lab.compare(TWO, n=100, scenario="flaky", seeds=[5]) for _ in range(2)]
    one, other = (job.result() for job in jobs)
    pd.testing.assert_frame_equal(one, other, check_exact=True)
    pd.testing.assert_frame_equal(jobs[0].rows, jobs[1].rows, check_exact=True)


# -- what strategies may differ in ------------------------------------------------------------------------


def test_strategies_may_differ_in_anything(lab: llmlab.Lab) -> None:
    strategies = {
        "retry": Strategy.default(retry=Retry(attempts=2)),
        "backoff": Strategy.default(retry=Retry(backoff="openai")),
        "limiter": Strategy.default(rpm=600),
        "breaker": Strategy.default(breaker=llmlab.Breaker(min_calls=5)),
        "hedge": Strategy.default(hedge=Hedge()),
        "auto": Strategy.default(concurrency="auto"),
        "aimd": Strategy.default(concurrency=llmlab.AIMD()),
        "fallback": Strategy.default(fallback=llmlab.Fallback()),
        "mine": Strategy("mine", (Admit((Slots(4),)), Retry(jitter="none"))),
    }
    out = compared(lab, strategies, n=60, scenario="flaky")
    assert out.strategy.tolist() == list(strategies)
    assert (out.ok + out.failed == 60).all()
    assert out.makespan_s.nunique() > 5


def test_a_strategy_with_a_fallback_goes_on_to_a_second_simulated_provider(lab: llmlab.Lab) -> None:
    off = Scenario("off", faults=Faults.only("unavailable"))
    quick = Retry(attempts=2, base=0.01)
    strategies = {
        "with": Strategy.default(retry=quick, fallback=llmlab.Fallback(), breaker=llmlab.Breaker(give_up_after=0)),
        "without": Strategy.default(retry=quick, breaker=llmlab.Breaker(give_up_after=0)),
    }
    job = lab.compare(strategies, n=30, scenario=off)
    assert job.result().ok.tolist() == [30, 0]
    assert set(job.attempts.query("strategy == 'with'").target) == {"sim:small", "sim:backup"}


def test_a_list_has_the_names_that_its_strategies_have(lab: llmlab.Lab) -> None:
    assert compared(lab, [Strategy.bare(), Strategy.default()], n=5).strategy.tolist() == ["bare", "default"]


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_runs_and_makes_a_difference(lab: llmlab.Lab, name: str) -> None:
    strategies = {"bare": Strategy.bare(concurrency=64), "default": Strategy.default(concurrency=64)}
    bare, default = compared(lab, strategies, n=2000, scenario=name).to_dict("records")
    assert default["ok"] == 2000
    lossy = {"rate_limited", "outage", "overload", "flaky"}
    assert (bare["failed"] > 20) == (name in lossy)
    assert (default["calls_in_outage"] > 0) == (name == "outage")
    if name in ("steady", "heavy_tail", "capacity_drop"):
        assert bare["p99_ms"] > 0


def test_the_capacity_drop_is_felt(lab: llmlab.Lab) -> None:
    (steady,), (drop,) = (
        compared(lab, {"bare": Strategy.bare(concurrency=64)}, n=4000, scenario=name).to_dict("records")
        for name in ("steady", "capacity_drop")
    )
    assert drop["makespan_s"] > steady["makespan_s"] + 30


def test_a_limiter_and_a_breaker_matter_more_than_the_flavour_of_the_jitter(lab: llmlab.Lab) -> None:
    """resilience.md, section 0; all of its table by `python -m benchmarks.strategies`."""

    def held(retry: Retry) -> Strategy:
        return Strategy("held", (Admit((Slots(200),)), replace(retry, attempts=8, throttled=None, cap=30.0)))

    strategies = {
        "constant": held(Retry(growth="constant", jitter="none", base=1.0)),
        "full": held(Retry()),
        "equal": held(Retry(jitter="equal")),
        "default": Strategy.default(concurrency=200, rpm=2400),
    }
    out = compared(lab, strategies, n=1500, scenario="outage").set_index("strategy")
    assert out.ok["constant"] < out.ok["full"] < out.ok["equal"] <= out.ok["default"] == 1500
    attempts = out.attempts_per_ok
    assert attempts["default"] < 1.1 < attempts["equal"] < attempts["full"] < attempts["constant"]
    calls = out.calls_in_outage
    assert 5 * calls["default"] < calls["equal"] < calls["full"] < calls["constant"]
    assert out.makespan_s["constant"] < out.makespan_s["default"], "it is fast because it drops rows"


def test_a_scenario_of_one_s_own_may_change_while_it_runs(lab: llmlab.Lab) -> None:
    still = Scenario("still", physics=FAST)
    slower = replace(still, name="slower", changes=(Change(5, replace(FAST, slowdown=10)),))
    strategies = {"bare": Strategy.bare()}
    assert compared(lab, strategies, n=10, scenario=still).makespan_s[0] == pytest.approx(10, abs=0.1)
    assert compared(lab, strategies, n=10, scenario=slower).makespan_s[0] == pytest.approx(55, abs=0.1)
