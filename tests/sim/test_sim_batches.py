"""Both Batch APIs of the simulated provider, with the official SDKs as judges."""

import asyncio
import io
import json
from collections.abc import Sequence
from typing import Any

import anthropic
import openai
import pytest

from llmlab.sim.batches import Batch, BatchPace, Result, Row
from llmlab.sim.faults import Faults
from llmlab.sim.physics import Physics
from llmlab.sim.transport import Simulator
from tests.sim.test_sim_judges import ASKED, KEY, anthropic_client, chat, judge, openai_client

FAST = BatchPace(start=0.02, rows_per_s=2000, finish=0.02, cancelling=0.02)
SLOW = BatchPace(start=0.0, rows_per_s=20, finish=0.0, cancelling=0.05)


def line(name: str, **fields: Any) -> dict[str, Any]:
    body = {"model": "m", "messages": ASKED} | fields
    return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}


async def upload(client: Any, lines: Sequence[Any], name: str = "rows.jsonl") -> Any:
    data = "\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines)
    return await client.files.create(file=(name, io.BytesIO(data.encode())), purpose="batch")


async def submit(client: Any, lines: Sequence[Any], **fields: Any) -> Any:
    file = await upload(client, lines)
    settings = {"endpoint": "/v1/chat/completions", "completion_window": "24h"} | fields
    return await client.batches.create(input_file_id=file.id, **settings)


async def until(look: Any, ended: Any) -> Any:
    while not ended(batch := await look()):
        await asyncio.sleep(0.01)
    return batch


def over(batch: Any) -> bool:
    return batch.status in ("completed", "failed", "expired", "cancelled")


async def finish(client: Any, batch: Any) -> Any:
    return await until(lambda: client.batches.retrieve(batch.id), over)


async def content(client: Any, name: str | None) -> list[Any]:
    if name is None:
        return []
    return [json.loads(each) for each in (await client.files.content(name)).text.splitlines()]


def test_openai_carries_a_batch_from_file_to_results() -> None:
    async def main(client: Any) -> None:
        rows = [line(f"r{n}", seed=n) for n in range(40)]
        made = await submit(client, rows, metadata={"job": "one"})
        assert (made.status, made.request_counts.total) == ("validating", 0)
        done = await finish(client, made)
        assert done.status == "completed"
        counts = done.request_counts
        assert (counts.total, counts.completed, counts.failed, done.error_file_id) == (40, 40, 0, None)
        assert done.metadata == {"job": "one"}
        found = await content(client, done.output_file_id)
        names = [each["custom_id"] for each in found]
        assert names != sorted(names, key=lambda name: int(name[1:])), "results come in any order"
        assert {each["custom_id"] for each in found} == {row["custom_id"] for row in rows}
        body = found[0]["response"]["body"]
        assert body["choices"][0]["message"]["content"] == (await chat(client)).choices[0].message.content
        assert done.usage.input_tokens == sum(each["response"]["body"]["usage"]["prompt_tokens"] for each in found)
        back = (await client.files.content(done.input_file_id)).text
        assert [json.loads(each) for each in back.splitlines()] == rows, "what was sent can be read again"

    judge(openai_client, main, batches=FAST)


def test_openai_keeps_what_was_done_before_a_cancellation() -> None:
    async def main(client: Any) -> None:
        made = await submit(client, [line(f"r{n}") for n in range(100)])
        await until(lambda: client.batches.retrieve(made.id), lambda batch: batch.request_counts.completed >= 3)
        assert (await client.batches.cancel(made.id)).status == "cancelling"
        done = await finish(client, made)
        assert done.status == "cancelled"
        assert 3 <= done.request_counts.completed < 100
        assert len(await content(client, done.output_file_id)) == done.request_counts.completed
        with pytest.raises(openai.ConflictError):
            await client.batches.cancel(made.id)

    judge(openai_client, main, batches=SLOW)


def test_openai_says_which_rows_the_window_has_overtaken() -> None:
    async def main(client: Any) -> None:
        done = await finish(client, await submit(client, [line(f"r{n}") for n in range(20)]))
        assert done.status == "expired"
        assert done.expired_at is not None
        good, bad = await content(client, done.output_file_id), await content(client, done.error_file_id)
        assert len(good) + len(bad) == 20
        assert {each["error"]["code"] for each in bad} == {"batch_expired"}
        assert all(each["response"] is None for each in bad)

    judge(openai_client, main, batches=BatchPace(start=0, rows_per_s=50, finish=0, window=0.2))


