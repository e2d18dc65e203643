"""`lab.stream(…, schema=…)`: what an answer holds so far, again and again."""

import itertools
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel

import llmlab
from llmlab.clock import run_virtual
from llmlab.errors import LLMError, SchemaMismatch, StreamTruncated
from llmlab.sim.faults import Faults
from llmlab.sim.physics import Physics
from llmlab.sim.transport import Simulator


class Plan(BaseModel):
    title: str
    steps: list[str]
    hours: int
    done: bool = False


PLAN = '{"title": "A tower of bricks", "steps": ["dig a hole", "lay the bricks"], "hours": 120, "done": true}'


def streamed(text: str, schema: Any = Plan, provider: str = "openai", **options: Any) -> tuple[list[Any], Any]:
    """The partials, and the stream when it has ended."""
    sim = Simulator(say=lambda _: text, **options)

    async def main() -> tuple[list[Any], Any]:
        stream = llmlab.Lab(f"{provider}:m", transport=sim).stream("a", schema=schema)
        return [each async for each in stream], stream

    found: tuple[list[Any], Any] = run_virtual(main)
    return found


@pytest.mark.parametrize("provider", ["openai", "anthropic"])
def test_partials_grow_to_the_whole_answer(provider: str) -> None:
    partials, stream = streamed(PLAN, provider=provider)
    assert partials[0] == {}
    assert {"title": "A tower"} in partials
    assert partials[-1] == Plan.model_validate_json(PLAN).model_dump()
    assert stream.reply.parsed == Plan.model_validate_json(PLAN)
    assert stream.reply.content == PLAN
    assert stream.reply.ttft_s > 0
    for one, other in itertools.pairwise(partials):
        assert one != other
        assert list(one) == list(other)[: len(one)], "fields come in their order"
        assert other.get("title", "").startswith(one.get("title", ""))
        assert len(other.get("steps", [])) >= len(one.get("steps", []))


def test_numbers_and_names_are_given_when_they_are_whole() -> None:
    partials, _ = streamed(PLAN)
    assert {each["hours"] for each in partials if "hours" in each} == {120}
    assert {each["done"] for each in partials if "done" in each} == {True}


@pytest.mark.parametrize(
    ("schema", "text", "whole"),
    [
        (list[str], '{"value": ["a tree", "a house"]}', ["a tree", "a house"]),
        (str, '{"value": "a whole sentence, bit by bit"}', "a whole sentence, bit by bit"),
        (int, '{"value": 12}', 12),
        ({"type": "array", "items": {"type": "integer"}}, '{"value": [1, 2, 3]}', [1, 2, 3]),
    ],
)
def test_a_bare_value_grows_by_itself(schema: Any, text: str, whole: Any) -> None:
    partials, stream = streamed(text, schema)
    assert partials[-1] == stream.reply.parsed == whole
    assert all(isinstance(each, type(whole)) for each in partials)


@pytest.mark.parametrize("text", [f"```json\n{PLAN}\n```", f"Sure! Here it is:\n{PLAN}\nAnything else?"])
def test_what_stands_around_the_object_is_no_part_of_it(text: str) -> None:
    partials, stream = streamed(text)
    assert partials[0] == {}
    assert partials[-1] == Plan.model_validate_json(PLAN).model_dump()
    assert stream.reply.parsed.hours == 120


@pytest.mark.parametrize("text", [PLAN.replace("120", '"many"'), PLAN[:60], "no JSON at all"])
def test_an_end_that_does_not_fit_raises_after_the_last_partial_and_is_not_asked_again(text: str) -> None:
    sim = Simulator(say=lambda _: text)
    partials: list[Any] = []

    async def follow(stream: Any) -> None:
        async for each in stream:
            partials.append(each)  # noqa: PERF401  those before the error are wanted, too

    async def main() -> Any:
        stream = llmlab.Lab("openai:m", transport=sim).stream("a", schema=Plan)
        with pytest.raises(SchemaMismatch, match="handed out already") as caught:
            await follow(stream)
        with pytest.raises(SchemaMismatch):
            _ = stream.reply
        return caught.value

    error = run_virtual(main)
    assert error.reply.content == text
    assert sim.requests == 1
    assert bool(partials) == ("{" in text)


def test_an_answer_of_which_nothing_came_is_asked_for_again() -> None:
    said = iter(["", PLAN])
    sim = Simulator(say=lambda _: next(said))

    async def main() -> Any:
        stream = llmlab.Lab("openai:m", transport=sim).stream("a", schema=Plan)
        return [each async for each in stream], stream.reply.parsed

    partials, parsed = run_virtual(main)
    assert parsed == Plan.model_validate_json(PLAN)
    assert partials


def test_a_stream_that_breaks_raises_its_own_error() -> None:
    async def main() -> None:
        lab = llmlab.Lab("openai:m", transport=Simulator(say=lambda _: PLAN, faults=Faults.only("cut_silent"), seed=2))
        async for _ in lab.stream("a", schema=Plan):
            pass

    with pytest.raises(StreamTruncated):
        run_virtual(main)


def test_leaving_the_loop_closes_the_connection() -> None:
    sim = Simulator(say=lambda _: PLAN, physics=Physics(itl=0.5))

    async def main() -> int:
        async with llmlab.Lab("openai:m", transport=sim).stream("a", schema=Plan) as stream:
            async for partial in stream:
                if partial:
                    break
        return int(sim.stats()["in_flight"])

    assert run_virtual(main) == 0
    assert sim.stats()["tokens"]["output"] < 20


def test_a_partial_is_the_readers_own() -> None:
    async def main() -> list[Any]:
        seen: list[Any] = []
        async for partial in llmlab.Lab("openai:m", transport=Simulator(say=lambda _: PLAN)).stream("a", schema=Plan):
            seen.append(dict(partial))
            partial.clear()
        return seen

    assert run_virtual(main) == streamed(PLAN)[0]


def test_a_cached_answer_comes_at_once_and_typed(tmp_path: Path) -> None:
    lab = llmlab.Lab("openai:m", transport=Simulator(say=lambda _: PLAN), cache=tmp_path / "answers.sqlite")

    async def main() -> Any:
        stream = lab.stream("a", schema=Plan)
        return [each async for each in stream], stream.reply

    async def twice() -> Any:
        return await main(), await main()

    _, (partials, reply) = run_virtual(twice)
    assert reply.cache_hit
    assert reply.parsed == Plan.model_validate_json(PLAN)
    assert partials == [reply.parsed.model_dump()]


def test_what_cannot_be_is_refused_before_anything_is_sent() -> None:
    sim = Simulator()
    lab: Any = llmlab.Lab("openai:m", transport=sim)
    with pytest.raises(ValueError, match="by cuts texts"):
        lab.stream("a", schema=Plan, by="sentence")
    with pytest.raises(TypeError, match="schema must be"):
        lab.stream("a", schema="Plan")
    assert sim.requests == 0


def test_without_a_schema_a_stream_is_text() -> None:
    async def main() -> str:
        stream = llmlab.Lab("openai:m", transport=Simulator(say=lambda _: PLAN)).stream("a")
        return "".join([piece async for piece in stream])

    assert run_virtual(main) == PLAN


def test_a_choice_without_quotes_has_no_partials_and_is_parsed_all_the_same() -> None:
    partials, stream = streamed("good", Literal["good", "bad"])
    assert partials == []
    assert stream.reply.parsed == "good"
    assert issubclass(SchemaMismatch, LLMError)
