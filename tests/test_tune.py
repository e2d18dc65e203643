"""`lab.tune` on providers whose knee is known by arithmetic."""

import asyncio
import itertools
from typing import Any

import pandas as pd
import pytest

import llmlab
from llmlab.clock import run_virtual
from llmlab.sim import Physics, Simulator
from llmlab.sim.wire import Ask
from llmlab.tune import affordable

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
    with pytest.raises(ValueError, match="live=True"):
        mine.tune()


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
