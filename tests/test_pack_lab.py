"""Packed rows through the whole lab, on the simulated provider."""

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import llmlab
from llmlab.clock import run_virtual
from llmlab.errors import AuthFailed
from llmlab.policies.pack import Pack
from llmlab.sim import Faults, Physics, Simulator
from llmlab.strategy import Strategy
from tests.pack_scenarios import Model, Run, answer_to, right, run


@pytest.fixture(scope="module")
def garbled() -> Run:
    return run(pack=Pack(10), share=0.2)


def lab_of(simulator: Simulator | None = None, **options: Any) -> llmlab.Lab:
    return llmlab.Lab(
        "openai:m", transport=simulator or Simulator(say=Model(0.0)), seed=1, prices={"m": (1, 2)}, **options
    )


TEXTS = [f"Review {n}" for n in range(40)]


def test_a_fifth_garbled_every_row_has_its_own_answer_and_most_calls_are_saved(garbled: Run) -> None:
    assert right(garbled)
    assert garbled.frame.prompt.tolist() == [f"Review {n}: it {'leaks' * (n % 3)}." for n in range(1000)]
    assert garbled.pack is not None
    assert garbled.requests == garbled.pack.requests + garbled.pack.redone
    assert garbled.pack.requests == 100
    assert 200 < garbled.pack.redone < 350
    assert garbled.model.garbled <= garbled.pack.redone, "and what is lost behind a cut"
    assert garbled.requests < 450


def test_the_sums_are_the_providers_bill(garbled: Run) -> None:
    for frame in (garbled.frame, garbled.attempts):
        assert frame.input_tokens.sum() == garbled.billed["input"]
        assert frame.output_tokens.sum() == garbled.billed["output"]
        dollars = 0.5e-6 * garbled.billed["input"] + 1.5e-6 * garbled.billed["output"]
        assert frame.cost_usd.sum() == pytest.approx(dollars, rel=1e-9)


def test_attempts_say_which_rows_shared_a_request(garbled: Run) -> None:
    attempts = garbled.attempts
    assert (1 / attempts.rows).sum() == pytest.approx(garbled.requests)
    assert attempts[attempts.kind == "packed"].rows.eq(10).all()
    again = attempts[attempts.kind == "retry"]
    assert set(again.why) == {"PackGarbled"}
    assert again.rows.eq(1).all()
    assert garbled.frame.attempts.isin([1, 2]).all()


def test_without_garbling_nine_of_ten_calls_are_saved() -> None:
    done = run(rows=400, pack=Pack(10), share=0.0)
    assert right(done)
    assert (done.requests, done.pack and done.pack.redone) == (40, 0)


def test_a_flaky_provider_costs_no_row_and_what_is_known_of_its_bill_agrees() -> None:
    done = run(rows=400, pack=Pack(10), share=0.1, faults=0.2)
    assert right(done)
    assert done.frame.attempts.max() > 2
    for name in ("input_tokens", "output_tokens", "cost_usd"):
        assert done.frame[name].sum() == pytest.approx(done.attempts[name].sum())
    assert (1 / done.attempts.rows).sum() == pytest.approx(done.requests)


def test_the_same_seed_gives_the_same_frame() -> None:
    one, other = (run(rows=100, pack=Pack(5)).frame for _ in range(2))
    pd.testing.assert_frame_equal(one, other)


def test_a_job_is_packed_by_itself_and_shares_the_labs_limits() -> None:
    async def main() -> tuple[int, pd.DataFrame, int, pd.DataFrame]:
        simulator = Simulator(say=Model(0.0), physics=Physics(slots=4))
        lab = lab_of(simulator, concurrency=2)
        packed, plain = await asyncio.gather(lab.run_many(TEXTS, pack=10), lab.run_many(TEXTS[:6]))
        limits = lab.last.limits if lab.last else None
        assert limits is not None
        return simulator.requests, packed, int(limits.in_flight.max()), plain

    requests, packed, in_flight, plain = run_virtual(main)
    assert requests == 4 + 6
    assert packed.content.tolist() == [answer_to(text) for text in TEXTS]
    assert plain.content.tolist() == [answer_to(text) for text in TEXTS[:6]]
    assert in_flight <= 2


def test_packs_fill_the_slots() -> None:
    physics = Physics(rtt=0, ttft=1.0, itl=0, load=0, prefill=1e9, jitter=0)

    async def main() -> float:
        lab = lab_of(Simulator(say=Model(0.0), physics=physics), concurrency=20)
        await lab.run_many([f"Row {n}" for n in range(4000)], pack=50)
        return asyncio.get_running_loop().time()

    assert run_virtual(main) < 4 * 1.2


