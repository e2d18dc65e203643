import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import httpx
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llmlab
from llmlab.clock import run_virtual
from llmlab.errors import AuthFailed, LLMError
from llmlab.policies.admit import Admit
from llmlab.policies.retry import Retry
from llmlab.rules.slots import Slots
from llmlab.strategy import Strategy
from llmlab.streams import Race
from tests.test_streams import Speaker, Step, chunk, hear, lab_of, later

NO_RETRY = Strategy.bare(concurrency=32)
GONE = httpx.ReadError("gone")


def racers(**scripts: list[Step]) -> Speaker:
    return Speaker({name: [script] for name, script in scripts.items()})


async def follow(race: Race) -> list[tuple[int, str]]:
    return [piece async for piece in race]


def run(speaker: Speaker, **settings: Any) -> tuple[list[tuple[int, str]], Race]:
    by = settings.pop("by", "piece")

    async def main() -> tuple[list[tuple[int, str]], Race]:
        race = lab_of(speaker, **settings).race(list(speaker.scripts), by=by)
        return await follow(race), race

    result: tuple[list[tuple[int, str]], Race] = run_virtual(main)
    return result


# -- winning ----------------------------------------------------------------------------------------------


def test_who_says_something_first_is_heard_to_the_end() -> None:
    said, race = run(racers(a=[3.0, "a"], b=[1.0, "b1", 9.0, "b2"], c=[2.0, "c"]))
    assert said == [(1, "b1"), (1, "b2")]
    assert race.winner == 1
    assert race.reply.content == "b1b2"
    assert race.reply.ttft_s == pytest.approx(1.0, abs=0.01)


def test_the_losers_connections_are_closed_while_the_winner_still_speaks() -> None:
    speaker = racers(a=[3.0, "a"], b=[1.0, "b1", 9.0, "b2"], c=[2.0, "c"])

    async def main() -> None:
        async for _row, _piece in lab_of(speaker).race(["a", "b", "c"]):
            await later(lambda: speaker.open in (["b"], []))

    run_virtual(main)
    assert speaker.said == 4


def test_of_two_that_speak_at_the_same_time_one_is_heard() -> None:
    said, _ = run(racers(a=["a1", "a2"], b=["b1", "b2"], c=["c1", "c2"]))
    assert said == [(0, "a1"), (0, "a2")]


def test_rows_not_yet_sent_lose_as_well() -> None:
    speaker = racers(a=[1.0, "a"], b=[2.0, "b"], c=["c"])
    said, _ = run(speaker, concurrency=2)
    assert said == [(0, "a")]
    assert speaker.asked == ["a", "b"]


def test_one_prompt_races_alone() -> None:
    said, race = run(racers(a=[1.0, "a"]))
    assert (said, race.winner) == ([(0, "a")], 0)


def test_no_prompt_is_no_race() -> None:
    async def main() -> list[tuple[int, str]]:
        return await follow(lab_of(racers()).race([]))

    assert run_virtual(main) == []


def test_a_wrong_way_to_cut_is_told_before_anything_is_sent() -> None:
    with pytest.raises(ValueError, match="by must be"):
        lab_of(racers()).race(["p"], by=0)


