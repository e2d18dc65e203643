"""What may go wrong between a lab and a Batch API: nothing is made twice, nothing is lost, nobody is pestered."""

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest

from llmlab.clock import run_virtual
from llmlab.errors import AuthFailed, BadPayload, LLMError, ServerError
from llmlab.policies.retry import Retry
from llmlab.sim.batches import BatchPace
from llmlab.sim.faults import Faults, Outage
from llmlab.sim.transport import Simulator
from llmlab.strategy import Strategy
from tests.batch.labs import both, make_lab, make_sim

CREATE = {"openai": "/batches", "anthropic": "/messages/batches"}
PROMPTS = [f"prompt {n}" for n in range(30)]

Meddle = Callable[[httpx.Request, httpx.Response], httpx.Response | None]


class Meddler(httpx.AsyncBaseTransport):
    """Stands between a lab and the simulator: the requests have been done when it does something to the answers.

    Args:
        sim: The provider.
        meddle: Gets the request and the answer; gives another answer, raises, or gives None to let it be. In the
            request's extensions is how many like it have come `before`.
    """

    def __init__(self, sim: Simulator, meddle: Meddle) -> None:
        self.sim, self._meddle = sim, meddle
        self.seen: list[tuple[float, str, str]] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        before = sum((method, where) == (request.method, path) for _, method, where in self.seen)
        self.seen.append((asyncio.get_running_loop().time(), request.method, path))
        response = await self.sim.handle_async_request(request)
        body = await response.aread()
        whole = httpx.Response(response.status_code, headers=response.headers, content=body, request=request)
        request.extensions["before"] = before
        return self._meddle(request, whole) or whole

    def times(self, method: str, ending: str) -> list[float]:
        return [at for at, how, path in self.seen if how == method and path.endswith(ending)]


def creates(request: httpx.Request, dialect: str) -> bool:
    return request.method == "POST" and request.url.path.endswith(CREATE[dialect])


def before(request: httpx.Request) -> int:
    return int(request.extensions["before"])


def lost(*_: Any) -> httpx.Response:
    raise httpx.ReadError("")


def count_batches(sim: Simulator, dialect: str) -> int:
    desk = sim.world._desks[0 if dialect == "anthropic" else 1][1]
    return len(desk._shelf._batches)


def run(dialect: str, meddle: Meddle, pace: BatchPace | None = None, **settings: Any) -> tuple[Any, Any, Meddler]:
    async def main() -> Any:
        transport = Meddler(make_sim(pace), meddle)
        job = make_lab(transport.sim, dialect, transport=transport).submit_batch(PROMPTS, **settings)
        return await job, job, transport

    found: tuple[Any, Any, Meddler] = run_virtual(main)
    return found


# -- making ---------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("how", ["lost", "html", "500"])
def test_a_batch_whose_answer_was_lost_is_found_and_not_made_twice(dialect: str, how: str) -> None:
    def meddle(request: httpx.Request, _: httpx.Response) -> httpx.Response | None:
        if not creates(request, dialect) or before(request):
            return None
        if how == "lost":
            lost()
        return httpx.Response(500 if how == "500" else 200, content=b"<html>bad gateway</html>", request=request)

    frame, job, transport = run(dialect, meddle)
    assert count_batches(transport.sim, dialect) == 1
    assert list(frame.status) == ["ok"] * 30
    assert len(job.batches) == 1
    assert transport.sim.stats()["batch"]["rows"] == 30


@both
def test_each_part_whose_answer_was_lost_is_found_by_itself(dialect: str) -> None:
    def meddle(request: httpx.Request, _: httpx.Response) -> httpx.Response | None:
        return lost() if creates(request, dialect) else None

    frame, job, transport = run(dialect, meddle, most_rows=10)  # all of the same size, and every answer is lost
    assert count_batches(transport.sim, dialect) == len(set(job.id.split("+"))) == 3
    assert list(frame.status) == ["ok"] * 30


