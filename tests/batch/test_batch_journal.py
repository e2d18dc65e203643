"""A batch with a journal: the same call, made again, pays for nothing twice, and needs no id."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from llmlab import journal as journals
from llmlab.batch.ledger import Ledger
from llmlab.errors import QuotaExhausted
from llmlab.sim.batches import BatchPace
from llmlab.sim.faults import Faults
from llmlab.sim.transport import Simulator
from tests.batch.labs import both, make_lab, make_sim
from tests.batch.meddler import count_batches
from tests.batch.test_batch_kill import child, served

PROMPTS = [f"prompt {n % 25}" for n in range(30)]  # five of them twice
FAST = BatchPace(start=0.05, rows_per_s=2000, finish=0.02)
SLOW = BatchPace(start=0.5, rows_per_s=2000, finish=0.02)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "run.sqlite")


def run(main: Callable[[], Awaitable[Any]]) -> Any:
    async def entry() -> Any:
        async with asyncio.timeout(30):
            return await main()

    return asyncio.run(entry())


async def left_alone(sim: Simulator, dialect: str, path: str, prompts: list[str] = PROMPTS) -> None:
    """Submit, and stop waiting."""
    job = make_lab(sim, dialect).submit_batch(prompts, journal=path, poll=0.05, most_rows=12)
    await job.submitted()
    job.stop("interrupted")
    await job


async def again(sim: Simulator, dialect: str, path: str, prompts: list[str] = PROMPTS) -> Any:
    return await make_lab(sim, dialect).submit_batch(prompts, journal=path, poll=0.05, most_rows=12)


@both
def test_the_same_call_takes_up_what_was_submitted(dialect: str, path: str) -> None:
    sim = make_sim(SLOW)
    run(lambda: left_alone(sim, dialect, path))
    frame = run(lambda: again(sim, dialect, path))
    assert list(frame.status) == ["ok"] * 30
    assert list(frame.prompt) == PROMPTS
    assert (count_batches(sim, dialect), sim.stats()["batch"]["rows"]) == (3, 30)
    assert frame.output_tokens.sum() == sim.stats()["tokens"]["output"]


@both
def test_what_is_answered_comes_from_the_file_alone(dialect: str, path: str) -> None:
    sim = make_sim(FAST)
    first = run(lambda: again(sim, dialect, path))
    requests = sim.stats()["batch"]["requests"]
    second = run(lambda: again(sim, dialect, path))
    assert sim.stats()["batch"]["requests"] == requests
    assert second.latency_ms.isna().all()
    assert list(second.content) == list(first.content)
    assert list(second.cost_usd) == list(first.cost_usd)
    kept = journals.read(path)
    assert list(kept.content) == list(first.content)
    assert kept.latency_ms.isna().all()


@both
def test_run_many_goes_on_where_a_batch_has_ended(dialect: str, path: str) -> None:
    sim = make_sim(BatchPace(start=0.05, rows_per_s=2000, finish=0.02, failing=0.3))
    first = run(lambda: again(sim, dialect, path))
    assert "error" in set(first.status)

    async def rest() -> Any:
        return await make_lab(sim, dialect).run_many(PROMPTS, journal=path)

    second = run(rest)
    assert set(second.status) == {"ok"}
    assert sim.requests == (first.status == "error").sum(), "only what has failed is asked again"


@both
def test_rows_that_failed_are_submitted_again(dialect: str, path: str) -> None:
    sim = make_sim(BatchPace(start=0.05, rows_per_s=2000, finish=0.02, failing=0.3))
    first = run(lambda: again(sim, dialect, path))
    rows = sim.stats()["batch"]["rows"]
    run(lambda: again(sim, dialect, path))
    assert sim.stats()["batch"]["rows"] - rows == (first.status == "error").sum() > 0


@both
def test_an_input_that_has_changed_meanwhile_finds_its_rows(dialect: str, path: str) -> None:
    sim = make_sim(SLOW)
    run(lambda: left_alone(sim, dialect, path))
    other = ["something new", *PROMPTS[:4:-1], "something else"]  # in another order, five are gone, two are new
    frame = run(lambda: again(sim, dialect, path, other))
    assert list(frame.status) == ["ok"] * len(other)
    assert list(frame.prompt) == other
    assert sim.stats()["batch"]["rows"] == 32
    alone = run(lambda: make_lab(sim, dialect).run_many(other))
    assert list(frame.content) == list(alone.content)


@both
def test_a_batch_that_was_made_as_the_process_died_is_found(
    dialect: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sim = make_sim(FAST)

    async def never(*_: Any) -> None:
        await asyncio.Event().wait()

    async def die() -> None:
        job = make_lab(sim, dialect).submit_batch(PROMPTS, journal=path, poll=0.05)
        waiting = asyncio.ensure_future(job.wait())
        while not count_batches(sim, dialect):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert job._task is not None
        job._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "made", never)
        run(die)
    frame = run(lambda: again(sim, dialect, path))
    assert list(frame.status) == ["ok"] * 30
    assert (count_batches(sim, dialect), sim.stats()["batch"]["rows"]) == (1, 30)


@both
def test_a_batch_that_was_not_made_after_all_is_made_now(
    dialect: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sim = make_sim(FAST)

    async def refuse(*_: Any) -> Any:
        await asyncio.Event().wait()

    async def die() -> None:
        job = make_lab(sim, dialect).submit_batch(PROMPTS, journal=path)
        api = job._mission.api
        monkeypatch.setattr(api, "create", refuse)
        waiting = asyncio.ensure_future(job.wait())
        await asyncio.sleep(0.5)
        assert job._task is not None
        job._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting

    run(die)
    assert count_batches(sim, dialect) == 0
    frame = run(lambda: again(sim, dialect, path))
    assert list(frame.status) == ["ok"] * 30
    assert sim.stats()["batch"]["rows"] == 30


@both
def test_a_batch_that_was_refused_is_not_looked_for_later(dialect: str, path: str) -> None:
    sim = make_sim(FAST)

    async def refused() -> None:
        sim.world.faults = Faults.only("billing")
        job = make_lab(sim, dialect).submit_batch(PROMPTS, journal=path)
        with pytest.raises(QuotaExhausted):
            await job
        sim.world.faults = Faults()

    async def left() -> int:
        return len(await Ledger(Path(path)).open_entries())

    run(refused)
    assert run(left) == 0
    assert list(run(lambda: again(sim, dialect, path)).status) == ["ok"] * 30


@both
def test_a_batch_that_the_provider_has_forgotten_is_submitted_anew(dialect: str, path: str) -> None:
    run(lambda: left_alone(make_sim(SLOW), dialect, path))
    sim = make_sim(FAST)
    frame = run(lambda: again(sim, dialect, path))
    assert list(frame.status) == ["ok"] * 30
    assert sim.stats()["batch"]["rows"] == 30


@both
def test_after_kill_9_the_same_call_goes_on(dialect: str, path: str) -> None:
    async def main() -> Any:
        sim = make_sim(BatchPace(start=0.2, rows_per_s=10, finish=0.1))
        async with served(sim, dialect) as url:
            victim = await child(dialect, url, "submit", "--journal", path)
            assert victim.stdout is not None
            await victim.stdout.readline()
            victim.kill()
            await victim.wait()
            heir = await child(dialect, url, "submit", "--journal", path)
            out, _ = await heir.communicate()
            assert heir.returncode == 0
            return out.decode().split("\n"), sim.stats(), journals.read(path)

    said, stats, frame = run(main)
    assert "survived" in said
    assert stats["batch"]["rows"] == 40
    assert list(frame.status) == ["ok"] * 40
    assert frame.output_tokens.sum() == stats["tokens"]["output"]
