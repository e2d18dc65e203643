"""`lab.tune` on providers whose knee is known by arithmetic."""

import asyncio
import itertools
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

import llmlab
from llmlab.clock import run_virtual
from llmlab.knobs import Knobs
from llmlab.rest import affordable
from llmlab.sim import Physics, Simulator
from llmlab.sim.wire import Ask

ONE: dict[str, Any] = {"rtt": 0.0, "ttft": 0.2, "itl": 0.02, "prefill": float("inf"), "jitter": 0.0, "load": 0.0}
HARD = Physics(slots=16, reply_tokens=40, **ONE)
"""Sixteen at a time, and no faster with more."""


def lab(physics: Physics = HARD, **fields: Any) -> llmlab.Lab:
    return llmlab.Lab(transport=Simulator(physics=physics, say=echo), progress=False, **fields)


def echo(ask: Ask) -> str:
    return f"heard: {ask.text}"


def test_the_knee_is_found_in_virtual_time_and_may_be_used() -> None:
    mine = llmlab.Lab(transport=Simulator(physics=HARD), progress=False)
    tuning = mine.tune(n=600)
    found = tuning.result()
    assert isinstance(found, llmlab.Recommendation)
    assert found.concurrency == pytest.approx(16, abs=2)
    assert len(tuning.frame) > 8, "three more were tried around the knee"
    assert mine.concurrency == 32
    assert tuning.use() == found
    assert mine.concurrency == found.concurrency
    with pytest.raises(ValueError, match="there is no rest"):
        tuning.rest()


def test_the_same_seed_gives_the_same_recommendation() -> None:
    one, other = (llmlab.Lab(progress=False).tune(scenario="steady", n=300, concurrency=(4, 16, 64)).result()
                  for _ in range(2))  # fmt: skip
    assert one == other
    pd.testing.assert_frame_equal(one.sweep, other.sweep)


def test_an_slo_lowers_the_number() -> None:
    slow = Physics(slots=200, reply_tokens=40, reply_sigma=0.0, **{**ONE, "load": 0.002})
    free = lab(slow).tune(n=400).result()
    bound = lab(slow).tune(n=400, slo=2.0).result()
    assert bound.concurrency < free.concurrency
    assert bound.keeps_slo
    assert bound.within_slo is not None


def test_live_it_spends_a_share_of_the_rows_and_the_rest_goes_on_at_the_setting_found() -> None:
    df = pd.DataFrame({"text": [f"row {n}" for n in range(4000)]}, index=[f"id{n}" for n in range(4000)])

    async def main() -> None:
        simulator = Simulator(physics=HARD, say=echo)
        mine = llmlab.Lab("openai:m", api_key="k", transport=simulator, progress=False)
        tuning = mine.tune(df, template="Say {text}", live=True, share=0.15, concurrency=(4, 8, 16, 32))
        found = await tuning
        spent = simulator.requests
        assert 0 < spent <= 0.15 * len(df)
        assert len(tuning.rows) == spent
        assert tuning.rows.index.is_unique
        out = await tuning.rest()
        assert mine.concurrency == found.concurrency
        assert simulator.requests == len(df), "no row was asked twice"
        assert out.index.tolist() == df.index.tolist()
        assert out.content.tolist() == [f"heard: Say {text}" for text in df.text]
        assert out.columns.tolist() == [column.name for column in llmlab.frame.COLUMNS]

    run_virtual(main)


def test_a_live_one_wants_to_be_agreed_to_before_it_sends() -> None:
    simulator = Simulator(physics=HARD)
    prices = {"m": (1.0, 2.0)}
    mine = llmlab.Lab("openai:m", api_key="k", transport=simulator, prices=prices, progress=False)
    prompts = [f"row {n}" for n in range(5000)]
    with pytest.raises(ValueError, match="confirm=True"):
        mine.tune(prompts, live=True)
    with pytest.raises(ValueError, match="rows are too few to tune on"):
        mine.tune(prompts[:100], live=True, confirm=True)
    with pytest.raises(ValueError, match="live=True takes prompts="):
        mine.tune(live=True)
    with pytest.raises(ValueError, match="share must be above 0"):
        mine.tune(prompts, live=True, share=0)
    assert simulator.requests == 0


def test_a_real_provider_is_not_tuned_on_by_accident() -> None:
    mine = llmlab.Lab("openai:m", api_key="k", progress=False)
    tuning = mine.tune()
    assert tuning.state == "undecided"
    with pytest.raises(ValueError, match="live=True"):
        tuning.result()


def test_stopped_early_it_recommends_by_what_was_measured() -> None:
    async def main() -> None:
        mine = llmlab.Lab(transport=Simulator(physics=HARD), progress=False)
        tuning = mine.tune(n=400, concurrency=(1, 2, 4, 8, 16))
        while len(tuning.frame) < 2:
            await asyncio.sleep(0.01)
        tuning.cancel()
        found = await tuning
        assert found.concurrency in tuning.frame.concurrency.tolist()

    asyncio.run(main())


@pytest.mark.parametrize("rows", [130, 200, 400, 1000, 5000])
def test_numbers_are_thinned_out_until_the_rows_do(rows: int) -> None:
    grid, most = affordable((1, 2, 4, 8, 16, 32, 64, 128), rows)
    assert len(grid) >= 2
    assert most >= 60
    assert len(grid) * (most + grid[-1]) <= rows
    assert all(one < other for one, other in itertools.pairwise(grid))


# -- what is aimed at, and what is tried ------------------------------------------------------------------


