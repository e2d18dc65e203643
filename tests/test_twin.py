"""The twin foretells runs that are then made, says when it cannot know, and refuses what does not determine it."""

import asyncio
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import llmlab
from llmlab.columns import Column
from llmlab.sim.physics import Physics
from llmlab.twin import CALIBRATION, PREDICTION, NotIdentified, Twin
from tests.pilots import HOSTED, job, out

ROWS = 900


def twin(seed: int = 0, **options: object) -> Twin:
    return Twin.fit([job(8, 300, seed=seed, **options), job(32, 700, seed=seed, **options)])


@pytest.fixture(scope="module")
def hosted() -> Twin:
    return twin()


# -- predictions that are then tried ----------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_runs_inside_the_range_come_as_predicted(seed: int) -> None:
    predicted = twin(seed).predict(ROWS, [12, 24], runs=20)
    for place, concurrency in enumerate((12, 24)):
        real = llmlab.summary(out(concurrency, ROWS, seed=seed + 50))
        told = predicted.iloc[place]
        assert told["makespan_s"] * 1000 == pytest.approx(real["total_time_ms"], rel=0.05)
        assert told["p50_ms"] == pytest.approx(real["p50_latency_ms"], rel=0.05)
        assert told["p99_ms"] == pytest.approx(real["p99_latency_ms"], rel=0.15), "900 rows: its own noise is 5%"
        assert not told["outside"]


def test_intervals_hold_what_comes_most_of_the_time() -> None:
    """80% intervals, six runs of two figures: fewer than half held would be a bad twin, not bad luck."""
    held = []
    for seed in range(1, 4):
        predicted = twin(seed).predict(ROWS, [12, 24], runs=20)
        for place, concurrency in enumerate((12, 24)):
            real, told = llmlab.summary(out(concurrency, ROWS, seed=seed + 50)), predicted.iloc[place]
            held.append(told["makespan_low_s"] * 1000 <= real["total_time_ms"] <= told["makespan_high_s"] * 1000)
            held.append(told["p99_low_ms"] <= real["p99_latency_ms"] <= told["p99_high_ms"])
    assert np.mean(held) >= 0.5


def test_a_result_alone_predicts_as_well() -> None:
    told = Twin.fit([out(8, 300), out(32, 700)]).predict(ROWS, 16, runs=10).iloc[0]
    real = llmlab.summary(out(16, ROWS, seed=60))
    assert told["makespan_s"] * 1000 == pytest.approx(real["total_time_ms"], rel=0.05)


def test_streams_are_fitted_by_first_token_and_the_rest() -> None:
    fitted = Twin.fit([job(8, 100, stream=True), job(32, 250, stream=True)])
    assert fitted.latency.streamed
    assert fitted.coefficients["b"] + fitted.coefficients["d"] == pytest.approx(HOSTED.itl, rel=0.05)
    assert fitted.coefficients["d"] == pytest.approx(HOSTED.load, rel=0.1)
    told = fitted.predict(300, 16, runs=10).iloc[0]
    real = llmlab.summary(out(16, 300, seed=61, stream=True))
    assert told["makespan_s"] * 1000 == pytest.approx(real["total_time_ms"], rel=0.05)
    assert told["p95_ms"] == pytest.approx(real["p95_latency_ms"], rel=0.12), "300 rows"


def test_failures_and_retries_cost_what_they_cost() -> None:
    faults = "server_error:0.15"
    told = twin(faults=faults).predict(ROWS, 16, runs=10).iloc[0]
    real = job(16, ROWS, seed=62, faults=faults)
    assert told["makespan_s"] * 1000 == pytest.approx(llmlab.summary(real.frame)["total_time_ms"], rel=0.07)
    assert told["attempts_per_row"] == pytest.approx(real.frame["attempts"].mean(), rel=0.05)


def test_money_is_foretold() -> None:
    told = twin(priced=True).predict(ROWS, 16, runs=10).iloc[0]
    real = llmlab.summary(out(16, ROWS, seed=63, priced=True))
    assert told["cost_usd"] == pytest.approx(real["cost_usd"], rel=0.05)
    assert told["cost_low_usd"] < told["cost_usd"] < told["cost_high_usd"]


def test_a_long_job_is_the_short_one_gone_on(hosted: Twin) -> None:
    short, long = (hosted.predict(rows, 16, runs=6).iloc[0] for rows in (3_000, 300_000))
    assert long["makespan_s"] == pytest.approx(100 * short["makespan_s"], rel=0.02)
    assert long["p99_ms"] == pytest.approx(short["p99_ms"], rel=0.01)
    assert long["rows"] == 300_000


# -- strategies, played whole -----------------------------------------------------------------------------


