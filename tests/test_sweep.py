"""`lab.sweep` on providers whose throughput is known by arithmetic."""

import asyncio
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import llmlab
from llmlab import Strategy, fits
from llmlab.clock import run_virtual
from llmlab.columns import columns_table
from llmlab.frame import COLUMNS
from llmlab.sim import Faults, Physics, Simulator
from llmlab.sweep import SWEPT

README = Path(__file__).parent.parent / "README.md"
ONE = {"rtt": 0.0, "ttft": 0.2, "itl": 0.02, "prefill": float("inf"), "jitter": 0.0, "load": 0.0}
HARD = Physics(slots=16, reply_tokens=40, **ONE)  # type: ignore[arg-type]


def lab(physics: Physics = HARD, **fields: Any) -> llmlab.Lab:
    return llmlab.Lab(transport=Simulator(physics=physics, **fields), progress=False)


def swept(physics: Physics = HARD, grid: Any = (1, 4, 16, 64), **fields: Any) -> pd.DataFrame:
    return lab(physics).sweep(grid, **fields).result()


def test_a_sweep_has_one_row_per_number_and_repeat_with_the_columns_of_the_table() -> None:
    out = swept(grid=[4, 1, 4], repeats=2, n=100)
    assert out[["concurrency", "repeat"]].to_numpy().tolist() == [[1, 1], [1, 2], [4, 1], [4, 2]]
    assert out.columns.tolist() == [each.name for each in SWEPT]
    assert out.dtypes.to_dict() == {each.name: pd.api.types.pandas_dtype(each.dtype) for each in SWEPT}
    assert sorted(out.order) == [1, 2, 3, 4]


def test_the_readme_has_the_table_between_its_markers() -> None:
    between = README.read_text(encoding="utf-8").partition("<!-- swept -->")[2].partition("<!-- /swept -->")[0]
    assert between.strip() == columns_table(SWEPT)


def test_throughput_is_what_arithmetic_says_and_so_is_what_is_in_flight() -> None:
    job = lab().sweep((1, 4, 16, 64))
    out = job.result()
    seconds = 0.2 + 0.02 * (job.rows.output_tokens.mean() - 1)
    expected = [min(n, 16) / seconds for n in out.concurrency]
    assert (out.rows_per_s / expected - 1).abs().max() < 0.05
    assert (out.in_flight / out.concurrency - 1).abs().max() < 0.02
    assert (out.tokens_per_s / out.rows_per_s).between(35, 50).all()
    assert out.steady.all()
    assert (out.little_error < 0.05).all()
    assert (out.rows_per_s_ci < 0.05).all()


def test_the_knee_of_a_hard_limit_is_found_where_it_is() -> None:
    out = swept(grid=[1, 2, 4, 8, 12, 16, 20, 24, 32, 48, 64])
    assert fits.knee(out, elasticity=0.2).n == pytest.approx(16, rel=0.1)


def test_a_machine_that_slows_down_under_load_has_the_throughput_of_its_formula() -> None:
    physics = Physics(slots=1000, reply_tokens=40, **{**ONE, "load": 0.002})  # type: ignore[arg-type]
    job = lab(physics).sweep((2, 8, 32))
    out = job.result()
    alone = 0.2 + 0.02 * (job.rows.output_tokens.mean() - 1)
    expected = out.concurrency / (alone * (0.02 + 0.002 * (out.concurrency - 1)) / 0.02)
    assert (out.rows_per_s / expected - 1).abs().max() < 0.05


def test_it_stops_where_more_brings_nothing() -> None:
    job = lab().sweep((8, 16, 32, 64, 128, 256, 512))
    assert job.result().concurrency.tolist() == [8, 16, 32, 64]
    assert job.gained_until == 64


def test_it_goes_on_while_there_is_something_to_gain() -> None:
    job = lab(Physics(slots=1000, **ONE)).sweep((8, 16, 32, 64), n=400)  # type: ignore[arg-type]
    assert len(job.result()) == 4
    assert job.gained_until is None


def test_goodput_counts_the_answers_that_came_in_time() -> None:
    out = swept(slo=1.3, slo_ttft=0.3).set_index("concurrency")
    assert out.ttft_p50_ms.notna().all(), "a limit on the first token asks for streams"
    assert out.goodput_per_s[16] == pytest.approx(out.within_slo[16] * out.rows_per_s[16])
    assert 0.6 < out.within_slo[16] < 1
    assert out.goodput_per_s[64] < 0.05 * out.rows_per_s[64], "all wait for a slot first"
    assert out.p50_ms[64] > 3 * out.p50_ms[16]
    assert swept(grid=[4], n=100)[["goodput_per_s", "within_slo", "ttft_p50_ms"]].isna().all(axis=None)


def test_a_goodput_that_falls_ends_a_sweep_as_well() -> None:
    assert lab().sweep((8, 16, 32, 64, 128), slo=1.3).result().concurrency.max() < 128


def test_failures_and_429s_are_counted() -> None:
    strict = lab(Physics(slots=64, rpm=1200, burst=1), faults=Faults.only("bad_request", 0.2))
    (row,) = strict.sweep((64,), strategy=Strategy.bare(), n=4000).result().to_dict("records")
    assert row["failed"] > 0
    assert row["throttled"] > 0
    assert row["ok"] > 0