@both
def test_a_batch_that_was_not_made_is_made_again(dialect: str) -> None:
    async def main() -> Any:
        sim = make_sim(faults=Faults(windows=(Outage(0, 20, "server_error"),)))
        return await make_lab(sim, dialect).submit_batch(PROMPTS), count_batches(sim, dialect)

    frame, batches = run_virtual(main)
    assert (set(frame.status), batches) == ({"ok"}, 1)


def test_where_nobody_can_tell_which_one_it_is_none_is_made_again() -> None:
    """Anthropic keeps nothing of the client's with a batch: another one of the same size may have come up meanwhile."""
    sim = make_sim()

    def meddle(request: httpx.Request, _: httpx.Response) -> httpx.Response | None:
        if not creates(request, "anthropic"):
            return None
        batches = sim.world._desks[0][1]._shelf._batches
        batches["msgbatch_of_another"] = replace(next(iter(batches.values())), id="msgbatch_of_another")
        return lost()

    async def main() -> Any:
        transport = Meddler(sim, meddle)
        with pytest.raises(BadPayload, match=r"could both be it.*nothing was made again") as caught:
            await make_lab(sim, "anthropic", transport=transport).submit_batch(PROMPTS)
        return str(caught.value), transport

    text, transport = run_virtual(main)
    assert "msgbatch_of_another" in text
    assert len(transport.times("POST", "/messages/batches")) == 1


@both
def test_where_the_provider_cannot_be_asked_whether_it_was_made_none_is_made_again(dialect: str) -> None:
    sim = make_sim()

    def meddle(request: httpx.Request, _: httpx.Response) -> httpx.Response | None:
        if creates(request, dialect):
            sim.world.faults = Faults.only("server_error")
            return lost()
        return None

    async def main() -> Any:
        lab = make_lab(sim, dialect, transport=Meddler(sim, meddle), strategy=Strategy.default(retry=Retry(attempts=3)))
        job = lab.submit_batch(PROMPTS)
        with pytest.raises(BadPayload, match=r"cannot be asked now .*nothing was made again"):
            await job
        return await job.resubmit()

    frame = run_virtual(main)
    assert set(frame.status) == {"error"}, "nor by resubmit(), unless it is told to"
    assert count_batches(sim, dialect) == 1


@both
@pytest.mark.parametrize("seed", range(4))
def test_through_a_provider_that_fails_all_the_time_each_row_is_answered_once(dialect: str, seed: int) -> None:
    async def main() -> Any:
        sim = make_sim(BatchPace(rows_per_s=1), faults=Faults.mixed(0.35), seed=seed)
        job = make_lab(sim, dialect, seed=seed, strategy=Strategy.default(retry=Retry(attempts=12))).submit_batch(
            PROMPTS, most_rows=8
        )
        return await job, sim

    frame, sim = run_virtual(main)
    assert list(frame.status) == ["ok"] * 30
    assert (count_batches(sim, dialect), sim.stats()["batch"]["rows"]) == (4, 30)


@both
def test_a_later_part_that_is_refused_leaves_the_others_alone(dialect: str) -> None:
    def meddle(request: httpx.Request, _: httpx.Response) -> httpx.Response | None:
        if creates(request, dialect) and before(request) == 1:
            body = {"error": {"type": "billing_error", "message": "No credit."}}
            return httpx.Response(402, json=body, request=request)
        return None

    frame, job, transport = run(dialect, meddle, most_rows=10)
    assert list(frame.status) == ["ok"] * 10 + ["error"] * 10 + ["cancelled"] * 10
    assert set(frame.error_type[10:20]) == {"QuotaExhausted"}
    assert len(transport.times("POST", CREATE[dialect])) == 2, "no row can succeed: the third is not tried"
    assert len(job.batches) == 1


@both
def test_a_wrong_key_is_the_jobs_own_failure(dialect: str) -> None:
    async def main() -> None:
        with pytest.raises(AuthFailed, match="check"):
            await make_lab(make_sim(), dialect, api_key="sk-wrong").submit_batch(PROMPTS)

    run_virtual(main)


# -- looking --------------------------------------------------------------------------------------------------


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


# -- stopping -------------------------------------------------------------------------------------------------