def test_openai_puts_rows_that_fail_into_the_error_file() -> None:
    async def main(client: Any) -> None:
        rows = [line("good"), line("bad", temperature=9), line("long", max_completion_tokens=10**9)]
        done = await finish(client, await submit(client, rows))
        assert (done.status, done.request_counts.failed) == ("completed", 2)
        bad = {each["custom_id"]: each["response"] for each in await content(client, done.error_file_id)}
        assert {name: each["status_code"] for name, each in bad.items()} == {"bad": 400, "long": 400}
        assert bad["long"]["body"]["error"]["code"] == "context_length_exceeded"

    judge(openai_client, main, batches=FAST)


@pytest.mark.parametrize(
    ("lines", "code", "at"),
    [
        ([line("a"), "{no json"], "invalid_json_line", 2),
        ([line("a"), line("a")], "duplicate_custom_id", 2),
        ([line("a"), line("b", model="other")], "model_mismatch", 2),
        ([line("a") | {"url": "/v1/embeddings"}], "url_mismatch", 1),
        ([line("a") | {"method": "GET"}], "invalid_method", 1),
        ([{"custom_id": "a"}], "missing_required_parameter", 1),
        ([line(f"r{n}") for n in range(6)], "too_many_tasks", None),
        ([], "empty_file", None),
    ],
)
def test_openai_fails_a_batch_whose_file_is_wrong(lines: list[Any], code: str, at: int | None) -> None:
    async def main(client: Any) -> None:
        done = await finish(client, await submit(client, lines))
        assert (done.status, done.output_file_id) == ("failed", None)
        assert (done.errors.data[0].code, done.errors.data[0].line) == (code, at)

    judge(openai_client, main, batches=BatchPace(start=0.01, rows=5))


def test_openai_refuses_what_is_no_batch() -> None:
    async def main(client: Any) -> None:
        with pytest.raises(openai.BadRequestError, match="jsonl"):
            await upload(client, [line("a")], "rows.txt")
        with pytest.raises(openai.APIStatusError) as large:
            await upload(client, [line("a")] * 50)
        assert large.value.status_code == 413
        with pytest.raises(openai.BadRequestError, match="Supported values"):
            await submit(client, [line("a")], endpoint="/v1/embeddings")
        with pytest.raises(openai.BadRequestError, match="No such File"):
            await client.batches.create(
                input_file_id="file-none", endpoint="/v1/chat/completions", completion_window="24h"
            )
        with pytest.raises(openai.NotFoundError):
            await client.batches.retrieve("batch_none")

    judge(openai_client, main, batches=BatchPace(bytes=2000))


def test_openai_lists_batches_newest_first_and_manages_files() -> None:
    async def main(client: Any) -> None:
        made = [(await submit(client, [line("a")])).id for _ in range(5)]
        assert [each.id async for each in client.batches.list(limit=2)] == made[::-1]
        file = await upload(client, [line("a")])
        assert (await client.files.retrieve(file.id)).bytes == file.bytes
        assert file.id in [each.id async for each in client.files.list()]
        assert (await client.files.delete(file.id)).deleted
        with pytest.raises(openai.NotFoundError):
            await client.files.content(file.id)

    judge(openai_client, main, batches=FAST)


def request(name: str, **fields: Any) -> dict[str, Any]:
    return {"custom_id": name, "params": {"model": "m", "max_tokens": 500, "messages": ASKED} | fields}


async def results(client: Any, batch: Any) -> dict[str, Any]:
    done = await until(
        lambda: client.messages.batches.retrieve(batch.id), lambda each: each.processing_status == "ended"
    )
    found = {each.custom_id: each.result async for each in await client.messages.batches.results(batch.id)}
    counts = done.request_counts
    assert counts.processing == 0
    assert counts.succeeded + counts.errored + counts.canceled + counts.expired == len(found)
    return found


def test_anthropic_carries_a_batch_to_its_results() -> None:
    async def main(client: Any) -> None:
        asked = [request(f"r{n}", system=f"You are {n}") for n in range(40)]
        made = await client.messages.batches.create(requests=asked)
        assert (made.processing_status, made.request_counts.processing, made.results_url) == ("in_progress", 40, None)
        found = await results(client, made)
        assert list(found) != [each["custom_id"] for each in asked], "results come in any order"
        assert set(found) == {each["custom_id"] for each in asked}
        alone = await client.messages.create(**asked[7]["params"])
        assert found["r7"].type == "succeeded"
        assert found["r7"].message.content[0].text == alone.content[0].text
        assert found["r7"].message.usage.output_tokens == alone.usage.output_tokens

    judge(anthropic_client, main, batches=FAST)


def test_anthropic_looks_at_a_request_only_when_its_turn_comes() -> None:
    async def main(client: Any) -> None:
        asked = [request("good"), request("bad", temperature=3), request("odd", messages=[])]
        found = await results(client, await client.messages.batches.create(requests=asked))
        assert {name: each.type for name, each in found.items()} == {
            "good": "succeeded",
            "bad": "errored",
            "odd": "errored",
        }
        assert found["bad"].error.error.type == "invalid_request_error"

    judge(anthropic_client, main, batches=FAST)


