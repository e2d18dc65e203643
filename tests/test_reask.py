"""`schema=` on run and run_many: answers that do not fit are asked for again, counted and paid for."""

import asyncio
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pytest
from pydantic import BaseModel, Field

import llmlab
from llmlab import journal
from llmlab.clock import run_virtual
from llmlab.errors import SchemaMismatch
from llmlab.estimate import Estimator
from llmlab.events import Retrying
from llmlab.logbook import JournalMismatch
from llmlab.sim.faults import Faults
from llmlab.sim.physics import Physics
from llmlab.sim.transport import Simulator
from llmlab.sim.wire import Ask, Refusal


class Review(BaseModel):
    label: Literal["good", "bad"]
    stars: int = Field(ge=1, le=5)


GOOD = '{"label": "good", "stars": 4}'
BAD = '{"label": "good", "stars": "four"}'


class Model(Simulator):
    """A provider that says these texts in turn, the last one for ever, and writes down what it was asked."""

    def __init__(self, *texts: str, **options: Any) -> None:
        super().__init__(say=self._next, **({"physics": Physics(ttft=0.0, itl=0.0, rtt=0.0)} | options))
        self.texts, self.asks = list(texts), list[Ask]()

    def _next(self, ask: Ask) -> str:
        self.asks.append(ask)
        if "never" in ask.text:
            return BAD
        return self.texts.pop(0) if len(self.texts) > 1 else self.texts[0]


def lab(model: Simulator, name: str = "openai:m", **options: Any) -> llmlab.Lab:
    return llmlab.Lab(name, transport=model, prices={"m": (1.0, 2.0)}, **options)


def ran(job: Any) -> Any:
    async def main() -> Any:
        return await job()

    return run_virtual(main)


def ran_for_real(job: Any) -> Any:
    """Journals have threads; the provider answers at once."""

    async def main() -> Any:
        return await job()

    return asyncio.run(main())


def test_an_answer_that_fits_is_parsed_and_its_text_kept() -> None:
    reply = ran(lambda: lab(Model(GOOD)).run("a", schema=Review))
    assert reply.parsed == Review(label="good", stars=4)
    assert reply.content == GOOD


def test_fields_become_typed_columns_behind_the_others_in_input_order() -> None:
    prompts = pd.Series([f"p{n}" for n in range(5)], index=list("abcde"))
    out = ran(lambda: lab(Model(GOOD)).run_many(prompts, schema=Review))
    assert out.columns.tolist() == [*(column.name for column in llmlab.frame.COLUMNS), "label", "stars"]
    assert out["stars"].tolist() == [4] * 5
    assert str(out["label"].dtype) == "category"
    assert out.index.tolist() == list("abcde")
    assert llmlab.summary(out)["success_count"] == 5


def test_what_does_not_fit_is_asked_for_again_with_what_is_wrong() -> None:
    model = Model(BAD, GOOD)
    reply = ran(lambda: lab(model).run("How was it?", schema=Review))
    assert reply.parsed.stars == 4
    assert len(model.asks) == 2
    assert model.asks[1].turns == 3
    assert model.asks[1].text.startswith("How was it?")
    assert BAD in model.asks[1].text
    assert 'stars: Input should be a valid integer, unable to parse string as an integer, not "four"' in (
        model.asks[1].text
    )


def test_each_time_the_last_answer_alone_is_sent_back() -> None:
    model = Model(BAD, "{}", GOOD)
    ran(lambda: lab(model).run("a", schema=Review))
    assert [ask.turns for ask in model.asks] == [1, 3, 3]
    assert BAD not in model.asks[2].text


def test_an_empty_answer_is_simply_asked_for_again() -> None:
    model = Model("", GOOD)
    ran(lambda: lab(model).run("a", schema=Review))
    assert [ask.turns for ask in model.asks] == [1, 1]


def test_a_server_that_ignores_the_field_is_told_the_schema_when_it_is_asked_again() -> None:
    model = Model("I liked it.", GOOD)
    ran(lambda: lab(model).run("a", schema=Review))
    assert "JSON schema" not in model.asks[0].text
    assert "JSON schema" in model.asks[1].text


@pytest.mark.parametrize("reask", [0, 1, 3])
def test_it_is_asked_again_so_often_and_no_more_and_the_text_is_kept(reask: int) -> None:
    model = Model(BAD)
    job = lab(model).run_many(["a"], schema=Review, reask=reask)
    out = ran(lambda: job)
    assert len(model.asks) == 1 + reask
    row = out.iloc[0]
    assert (row.status, row.error_type, row.attempts) == ("error", "SchemaMismatch", 1 + reask)
    assert row.content == BAD
    assert row.finish_reason == "stop"
    assert "stars" in row.error
    assert row[["label", "stars", "latency_ms"]].isna().all()
    assert job.attempts.kind.tolist() == ["first"] + ["reask"] * reask
    assert job.attempts.why.tolist() == ["first"] + ["SchemaMismatch"] * reask


def test_run_raises_the_mismatch_with_the_last_reply() -> None:
    with pytest.raises(SchemaMismatch) as caught:
        ran(lambda: lab(Model(BAD)).run("a", schema=Review))
    assert caught.value.reply.content == BAD


