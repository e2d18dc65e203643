import asyncio
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pandas as pd
import pytest

import llmlab
from llmlab.clock import run_virtual
from llmlab.columns import COLUMNS
from llmlab.mismatch import JournalMismatch
from llmlab.sim import Faults, Physics, Simulator
from llmlab.sim.wire import Ask

REVIEWS = pd.DataFrame({"review": ["Great tea.", "It leaks.", "Fine."]}, index=pd.Index(["a", "b", "c"], name="id"))
SHORT, LONG = "Rate: {review}", "Please rate with care: {review}"
PRICES = {"small": (1.0, 2.0), "big": (10.0, 20.0)}


class Recorder(httpx.AsyncBaseTransport):
    """Answers each request with a number of its own; keeps the bodies."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = orjson.loads(await request.aread())
        self.bodies.append(body)
        message = {"role": "assistant", "content": f"answer {len(self.bodies)}"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 10, "completion_tokens": 5}
        model = f"{body['model']}-2026"
        return httpx.Response(200, json={"model": model, "choices": [choice], "usage": usage}, request=request)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def lab(recorder: Recorder) -> llmlab.Lab:
    return llmlab.Lab("openai:small", api_key="k", transport=recorder, prices=PRICES, progress=False)


def run_grid(lab: llmlab.Lab, *prompts: Any, **factors: Any) -> pd.DataFrame:
    async def main() -> pd.DataFrame:
        out: pd.DataFrame = await lab.grid(*prompts, **factors)
        return out

    return run_virtual(main)


# -- the frame --------------------------------------------------------------------------------------------


def test_every_combination_is_a_row_in_the_order_of_the_grid(lab: llmlab.Lab, recorder: Recorder) -> None:
    out = run_grid(lab, REVIEWS, template=[SHORT, LONG], model=["small", "big"], temperature=[0, 1.0], repeat=3)
    assert len(out) == len(recorder.bodies) == 3 * 2 * 2 * 2 * 3
    assert out.columns.tolist()[:6] == ["id", "template", "model", "temperature", "repeat", "prompt"]
    names = ["answered_by" if each.name == "model" else each.name for each in COLUMNS if each.name != "temperature"]
    assert out.columns.tolist()[5:] == names
    wanted = pd.MultiIndex.from_product(
        [["a", "b", "c"], [SHORT, LONG], ["small", "big"], [0.0, 1.0], [1, 2, 3]],
        names=["id", "template", "model", "temperature", "repeat"],
    )
    got = out.iloc[:, :5].astype({"id": object, "template": object, "model": object, "temperature": float})
    pd.testing.assert_frame_equal(got, wanted.to_frame(index=False).astype(got.dtypes.to_dict()), check_dtype=False)
    assert out.index.tolist() == list(range(72))


def test_each_cell_is_asked_what_it_says(lab: llmlab.Lab, recorder: Recorder) -> None:
    out = run_grid(lab, REVIEWS, template=[SHORT, LONG], model=["small", "big"], temperature=[0.0, 1.0], max_tokens=7)
    asked = [
        (b["messages"][-1]["content"], b["model"], b["temperature"], b["max_completion_tokens"])
        for b in recorder.bodies
    ]
    texts = [t.format(review=REVIEWS.review[i]) for i, t in zip(out.id, out.template, strict=True)]
    assert out.prompt.tolist() == texts
    assert sorted(asked) == sorted(zip(texts, out.model, out.temperature, [7] * len(out), strict=True))
    assert (out.answered_by == out.model + "-2026").all()
    assert "max_tokens" not in out, "one value is no factor"


def test_levels_may_have_names(lab: llmlab.Lab) -> None:
    systems = {"none": None, "brief": "Be brief"}
    out = run_grid(lab, ["Hi", "Bye"], system=systems, temperature={"cold": 0, "hot": 1.5}, repeat=2)
    assert out.columns.tolist()[:4] == ["row", "system", "temperature", "repeat"]
    assert out.groupby(["system", "temperature"]).size().to_dict() == {
        ("brief", "cold"): 4, ("brief", "hot"): 4, ("none", "cold"): 4, ("none", "hot"): 4,
    }  # fmt: skip


def test_a_level_of_none_is_the_labs_own(recorder: Recorder) -> None:
    lab = llmlab.Lab("openai:small", api_key="k", transport=recorder, system="Mine", temperature=0.5, progress=False)
    out = run_grid(lab, "Hi", system=[None, "Other"], temperature=[None, 1.0], model=[None, "big"])
    asked = {(b["messages"][0]["content"], b["temperature"], b["model"]) for b in recorder.bodies}
    assert asked == {(s, t, m) for s in ("Mine", "Other") for t in (0.5, 1.0) for m in ("small", "big")}
    assert out.system.isna().sum() == 4
    assert out.temperature.isna().sum() == 4


def test_a_summary_is_one_groupby(lab: llmlab.Lab) -> None:
    out = run_grid(lab, REVIEWS, template={"short": SHORT, "long": LONG}, model=["small", "big"], repeat=2)
    table = out.groupby(["template", "model"]).agg(calls=("status", "size"), usd=("cost_usd", "sum"))
    assert table.calls.tolist() == [6, 6, 6, 6]
    assert table.usd["short", "big"] == pytest.approx(10 * table.usd["short", "small"])


def test_a_failed_cell_is_a_row_with_its_factors() -> None:
    simulator = Simulator(models=["small"])
    lab = llmlab.Lab("openai:small", transport=simulator, progress=False)
    out = run_grid(lab, ["Hi", "Bye"], model=["small", "nowhere"])
    assert out.model.tolist() == ["small", "nowhere"] * 2
    assert out.status.tolist() == ["ok", "error"] * 2
    assert out.error_type[1] == "NotFound"
    assert out.answered_by.isna().tolist() == [False, True] * 2


def test_the_rows_keep_their_labels_whatever_index_they_have(lab: llmlab.Lab) -> None:
    index = pd.MultiIndex.from_tuples([("x", 1), ("x", 2), ("y", 1)], names=["site", None])
    out = run_grid(lab, REVIEWS.set_index(index), template=[SHORT], temperature=[0.0, 1.0])
    assert out.columns.tolist()[:2] == ["site", "row_1"]
    assert out.site.tolist() == ["x", "x", "x", "x", "y", "y"]
    days = pd.date_range("2026-01-01", periods=3, name="content")
    out = run_grid(lab, REVIEWS.set_index(days), template=SHORT)
    assert out.columns[0] == "row", "a name that the result has already"
    assert out.row.dtype.kind == "M"


def test_a_series_or_list_has_a_name_for_templates(lab: llmlab.Lab) -> None:
    out = run_grid(lab, REVIEWS.review, template=[SHORT])
    assert out.prompt.tolist() == ["Rate: Great tea.", "Rate: It leaks.", "Rate: Fine."]
    out = run_grid(lab, ["one", "two"], template=["<{prompt}>", "({prompt})"])
    assert out.prompt.tolist() == ["<one>", "(one)", "<two>", "(two)"]


def test_a_tables_own_parameters_hold_unless_they_are_factors(lab: llmlab.Lab, recorder: Recorder) -> None:
    table = pd.DataFrame({"prompt": ["Hi", "Bye"], "temperature": [0.1, 0.2], "model": ["big", "big"]})
    run_grid(lab, table, model=["small", "tiny"])
    assert sorted((b["temperature"], b["model"]) for b in recorder.bodies) == [
        (0.1, "small"), (0.1, "tiny"), (0.2, "small"), (0.2, "tiny"),
    ]  # fmt: skip


def test_answers_may_be_typed() -> None:
    simulator = Simulator(seed=1)
    lab = llmlab.Lab("openai:small", transport=simulator, progress=False)
    out = run_grid(lab, ["Hi", "Bye"], temperature=[0.0, 1.0], schema=int)
    assert out.value.dtype == "Int64"
    assert out.value.notna().all()


def test_other_labs_are_models_and_keep_to_their_limits(recorder: Recorder) -> None:
    other = Recorder()
    mine = llmlab.Lab("openai:small", api_key="k", transport=recorder, progress=False)
    theirs = llmlab.Lab("anthropic:claude", api_key="k", transport=Simulator(), concurrency=1)
    twin = llmlab.Lab("openai:small", api_key="k", transport=other)
    out = run_grid(mine, ["Hi", "Bye"], model={"mine": None, "theirs": theirs, "twin": twin}, temperature=[0.0, 0.5])
    assert out.groupby("model").provider.first().to_dict() == {
        "mine": "openai", "theirs": "anthropic", "twin": "openai",
    }  # fmt: skip
    assert (len(recorder.bodies), len(other.bodies)) == (4, 4)
    assert (out.status == "ok").all()


# -- asked anew -------------------------------------------------------------------------------------------


def test_repeats_are_asked_anew_past_the_labs_cache(recorder: Recorder, tmp_path: Path) -> None:
    lab = llmlab.Lab("openai:small", api_key="k", transport=recorder, cache=tmp_path / "cache.sqlite", progress=False)
    run_grid(lab, ["Hi"], temperature=[0.0])
    out = run_grid(lab, ["Hi"], temperature=[0.0], repeat=4)
    assert len(recorder.bodies) == 5
    assert out.content.nunique() == 4
    assert not out.cache_hit.any()
    again = run_grid(lab, ["Hi"], temperature=[0.0])
    assert again.cache_hit.all(), "what is asked once may come from it"


def test_the_labs_limits_hold_for_repeats_too() -> None:
    async def main() -> int:
        lab = llmlab.Lab("openai:small", transport=Simulator(), concurrency=3, progress=False)
        job = lab.grid(["Hi", "Bye"], model=["a", "b"], repeat=5)
        await job
        return int(job.limits.in_flight.max())

    assert run_virtual(main) <= 3


@pytest.mark.parametrize(
    "grown",
    [
        {"repeat": 3},
        {"repeat": 2, "model": ["small", "big", "huge"]},
        {"repeat": 2, "template": {"short": SHORT, "new": "Now: {review}", "long": LONG}},
    ],
    ids=["repeats", "a model", "a template"],
)
def test_a_grid_that_has_grown_pays_for_what_is_new(recorder: Recorder, tmp_path: Path, grown: dict[str, Any]) -> None:
    path = tmp_path / "grid.sqlite"
    first: dict[str, Any] = {"template": {"short": SHORT, "long": LONG}, "model": ["small", "big"], "repeat": 2}

    async def main(**factors: Any) -> pd.DataFrame:
        lab = llmlab.Lab("openai:small", api_key="k", transport=recorder, progress=False)
        out: pd.DataFrame = await lab.grid(REVIEWS, journal=path, **factors)
        return out

    old = asyncio.run(main(**first))
    paid = len(recorder.bodies)
    new = asyncio.run(main(**{**first, **grown}))
    assert len(recorder.bodies) - paid == len(new) - len(old)
    keys = ["id", "template", "model", "repeat"]
    both = old.merge(new, on=keys, suffixes=("", "_new"))
    assert len(both) == len(old)
    assert both.content.tolist() == both.content_new.tolist()


def test_the_journal_knows_labs_apart_and_settings_that_differ(recorder: Recorder, tmp_path: Path) -> None:
    other, path = Recorder(), tmp_path / "grid.sqlite"

    async def main(**options: Any) -> pd.DataFrame:
        mine = llmlab.Lab("openai:small", api_key="k", transport=recorder, progress=False)
        theirs = llmlab.Lab("openai:big", api_key="k", transport=other)
        models = [theirs, None] if options.pop("turned", False) else [None, theirs]
        out: pd.DataFrame = await mine.grid(["Hi"], model=models, journal=path, **options)
        return out

    asyncio.run(main())
    out = asyncio.run(main(turned=True))
    assert (len(recorder.bodies), len(other.bodies)) == (1, 1)
    assert out.answered_by.tolist() == ["big-2026", "small-2026"]
    with pytest.raises(JournalMismatch, match="temperature"):
        asyncio.run(main(temperature=0.5))


def test_labs_that_a_journal_cannot_tell_apart_are_refused(lab: llmlab.Lab, tmp_path: Path) -> None:
    twin = llmlab.Lab("openai:small", api_key="k", transport=Recorder())
    with pytest.raises(ValueError, match="journal"):
        lab.grid(["Hi"], model={"one": None, "two": twin}, journal=tmp_path / "grid.sqlite")


def test_the_same_seed_gives_the_same_frame() -> None:
    def once() -> pd.DataFrame:
        simulator = Simulator(seed=1, faults=Faults.mixed(0.2))
        lab = llmlab.Lab("openai:small", transport=simulator, seed=1, progress=False)
        return run_grid(lab, ["Hi", "Bye"], model=["a", "b"], temperature=[0.0, 1.0], repeat=3)

    pd.testing.assert_frame_equal(once(), once())


def test_a_stopped_grid_has_whole_rows_first() -> None:
    async def main() -> pd.DataFrame:
        physics = Physics(rtt=0, ttft=1, itl=0, load=0, prefill=1e9, jitter=0)
        lab = llmlab.Lab("openai:m", transport=Simulator(physics=physics), concurrency=4, progress=False)
        job = lab.grid([f"Row {n}" for n in range(10)], model=["a", "b"], repeat=2)
        await asyncio.sleep(3.5)
        job.cancel()
        return await job

    out = run_virtual(main)
    assert len(out) == 40
    done = out[out.status == "ok"]
    assert done.row.value_counts().tolist() == [4, 4, 4]


# -- beforehand -------------------------------------------------------------------------------------------


def test_a_dry_run_reckons_calls_tokens_and_dollars_and_sends_nothing(lab: llmlab.Lab, recorder: Recorder) -> None:
    grid: dict[str, Any] = {"template": [SHORT, LONG], "model": ["small", "big"], "max_tokens": 50, "repeat": 3}
    forecast = lab.grid(REVIEWS, **grid, dry_run=True)
    assert recorder.bodies == []
    assert forecast.calls == 36
    assert forecast.output_tokens == 36 * 50
    assert forecast.cells.columns.tolist() == [
        "template", "model", "calls", "input_tokens", "output_tokens", "cost_usd",
    ]  # fmt: skip
    cells = forecast.cells.set_index(["template", "model"])
    assert cells.calls.tolist() == [9, 9, 9, 9]
    assert cells.input_tokens[LONG, "small"] > cells.input_tokens[SHORT, "small"]
    assert cells.cost_usd[SHORT, "big"] == pytest.approx(10 * cells.cost_usd[SHORT, "small"])
    assert forecast.cost_usd == pytest.approx(cells.cost_usd.sum())
    assert "36 calls" in str(forecast)

    async def main() -> Any:
        return await forecast

    assert run_virtual(main) is forecast is forecast.result()


def test_what_a_dry_run_reckons_is_near_what_comes() -> None:
    lab = llmlab.Lab("openai:m", transport=Simulator(seed=1), prices={"m": (1, 2)}, progress=False)
    texts = [f"What is said about the number {n} in this sentence, and why?" for n in range(40)]
    run_virtual(lambda: lab.run_many(texts).wait())
    forecast = lab.grid(texts, temperature=[0.0, 1.0], dry_run=True)
    out = run_grid(lab, texts, temperature=[0.0, 1.0])
    assert forecast.input_tokens == pytest.approx(out.input_tokens.sum(), rel=0.1)
    assert forecast.cost_usd == pytest.approx(out.cost_usd.sum(), rel=0.6)


def test_a_price_that_is_not_known_is_no_zero(lab: llmlab.Lab) -> None:
    forecast = lab.grid(["Hi"], model=["small", "unheard-of"], dry_run=True)
    assert forecast.cost_usd is None
    assert forecast.cells.cost_usd.isna().tolist() == [False, True]
    assert "price not known" in repr(forecast)


def test_the_size_is_said_before_it_starts(recorder: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    lab = llmlab.Lab("openai:small", api_key="k", transport=recorder)
    run_grid(lab, REVIEWS, template=[SHORT, LONG], repeat=2)
    assert "a grid of 3 rows x 2 templates x 2 repeats = 12 calls" in capsys.readouterr().err


def test_a_grid_that_is_too_large_is_refused_with_its_size(lab: llmlab.Lab, recorder: Recorder) -> None:
    texts = [f"Row {n}" for n in range(2000)]
    with pytest.raises(ValueError, match=r"2,000 rows x 2 models x 3 repeats = 12,000 calls.*max_calls=10,000"):
        lab.grid(texts, model=["a", "b"], repeat=3)
    assert lab.grid(texts, model=["a", "b"], repeat=3, max_calls=12_000, dry_run=True).calls == 12_000
    assert recorder.bodies == []


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no level": ({"template": []}, ValueError, "template must have at least one level"),
    "one twice": ({"temperature": [0.5, 0.5]}, ValueError, r"temperature has the level 0\.5 twice"),
    "a set": ({"model": {"a", "b"}}, TypeError, "model must have its levels in an order"),
    "a number as a model": ({"model": ["a", 5]}, TypeError, "model"),
    "too hot": ({"temperature": [0.0, 7.0]}, ValueError, "temperature must be between 0 and 2"),
    "no tokens": ({"max_tokens": [10, 0]}, ValueError, "max_tokens must be at least 1"),
    "an unknown column": ({"template": ["{review}", "{revue}"]}, ValueError, "revue"),
    "names that are none": ({"system": {1: "S"}}, TypeError, "system must have texts as names"),
    "no repeats": ({"repeat": 0}, ValueError, "repeat"),
    "unknown overrides": ({"template": SHORT, "overrides": ["price"]}, ValueError, "overrides"),
}


@pytest.mark.parametrize(("options", "kind", "words"), WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_said_before_anything_is_sent(
    lab: llmlab.Lab, recorder: Recorder, options: dict[str, Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        lab.grid(REVIEWS, **{"template": SHORT, **options})
    assert recorder.bodies == []


def test_a_generator_is_no_input_of_a_grid(lab: llmlab.Lab) -> None:
    with pytest.raises(TypeError, match="grid takes prompts that are all there"):
        lab.grid((text for text in ["Hi"]), model=["a", "b"])


def test_levels_may_come_from_numpy_and_pandas(lab: llmlab.Lab, recorder: Recorder) -> None:
    out = run_grid(lab, "Hi", temperature=np.linspace(0, 1, 3), max_tokens=pd.Series([5, 10]))
    assert out.temperature.tolist() == [0.0, 0.0, 0.5, 0.5, 1.0, 1.0]
    assert {b["max_completion_tokens"] for b in recorder.bodies} == {5, 10}


def test_a_frame_has_it_too(lab: llmlab.Lab) -> None:
    out = run_virtual(lambda: REVIEWS.llm.grid(lab, template=[SHORT, LONG]).wait())
    assert len(out) == 6
    assert len(run_virtual(lambda: REVIEWS.review.llm.grid(lab, model=["a", "b"]).wait())) == 6


def test_a_prompt_without_a_word_is_a_mistake_of_its_row(lab: llmlab.Lab) -> None:
    with pytest.raises(ValueError, match="row 1"):
        lab.grid(["Hi", None], model=["a", "b"])


def test_the_models_answers_are_told_apart() -> None:
    def say(ask: Ask) -> str:
        return f"I am {ask.model}"

    lab = llmlab.Lab("openai:m", transport=Simulator(say=say), progress=False)
    out = run_grid(lab, ["Who?", "Really?"], model=["a", "b", "c"], repeat=2)
    assert (out.content == "I am " + out.model).all()