def test_models_race_by_a_column() -> None:
    class Models(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            slow = b'"slow"' in await request.aread()
            await asyncio.sleep(5.0 if slow else 1.0)
            return httpx.Response(200, content=chunk({"content": "slow" if slow else "fast"}, "stop"))

    async def main() -> list[tuple[int, str]]:
        lab = llmlab.Lab("openai:m", api_key="k", transport=Models())
        return await follow(lab.race(pd.DataFrame({"prompt": ["p", "p"], "model": ["slow", "fast"]})))

    assert run_virtual(main) == [(1, "fast")]


def test_an_answer_without_a_word_wins_if_nobody_spoke_before() -> None:
    calls = [{"index": 0, "id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]

    class Caller(Speaker):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if b'"tool"' in await request.aread():
                await asyncio.sleep(1)
                return httpx.Response(200, content=chunk({"tool_calls": calls}, "tool_calls"))
            return await super().handle_async_request(request)

    speaker = Caller({"a": [[5.0, "a"]], "tool": [[]]})
    said, race = run(speaker)
    assert said == []
    assert race.winner == 1
    assert race.reply.tool_calls[0]["id"] == "1"
    assert speaker.said == 0


# -- failing ----------------------------------------------------------------------------------------------


def test_who_fails_before_anybody_spoke_is_out_and_the_others_go_on() -> None:
    speaker = racers(a=[400], b=[2.0, "b"], c=[3.0, "c"])
    said, race = run(speaker)
    assert (said, race.winner) == ([(1, "b")], 1)
    assert speaker.asked == ["a", "b", "c"]


def test_a_row_backs_off_within_the_race() -> None:
    speaker = Speaker({"a": [[503], ["a"]], "b": [[30.0, "b"]]})
    said, _ = run(speaker)
    assert said == [(0, "a")]
    assert speaker.asked == ["a", "b", "a"]


def test_if_all_fail_the_last_ones_error_is_raised() -> None:
    async def main() -> None:
        race = lab_of(racers(a=[400], b=[2.0, GONE], c=[404]), strategy=NO_RETRY).race(["a", "b", "c"])
        with pytest.raises(LLMError, match="gone"):
            await follow(race)
        with pytest.raises(LLMError, match="gone"):
            _ = race.reply
        assert race.winner is None

    run_virtual(main)


def test_a_winner_that_fails_before_a_word_was_shown_falls_to_the_next() -> None:
    speaker = racers(a=[1.0, "Half a sen", 1.0, GONE], b=[2.0, "Yes. ", "No"], c=[3.0, "c"])
    said, race = run(speaker, by="sentence", strategy=NO_RETRY)
    assert (said, race.winner) == ([(1, "Yes. "), (1, "No")], 1)
    assert race.reply.content == "Yes. No"
    assert speaker.asked == ["a", "b", "c", "b", "c"]


def test_who_had_failed_before_is_not_asked_again() -> None:
    speaker = racers(a=[1.0, "Half a sen", 1.0, GONE], b=[400], c=[3.0, "c"])
    said, _ = run(speaker, by="sentence", strategy=NO_RETRY)
    assert said == [(2, "c")]
    assert speaker.asked == ["a", "b", "c", "c"]


def test_a_winner_that_fails_with_nobody_left_raises_its_error() -> None:
    speaker = racers(a=[1.0, "Half a sen", 1.0, GONE], b=[400])
    with pytest.raises(LLMError, match="gone"):
        run(speaker, by="sentence", strategy=NO_RETRY)
    assert speaker.asked == ["a", "b"]


def test_a_winner_that_fails_after_a_word_was_shown_ends_the_race() -> None:
    speaker = racers(a=[1.0, "Yes. ", "Half a sen", 1.0, GONE], b=[2.0, "b"], c=[400])
    said: list[tuple[int, str]] = []

    async def main() -> None:
        race = lab_of(speaker).race(["a", "b", "c"], by="sentence")
        with pytest.raises(LLMError, match="gone"):
            await hear(race, said)
        assert race.winner == 0
        with pytest.raises(LLMError, match="gone"):
            _ = race.reply

    run_virtual(main)
    assert said == [(0, "Yes. "), (0, "Half a sen")]
    assert speaker.asked == ["a", "b", "c"]


def test_a_winner_may_try_again_while_nothing_was_shown_though_the_others_are_gone() -> None:
    speaker = Speaker({"a": [[1.0, "Half a sen", GONE], ["Yes."]], "b": [[9.0, "b"]]})
    said, _ = run(speaker, by="sentence", strategy=Strategy("retry", (Retry(), Admit((Slots(8),)))))
    assert said == [(0, "Yes.")]
    assert speaker.asked == ["a", "b", "a"]


def test_an_error_that_no_row_can_escape_is_raised() -> None:
    with pytest.raises(AuthFailed):
        run(racers(a=[401], b=[5.0, "b"]), concurrency=1)


def test_a_bad_row_does_not_keep_the_others_from_racing() -> None:
    async def main() -> list[tuple[int, str]]:
        return await follow(lab_of(racers(b=["b"])).race(each for each in (None, "b")))

    assert run_virtual(main) == [(1, "b")]


# -- stopping ---------------------------------------------------------------------------------------------


async def by_break(race: Race, _: Speaker) -> None:
    async for _piece in race:
        break


async def by_the_block(race: Race, speaker: Speaker) -> None:
    async with race:
        async for _piece in race:
            break
    assert speaker.open == []


async def by_aclosing(race: Race, speaker: Speaker) -> None:
    async with aclosing(race), aclosing(aiter(race)) as pieces:
        await anext(pieces)
    assert speaker.open == []


async def by_cancellation_before_anybody_spoke(race: Race, speaker: Speaker) -> None:
    task = asyncio.get_running_loop().create_task(follow(race))
    await asyncio.sleep(0.5)
    assert speaker.open == ["a", "b"]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert speaker.open == []


async def from_another_task(race: Race, _: Speaker) -> None:
    task = asyncio.get_running_loop().create_task(follow(race))
    await asyncio.sleep(0.5)
    await race.aclose()
    assert await task == []
    with pytest.raises(RuntimeError, match="once"):
        await follow(race)


@pytest.mark.parametrize(
    "leave", [by_break, by_the_block, by_aclosing, by_cancellation_before_anybody_spoke, from_another_task]
)
def test_who_leaves_closes_all_connections(leave: Callable[[Race, Speaker], Awaitable[None]]) -> None:
    speaker = racers(a=[1.0, "a", 50.0], b=[5.0, "b"])

    async def main() -> None:
        race = lab_of(speaker).race(["a", "b"])
        await leave(race, speaker)
        await later(lambda: not speaker.open)
        assert asyncio.get_running_loop().time() < 2
        await later(lambda: len(asyncio.all_tasks()) == 1)
        with pytest.raises(RuntimeError, match="no whole answer"):
            _ = race.reply

    run_virtual(main)


def test_a_race_stopped_from_elsewhere_says_so_and_blames_nobody() -> None:
    async def main() -> None:
        lab = lab_of(racers(a=[1.0, "a", 50.0], b=[400]))

        def stop() -> None:
            assert lab.last is not None
            lab.last.cancel()

        asyncio.get_running_loop().call_later(2, stop)
        with pytest.raises(LLMError, match="stopped before its end"):
            await follow(lab.race(["b", "a"]))

    run_virtual(main)


def test_a_race_is_followed_once() -> None:
    async def main() -> None:
        race = lab_of(racers(a=["a"])).race(["a"])
        assert await follow(race)
        with pytest.raises(RuntimeError, match="once"):
            await follow(race)

    run_virtual(main)


# -- whatever happens -------------------------------------------------------------------------------------

steps = st.lists(st.sampled_from(["Word ", "One. ", 0.5, 1.0, 2.0, GONE]), max_size=6)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(steps, st.just([400]), st.just([500])), min_size=1, max_size=5),
    st.sampled_from(["piece", "sentence"]),
)
def test_one_row_alone_is_heard_and_whole_unless_an_error_says_so(scripts: list[list[Step]], by: Any) -> None:
    speaker = Speaker({f"p{n}": [script] for n, script in enumerate(scripts)})

    async def main() -> None:
        race = lab_of(speaker, strategy=NO_RETRY).race(list(speaker.scripts), by=by)
        said: list[tuple[int, str]] = []
        try:
            await hear(race, said)
        except LLMError:
            assert any(GONE in script or script in ([400], [500]) for script in scripts)
        else:
            assert race.winner is not None
            assert race.reply.content == "".join(text for _, text in said)
        assert len({row for row, _ in said}) <= 1
        await later(lambda: not speaker.open)

    run_virtual(main)