def test_tokens_and_money_of_answers_that_did_not_fit_are_in_the_row() -> None:
    model = Model(BAD, GOOD)
    job = lab(model).run_many(["a", "never"], schema=Review)
    out = ran(lambda: job)
    assert out.status.tolist() == ["ok", "error"]
    billed = model.stats()["tokens"]
    assert out.input_tokens.sum() == billed["input"]
    assert out.output_tokens.sum() == billed["output"]
    assert out.cost_usd.sum() == pytest.approx((billed["input"] + 2 * billed["output"]) / 1e6)
    assert job.attempts.cost_usd.sum() == pytest.approx(out.cost_usd.sum())


@pytest.mark.parametrize("finish", ["content_filter"])
def test_a_refusal_is_not_asked_again(finish: str) -> None:
    model = Simulator(faults=Faults.only("refused"))
    out = ran(lambda: lab(model).run_many(["a"], schema=Review))
    assert model.requests == 1
    assert out.error_type.tolist() == ["SchemaMismatch"]
    assert out.finish_reason.tolist() == [finish]


def test_failures_are_retried_below_and_spend_no_question() -> None:
    model = Model(BAD, GOOD, faults=Faults.only("server_error", 0.4), seed=3)
    job = lab(model).run_many([f"p{n}" for n in range(30)], schema=Review, reask=1)
    out = ran(lambda: job)
    assert (out.status == "ok").all()
    assert set(job.attempts.kind) == {"first", "retry", "reask"}


def test_other_targets_are_asked_when_the_first_cannot_answer_in_form() -> None:
    first, second = Model(BAD), Model(GOOD)
    other = lab(second, "anthropic:m")
    job = lab(first, fallback=other).run_many(["a"], schema=Review, reask=1)
    out = ran(lambda: job)
    assert out.provider.tolist() == ["anthropic"]
    assert out["stars"].tolist() == [4]
    assert job.attempts.kind.tolist() == ["first", "reask", "fallback"]
    assert [ask.turns for ask in second.asks] == [1], "it is asked the original question"
    assert second.asks[0].schema is not None, "in its own dialect"


def test_the_rows_own_deadline_covers_all_questions() -> None:
    strategy = llmlab.Strategy.default(total=5.0)
    model = Model(BAD, physics=Physics(ttft=2.0, itl=0.0))
    out = ran(lambda: lab(model, strategy=strategy).run_many(["a"], schema=Review, reask=50))
    assert out.error_type.tolist() == ["TimedOut"]
    assert 2 <= len(model.asks) <= 4
    assert out.input_tokens.tolist()[0] > 0


def test_a_budget_holds_for_questions_too() -> None:
    model = Model(BAD)
    out = ran(lambda: lab(model).run_many(["a"] * 20, schema=Review, reask=9, budget_tokens=2_000, max_tokens=50))
    billed = model.stats()["tokens"]
    assert billed["input"] + billed["output"] <= 2_000
    assert (out.status == "cancelled").any()


def test_it_works_with_any_strategy() -> None:
    model = Model(BAD, GOOD)
    reply = ran(lambda: lab(model, strategy=llmlab.Strategy.bare()).run("a", schema=Review))
    assert reply.parsed.stars == 4


def test_a_job_says_that_it_asks_again() -> None:
    told: list[Retrying] = []
    job = lab(Model(BAD, GOOD)).run_many(["a"], schema=Review)
    job.bus.subscribe(told.append, Retrying)
    ran(lambda: job)
    assert [(type(each.error), each.delay) for each in told] == [(SchemaMismatch, 0.0)]
    assert job.events.event.tolist() == ["retrying"]


def test_a_cache_keeps_answers_that_fit_only_and_gives_them_back_typed(tmp_path: Path) -> None:
    model = Model(BAD, GOOD)
    cached = lab(model, cache=tmp_path / "answers.sqlite")

    async def main() -> Any:
        first = await cached.run_many(["a", "never"], schema=Review, reask=1)
        return first, await cached.run_many(["a", "never"], schema=Review, reask=0)

    first, again = ran(main)
    assert first.status.tolist() == again.status.tolist() == ["ok", "error"]
    assert again.cache_hit.tolist() == [True, False]
    assert again["stars"].tolist()[0] == 4
    assert len(model.asks) == 2 + 2 + 1


def test_another_schema_is_another_request_for_the_cache(tmp_path: Path) -> None:
    model = Model(GOOD, '{"value": 3}', "plain text")
    cached = lab(model, cache=tmp_path / "answers.sqlite")

    async def main() -> Any:
        return [await cached.run("a", schema=Review), await cached.run("a", schema=int), await cached.run("a")]

    replies = ran(main)
    assert [reply.cache_hit for reply in replies] == [False] * 3
    assert [reply.parsed for reply in replies] == [Review(label="good", stars=4), 3, None]


