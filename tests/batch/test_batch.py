"""submit_batch from prompts to frame, in virtual time, for both dialects."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pandas as pd
import pytest

import llmlab
from llmlab.clock import run_virtual
from llmlab.columns import COLUMNS
from llmlab.errors import NotFound
from llmlab.sim.batches import BatchPace
from tests.batch.labs import both, make_lab, make_sim


@both
def test_a_column_of_prompts_comes_back_as_a_frame_with_its_index(dialect: str) -> None:
    prompts = pd.Series([f"Tell me about {n}" for n in range(60)], index=[f"r{n}" for n in range(60)])

    async def main() -> tuple[Any, Any]:
        lab = make_lab(make_sim(), dialect)
        return await lab.submit_batch(prompts), await lab.run_many(prompts)

    batch, plain = run_virtual(main)
    assert list(batch.columns) == [column.name for column in COLUMNS]
    assert [str(dtype) for dtype in batch.dtypes] == [str(dtype) for dtype in plain.dtypes]
    assert list(batch.index) == list(prompts.index)
    assert list(batch.prompt) == list(prompts)
    assert list(batch.content) == list(plain.content), "results come in any order, rows do not"
    assert set(batch.status) == {"ok"}
    assert set(batch.attempts) == {1}
    assert batch.latency_ms.isna().all()
    assert (batch.finished_at > batch.started_at).all()


@both
def test_the_bill_is_half_of_what_the_simulator_counts(dialect: str) -> None:
    async def main() -> Any:
        sim = make_sim()
        frame = await make_lab(sim, dialect).submit_batch([f"prompt {n}" for n in range(50)])
        return frame, sim.stats()["tokens"]

    frame, tokens = run_virtual(main)
    assert (frame.input_tokens.sum(), frame.output_tokens.sum()) == (tokens["input"], tokens["output"])
    assert frame.cost_usd.sum() == pytest.approx((3.0 * tokens["input"] + 12.0 * tokens["output"]) / 1e6 / 2)


@both
def test_rows_bring_their_own_parameters_as_in_run_many(dialect: str) -> None:
    table = pd.DataFrame({
        "text": ["one", "two", "three"],
        "model": [None, "n", None],
        "max_tokens": [None, 7, 3],
        "system": ["Be brief", None, None],
    })  # fmt: skip

    async def main() -> Any:
        lab = make_lab(make_sim(), dialect)
        settings: dict[str, Any] = {"template": "Say {text}", "temperature": 0.5, "extra": {"top_p": 0.9}}
        return await lab.submit_batch(table, **settings), await lab.run_many(table, **settings)

    batch, plain = run_virtual(main)
    assert list(batch.content) == list(plain.content)
    assert list(batch.model) == ["m", "n", "m"]
    assert list(batch.output_tokens)[1:] == [7, 3]


def test_rows_of_several_models_are_several_batches_where_one_must_have_one() -> None:
    async def main(dialect: str) -> Any:
        lab = make_lab(make_sim(), dialect)
        job = lab.submit_batch(pd.DataFrame({"prompt": ["a", "b", "c", "d"], "model": ["x", "y", "x", "y"]}))
        return await job, job.id

    frame, joined = run_virtual(lambda: main("openai"))
    assert (list(frame.model), joined.count("+")) == (["x", "y", "x", "y"], 1)
    frame, joined = run_virtual(lambda: main("anthropic"))
    assert (list(frame.model), joined.count("+")) == (["x", "y", "x", "y"], 0)


@both
def test_an_input_beyond_the_limits_is_divided(dialect: str) -> None:
    async def main() -> Any:
        sim = make_sim(BatchPace(rows=10, bytes=20_000))
        lab = make_lab(sim, dialect)
        api = lab.target.provider.batches
        assert api is not None
        api.most_rows, api.most_bytes = 10, 4_000
        job = lab.submit_batch([f"{n} " + "x" * 100 for n in range(35)] + ["y" * 5_000])
        return await job, job

    frame, job = run_virtual(main)
    assert len(job.batches) == len(job.id.split("+")) >= 4
    assert all(batch.total <= 10 for batch in job.batches)
    assert list(frame.status) == ["ok"] * 35 + ["error"]
    assert frame.error_type.iloc[35] == "RequestTooLarge"
    assert frame.attempts.iloc[35] == 0
    assert list(frame.prompt.str[:2].str.strip())[:35] == [str(n)[:2] for n in range(35)]


def test_the_user_may_want_smaller_batches() -> None:
    async def main() -> Any:
        job = make_lab(make_sim()).submit_batch([str(n) for n in range(10)], most_rows=4)
        await job
        return [batch.total for batch in job.batches]

    assert run_virtual(main) == [4, 4, 2]


@both
def test_a_rows_failure_is_data(dialect: str) -> None:
    wrong = [{"role": "user", "content": [{"type": "nonsense"}]}] if dialect == "openai" else [
        {"role": "user", "content": [{"type": "text", "text": ""}]}
    ]  # fmt: skip

    async def main() -> Any:
        return await make_lab(make_sim(BatchPace(failing=0.3)), dialect).submit_batch(
            [[{"role": "user", "content": f"prompt {n}"}] for n in range(40)] + [wrong]
        )

    frame = run_virtual(main)
    assert frame.error_type.iloc[40] == "BadRequest"
    failed = frame.iloc[:40]
    assert set(failed.error_type.dropna()) == {"ServerError"}
    assert 3 < (failed.status == "error").sum() < 25
    assert failed[failed.status == "error"].cost_usd.isna().all(), "nobody bills for them"


@both
def test_a_row_that_is_no_prompt_costs_nothing_and_stops_nobody(dialect: str) -> None:
    async def rows() -> AsyncIterator[Any]:
        for each in ("one", 7, "two"):
            yield each

    async def main() -> Any:
        job = make_lab(make_sim(), dialect).submit_batch(rows())
        return await job, job.progress.now.total

    frame, total = run_virtual(main)
    assert (list(frame.status), total) == (["ok", "error", "ok"], 3)
    assert frame.error_type.iloc[1] == "TypeError"


@both
def test_a_batch_taken_up_by_its_id_has_all_rows_in_order(dialect: str) -> None:
    sim = make_sim()
    prompts = pd.Series([f"prompt {n}" for n in range(30)], index=[f"r{n}" for n in range(30)])

    async def submit() -> Any:
        job = make_lab(sim, dialect).submit_batch(prompts, system="Be brief", most_rows=12)
        return await job.submitted()

    async def attach(*given: Any, **settings: Any) -> Any:
        return await make_lab(sim, dialect).attach_batch(name, *given, **settings)

    name = run_virtual(submit)  # its loop ends with the job at work: as a kernel's death
    bare = run_virtual(attach)
    whole = run_virtual(lambda: attach(prompts, system="Be brief"))
    assert list(bare.index) == list(range(30))
    assert list(whole.index) == list(prompts.index)
    assert list(bare.content) == list(whole.content)
    assert list(whole.prompt) == list(prompts)
    if dialect == "openai":
        assert list(bare.prompt) == list(prompts), "the input file can be read again"
    else:
        assert bare.prompt.isna().all(), "Anthropic gives no prompt back"
    assert bare.cost_usd.sum() == pytest.approx(whole.cost_usd.sum())
    assert bare.cost_usd.notna().all()
    tokens = sim.stats()["tokens"]
    assert bare.input_tokens.sum() == tokens["input"], "each row was answered once"


@both
def test_other_prompts_than_those_submitted_are_an_error(dialect: str) -> None:
    sim = make_sim()

    async def main() -> None:
        lab = make_lab(sim, dialect)
        name = await lab.submit_batch(["one", "two"]).submitted()
        for given in (["one", "three"], ["one"], ["two", "one"]):
            with pytest.raises(ValueError, match="not what was submitted"):
                await lab.attach_batch(name, given)
        with pytest.raises(ValueError, match="not what was submitted"):
            await lab.attach_batch(name, ["one", "two"], temperature=0.1)
        assert list((await lab.attach_batch(name, ["one", "two"])).status) == ["ok", "ok"]

    run_virtual(main)


@both
def test_an_id_that_nobody_knows_is_an_error(dialect: str) -> None:
    async def main() -> None:
        with pytest.raises(NotFound):
            await make_lab(make_sim(), dialect).attach_batch("batch_nowhere")

    run_virtual(main)


@both
def test_cancelling_ends_the_batch_at_the_provider_and_keeps_what_was_answered(dialect: str) -> None:
    async def main() -> Any:
        sim = make_sim(BatchPace(start=1, rows_per_s=1))
        job = make_lab(sim, dialect).submit_batch([f"prompt {n}" for n in range(100)])
        await job.submitted()
        await asyncio.sleep(30)
        job.cancel()
        return await job, job, sim.stats()["tokens"]

    frame, job, tokens = run_virtual(main)
    assert job.stopped == "cancelled"
    assert (frame.status == "ok").sum() in range(20, 40)
    assert set(frame.status) == {"ok", "cancelled"}
    assert len(frame) == 100
    assert frame.output_tokens.sum() == tokens["output"], "what was answered is billed, and is there"
    assert all(batch.ended for batch in job.batches)
    assert frame.error[frame.status == "cancelled"].str.contains("cancelled at the provider").all()


@both
def test_who_stops_waiting_leaves_the_batch_alone(dialect: str) -> None:
    sim = make_sim(BatchPace(rows_per_s=1))

    async def leave() -> Any:
        job = make_lab(sim, dialect).submit_batch([f"prompt {n}" for n in range(20)])
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(job, 10)
        return job.id, job.frame

    async def come_back() -> Any:
        return await make_lab(sim, dialect).attach_batch(name)

    name, frame = run_virtual(leave)
    assert set(frame.status) == {"cancelled"}
    assert frame.error.str.contains(f"lab.attach_batch('{name}')", regex=False).all()
    assert set(run_virtual(come_back).status) == {"ok"}


def test_a_batch_of_another_program_has_its_own_names_as_index() -> None:
    async def main() -> Any:
        sim = make_sim()
        lab = make_lab(sim, "anthropic")
        params = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
        rows = {"requests": [{"custom_id": name, "params": params} for name in ("red", "green", "blue")]}
        async with httpx.AsyncClient(transport=sim, base_url="http://simulated") as client:
            headers = {"x-api-key": "sk-very-secret-key", "anthropic-version": "2023-06-01"}
            made = (await client.post("/v1/messages/batches", json=rows, headers=headers)).json()
        return await lab.attach_batch(made["id"])

    frame = run_virtual(main)
    assert sorted(frame.index) == ["blue", "green", "red"]
    assert set(frame.status) == {"ok"}
    assert frame.cost_usd.notna().all()


def test_a_file_that_is_refused_says_which_row_is_wrong() -> None:
    async def main() -> Any:
        sim = make_sim(BatchPace(rows=5))
        job = make_lab(sim).submit_batch([str(n) for n in range(8)])
        return await job

    frame = run_virtual(main)
    assert set(frame.error_type) == {"BadRequest"}
    assert frame.error.str.contains("too_many_tasks").all()


def test_providers_without_a_batch_api_say_so_before_anything_is_sent() -> None:
    lab = llmlab.Lab("groq:m", api_key="k", progress=False)
    with pytest.raises(ValueError, match="groq has no Batch API"):
        lab.submit_batch(["a"])
    with pytest.raises(ValueError, match="groq has no Batch API"):
        lab.attach_batch("batch_1")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [({"poll": 0}, ValueError), ({"poll": "often"}, ValueError), ({"most_rows": 0}, ValueError)],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(arguments))):
        make_lab(make_sim()).submit_batch(["a"], **arguments)


@pytest.mark.parametrize("name", ["", "batch_1++batch_2", "no blanks", [], 7, [7]])
def test_what_is_no_id_is_refused(name: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="id must be"):
        make_lab(make_sim()).attach_batch(name)


def test_the_simulated_provider_of_a_lab_without_arguments_has_a_batch_api() -> None:
    async def main() -> Any:
        return await llmlab.Lab(progress=False).submit_batch(["one", "two"])

    assert list(run_virtual(main).status) == ["ok", "ok"]


@both
def test_iterating_gives_outcomes_as_they_come(dialect: str) -> None:
    async def main() -> Any:
        job = make_lab(make_sim(), dialect).submit_batch(["one", "two", "three"])
        return [outcome.index async for outcome in job], job.attempts

    seen, attempts = run_virtual(main)
    assert sorted(seen) == [0, 1, 2]
    assert list(attempts.status) == ["ok"] * 3
    assert (attempts.latency_ms > 2000).all(), "of an attempt, the batch's own time"