def test_the_whole_stack_and_plain_heaps_agree_on_the_default(hosted: Twin) -> None:
    heaps = hosted.predict(600, 16, runs=6).iloc[0]
    whole = hosted.predict(600, 16, strategy=llmlab.Strategy.default(), runs=6).iloc[0]
    for name in ("makespan_s", "p50_ms", "p99_ms", "in_flight"):
        assert whole[name] == pytest.approx(heaps[name], rel=0.05), name


def test_a_strategys_own_policies_count() -> None:
    fitted = twin(faults="server_error:0.15")
    strategies = {"bare": llmlab.Strategy.bare(concurrency=16), "default": llmlab.Strategy.default(concurrency=16)}
    told = fitted.predict(500, strategy=strategies, runs=3).set_index("strategy")
    assert told.loc["bare", "failed"] == pytest.approx(75, rel=0.4)
    assert told["failed"].iloc[1] <= 1
    assert told["concurrency"].tolist() == [16, 16]


def test_a_strategys_cache_is_left_out_as_no_pilot_tells_its_hits(hosted: Twin, tmp_path: Path) -> None:
    cached = llmlab.Strategy.default(cache=llmlab.Cache(tmp_path / "answers.sqlite"))
    (with_cache,), (without,) = (
        hosted.predict(100, strategy=each, runs=1).to_dict("records") for each in (cached, llmlab.Strategy.default())
    )
    assert with_cache["attempts_per_row"] == without["attempts_per_row"] == 1
    assert with_cache["makespan_s"] == without["makespan_s"]
    assert not list(tmp_path.iterdir())


def test_it_predicts_inside_a_running_loop(hosted: Twin) -> None:
    async def cell() -> pd.DataFrame:
        return hosted.predict(50, 8, strategy=llmlab.Strategy.default(), runs=1)

    assert asyncio.run(cell())["failed"][0] == 0


def test_a_strategy_without_a_number_is_judged_by_what_it_had_in_flight(hosted: Twin) -> None:
    told = hosted.predict(500, strategy=llmlab.Strategy.default(concurrency="auto"), runs=2).iloc[0]
    assert pd.isna(told["concurrency"])
    assert 2 < told["in_flight"] < 64


# -- limits of the provider -------------------------------------------------------------------------------


def test_429s_show_the_limit_and_it_binds_the_prediction() -> None:
    limited = Physics(rpm=600, burst=5, jitter=0.3)
    pilots = [job(2, 100, physics=limited), job(32, 400, physics=limited, hasty=True)]
    fitted = Twin.fit(pilots)
    assert fitted.rpm == pytest.approx(600, rel=0.1)
    told = fitted.predict(1000, [2, 24], runs=5)
    assert told["makespan_s"][1] == pytest.approx(100, rel=0.1)
    assert "limit of" in told["why"][1]
    assert pd.isna(told["why"][0])
    assert Twin.fit(pilots, rpm=float("inf")).rpm is None


def test_slots_that_were_met_are_found_and_reckoned_with() -> None:
    narrow = Physics(slots=20, jitter=0.3, load=0.0004)
    fitted = Twin.fit([job(8, 300, physics=narrow), job(48, 700, physics=narrow)])
    assert fitted.latency.slots == pytest.approx(20, rel=0.35), "two levels tell roughly"
    told = fitted.predict(ROWS, [32, 60], runs=10)
    for place, concurrency in enumerate((32, 60)):
        real = llmlab.summary(out(concurrency, ROWS, seed=64, physics=narrow))
        assert told["makespan_s"][place] * 1000 == pytest.approx(real["total_time_ms"], rel=0.05)
        assert told["p99_ms"][place] == pytest.approx(real["p99_latency_ms"], rel=0.15)
    assert "works on about" in told["why"][1]


def test_slots_that_were_not_met_are_not_made_up(hosted: Twin) -> None:
    assert hosted.latency.slots is None


# -- what is not known ------------------------------------------------------------------------------------


def test_far_more_than_was_measured_is_flagged_and_says_why(hosted: Twin) -> None:
    told = hosted.predict(ROWS, [2, 16, 47, 49, 96], runs=3)
    assert told["outside"].tolist() == [True, False, False, True, True]
    assert "96 in flight are more than 1.5 times the most measured, 32" in told["why"][4]
    assert "far less than the least measured" in told["why"][0]