def test_anthropic_cancels_and_expires() -> None:
    async def cancel(client: Any) -> None:
        made = await client.messages.batches.create(requests=[request(f"r{n}") for n in range(40)])
        with pytest.raises(anthropic.NotFoundError):
            await client.get(f"/v1/messages/batches/{made.id}/results", cast_to=str)
        await asyncio.sleep(0.3)
        assert (await client.messages.batches.cancel(made.id)).processing_status == "canceling"
        kinds = [each.type for each in (await results(client, made)).values()]
        assert 0 < kinds.count("succeeded") < 40
        assert kinds.count("succeeded") + kinds.count("canceled") == 40
        assert (await client.messages.batches.delete(made.id)).type == "message_batch_deleted"
        with pytest.raises(anthropic.NotFoundError):
            await client.messages.batches.retrieve(made.id)

    async def expire(client: Any) -> None:
        found = await results(
            client, await client.messages.batches.create(requests=[request(f"r{n}") for n in range(40)])
        )
        assert {each.type for each in found.values()} == {"succeeded", "expired"}

    judge(anthropic_client, cancel, batches=SLOW)
    judge(anthropic_client, expire, batches=BatchPace(start=0, rows_per_s=100, finish=0, window=0.2))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ([request("x" * 65)], "at most 64 characters"),
        ([request("no blanks")], "match pattern"),
        ([request("a"), request("a")], "unique"),
        ([], "at least 1"),
        ([request(f"r{n}") for n in range(6)], "at most 5"),
    ],
)
def test_anthropic_refuses_a_list_that_is_wrong(asked: list[Any], words: str) -> None:
    async def main(client: Any) -> None:
        with pytest.raises(anthropic.BadRequestError, match=words):
            await client.messages.batches.create(requests=asked)

    judge(anthropic_client, main, batches=BatchPace(rows=5))


def test_anthropic_refuses_a_list_that_is_too_large_and_lists_batches() -> None:
    async def main(client: Any) -> None:
        made = [(await client.messages.batches.create(requests=[request("a")])).id for _ in range(5)]
        assert [each.id async for each in client.messages.batches.list(limit=2)] == made[::-1]
        with pytest.raises(anthropic.APIStatusError) as large:
            await client.messages.batches.create(requests=[request(f"r{n}") for n in range(50)])
        assert large.value.status_code == 413

    judge(anthropic_client, main, batches=BatchPace(bytes=2000))


def test_faults_meet_the_batch_apis_too() -> None:
    async def main(client: Any) -> None:
        with pytest.raises(openai.RateLimitError):
            await client.batches.list()

    judge(openai_client, main, faults=Faults.only("rate_limited"))


def test_an_answer_that_is_lost_does_not_undo_what_was_done() -> None:
    async def main() -> list[bool]:
        sim = Simulator(physics=Physics.instant(), keys=[KEY])
        async with asyncio.timeout(30), openai_client(sim) as client:
            file = await upload(client, [line("a")])
            sim.world.faults = Faults.only("cut")
            with pytest.raises(openai.APIConnectionError):
                await client.batches.create(
                    input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
                )
            sim.world.faults = Faults()
            return [each.input_file_id == file.id async for each in client.batches.list()]

    assert asyncio.run(main()) == [True]


# -- the machine ----------------------------------------------------------------------------------------------


def batch(pace: BatchPace, rows: int = 10) -> Batch:
    made = [Row(f"r{n}", b"{}") for n in range(rows)]
    return Batch("b", made, 100.0, pace, lambda body: Result("id", 200, {"of": body.decode()}))


def test_a_batch_is_what_its_age_says() -> None:
    one = batch(BatchPace(start=1, rows_per_s=10, finish=1))
    assert [one.state(100 + t) for t in (0, 1, 1.9, 2.5, 3)] == [
        "validating",
        "in_progress",
        "in_progress",
        "finalizing",
        "ended",
    ]
    assert [len(one.settle(100 + t)) for t in (0.5, 1.05, 1.5, 9)] == [0, 0, 5, 10]
    assert one.fate() == "done"


def test_a_cancellation_while_it_is_validated_answers_nothing() -> None:
    one = batch(BatchPace(start=1, rows_per_s=10, cancelling=2))
    one.cancel(100.5)
    assert (one.state(102), one.state(102.5), one.fate()) == ("cancelling", "ended", "cancelled")
    assert one.settle(200) == []


def test_the_pace_is_read_from_the_command_line() -> None:
    assert BatchPace.parse("rows_per_s:100, start:1,rows:7") == BatchPace(rows_per_s=100, start=1, rows=7)
    for text in ("speed:3", "start:soon", "failing:2", "rows_per_s:0"):
        with pytest.raises(ValueError, match=r"batches|BatchPace"):
            BatchPace.parse(text)
