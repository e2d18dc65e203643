"""Nothing is made twice, whatever becomes of the answers."""

from dataclasses import replace
from typing import Any

import httpx
import pytest

from llmlab.clock import run_virtual
from llmlab.errors import AuthFailed, BadPayload
from llmlab.policies.retry import Retry
from llmlab.sim.batches import BatchPace
from llmlab.sim.faults import Faults, Outage
from llmlab.strategy import Strategy
from tests.batch.labs import both, make_lab, make_sim
from tests.batch.meddler import CREATE, PROMPTS, Meddler, before, count_batches, creates, lost, run


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
