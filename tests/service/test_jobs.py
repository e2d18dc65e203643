"""Long jobs: begun, looked at, followed, cancelled, and there again after a restart."""

import asyncio
import json
from pathlib import Path
from typing import Any

from llmlab.sim import Physics
from tests.service.conftest import Serve, Served

SLOW = Physics(ttft=0.02, itl=0.0, jitter=0.0, rtt=0.0)


async def until_over(served: Served, job: str) -> dict[str, Any]:
    async with served.client.stream("GET", f"/v1/jobs/{job}/events") as answer:
        text = "".join([piece async for piece in answer.aiter_text()])
    assert "event: end" in text
    return dict((await served.client.get(f"/v1/jobs/{job}")).json())


async def begin(served: Served, count: int, **more: Any) -> str:
    prompts = [f"row {n}" for n in range(count)]
    answer = await served.client.post("/v1/jobs", json={"prompts": prompts, **more})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def test_a_job_is_begun_at_once_and_its_results_stand_in_order(serve: Serve) -> None:
    async def main() -> None:
        async with serve(physics=SLOW) as served:
            job = await begin(served, 20, max_concurrency=5)
            now = (await served.client.get(f"/v1/jobs/{job}")).json()
            assert (now["status"], now["total"]) == ("running", 20)
            over = await until_over(served, job)
            assert (over["status"], over["success_count"]) == ("done", 20)
            assert [row["content"] for row in over["results"]] == [f"heard: row {n}" for n in range(20)]

    asyncio.run(main())


def test_events_go_on_where_a_reader_had_stopped(serve: Serve) -> None:
    async def main() -> None:
        async with serve() as served:
            job = await begin(served, 10)
            await until_over(served, job)
            answer = await served.client.get(f"/v1/jobs/{job}/events", headers={"Last-Event-ID": "7"})
            ids = [line for line in answer.text.splitlines() if line.startswith("id: ")]
            assert ids == ["id: 8", "id: 9", "id: 10"]

    asyncio.run(main())


def test_a_job_that_is_deleted_keeps_its_answers_and_is_forgotten_the_second_time(serve: Serve) -> None:
    async def main() -> None:
        async with serve(physics=SLOW, lab={"concurrency": 2}) as served:
            job = await begin(served, 200)
            while not (await served.client.get(f"/v1/jobs/{job}")).json()["done"]:
                await asyncio.sleep(0)
            cancelled = (await served.client.delete(f"/v1/jobs/{job}")).json()
            assert cancelled["status"] == "cancelled"
            results = (await served.client.get(f"/v1/jobs/{job}")).json()["results"]
            assert len(results) == 200
            assert 0 < sum(row["status"] == "ok" for row in results) < 200
            assert served.app.state.desk.pending == 0
            await served.client.delete(f"/v1/jobs/{job}")
            assert (await served.client.get(f"/v1/jobs/{job}")).status_code == 404

    asyncio.run(main())


def test_a_job_is_seen_by_who_gave_it_only(serve: Serve) -> None:
    async def main() -> None:
        keys = {"one": "key-number-one", "two": "key-number-two"}
        async with serve(keys=keys) as served:
            served.client.headers["Authorization"] = "Bearer key-number-one"
            job = await begin(served, 2)
            await until_over(served, job)
            served.client.headers["Authorization"] = "Bearer key-number-two"
            assert (await served.client.get(f"/v1/jobs/{job}")).status_code == 404
            assert (await served.client.delete(f"/v1/jobs/{job}")).status_code == 404
            assert (await served.client.get("/v1/jobs")).json() == []

    asyncio.run(main())


def test_a_job_goes_on_after_a_restart_and_nothing_is_asked_twice(serve: Serve, tmp_path: Path) -> None:
    asked: dict[str, int] = {}

    async def first() -> str:
        async with serve(physics=SLOW, lab={"concurrency": 4}, state_dir=tmp_path, grace=0.0) as served:
            job = await begin(served, 60)
            while (await served.client.get(f"/v1/jobs/{job}")).json()["done"] < 10:
                await asyncio.sleep(0)
        asked["first"] = served.simulator.stats()["received"]
        return job

    async def second(job: str) -> None:
        async with serve(physics=SLOW, lab={"concurrency": 4}, state_dir=tmp_path) as served:
            over = await until_over(served, job)
            asked["second"] = served.simulator.stats()["received"]
            assert (over["status"], over["success_count"], over["durable"]) == ("done", 60, True)
            assert [row["content"] for row in over["results"]] == [f"heard: row {n}" for n in range(60)]

    async def third(job: str) -> None:
        async with serve(state_dir=tmp_path) as served:
            over = (await served.client.get(f"/v1/jobs/{job}")).json()
            assert (over["status"], len(over["results"])) == ("done", 60)
            assert served.simulator.requests == 0

    job = asyncio.run(first())
    assert 10 <= asked["first"] < 60
    asyncio.run(second(job))
    assert asked["first"] + asked["second"] <= 60 + 4, "only what was in flight is asked again"
    asyncio.run(third(job))
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"], "the journal is gone with the job's end"


def test_a_file_that_cannot_be_read_does_not_keep_the_service_from_starting(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "job_broken.json").write_text('{"id": ')
    (tmp_path / "job_other.json").write_text(json.dumps({"nothing": 1, "rows": [], "request": {"prompts": ["a"]}}))

    async def main() -> None:
        async with serve(state_dir=tmp_path) as served:
            assert (await served.client.get("/v1/jobs")).json() == []

    asyncio.run(main())