def test_the_aims_may_change_afterwards_and_nothing_is_measured_anew() -> None:
    slow = Physics(slots=200, reply_tokens=40, reply_sigma=0.0, **{**ONE, "load": 0.002})
    tuning = lab(slow).tune(n=400)
    free = tuning.result()
    points = len(tuning.frame)
    tuning.aims = replace(tuning.aims, slo=2.0)
    bound = tuning.recommendation
    assert bound.concurrency < free.concurrency
    assert bound.within_slo is not None
    tuning.aims = replace(tuning.aims, slo=None, elasticity=0.7)
    assert tuning.recommendation.concurrency < free.concurrency
    assert len(tuning.frame) == points


def test_another_slo_gives_the_frame_that_a_sweep_under_it_gives() -> None:
    mine = lab()
    plain = mine.sweep([8, 32], n=300)
    plain.result()
    pd.testing.assert_frame_equal(plain.under(slo=1.5), mine.sweep([8, 32], n=300, slo=1.5).result())


def test_where_the_slo_begins_to_be_missed_is_looked_at_closely() -> None:
    slow = Physics(slots=200, reply_tokens=40, reply_sigma=0.0, **{**ONE, "load": 0.002})
    tuning = llmlab.Lab(transport=Simulator(physics=slow), progress=False).tune(n=400, slo=2.2)
    # an answer takes 1 s alone, 0.1 s longer for each other in flight, and those of 51 tokens instead of 40 a quarter
    # longer: with 10 in flight 95% take 2.1 s, with 13 they take 2.5 s, and 8 and 16 are tried first
    assert tuning.result().concurrency == 10


def test_other_settings_are_tried_anew_and_who_awaits_gets_what_holds_in_the_end() -> None:
    async def main() -> None:
        mine = lab()
        tuning = mine.tune(n=300)
        while len(tuning.frame) < 3:
            await asyncio.sleep(0.01)
        tuning.change(scenario="overload")
        tuning.change(most=64)
        found = await tuning
        assert tuning.before is not None
        assert tuning.setup.scenario == "overload"
        assert 10 < found.concurrency < 30
        assert tuning.frame.concurrency.max() <= 64
        tuning.change(knobs=replace(tuning.setup.knobs, rpm=120.0))
        assert tuning.state == "running"
        limited = await tuning
        assert limited.rows_per_s == pytest.approx(2, rel=0.15)
        assert mine.last is tuning

    asyncio.run(main())


def test_settings_that_make_no_sense_are_named() -> None:
    tuning = lab().tune(n=100)
    with pytest.raises(ValueError, match="greatest number tried"):
        tuning.change(most=1)
    with pytest.raises(ValueError, match="rpm must be above 0"):
        replace(tuning.setup.knobs, rpm=0)
    with pytest.raises(ValueError, match="jitter must be one of"):
        replace(tuning.setup.knobs, jitter="some")


def test_a_generator_of_prompts_serves_every_sweep() -> None:
    tuning = lab().tune((f"row {n}" for n in range(50)), n=200)
    assert tuning.result().concurrency == pytest.approx(16, abs=2)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [({"n": 0}, "n must be"), ({"concurrency": [4]}, "two numbers"), ({"slo": -1}, "slo must be"),
     ({"scenario": "stedy"}, "steady"), ({"seed": 1.5}, "seed"), ({"strategy": 3}, "strategy must be"),
     ({"prompts": []}, "there is none"), ({"prompts": pd.DataFrame({"x": ["a"]})}, "prompt")],
)  # fmt: skip
def test_what_is_not_usable_is_named_before_anything_begins(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises((TypeError, ValueError), match=complaint):
        lab().tune(**arguments)


# -- setting it -------------------------------------------------------------------------------------------


def test_a_strategy_that_was_tried_is_set_as_a_whole() -> None:
    mine = lab()
    patient = llmlab.Strategy.default(retry=llmlab.Retry(attempts=9))
    tuning = mine.tune(n=200, strategy=patient)
    found = tuning.result()
    tuning.use()
    assert Knobs.of(mine.strategy).attempts == 9
    assert mine.concurrency == found.concurrency
    assert tuning.used is not None
    assert "attempts=9" in tuning.used


def test_while_jobs_are_at_work_only_the_concurrency_is_set() -> None:
    async def main() -> None:
        mine = lab()
        tuning = mine.tune(n=200, strategy=llmlab.Strategy.default(retry=llmlab.Retry(attempts=9)))
        found = await tuning
        job = mine.run_many(["a", "b"])
        tuning.use()
        assert mine.concurrency == found.concurrency
        assert Knobs.of(mine.strategy).attempts == 6
        assert "1 of this lab's jobs have not ended" in (tuning.used or "")
        await job

    asyncio.run(main())


@pytest.mark.parametrize("slots", [8, 32, 64])
def test_a_hard_limit_is_found_to_a_tenth(slots: int) -> None:
    mine = llmlab.Lab(transport=Simulator(physics=replace(HARD, slots=slots)), progress=False)
    assert mine.tune().result().concurrency == pytest.approx(slots, rel=0.1, abs=1)


def test_a_soft_one_is_found_where_its_elasticity_has_fallen_so_far() -> None:
    # throughput is N / (1 + r (N - 1)) with r = 0.1, and its elasticity 0.2 at N = (1 - r) (1 / 0.2 - 1) / r = 36
    soft = llmlab.Lab(transport=Simulator(physics=replace(HARD, slots=1000, load=0.002)), progress=False)
    assert soft.tune(elasticity=0.2).result().concurrency == pytest.approx(36, rel=0.1)


def test_a_strategy_that_packs_rows_is_not_tuned_on() -> None:
    with pytest.raises(ValueError, match="packs rows"):
        lab().tune(strategy=llmlab.Strategy.default(pack=llmlab.Pack()))
