"""Rows without an answer are submitted once more."""

from typing import Any

import pandas as pd
import pytest

from llmlab.clock import run_virtual
from llmlab.sim.batches import BatchPace
from tests.batch.labs import both, make_lab, make_sim


@both
def test_rows_that_the_window_has_overtaken_are_submitted_once_more(dialect: str) -> None:
    sim = make_sim(BatchPace(start=0, rows_per_s=1, window=20))
    prompts = pd.Series([f"prompt {n}" for n in range(35)], index=range(100, 135))

    async def main() -> Any:
        job = make_lab(sim, dialect).submit_batch(prompts)
        first = await job
        again = job.resubmit()
        return first, await again, again.id

    first, second, name = run_virtual(main)
    expired = first.status == "error"
    assert set(first.error_type[expired]) == {"BatchExpired"}
    assert (expired.sum(), (second.status == "error").sum()) == (15, 0)
    assert list(second.index) == list(prompts.index)
    assert list(second.attempts[expired]) == [2] * 15
    assert list(second.content[~expired]) == list(first.content[~expired]), "what was answered is not asked again"
    assert second.output_tokens.sum() == sim.stats()["tokens"]["output"]

    async def attach() -> Any:
        return await make_lab(sim, dialect).attach_batch(name, prompts)

    third = run_virtual(attach)
    assert list(third.content) == list(second.content), "the new id names both batches"
    assert list(third.attempts) == list(second.attempts)


@both
def test_rows_that_are_wrong_are_not_submitted_again_unless_asked_for(dialect: str) -> None:
    async def main() -> Any:
        sim = make_sim(BatchPace(failing=0.4))
        lab = make_lab(sim, dialect)
        job = lab.submit_batch(pd.DataFrame({"prompt": [str(n) for n in range(20)], "max_tokens": [10**9] + [9] * 19}))
        first = await job
        rows = sim.stats()["batch"]["rows"]
        await job.resubmit()
        again = sim.stats()["batch"]["rows"] - rows
        refused = job.resubmit(refused=True)
        await refused
        return first, again, refused

    first, again, refused = run_virtual(main)
    assert first.error_type.iloc[0] == "ContextTooLong"
    assert again == (first.error_type == "ServerError").sum() > 2
    assert refused.frame.attempts.iloc[0] == 2


def test_a_batch_taken_up_without_prompts_is_resubmitted_where_the_provider_gives_them_back() -> None:
    pace = BatchPace(start=0, rows_per_s=1, window=5)

    async def main(dialect: str) -> Any:
        lab = make_lab(make_sim(pace), dialect)
        name = await lab.submit_batch([f"prompt {n}" for n in range(9)]).submitted()
        job = lab.attach_batch(name)
        first = await job
        return first, await job.resubmit()

    first, second = run_virtual(lambda: main("openai"))
    assert ((first.status == "ok").sum(), (second.status == "ok").sum()) == (5, 9)
    with pytest.raises(ValueError, match="resubmit needs the prompts"):
        run_virtual(lambda: main("anthropic"))
