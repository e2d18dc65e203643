"""How a batch is followed and its results are fetched: nothing is lost, nobody is pestered."""

import asyncio
import itertools
from typing import Any

import httpx
import pytest

from llmlab.clock import run_virtual
from llmlab.errors import AuthFailed
from llmlab.sim.batches import BatchPace
from llmlab.sim.faults import Faults, Outage
from tests.batch.labs import both, make_lab, make_sim
from tests.batch.meddler import PROMPTS, before, run


@both
def test_it_looks_less_and_less_often_and_never_like_clockwork(dialect: str) -> None:
    _, job, transport = run(dialect, lambda *_: None, BatchPace(start=3600))
    looks = transport.times("GET", f"/{job.id}")
    gaps = [later - sooner for sooner, later in itertools.pairwise(looks)]
    assert 4 <= looks[0] <= 10, "five seconds after it was submitted"
    assert 6 <= gaps[0] <= 9
    assert all(48 <= gap <= 72 for gap in gaps[8:])
    assert len({round(gap, 3) for gap in gaps[8:]}) > 10
    assert 55 <= len(looks) <= 90, "an hour"


@both
def test_a_retry_after_is_a_minimum_for_looks_too(dialect: str) -> None:
    def meddle(request: httpx.Request, _: httpx.Response) -> httpx.Response | None:
        if request.method == "GET" and "batch_" in request.url.path and before(request) == 2:
            return httpx.Response(429, headers={"retry-after": "300"}, json={"error": {}}, request=request)
        return None

    _, job, transport = run(dialect, meddle, BatchPace(start=1000))
    looks = transport.times("GET", f"/{job.id}")
    assert 300 <= looks[3] - looks[2] <= 375


@both
def test_an_outage_of_hours_costs_looks_and_nothing_else(dialect: str) -> None:
    async def main() -> Any:
        sim = make_sim(BatchPace(start=60), faults=Faults(windows=(Outage(30, 4 * 3600, "unavailable"),)))
        job = make_lab(sim, dialect).submit_batch(PROMPTS)
        await job.submitted()
        await asyncio.sleep(3600)
        notes = job.look().notes
        return notes, await job

    notes, frame = run_virtual(main)
    assert any("cannot be asked for now" in note for note in notes)
    assert list(frame.status) == ["ok"] * 30


@both
def test_a_key_that_is_withdrawn_meanwhile_ends_the_job_but_not_the_batch(dialect: str) -> None:
    async def main() -> Any:
        sim = make_sim(BatchPace(start=600))
        job = make_lab(sim, dialect).submit_batch(PROMPTS)
        await job.submitted()
        keys, sim.world.keys = sim.world.keys, frozenset()
        with pytest.raises(AuthFailed):
            await job
        sim.world.keys = keys
        return job.frame, await make_lab(sim, dialect).attach_batch(str(job.id))

    left, whole = run_virtual(main)
    assert set(left.status) == {"cancelled"}
    assert left.error.str.contains("AuthFailed").all()
    assert set(whole.status) == {"ok"}


def test_progress_shows_how_far_the_provider_is() -> None:
    async def main() -> Any:
        job = make_lab(make_sim(BatchPace(start=10, rows_per_s=0.1))).submit_batch(PROMPTS)
        await job.submitted()
        looks = []
        for _ in range(3):
            await asyncio.sleep(100)
            looks.append(job.look())
        await job
        return looks, job.look(), repr(job)

    looks, last, shown = run_virtual(main)
    assert [look.state for look in looks] == ["running"] * 3
    assert 0 < looks[0].done < looks[1].done < looks[2].done < 30
    assert looks[1].total == 30
    assert any("in_progress" in note and "of 30 rows" in note for note in looks[1].notes)
    assert (last.done, last.ok, last.state) == (30, 30, "done")
    assert shown == "<Job submit_batch: 30/30 rows, done>"


def test_a_batch_taken_up_by_its_id_tells_how_many_rows_it_has() -> None:
    async def main(dialect: str) -> Any:
        lab = make_lab(make_sim(BatchPace(start=100)), dialect)
        job = lab.attach_batch(await lab.submit_batch(PROMPTS).submitted())
        await asyncio.sleep(50)
        before = job.look().total
        await job
        return before, job.look().total

    assert run_virtual(lambda: main("openai")) == (30, 30)
    assert run_virtual(lambda: main("anthropic")) == (30, 30)


# -- fetching -------------------------------------------------------------------------------------------------


def downloads(request: httpx.Request) -> bool:
    path = request.url.path
    return path.endswith("/results") or (path.endswith("/content") and "/file-o" in path)


@both
def test_results_that_were_cut_off_in_silence_are_fetched_again(dialect: str) -> None:
    def meddle(request: httpx.Request, response: httpx.Response) -> httpx.Response | None:
        if downloads(request) and before(request) < 2:
            cut = response.content[: len(response.content) // 2]
            return httpx.Response(200, content=cut if before(request) else b"", request=request)
        return None

    frame, _, _ = run(dialect, meddle)
    assert list(frame.status) == ["ok"] * 30


@both
def test_results_that_stay_incomplete_cost_only_the_rows_that_are_missing(dialect: str) -> None:
    def meddle(request: httpx.Request, response: httpx.Response) -> httpx.Response | None:
        if not downloads(request):
            return None
        lines = response.content.splitlines(keepends=True)
        return httpx.Response(200, content=b"".join([b"{no json}\n", *lines[3:], b"\n"]), request=request)

    frame, _, _ = run(dialect, meddle)
    assert (frame.status == "ok").sum() == 27
    assert set(frame.error_type.dropna()) == {"BadPayload"}
    assert frame.error.dropna().str.contains("without a result for this row").all()


@both
def test_an_answer_that_is_none_is_its_rows_failure(dialect: str) -> None:
    def meddle(request: httpx.Request, response: httpx.Response) -> httpx.Response | None:
        if not downloads(request):
            return None
        first, _, rest = response.content.partition(b"\n")
        for key in (b'"choices":[', b'"content":['):
            first = first.replace(key, b'"nonsense":[')
        return httpx.Response(200, content=first + b"\n" + rest, request=request)

    frame, _, _ = run(dialect, meddle)
    assert ((frame.status == "ok").sum(), set(frame.error_type.dropna())) == (29, {"BadPayload"})
