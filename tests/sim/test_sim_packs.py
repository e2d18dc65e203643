"""Packed rows on the simulated provider: answered as if alone, and spoilt on request."""

import random
from collections import Counter
from typing import Any

import pytest

from llmlab import Lab
from llmlab.clock import run_virtual
from llmlab.packing import draw_ids, pack
from llmlab.sim import Faults, Simulator
from llmlab.sim.packs import rows_of

TEXTS = [f'Is no. {n} "good"?\nSay so' for n in range(40)]


def run(model: str = "openai:m", *, faults: Faults | None = None, **options: Any) -> tuple[Any, Any, Simulator]:
    simulator = Simulator(seed=1, faults=faults or Faults())

    async def main() -> tuple[Any, Any]:
        lab = Lab(model, transport=simulator, api_key="k", seed=1, progress=False, system="Be brief.")
        job = lab.run_many(TEXTS, **options)
        return await job, job.attempts

    return *run_virtual(main), simulator


def test_the_rows_of_a_pack_are_known_again() -> None:
    ids = draw_ids(TEXTS, random.Random(1))
    assert rows_of("Be brief.\n" + pack(TEXTS, ids)) == [
        (one, f"Be brief.\n{text}") for one, text in zip(ids, TEXTS, strict=True)
    ]
    assert rows_of('{"id":"x","input":"y"}') == []


@pytest.mark.parametrize("model", ["openai:m", "anthropic:m"])
def test_a_packed_row_is_told_what_it_is_told_alone(model: str) -> None:
    alone, _, _ = run(model)
    packed, attempts, simulator = run(model, pack=10)
    assert packed.content.tolist() == alone.content.tolist()
    assert simulator.requests == 4
    assert set(attempts["rows"]) == {10}


def test_the_lab_without_a_key_packs_too() -> None:
    async def main() -> Any:
        job = Lab(progress=False).run_many(TEXTS, pack=10)
        return await job, job.attempts

    out, attempts = run_virtual(main)
    assert (out.status == "ok").all()
    assert Counter(attempts.kind) == {"packed": 40}


@pytest.mark.parametrize("kind", ["misfit_missing", "misfit_type", "misfit_cut", "misfit_prose"])
def test_rows_that_the_model_spoils_are_asked_again_alone(kind: str) -> None:
    alone, _, _ = run()
    packed, attempts, simulator = run(faults=Faults({kind: 1.0}), pack=10)
    assert packed.content.tolist() == alone.content.tolist()
    redone = int((attempts.why == "PackGarbled").sum())
    assert redone == simulator.requests - 4
    assert redone == 4 if kind in ("misfit_missing", "misfit_type") else redone > 4


@pytest.mark.parametrize("kind", ["fenced", "chatty"])
def test_what_stands_around_a_pack_does_not_matter(kind: str) -> None:
    _, _, simulator = run(faults=Faults({kind: 1.0}), pack=10)
    assert simulator.requests == 4


def test_a_pack_that_is_cut_off_at_its_limit_is_not_spoilt_further() -> None:
    out, _, _ = run(faults=Faults({"misfit_missing": 1.0}), pack=10, max_tokens=5)
    assert (out.status == "ok").all()
