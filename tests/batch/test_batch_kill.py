"""Both Batch APIs over a socket: the process that submitted is killed, another one takes the batch up by its id."""

import asyncio
import contextlib
import io
import sys
from collections.abc import AsyncIterator
from typing import Any

import pandas as pd
import pytest

from llmlab.lab import Lab
from llmlab.sim.batches import BatchPace
from llmlab.sim.server import serve
from llmlab.sim.transport import Simulator
from tests.batch.labs import KEY, PRICES, both, make_sim
from tests.batch.victim import ROWS, prompts

PACE = BatchPace(start=0.2, rows_per_s=10, finish=0.1, cancelling=0.2)


@contextlib.asynccontextmanager
async def served(sim: Simulator, dialect: str) -> AsyncIterator[str]:
    server = await serve(sim)
    try:
        yield f"{server.base_url}/v1" if dialect == "openai" else server.base_url
    finally:
        await server.aclose()


async def child(*arguments: str) -> asyncio.subprocess.Process:
    command = (sys.executable, "-m", "tests.batch.victim", *arguments)
    return await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)


async def killed_and_taken_up(dialect: str) -> tuple[pd.DataFrame, str, Any]:
    sim = make_sim(PACE)
    async with asyncio.timeout(60), served(sim, dialect) as url:
        victim = await child(dialect, url, "submit")
        assert victim.stdout is not None
        name = (await victim.stdout.readline()).decode().strip()
        victim.kill()
        assert await victim.wait() == -9
        answered = sim.stats()["batch"]["rows"]
        heir = await child(dialect, url, "attach", name)
        out, _ = await heir.communicate()
        assert heir.returncode == 0
        assert answered < ROWS, "it was killed in the middle of its work"
        return pd.read_json(io.StringIO(out.decode()), orient="split"), name, sim.stats()


@both
def test_a_killed_process_loses_no_row_and_pays_for_none_twice(dialect: str) -> None:
    frame, name, stats = asyncio.run(killed_and_taken_up(dialect))
    assert name.count("+") == 2, "three batches, one id"
    assert list(frame.status) == ["ok"] * ROWS
    assert frame.content.nunique() == ROWS
    assert stats["batch"]["rows"] == ROWS
    assert frame.output_tokens.sum() == stats["tokens"]["output"]
    bill = (3.0 * stats["tokens"]["input"] + 12.0 * stats["tokens"]["output"]) / 1e6 / 2
    assert frame.cost_usd.sum() == pytest.approx(bill)
    if dialect == "openai":
        assert list(frame.prompt) == prompts()


@both
def test_over_a_socket_a_cancelled_batch_keeps_its_answers_and_is_finished_by_resubmission(dialect: str) -> None:
    async def main() -> None:
        sim = make_sim(PACE)
        async with asyncio.timeout(60), served(sim, dialect) as url:
            async with Lab(f"{dialect}:m", base_url=url, api_key=KEY, prices=PRICES, progress=False) as lab:
                job = lab.submit_batch(prompts(), poll=0.1)
                await job.submitted()
                await asyncio.sleep(1.2)
                job.cancel()
                first = await job
                assert 0 < (first.status == "ok").sum() < ROWS
                second = await job.resubmit()
            assert list(second.status) == ["ok"] * ROWS
            assert second.output_tokens.sum() == sim.stats()["tokens"]["output"]
            alone = await Lab(f"{dialect}:m", base_url=url, api_key=KEY, progress=False).run_many(prompts())
            assert list(second.content) == list(alone.content)

    asyncio.run(main())


@both
def test_a_lab_on_a_private_thread_gives_the_frame_without_await(dialect: str) -> None:
    async def main() -> Any:
        sim = make_sim(BatchPace(start=0.05, rows_per_s=1000, finish=0.05))
        async with asyncio.timeout(60), served(sim, dialect) as url:
            return await asyncio.to_thread(synchronous, dialect, url)

    def synchronous(dialect: str, url: str) -> Any:
        lab = Lab(f"{dialect}:m", base_url=url, api_key=KEY, loop="thread", progress=False)
        job = lab.submit_batch(prompts(), poll=0.05)
        name = lab.wait_for(job.submitted)
        frame = job.result()
        again = lab.attach_batch(name, prompts(), poll=0.05).result()
        lab.close()
        return frame, again

    frame, again = asyncio.run(main())
    assert list(frame.status) == ["ok"] * ROWS
    assert list(again.content) == list(frame.content)


def test_the_command_line_serves_both_batch_apis() -> None:
    async def main() -> list[Any]:
        command = (sys.executable, "-m", "llmlab", "simulate", "--port", "0", "--batches", "rows_per_s:2000,start:0.05")
        server = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        assert server.stdout is not None
        try:
            urls = [(await server.stdout.readline()).decode().split()[-1] for _ in range(2)]
            labs = [Lab(f"{name}:m", base_url=url, api_key=KEY, progress=False)
                    for name, url in zip(("openai", "anthropic"), urls, strict=True)]  # fmt: skip
            return [await lab.submit_batch(prompts(), poll=0.05) for lab in labs]
        finally:
            server.terminate()
            await server.wait()

    openai, anthropic = asyncio.run(main())
    assert list(openai.status) == list(anthropic.status) == ["ok"] * ROWS


def test_a_key_is_shown_nowhere(capfd: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        sim = make_sim(PACE)
        async with asyncio.timeout(60), served(sim, "openai") as url:
            lab = Lab("openai:m", base_url=url, api_key="sk-some-other-wrong-key", progress=False)
            job = lab.submit_batch(["a"], poll=0.1)
            with pytest.raises(Exception, match="Incorrect API key") as caught:
                await job
            shown = [repr(job), repr(lab), repr(vars(job)), str(caught.value), job.frame.to_csv(), repr(job._run)]
            assert not [each for each in shown if "some-other-wrong" in each]

    asyncio.run(main())
    assert "some-other-wrong" not in "".join(capfd.readouterr())