def test_a_generator_is_taken_as_fast_as_packs_go() -> None:
    taken = [0]

    def rows() -> Any:
        for n in range(5000):
            taken[0] += 1
            yield f"Row {n}"

    async def main() -> int:
        job = lab_of(concurrency=4).run_many(rows(), pack=5)
        await asyncio.sleep(0.1)
        ahead = taken[0]
        job.cancel()
        await job
        return ahead

    assert run_virtual(main) <= 16 * 5 + 4 * 5 + 64


def test_streaming_is_off_and_it_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    out = run_virtual(lambda: lab_of().run_many(TEXTS, pack=10, stream=True).wait())
    assert out.ttft_ms.isna().all()
    assert capsys.readouterr().err.count("streaming is off") == 1


def test_a_strategy_packs_single_questions_too() -> None:
    async def main() -> tuple[int, list[str]]:
        simulator = Simulator(say=Model(0.0))
        lab = lab_of(simulator, strategy=Strategy.default(pack=Pack(5)))
        replies = await asyncio.gather(*(lab.run(text) for text in TEXTS))
        return simulator.requests, [reply.content for reply in replies]

    assert run_virtual(main) == (8, [answer_to(text) for text in TEXTS])


@pytest.mark.parametrize(("pack", "kind"), [("ten", TypeError), (True, TypeError), (0, ValueError), (2.5, TypeError)])
def test_what_is_no_pack_is_refused(pack: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=r"(?i)pack"):
        lab_of().run_many(TEXTS, pack=pack)


def test_typed_answers_are_not_packed_and_it_is_said_before_anything_is_sent() -> None:
    with pytest.raises(ValueError, match="pack and schema"):
        lab_of().run_many(TEXTS, pack=10, schema=int)


def test_it_stands_below_what_is_a_rows_own_and_above_the_rest() -> None:
    strategy = Strategy.default(pack=Pack(), total=60, cache=llmlab.Cache("x.sqlite")).with_fallback()
    names = [type(policy).__name__ for policy in strategy.policies]
    assert names == ["Cache", "Timeout", "Pack", "Fallback", "Retry", "Admit", "Timeout"]
    assert strategy.pack is not None
    assert Strategy.default().pack is None


def test_the_journal_knows_each_row_and_a_second_run_pays_for_what_is_left(tmp_path: Path) -> None:
    path, simulator = tmp_path / "run.sqlite", Simulator(say=Model(0.0), physics=Physics.instant())

    async def main(count: int) -> pd.DataFrame:
        return await lab_of(simulator).run_many(TEXTS[:count], pack=10, journal=path)

    asyncio.run(main(20))
    out = asyncio.run(main(40))
    assert simulator.requests == 4
    assert out.content.tolist() == [answer_to(text) for text in TEXTS]


def test_the_cache_is_asked_before_rows_are_packed(tmp_path: Path) -> None:
    simulator = Simulator(say=Model(0.0))

    async def main() -> pd.DataFrame:
        lab = lab_of(simulator, cache=tmp_path / "cache.sqlite")
        await lab.run_many(TEXTS[::2], pack=10)
        return await lab.run_many(TEXTS, pack=10)

    out = run_virtual(main)
    assert simulator.requests == 2 + 2
    assert out.cache_hit.tolist() == [True, False] * 20
    assert out.content.tolist() == [answer_to(text) for text in TEXTS]


def test_a_budget_holds_for_packed_rows_and_those_answered_are_kept() -> None:
    async def main() -> pd.DataFrame:
        return await lab_of(concurrency=1).run_many(TEXTS, pack=5, budget_tokens=1500, max_tokens=10)

    out = run_virtual(main)
    assert 0 < (out.status == "ok").sum() < 40
    assert out.input_tokens.sum() + out.output_tokens.sum() <= 1500


def test_a_wrong_key_stops_the_job_at_once() -> None:
    simulator = Simulator(keys=["right"])
    lab = llmlab.Lab("openai:m", api_key="wrong", transport=simulator, concurrency=1)
    out = run_virtual(lambda: lab.run_many(TEXTS, pack=10, progress=False).wait())
    assert simulator.requests <= 2
    assert AuthFailed.__name__ in set(out.error_type.dropna())
    assert set(out.status) == {"error", "cancelled"}