def test_the_detail_has_the_rows_sent_and_no_others() -> None:
    job = lab().sweep((1, 4), prompts=pd.Series(["a", "b", "c"], index=list("xyz")), n=None)
    job.result()
    assert job.rows.columns.tolist() == ["concurrency", "repeat", *(each.name for each in COLUMNS)]
    assert job.rows.index[:4].tolist() == ["x", "y", "z", "x"], "the prompts begin again when they are spent"
    assert set(job.rows.status) == {"ok"}
    assert len(job.attempts) == job.rows.attempts.sum()


def test_two_sweeps_are_the_same_to_the_last_digit() -> None:
    pd.testing.assert_frame_equal(swept(n=200), swept(n=200), check_exact=True)
    assert not swept(n=200, seed=1).equals(swept(n=200))


def test_another_scenario_may_be_swept() -> None:
    out = swept(grid=[64], scenario="rate_limited", n=600)
    assert out.rows_per_s[0] == pytest.approx(20, rel=0.1)
    assert out.bound_by[0] == "rate limit"


def test_the_lab_s_own_price_is_what_its_simulated_tokens_cost() -> None:
    priced = llmlab.Lab(transport=Simulator(physics=HARD), progress=False, prices={"small": (0.0, 1000.0)})
    job = priced.sweep([4], n=80)
    (row,) = job.result().to_dict("records")
    assert row["cost_usd"] == pytest.approx(job.rows.output_tokens.sum() * 1e-3)


def test_a_cancelled_sweep_keeps_the_points_that_are_done() -> None:
    async def main() -> Any:
        job = lab().sweep((1, 2, 4, 8, 16), repeats=50)
        waiting = asyncio.ensure_future(job.wait())
        while len(job.frame) < 2:
            await asyncio.sleep(0.01)
        job.cancel()
        return await waiting

    assert 2 <= len(asyncio.run(main())) < 250


# -- live, in virtual time all the same -------------------------------------------------------------------


def live(there: llmlab.Lab, *args: Any, **fields: Any) -> Any:
    """A live sweep of a simulated provider, on a virtual loop: it runs on the lab's own."""

    async def main() -> Any:
        job = there.sweep(*args, prompts=[f"question {n}" for n in range(50)], live=True, **fields)
        await job
        return job

    return run_virtual(main)


def test_a_live_sweep_runs_on_the_lab_s_loop_in_random_order_and_says_its_price_first(
    capsys: pytest.CaptureFixture[str],
) -> None:
    job = live(lab(), (1, 2, 4, 8, 16), n=40)
    assert job.frame.order.tolist() != [1, 2, 3, 4, 5]
    assert job.frame.attrs["scenario"] == "live"
    assert "sweep sends 200 requests to sim:small, about" in capsys.readouterr().err
    counts = job.rows.prompt.value_counts()
    assert counts.max() - counts.min() <= 1, "each point goes on where the last one stopped"


def test_a_live_sweep_stops_when_its_budget_is_spent() -> None:
    priced = llmlab.Lab(transport=Simulator(physics=HARD), progress=False, prices={"small": (1.0, 10.0)})
    job = live(priced, (1, 2, 4, 8, 16), n=60, budget_usd=0.05)
    assert job.stopped == "the budget is spent"
    assert 0 < len(job.frame) < 5
    assert job.rows.cost_usd.sum() <= 0.05


def test_what_can_cost_money_needs_a_yes() -> None:
    priced = llmlab.Lab(transport=Simulator(physics=HARD), progress=False, prices={"small": (1.0, 10.0)})
    with pytest.raises(ValueError, match=r"would send 120 requests to sim:small, .* tokens, \$0\.3\d; pass"):
        live(priced, (1,))
    assert len(live(priced, (1,), confirm=True, n=20).frame) == 1


@pytest.mark.parametrize(
    ("fields", "error", "match"),
    [
        ({"concurrency": []}, ValueError, "none to try"),
        ({"concurrency": [0]}, ValueError, "at least 1, not 0"),
        ({"concurrency": ["a"]}, TypeError, "whole numbers, not 'a'"),
        ({"repeats": 0}, ValueError, "repeats must be"),
        ({"slo": -1}, ValueError, "slo must be a number of seconds"),
        ({"slo_ttft": 1.0, "stream": False}, ValueError, "slo_ttft is about the first token"),
        ({"n": 0}, ValueError, "n must be"),
        ({"template": "Hi {name}"}, ValueError, "template is filled in from prompts="),
        ({"seed": "x"}, TypeError, "seed must be"),
        ({"strategy": Strategy.default(pack=llmlab.Pack(5))}, ValueError, "leave pack= out"),
        ({"strategy": "bare"}, TypeError, "strategy must be a Strategy"),
        ({"strategy": Strategy("none", ())}, ValueError, "has no Admit with Slots"),
        ({"live": True}, ValueError, "live=True needs prompts="),
        ({"live": True, "prompts": ["a"], "scenario": "steady"}, ValueError, "not together with live"),
        ({"budget_usd": 1.0}, ValueError, "budget_usd needs the price"),
    ],
)
def test_what_cannot_be_swept_is_refused_before_anything_is_sent(
    fields: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        lab().sweep(**fields)


def test_a_real_provider_is_not_asked_by_accident() -> None:
    real = llmlab.Lab("openai:m", api_key="sk-x", progress=False)
    with pytest.raises(ValueError, match=r"openai:m is a real provider: sweep\(live=True"):
        real.sweep([1, 2])
    assert len(real.sweep([1, 2], scenario="steady", n=60).result()) == 2
