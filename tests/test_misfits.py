"""Every fifth answer does not fit: rows right, questions counted, bill counted, by the provider's own count."""

from typing import Any, Literal
from zlib import crc32

import orjson
import pandas as pd
import pytest
from pydantic import BaseModel, Field

import llmlab
from llmlab.clock import run_virtual
from llmlab.sim.faults import MISFITS, Faults
from llmlab.sim.kinds import KINDS
from llmlab.sim.transport import Simulator
from llmlab.sim.wire import Ask

ROWS = 500
PRICE = (3.0, 15.0)


class Review(BaseModel):
    label: Literal["good", "bad"]
    stars: int = Field(ge=1, le=5)
    words: list[str]


def due(prompt: str) -> Review:
    n = crc32(prompt.encode())
    return Review(label="good" if n % 2 else "bad", stars=1 + n % 5, words=prompt.split())


def say(ask: Ask) -> str:
    """The right answer to the first line of the conversation, whatever was said since."""
    return due(ask.text.split("\n")[0]).model_dump_json()


def ran(provider: str, faults: Faults, *, stream: bool = False, **options: Any) -> tuple[pd.DataFrame, Any, Simulator]:
    sim = Simulator(seed=5, faults=faults, say=say)
    lab = llmlab.Lab(f"{provider}:m", transport=sim, prices={"m": PRICE}, seed=1)
    prompts = pd.Series({f"r{n}": f"Review number {n} is about tea" for n in range(ROWS)})
    job = lab.run_many(prompts, schema=Review, stream=stream, **options)

    async def main() -> Any:
        return await job

    return run_virtual(main), job, sim


def figures(out: pd.DataFrame, job: Any, sim: Simulator) -> dict[str, Any]:
    """What the frame says, and what the provider does."""
    told = sim.stats()
    return {
        "rows": len(out),
        "ok": int((out.status == "ok").sum()),
        "requests": told["received"],
        "attempts": int(out.attempts.sum()),
        "bad": sum(told["by_fault"].get(name, 0) for name in MISFITS),
        "asked again": int((job.attempts.kind == "reask").sum()),
        "tokens": (int(out.input_tokens.sum()), int(out.output_tokens.sum())),
        "billed": (told["tokens"]["input"], told["tokens"]["output"]),
        "cost": float(out.cost_usd.sum()),
    }


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
@pytest.mark.parametrize("stream", [False, True])
def test_every_fifth_answer_is_bad_and_the_rows_are_right_all_the_same(provider: str, stream: bool) -> None:
    out, job, sim = ran(provider, Faults.misfits(0.2), stream=stream)
    found = figures(out, job, sim)
    ok = out[out.status == "ok"]
    failed = out[out.status != "ok"]
    assert found["bad"] / found["requests"] == pytest.approx(0.2, abs=0.055), "3.5 sigma of 650"
    assert len(failed) == pytest.approx(ROWS * 0.2**3, abs=8)
    assert set(failed.error_type) <= {"SchemaMismatch"}
    assert (failed.attempts == 3).all()
    for prompt, label, stars, words in zip(ok.prompt, ok["label"], ok["stars"], ok["words"], strict=True):
        assert due(prompt) == Review(label=label, stars=stars, words=words)
    assert out.index.tolist() == [f"r{n}" for n in range(ROWS)]
    assert found["asked again"] == found["bad"] - len(failed), "each bad answer but the last of a row that was given up"
    assert found["requests"] == found["attempts"] == ROWS + found["asked again"]
    assert found["tokens"] == found["billed"]
    assert found["cost"] == pytest.approx((found["billed"][0] * PRICE[0] + found["billed"][1] * PRICE[1]) / 1e6)
    assert llmlab.summary(out)["cost_usd"] == pytest.approx(found["cost"])


@pytest.mark.parametrize("kind", ["fenced", "chatty"])
def test_what_only_stands_around_the_answer_costs_no_question(kind: str) -> None:
    out, job, sim = ran("openai", Faults.only(kind))
    assert (out.status == "ok").all()
    assert figures(out, job, sim)["requests"] == ROWS


@pytest.mark.parametrize("kind", MISFITS)
def test_each_kind_of_bad_answer_is_found_out(kind: str) -> None:
    out, _, sim = ran("openai", Faults.only(kind), reask=0)
    assert set(out.error_type) == {"SchemaMismatch"}
    assert out.content.notna().all()
    assert sim.stats()["by_fault"] == {kind: ROWS}


def test_bad_answers_and_a_bad_network_are_counted_apart() -> None:
    out, job, sim = ran("openai", Faults.misfits(0.2) | Faults.mixed(0.2))
    kinds = job.attempts.kind.value_counts()
    told = sim.stats()["by_fault"]
    bad = sum(told.get(name, 0) for name in MISFITS)
    given_up = int((out.error_type == "SchemaMismatch").sum())
    assert kinds["reask"] == bad - given_up
    assert kinds["retry"] == sum(told.values()) - bad
    assert sim.requests == out.attempts.sum()


def test_answers_that_are_no_json_stay_as_they_are() -> None:
    for name in (*MISFITS, "fenced", "chatty"):
        assert KINDS[name].family == "form"
        sim = Simulator(faults=Faults.only(name), say=lambda _: "plain text")
        assert llmlab.Lab("openai:m", transport=sim).run("a").result().content == "plain text"


def test_the_mixture_is_read_from_text() -> None:
    assert Faults.parse("misfits:0.2") == Faults.misfits(0.2)
    assert orjson.loads(say(Ask("m", "a b"))) == due("a b").model_dump()