def test_a_cut_off_answer_keeps_the_rows_before_the_cut() -> None:
    def say(ask: Any) -> str:
        rows = [json.loads(line) for line in ask.text.splitlines() if line.startswith('{"id":"')]
        answers = [{"id": row["id"], "answer": "word " * 90} for row in rows]
        return json.dumps({"answers": answers}) if rows else "word " * 90

    async def main() -> tuple[pd.DataFrame, int]:
        simulator = Simulator(say=say)
        return await lab_of(simulator).run_many(TEXTS[:10], pack=10, max_tokens=50), simulator.requests

    out, requests = run_virtual(main)
    whole = (out.finish_reason == "stop") & (out.attempts == 1)
    assert 3 <= whole.sum() <= 8
    assert requests == 1 + 10 - whole.sum()
    assert (out[~whole].finish_reason == "length").all(), "asked alone, it is cut off as it would have been"


def test_a_rows_own_deadline_ends_that_row_only() -> None:
    physics = Physics(rtt=0, ttft=10.0, itl=0, load=0, prefill=1e9, jitter=0)
    strategy = Strategy.default(pack=Pack(2, seconds=4.0), total=12.0)

    async def main() -> list[Any]:
        lab = lab_of(Simulator(say=Model(0.0), physics=physics), strategy=strategy)
        first = asyncio.ensure_future(lab.run("Review 1").wait())
        await asyncio.sleep(3)
        return [*await asyncio.gather(first, lab.run("Review 2"), return_exceptions=True)]

    first, second = run_virtual(main)
    assert isinstance(first, llmlab.LLMError)
    assert "12 s" in str(first)
    assert second.content == answer_to("Review 2")


def test_cancelling_the_job_gives_the_requests_up() -> None:
    async def main() -> tuple[pd.DataFrame, int | None, int]:
        lab = lab_of(Simulator(say=Model(0.0), physics=Physics(ttft=50.0)), concurrency=2)
        job = lab.run_many(TEXTS, pack=10)
        await asyncio.sleep(5)
        job.cancel()
        out = await job
        await asyncio.sleep(0.1)
        slots = lab.strategy.slots
        assert slots is not None
        assert lab.target.line is not None
        return out, slots.in_use, lab.target.line.waiting

    out, in_use, waiting = run_virtual(main)
    assert (out.status == "cancelled").all()
    assert (in_use, waiting) == (0, 0)
    assert out.attempts.tolist() == [1] * 20 + [0] * 20


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_dropped_fails_or_is_garbled_every_row_is_settled_and_nothing_leaks(seed: int) -> None:
    rng = random.Random(seed)

    async def main() -> tuple[pd.DataFrame, pd.DataFrame, int | None, int]:
        simulator = Simulator(seed=seed, say=Model(0.2, seed=seed), faults=Faults.mixed(0.2))
        lab = lab_of(simulator, concurrency=3)
        job = lab.run_many([f"Review {n}" for n in range(120)], pack=rng.randint(2, 12))
        for _ in range(30):
            await asyncio.sleep(rng.uniform(0, 0.5))
            job.drop(rng.randrange(120))
        if seed % 3 == 0:
            job.cancel()
        out = await job
        await asyncio.sleep(1.0)
        slots, line = lab.strategy.slots, lab.target.line
        assert line is not None
        return out, job.attempts, None if slots is None else slots.in_use, line.waiting

    out, attempts, in_use, waiting = run_virtual(main)
    assert len(out) == 120
    assert (in_use, waiting) == (0, 0)
    ok = out[out.status == "ok"]
    assert (ok.content == ok.prompt.map(answer_to)).all()
    assert set(out.status) <= {"ok", "cancelled"}
    kept = attempts[attempts.position.isin(ok.index)].groupby("position")
    pd.testing.assert_series_equal(kept.size(), ok.attempts, check_names=False)


def test_rows_go_on_together_to_the_next_target() -> None:
    down = Simulator(keys=["other"])
    good = Simulator(say=Model(0.0))

    async def main() -> pd.DataFrame:
        spare = llmlab.Lab("openai:n", api_key="k", transport=good)
        lab = llmlab.Lab("openai:m", api_key="wrong", transport=down, fallback=spare)
        return await lab.run_many(TEXTS[:20], pack=10)

    out = run_virtual(main)
    assert (out.status == "ok").all()
    assert set(out.model) == {"n"}
    assert good.requests == 2