REFUSED = {
    "one level of load only": lambda: out(16, 300),
    r"Lab\(concurrency=4\) say, and give both": lambda: out(16, 300),
    "too few answers: 40": lambda: [out(8, 300)[:20], out(32, 700)[:20]],
    "no answer of 'openai:other'": lambda: [out(8, 300), out(32, 700)],
    "answers of several targets": lambda: [out(8, 300), out(32, 700).assign(model="other")],
    "have token counts": lambda: [out(n, rows).assign(output_tokens=np.nan) for n, rows in ((8, 300), (32, 700))],
    "at least one frame": list,
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_does_not_determine_a_twin_is_refused_with_the_reason(said: str) -> None:
    with pytest.raises(NotIdentified, match=said):
        Twin.fit(REFUSED[said](), target="openai:other" if "other'" in said else None)


@pytest.mark.parametrize("data", [3, "out.csv", pd.DataFrame({"a": [1]})])
def test_what_is_no_run_is_a_type_error(data: object) -> None:
    with pytest.raises(TypeError, match=r"twin"):
        Twin.fit(data)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"rows": 0, "concurrency": 8}, ValueError, "rows must be at least 1"),
        ({"rows": 10}, ValueError, "concurrency=32"),
        ({"rows": 10, "concurrency": []}, ValueError, "concurrency is empty"),
        ({"rows": 10, "concurrency": 2.5}, TypeError, "concurrency must be a whole number"),
        ({"rows": 10, "concurrency": 8, "rpm": -1}, ValueError, "rpm must be"),
        ({"rows": 10, "strategy": "default"}, TypeError, "strategy must be a Strategy"),
        ({"rows": 10, "strategy": llmlab.Strategy.default(pack=llmlab.Pack(5))}, ValueError, "leave pack= out"),
        ({"rows": 10, "strategy": {}}, ValueError, "strategies: there is none"),
        ({"rows": 10, "strategy": [llmlab.Strategy.bare()] * 2}, ValueError, "two have the name 'bare'"),
        ({"rows": 10, "strategy": llmlab.Strategy.default(), "rpm": 5}, ValueError, "put a Rate into yours"),
        ({"rows": 10, "concurrency": 8, "runs": 0}, ValueError, "runs must be at least 1"),
    ],
)
def test_wrong_use_is_named(hosted: Twin, options: dict[str, object], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        hosted.predict(**options)  # type: ignore[arg-type]


# -- frames -----------------------------------------------------------------------------------------------


def check_columns(frame: pd.DataFrame, columns: tuple[Column, ...]) -> None:
    assert frame.dtypes.astype("string").to_dict() == {
        column.name: str(pd.api.types.pandas_dtype(column.dtype)) for column in columns
    }
    endings = {"ms": "_ms", "s": "_s", "USD": "_usd", "1/min": "_rpm"}
    for column in columns:
        assert column.unit == "" or column.name.endswith(endings[column.unit]), column.name


def test_a_prediction_has_its_columns(hosted: Twin) -> None:
    told = hosted.predict(100, [8, 16], runs=2)
    check_columns(told, PREDICTION)
    for name, unit in (("makespan", "s"), ("p50", "ms"), ("p95", "ms"), ("p99", "ms")):
        low, middle, high = (told[f"{name}{end}_{unit}"] for end in ("_low", "", "_high"))
        assert ((low <= middle) & (middle <= high)).all()


def test_the_same_twin_predicts_the_same(hosted: Twin) -> None:
    pd.testing.assert_frame_equal(hosted.predict(300, [8, 16], runs=3), hosted.predict(300, [8, 16], runs=3))
    strategy = llmlab.Strategy.default()
    one, other = (hosted.predict(200, 8, strategy=strategy, runs=2) for _ in range(2))
    pd.testing.assert_frame_equal(one, other)


def test_calibration_holds_out_a_part_and_the_intervals_hold_it(hosted: Twin) -> None:
    told = hosted.calibration()
    check_columns(told, CALIBRATION)
    whole = told[told["run"].isna()]
    assert whole["attempts"].iloc[0] == pytest.approx(200, abs=25)
    assert 0.7 <= whole["coverage"].iloc[0] <= 0.9
    middle = whole[whole["quantile"].between(0.1, 0.95)]
    assert np.allclose(middle["predicted_ms"], middle["actual_ms"], rtol=0.1)
    assert set(told["run"].dropna()) == {0, 1}


def test_a_provider_that_changed_meanwhile_shows_in_the_calibration() -> None:
    slow = Physics(jitter=0.3, load=0.0004, itl=0.02)
    fitted = Twin.fit([job(8, 300), job(8, 300, physics=slow), job(32, 700)])
    told = fitted.calibration()
    each = told[told["run"].notna() & (told["quantile"] == 0.5)].set_index("run")
    off = (each["predicted_ms"] / each["actual_ms"] - 1).abs()
    assert off[1] > 0.15


# -- the simulator of it ----------------------------------------------------------------------------------


def test_its_physics_run_the_whole_stack_at_about_the_same_speed(hosted: Twin) -> None:
    again = llmlab.summary(out(16, 400, seed=70, physics=hosted.physics()))
    real = llmlab.summary(out(16, 400, seed=70))
    assert again["total_time_ms"] == pytest.approx(real["total_time_ms"], rel=0.1)