def test_a_cached_answer_that_no_longer_fits_is_asked_for_anew(tmp_path: Path) -> None:
    def strict(least: int) -> type[BaseModel]:
        class Checked(BaseModel):
            stars: int

            def model_post_init(self, _: Any) -> None:
                if self.stars < least:
                    raise ValueError("too few")

        return Checked

    model = Model('{"stars": 1}', '{"stars": 5}')
    cached = lab(model, cache=tmp_path / "answers.sqlite")

    async def main() -> Any:
        return [await cached.run("a", schema=strict(0)), await cached.run("a", schema=strict(3))]

    assert [reply.parsed.stars for reply in ran(main)] == [1, 5]


def test_a_resumed_run_has_the_same_typed_columns_and_pays_for_failures_only(tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    model = Model(GOOD, GOOD, BAD, BAD, BAD, GOOD)
    first = ran_for_real(lambda: lab(model, concurrency=1).run_many(["a", "b", "c"], schema=Review, journal=path))
    assert first.status.tolist() == ["ok", "ok", "error"]
    read = journal.read(path)
    assert read.content.tolist() == [GOOD, GOOD, BAD]
    assert read["stars"].tolist()[:2] == [4, 4]
    pd.testing.assert_frame_equal(read[first.columns], first, check_index_type=False)
    again = ran_for_real(lambda: lab(model, concurrency=1).run_many(["a", "b", "c"], schema=Review, journal=path))
    assert len(model.asks) == 6
    assert again.dtypes.tolist() == first.dtypes.tolist()
    assert again["stars"].tolist() == [4, 4, 4]


def test_another_schema_is_another_run_for_the_journal(tmp_path: Path) -> None:
    path = tmp_path / "run.sqlite"
    ran_for_real(lambda: lab(Model(GOOD)).run_many(["a"], schema=Review, journal=path))
    for other in (int, None):
        with pytest.raises(JournalMismatch, match="schema"):
            ran_for_real(lambda other=other: lab(Model(GOOD)).run_many(["a"], schema=other, journal=path))


def test_a_journal_is_read_with_the_type_for_what_only_the_type_knows(tmp_path: Path) -> None:
    class Aliased(BaseModel):
        first: int = Field(alias="firstOne")

    path = tmp_path / "run.sqlite"
    out = ran_for_real(lambda: lab(Model('{"firstOne": "3"}')).run_many(["a"], schema=Aliased, journal=path))
    assert out["first"].tolist() == [3]
    assert journal.read(path, schema=Aliased)["first"].tolist() == [3]
    assert journal.read(path)["firstOne"].tolist() == [3]


def test_the_last_step_of_a_chain_is_typed() -> None:
    model = Model("some text", GOOD)
    out = ran(lambda: lab(model).run_many(["a"], chain=["Translate: {context}", "Rate: {context}"], schema=Review))
    assert out.content.tolist() == ["some text", GOOD]
    assert out["stars"].isna().tolist() == [True, False]
    assert [ask.schema is None for ask in model.asks] == [True, False]


def test_prompts_of_ones_own_are_asked_in_form_too() -> None:
    model = Model(GOOD)
    out = ran(lambda: lab(model).run_many(iter([llmlab.Prompt.of("a"), "b"]), schema=Review))
    assert out["stars"].tolist() == [4, 4]


def test_what_is_submitted_is_typed_too() -> None:
    model = Model(BAD, GOOD)
    assert ran(lambda: lab(model).submit("a", schema=Review)).parsed.stars == 4
    with pytest.raises(SchemaMismatch):
        ran(lambda: lab(Model(BAD)).submit("a", schema=Review, reask=0))


def test_a_schema_counts_as_input_before_it_is_sent() -> None:
    guess = Estimator().cost(llmlab.Prompt.of("a"), "m")["input_tokens"]
    schema = llmlab.types.Schema("s", "x" * 400)
    asked = llmlab.Prompt(llmlab.Prompt.of("a").messages, schema=schema)
    assert Estimator().cost(asked, "m")["input_tokens"] == guess + 100


def test_from_the_side_of_the_data() -> None:
    df = pd.DataFrame({"review": ["a", "b"]})
    out = ran(lambda: df.llm.run(lab(Model(GOOD)), template="Rate: {review}", schema=Review))
    assert out["stars"].tolist() == [4, 4]


@pytest.mark.parametrize("verb", ["run", "run_many"])
def test_what_is_no_schema_is_refused_before_anything_is_sent(verb: str) -> None:
    model = Model(GOOD)
    with pytest.raises(TypeError, match="schema must be a type"):
        getattr(lab(model), verb)(["a"] if verb == "run_many" else "a", schema="Review")
    with pytest.raises(ValueError, match="reask"):
        getattr(lab(model), verb)(["a"] if verb == "run_many" else "a", schema=Review, reask=-1)
    assert model.requests == 0


def test_a_job_that_stops_asks_nothing_again() -> None:
    def say(ask: Ask) -> str:
        if "key" in ask.text:
            raise Refusal("auth")
        return BAD

    model = Simulator(say=say, physics=Physics(ttft=2.0))
    job = lab(model).run_many(["slow", "key"], schema=Review, reask=9)
    assert ran(lambda: job).status.tolist() == ["cancelled", "error"]
    assert model.requests == 2
