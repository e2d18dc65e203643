"""Nobody's crowd keeps others out: in the line, in what is at work, and in the log of it."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from llmlab.clock import run_virtual
from llmlab.service.faults import Failure
from llmlab.service.rooms import Pool
from llmlab.sim import Physics
from tests.service.conftest import Serve, Served

KEYS = {"crowd": "key-of-the-crowd", "one": "key-of-the-one"}
SHORT = Physics(ttft=0.01, itl=0.0, jitter=0.0, rtt=0.0)
SECOND = Physics(ttft=1.0, itl=0.0, jitter=0.0, rtt=0.0)


async def ask(served: Served, who: str, path: str, body: Any) -> Any:
    answer = await served.client.post(path, json=body, headers={"Authorization": f"Bearer {KEYS[who]}"})
    assert answer.status_code in (200, 202), answer.text
    return answer.json()


@pytest.mark.parametrize("kind", ["batch", "singles"])
def test_a_key_with_500_prompts_does_not_starve_anothers_single_question(serve: Serve, kind: str) -> None:
    """4 at a time, a second each: by arrival alone the question would wait for 125 s."""

    async def main() -> None:
        async with serve(keys=KEYS, physics=SECOND, lab={"concurrency": 4, "seed": 0}) as served:
            prompts = [f"row {n}" for n in range(500)]
            if kind == "singles":
                bodies: list[tuple[str, Any]] = [("/v1/completions", {"prompt": text}) for text in prompts]
            else:
                bodies = [("/v1/completions/batch", {"prompts": prompts})]
            crowd = [asyncio.ensure_future(ask(served, "crowd", *body)) for body in bodies]
            await asyncio.sleep(5)
            clock = asyncio.get_running_loop().time
            for _ in range(3):
                asked_at = clock()
                await ask(served, "one", "/v1/completions", {"prompt": "hello"})
                assert clock() - asked_at < 4
            for task in crowd:
                task.cancel()
            await asyncio.wait(crowd)

    run_virtual(main)


def test_nor_does_a_long_job(serve: Serve) -> None:
    async def main() -> None:
        async with serve(keys=KEYS, physics=SHORT, lab={"concurrency": 4}) as served:
            job = await ask(served, "crowd", "/v1/jobs", {"prompts": ["row"] * 500})
            while served.simulator.requests < 20:
                await asyncio.sleep(0.001)
            for _ in range(3):
                before = served.simulator.requests
                await ask(served, "one", "/v1/completions", {"prompt": "hello"})
                assert served.simulator.requests - before < 20
            headers = {"Authorization": f"Bearer {KEYS['crowd']}"}
            await served.client.delete(f"/v1/jobs/{job['id']}", headers=headers)

    asyncio.run(main())


def test_a_pool_leaves_room_for_who_comes_next() -> None:
    async def main() -> None:
        pool = Pool(100, "prompts", shared=True)
        crowd = pool.take(50, "crowd")
        with pytest.raises(Failure, match="kept for others"):
            pool.take(1, "crowd")
        other = pool.take(25, "other")
        with pytest.raises(Failure, match="kept for others"):
            pool.take(1, "other")
        crowd.leave()
        crowd.leave()
        other.grow(25)
        assert pool.used == 50
        other.shrink(1000)
        assert (pool.used, pool.idle.is_set()) == (0, True)
        alone = Pool(100, "prompts")
        with alone.take(100, "anybody"), pytest.raises(Failure, match="100 at most"):
            alone.take(1, "anybody")

    asyncio.run(main())


def test_a_long_job_takes_no_room_from_those_who_wait(serve: Serve) -> None:
    async def main() -> None:
        async with serve(physics=SHORT, max_pending=5, lab={"concurrency": 2}) as served:
            answer = await served.client.post("/v1/jobs", json={"prompts": ["row"] * 500})
            assert answer.status_code == 202
            single = await served.client.post("/v1/completions", json={"prompt": "hello"})
            assert single.status_code == 200
            while not 0 < (await served.client.get("/v1/metrics")).json()["job_prompts"] < 500:
                await asyncio.sleep(0.001)

    asyncio.run(main())


def test_prompts_of_a_batch_count_each_against_the_keys_rate(serve: Serve) -> None:
    async def main() -> None:
        async with serve(keys=KEYS, rpm=60, physics=Physics.instant()) as served:
            await ask(served, "one", "/v1/completions/batch", {"prompts": ["a"] * 30})
            headers = {"Authorization": f"Bearer {KEYS['one']}"}
            answer = await served.client.post("/v1/completions", json={"prompt": "b"}, headers=headers)
            assert answer.status_code == 429
            assert 20 <= int(answer.headers["retry-after"]) <= 30
            await asyncio.sleep(int(answer.headers["retry-after"]))
            await ask(served, "one", "/v1/completions", {"prompt": "b"})

    run_virtual(main)


def test_bodies_that_are_held_are_bounded_all_together(serve: Serve) -> None:
    async def main() -> None:
        async with serve(physics=SECOND, max_body=1000) as served:
            body = {"prompt": "x" * 900}
            asking = [asyncio.ensure_future(served.client.post("/v1/completions", json=body)) for _ in range(60)]
            statuses = [(await each).status_code for each in asking]
            assert statuses.count(200) == 35, "32 times 1,000 bytes, of 913 each"
            assert statuses.count(429) == 25
            assert served.app.state.desk.bodies.used == 0

    run_virtual(main)


def test_a_job_whose_service_was_started_otherwise_keeps_its_answers(serve: Serve, tmp_path: Path) -> None:
    async def begin(model: str, then: Any) -> Any:
        slow = Physics(ttft=0.1, itl=0.0, jitter=0.0, rtt=0.0)
        settings = {"state_dir": tmp_path, "grace": 0.0, "model": model}
        async with serve(physics=slow, lab={"concurrency": 2}, **settings) as served:
            return await then(served)

    async def first(served: Served) -> str:
        job = (await served.client.post("/v1/jobs", json={"prompts": [f"row {n}" for n in range(9)]})).json()["id"]
        while served.simulator.requests < 5:
            await asyncio.sleep(0.001)
        return str(job)

    async def second(served: Served) -> Any:
        (job,) = (await served.client.get("/v1/jobs")).json()
        while (now := (await served.client.get(f"/v1/jobs/{job['id']}")).json())["status"] == "running":
            await asyncio.sleep(0.1)
        return now

    job = asyncio.run(begin("openai:m", first))
    found = asyncio.run(begin("openai:other", second))
    assert (found["id"], found["status"]) == (job, "failed")
    assert "other settings" in found["error"]
    assert found["success_count"] == 4
    assert [row["content"] for row in found["results"][:4]] == [f"heard: row {n}" for n in range(4)]
    assert {row["status"] for row in found["results"][4:]} == {"cancelled"}


def test_a_job_whose_owner_has_no_key_any_more_waits_for_its_owner(serve: Serve, tmp_path: Path) -> None:
    async def main() -> None:
        async with serve(keys=KEYS, state_dir=tmp_path, physics=SHORT, grace=0.0) as served:
            await ask(served, "one", "/v1/jobs", {"prompts": ["a"] * 3})
        async with serve(keys={"new": "key-of-the-new"}, state_dir=tmp_path) as served:
            headers = {"Authorization": "Bearer key-of-the-new"}
            assert (await served.client.get("/v1/jobs", headers=headers)).json() == []
            await asyncio.sleep(0.1)
            assert served.simulator.requests == 0
        async with serve(keys={"one": "its-next-key-12"}, state_dir=tmp_path) as served:
            headers = {"Authorization": "Bearer its-next-key-12"}
            while (await served.client.get("/v1/jobs", headers=headers)).json()[0]["status"] != "done":
                await asyncio.sleep(0.01)

    asyncio.run(main())


def test_several_keys_without_names_keep_no_jobs(serve: Serve, tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="keys need names"):
            async with serve(keys=["key-number-one", "key-number-two"], state_dir=tmp_path):
                pass

    asyncio.run(main())