@both
def test_a_stop_while_a_batch_is_being_made_waits_for_its_id(dialect: str) -> None:
    async def main() -> Any:
        sim = make_sim(BatchPace(start=100))
        sim.world.physics = sim.world.physics.instant(rtt=5.0)
        job = make_lab(sim, dialect).submit_batch(PROMPTS, most_rows=10)
        await asyncio.sleep(7)  # the second request of the first batch is under way
        job.stop("interrupted")
        frame = await job
        return frame, job.id, count_batches(sim, dialect)

    frame, name, batches = run_virtual(main)
    assert name is not None
    assert "+" not in name
    assert batches == 1
    assert set(frame.status) == {"cancelled"}


@both
def test_a_second_cancel_waits_no_longer(dialect: str) -> None:
    async def main() -> Any:
        loop = asyncio.get_running_loop()
        job = make_lab(make_sim(BatchPace(start=100, cancelling=500)), dialect).submit_batch(PROMPTS)
        await job.submitted()
        job.cancel()
        await asyncio.sleep(20)
        assert not job.done
        job.cancel()
        frame = await job
        return frame, loop.time()

    frame, now = run_virtual(main)
    assert now < 60
    assert set(frame.status) == {"cancelled"}


@both
def test_a_cancel_before_anything_was_sent_sends_nothing(dialect: str) -> None:
    async def main() -> Any:
        sim = make_sim()
        job = make_lab(sim, dialect).submit_batch(PROMPTS)
        job.cancel()
        frame = await job
        with pytest.raises(asyncio.CancelledError):
            await job.submitted()
        return frame, job.id, sim.stats()["batch"]["requests"]

    frame, name, requests = run_virtual(main)
    assert (set(frame.status), name, requests) == ({"cancelled"}, None, 0)


@both
def test_a_cancel_that_comes_too_late_is_none(dialect: str) -> None:
    async def main() -> Any:
        job = make_lab(make_sim(BatchPace(start=0, finish=0)), dialect).submit_batch(PROMPTS)
        await job.submitted()
        await asyncio.sleep(3)  # it has ended, and nobody has looked yet
        job.cancel()
        return await job

    assert set(run_virtual(main).status) == {"ok"}


def test_a_paused_job_sends_nothing() -> None:
    async def main() -> Any:
        sim = make_sim()
        job = make_lab(sim).submit_batch(PROMPTS)
        await job.submitted()
        job.pause()
        await asyncio.sleep(100)
        before = sim.stats()["batch"]["requests"]
        await asyncio.sleep(1000)
        after = sim.stats()["batch"]["requests"]
        assert job.look().state == "paused"
        job.resume()
        return before, after, await job

    before, after, frame = run_virtual(main)
    assert before == after
    assert set(frame.status) == {"ok"}


def test_who_waits_for_the_id_hears_that_nothing_could_be_submitted() -> None:
    async def main() -> None:
        sim = make_sim(faults=Faults.only("server_error"))
        lab = make_lab(sim, strategy=Strategy.default(retry=Retry(attempts=2)))
        job = lab.submit_batch(PROMPTS)
        with pytest.raises(ServerError):
            await job.submitted()
        with pytest.raises(LLMError):
            await job
        assert set(job.frame.error_type) == {"ServerError"}

    run_virtual(main)


def test_a_job_cannot_be_resubmitted_while_it_is_under_way() -> None:
    async def main() -> None:
        job = make_lab(make_sim()).submit_batch(PROMPTS)
        with pytest.raises(RuntimeError, match="still under way"):
            job.resubmit()
        await job

    run_virtual(main)


def test_nothing_to_resubmit_is_a_job_that_is_done_at_once() -> None:
    async def main() -> Any:
        sim = make_sim()
        job = make_lab(sim).submit_batch(PROMPTS)
        first, requests = await job, sim.stats()["batch"]["requests"]
        second = await job.resubmit()
        return first, second, sim.stats()["batch"]["requests"] - requests

    first, second, requests = run_virtual(main)
    assert list(first.content) == list(second.content)
    assert requests == 0
