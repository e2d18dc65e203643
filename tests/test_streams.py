import asyncio
import gc
import signal
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import Any, TypeAlias, TypeVar

import httpx
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llmlab
from llmlab import streams
from llmlab.call import Call, Handler
from llmlab.clock import run_virtual
from llmlab.errors import AuthFailed, LLMError, StreamTruncated
from llmlab.events import Delta
from llmlab.policies.admit import Admit
from llmlab.policies.hedge import Hedge
from llmlab.rules.slots import Slots
from llmlab.strategy import Strategy
from llmlab.streams import Piece, Stream, Streams

T = TypeVar("T")
Step: TypeAlias = str | float | Exception | int


class Speaker(httpx.AsyncBaseTransport):
    """Says what is written for a prompt: a word is said, a float slept, an int is an HTTP status, an exception raised.

    Each request for the same prompt takes the next script; the last one is for all that follow.
    """

    def __init__(self, scripts: dict[str, list[list[Step]]]) -> None:
        self.scripts = {prompt: list(each) for prompt, each in scripts.items()}
        self.asked: list[str] = []
        self.open: list[str] = []
        self.said = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        prompt = orjson.loads(await request.aread())["messages"][-1]["content"]
        self.asked.append(prompt)
        scripts = self.scripts[prompt]
        script = scripts.pop(0) if len(scripts) > 1 else scripts[0]
        if script and isinstance(script[0], int):
            return httpx.Response(script[0], json={"error": {"message": "as the script says"}})
        self.open.append(prompt)
        return httpx.Response(200, stream=_Speech(self, prompt, script))


class _Speech(httpx.AsyncByteStream):
    def __init__(self, speaker: Speaker, prompt: str, script: list[Step]) -> None:
        self.speaker, self.prompt, self.script = speaker, prompt, script

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield chunk({"role": "assistant"})
        for step in self.script:
            if isinstance(step, Exception):
                raise step
            if isinstance(step, float):
                await asyncio.sleep(step)
            else:
                self.speaker.said += len(str(step))
                yield chunk({"content": step})
        yield chunk({}, "stop") + b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 5}}\n\n'
        yield b"data: [DONE]\n\n"

    async def aclose(self) -> None:
        self.speaker.open.remove(self.prompt)


def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
    return b"data: " + orjson.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}) + b"\n\n"


def lab_of(speaker: Speaker, **settings: Any) -> llmlab.Lab:
    return llmlab.Lab("openai:m", api_key="k", transport=speaker, seed=1, **settings)


def one(*script: Step) -> Speaker:
    return Speaker({"p": [list(script)]})


async def texts(stream: Stream) -> list[str]:
    return [piece async for piece in stream]


async def read(stream: Streams) -> list[Piece]:
    return [piece async for piece in stream]


async def hear(pieces: AsyncIterable[T], said: list[T]) -> None:
    """Keep what is said, also if it ends in an error."""
    async for piece in pieces:
        said.append(piece)  # noqa: PERF401  a comprehension would lose it all


async def later(condition: Callable[[], bool]) -> None:
    """Turns of the event loop until it holds; they take no time."""
    for _ in range(200):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came to hold")


# -- one answer -------------------------------------------------------------------------------------------


def test_pieces_come_as_they_are_said() -> None:
    async def main() -> list[tuple[str, float]]:
        loop = asyncio.get_running_loop()
        stream = lab_of(one("One", 1.0, " two", 1.0, " three")).stream("p")
        return [(piece, loop.time()) async for piece in stream]

    said = run_virtual(main)
    assert [piece for piece, _ in said] == ["One", " two", " three"]
    assert [at for _, at in said] == pytest.approx([0.0, 1.0, 2.0], abs=0.01)


def test_afterwards_the_reply_is_whole_with_its_times_and_usage() -> None:
    async def main() -> llmlab.Reply:
        stream = lab_of(one(2.0, "One", 1.0, " two", 3.0, " three")).stream("p")
        await texts(stream)
        return stream.reply

    reply = run_virtual(main)
    assert reply.content == "One two three"
    assert reply.ttft_s == pytest.approx(2.0, abs=0.01)
    assert reply.itl_s == pytest.approx(2.0, abs=0.01)
    assert reply.usage is not None
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (3, 5)


def test_nothing_is_sent_before_it_is_read() -> None:
    speaker = one("x")

    async def main() -> None:
        stream = lab_of(speaker).stream("p")
        await asyncio.sleep(10)
        assert speaker.asked == []
        with pytest.raises(RuntimeError, match="not begun"):
            _ = stream.job
        with pytest.raises(RuntimeError, match="no whole answer"):
            _ = stream.reply
        assert await texts(stream) == ["x"]

    run_virtual(main)


@pytest.mark.parametrize(
    ("by", "pieces"),
    [
        ("piece", ["Pi is 3", ".14. e.g. ", "Dr. No", "! The", " end"]),
        ("sentence", ["Pi is 3.14. ", "e.g. Dr. No! ", "The end"]),
        (10, ["Pi is 3.14", ". e.g. Dr.", " No! The e", "nd"]),
    ],
)
def test_text_is_buffered_as_asked_and_the_rest_is_flushed(by: Any, pieces: list[str]) -> None:
    speaker = one("Pi is 3", ".14. e.g. ", "Dr. No", "! The", " end")
    said = run_virtual(lambda: texts(lab_of(speaker).stream("p", by=by)))
    assert "".join(said) == "".join(pieces)
    assert said == pieces or by == "sentence"


def test_a_sentence_is_given_out_before_the_next_one_is_said() -> None:
    async def main() -> list[tuple[str, int]]:
        loop = asyncio.get_running_loop()
        stream = lab_of(one("它好。", 5.0, "Yes! ", 5.0, "No", 5.0, " way")).stream("p", by="sentence")
        return [(piece, round(loop.time())) async for piece in stream]

    # A quote that closes might have followed the first one.
    assert run_virtual(main) == [("它好。", 5), ("Yes! ", 10), ("No way", 15)]


@pytest.mark.parametrize("by", ["word", 0, True, None])
def test_a_wrong_way_to_cut_is_told_before_anything_is_sent(by: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="by must be"):
        lab_of(one("x")).stream("p", by=by)


def test_a_stream_is_read_once() -> None:
    async def main() -> None:
        lab = lab_of(one("x"))
        for stream in (lab.stream("p"), lab.stream_many(["p"])):
            assert [each async for each in stream]
            with pytest.raises(RuntimeError, match="once"):
                await anext(aiter(stream))

    run_virtual(main)


# -- failures ---------------------------------------------------------------------------------------------


def test_a_failure_before_the_first_piece_is_retried_and_not_seen() -> None:
    speaker = Speaker({"p": [[1.0, httpx.ReadError("gone")], [503], ["Whole"]]})
    assert run_virtual(lambda: texts(lab_of(speaker).stream("p"))) == ["Whole"]
    assert len(speaker.asked) == 3


def test_a_failure_after_text_was_given_out_ends_the_stream_with_its_error() -> None:
    speaker = Speaker({"p": [["Half", httpx.ReadError("gone")], ["Whole"]]})
    said: list[str] = []

    async def main() -> None:
        stream = lab_of(speaker).stream("p")
        with pytest.raises(LLMError, match="gone"):
            await hear(stream, said)
        with pytest.raises(LLMError, match="gone"):
            _ = stream.reply

    run_virtual(main)
    assert said == ["Half"]
    assert speaker.asked == ["p"]


def test_text_held_back_for_a_sentence_is_forgotten_when_its_attempt_fails() -> None:
    speaker = Speaker({"p": [["Half a sen", httpx.ReadError("gone")], ["A whole one. ", "And"]]})
    said = run_virtual(lambda: texts(lab_of(speaker).stream("p", by="sentence")))
    assert said == ["A whole one. ", "And"]
    assert len(speaker.asked) == 2


def test_text_held_back_for_a_sentence_comes_before_the_error_that_ends_it() -> None:
    speaker = one("A whole one. ", "Half a sen", httpx.ReadError("gone"))
    said = run_virtual(lambda: read(lab_of(speaker).stream_many(["p"], by="sentence")))
    assert [piece for _, piece in said[:-1]] == ["A whole one. ", "Half a sen"]
    assert isinstance(said[-1][1], LLMError)
    assert len(speaker.asked) == 1


@pytest.mark.parametrize(("shown", "expected"), [(False, ["From the second"]), (True, ["Half"])])
def test_another_target_is_asked_only_while_nothing_was_shown(shown: bool, expected: list[str]) -> None:
    first = Speaker({"p": [["Half", httpx.ReadError("gone")] if shown else [401]]})
    second = lab_of(one("From the second"))
    said: list[str] = []

    async def main() -> None:
        try:
            await hear(lab_of(first, fallback=second).stream("p"), said)
        except LLMError:
            said.append("error")

    run_virtual(main)
    assert said == ([*expected, "error"] if shown else expected)


def test_text_held_back_by_one_target_is_forgotten_when_another_is_asked() -> None:
    first, second = one("Half a sen", httpx.ReadError("gone")), lab_of(one("A whole one. ", "And"))
    lab = lab_of(first, strategy=Strategy.bare(), fallback=second)
    assert run_virtual(lambda: texts(lab.stream("p", by="sentence"))) == ["A whole one. ", "And"]


@pytest.mark.parametrize("by", ["piece", 2])
def test_a_piece_that_comes_after_its_answers_end_harms_nobody(by: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Late:
        async def __call__(self, call: Call, inner: Handler) -> llmlab.Reply:
            reply = await inner(call)
            asyncio.get_running_loop().call_later(1, call.emit, Delta(call.index, "late"))
            return reply

    speaker = Speaker({"a": [["a"]], "b": [[5.0, "b1", "b2"]]})

    async def main() -> list[Piece]:
        stream = lab_of(speaker, strategy=Strategy("late", (Late(),))).stream_many(["a", "b"], by=by)
        said = await read(stream)
        assert not stream._flow.calls
        return said

    assert run_virtual(main) == [(0, "a"), (1, "b1"), (1, "b2")]
    assert not caplog.records


def test_a_stream_that_is_cut_off_says_so_after_its_text() -> None:
    class Cut(Speaker):
        async def handle_async_request(self, _: httpx.Request) -> httpx.Response:
            return httpx.Response(200, content=chunk({"content": "Half"}))

    said = run_virtual(lambda: read(lab_of(Cut({})).stream_many(["p"])))
    assert said[0] == (0, "Half")
    assert isinstance(said[1][1], StreamTruncated)


def test_a_bug_below_is_an_error_that_names_it() -> None:
    said = run_virtual(lambda: read(lab_of(one("a", ZeroDivisionError("oops"))).stream_many(["p"])))
    error = said[1][1]
    assert isinstance(error, LLMError)
    assert str(error) == "ZeroDivisionError: oops"
    assert isinstance(error.__cause__, ZeroDivisionError)


# -- many answers -----------------------------------------------------------------------------------------


def test_many_are_merged_as_they_arrive() -> None:
    speaker = Speaker({"a": [["a1", 2.0, "a2"]], "b": [[1.0, "b1", 2.0, "b2"]]})
    said = run_virtual(lambda: read(lab_of(speaker).stream_many(["a", "b"])))
    assert said == [(0, "a1"), (1, "b1"), (0, "a2"), (1, "b2")]


def test_each_error_comes_in_its_place_and_the_others_go_on() -> None:
    speaker = Speaker({"a": [["a1", 2.0, "a2"]], "b": [["b1", 1.0, httpx.ReadError("gone")]], "c": [[400]]})

    async def main() -> tuple[list[Piece], list[str]]:
        stream = lab_of(speaker).stream_many(["a", "b", "c"])
        return await read(stream), stream.frame.status.tolist()

    said, status = run_virtual(main)
    assert [(row, isinstance(piece, LLMError)) for row, piece in said if row] == [(1, False), (2, True), (1, True)]
    assert said[-1] == (0, "a2")
    assert status == ["ok", "error", "error"]


def test_no_prompts_end_at_once() -> None:
    speaker = Speaker({})
    assert run_virtual(lambda: read(lab_of(speaker).stream_many([]))) == []


def test_a_row_that_is_no_prompt_is_an_error_in_its_place() -> None:
    def source() -> Iterator[Any]:
        yield "p"
        yield None

    said = dict(run_virtual(lambda: read(lab_of(one(1.0, "x")).stream_many(source()))))
    assert said[0] == "x"
    assert "ValueError" in str(said[1])


def test_a_source_that_fails_fails_the_stream_after_the_rows_before() -> None:
    def source() -> Iterator[str]:
        yield "p"
        raise OSError("disk")

    said: list[Piece] = []

    async def main() -> None:
        with pytest.raises(OSError, match="disk"):
            await hear(lab_of(one(1.0, "x")).stream_many(source()), said)

    run_virtual(main)
    assert said == [(0, "x")]


def test_an_error_that_no_row_can_escape_ends_the_stream_with_the_rest_cancelled() -> None:
    speaker = Speaker({"a": [[401]], "b": [["b1"]]})

    async def main() -> tuple[list[Piece], list[str]]:
        stream = lab_of(speaker, concurrency=1).stream_many(["a", "b"])
        return await read(stream), [stream.outcomes[row].status for row in (0, 1)]

    said, status = run_virtual(main)
    assert [isinstance(piece, AuthFailed) for _, piece in said] == [True]
    assert status == ["error", "cancelled"]


# -- stopping ---------------------------------------------------------------------------------------------

Leave: TypeAlias = Callable[[llmlab.Lab, Speaker], Awaitable[None]]


async def by_break(lab: llmlab.Lab, _: Speaker) -> None:
    async for _piece in lab.stream("p"):
        break


async def by_break_with_the_stream_kept(lab: llmlab.Lab, speaker: Speaker) -> None:
    stream = lab.stream("p")
    async for _piece in stream:
        break
    await later(lambda: not speaker.open)
    assert stream is not None


async def by_break_of_many(lab: llmlab.Lab, _: Speaker) -> None:
    async for _piece in lab.stream_many(["p", "p", "p"]):
        break


async def by_an_error(lab: llmlab.Lab, _: Speaker) -> None:
    async def reader() -> None:
        async for _piece in lab.stream("p"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await reader()


async def by_the_block(lab: llmlab.Lab, speaker: Speaker) -> None:
    async with lab.stream("p") as stream:
        async for _piece in stream:
            break
    assert speaker.open == []


async def by_aclosing(lab: llmlab.Lab, speaker: Speaker) -> None:
    async with aclosing(lab.stream("p")) as stream, aclosing(aiter(stream)) as pieces:
        assert await anext(pieces)
    assert speaker.open == []


async def by_cancellation_while_waiting(lab: llmlab.Lab, speaker: Speaker) -> None:
    async def reader() -> None:
        async for _piece in lab.stream("p"):
            await asyncio.sleep(0)

    task = asyncio.get_running_loop().create_task(reader())
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert speaker.open == []


async def by_cancellation_in_the_body(lab: llmlab.Lab, _: Speaker) -> None:
    async def reader() -> None:
        async for _piece in lab.stream("p"):
            await asyncio.sleep(1000)

    task = asyncio.get_running_loop().create_task(reader())
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def by_forgetting_it(lab: llmlab.Lab, speaker: Speaker) -> None:
    pieces = aiter(lab.stream("p"))
    await anext(pieces)
    assert speaker.open == ["p"]
    del pieces
    gc.collect()


async def from_another_task(lab: llmlab.Lab, _: Speaker) -> None:
    stream = lab.stream("p")
    task = asyncio.get_running_loop().create_task(texts(stream))
    await asyncio.sleep(1)
    await stream.aclose()
    await stream.aclose()
    assert await task == ["x"]


WAYS = [
    by_break, by_break_with_the_stream_kept, by_break_of_many, by_an_error, by_the_block, by_aclosing,
    by_cancellation_while_waiting, by_cancellation_in_the_body, by_forgetting_it, from_another_task,
]  # fmt: skip


@pytest.mark.parametrize("leave", WAYS)
def test_who_leaves_closes_the_connection(leave: Leave) -> None:
    speaker = one("x", 50.0, "y")

    async def main() -> None:
        await leave(lab_of(speaker), speaker)
        await later(lambda: not speaker.open)
        assert speaker.asked
        assert asyncio.get_running_loop().time() < 2
        await later(lambda: len(asyncio.all_tasks()) == 1)

    run_virtual(main)


def test_a_closed_stream_is_not_begun() -> None:
    speaker = one("x")

    async def main() -> None:
        stream = lab_of(speaker).stream("p")
        await stream.aclose()
        with pytest.raises(RuntimeError, match="once"):
            await texts(stream)

    run_virtual(main)
    assert speaker.asked == []


def test_after_aclose_not_even_waiting_pieces_are_given_out() -> None:
    async def main() -> list[str]:
        said = []
        stream = lab_of(one("a", "b", "c. d", 9.0)).stream("p", by="sentence")
        many = lab_of(one("a", "b", "c", 9.0)).stream_many(["p"])
        async for _, piece in many:
            await asyncio.sleep(1)
            await many.aclose()
            said.append(str(piece))
        task = asyncio.get_running_loop().create_task(texts(stream))
        await asyncio.sleep(1)
        await stream.aclose()
        return said + await task

    assert run_virtual(main) == ["a"]


def test_a_stream_stopped_from_elsewhere_is_no_whole_answer() -> None:
    async def main() -> None:
        stream = lab_of(one("x", 50.0, "y")).stream("p")

        def stop() -> None:
            stream.job.cancel()

        asyncio.get_running_loop().call_later(1, stop)
        with pytest.raises(LLMError, match="stopped before its end"):
            await texts(stream)
        with pytest.raises(RuntimeError, match="no whole answer"):
            _ = stream.reply

    run_virtual(main)


def test_many_stopped_from_elsewhere_end_with_the_rest_cancelled() -> None:
    async def main() -> tuple[list[Piece], list[str]]:
        stream = lab_of(Speaker({"a": [["a1"]], "b": [[1.0, "b1", 50.0]]})).stream_many(["a", "b"])
        said = []
        async for row, piece in stream:
            said.append((row, piece))
            if row:
                stream.job.cancel()
        return said, stream.frame.status.tolist()

    assert run_virtual(main) == ([(0, "a1"), (1, "b1")], ["ok", "cancelled"])


@pytest.mark.parametrize("busy", [False, True])
def test_an_interrupt_ends_the_stream_with_keyboard_interrupt_and_drops_what_waits(busy: bool) -> None:
    speaker, said = one(*"abc", 50.0), []

    async def main() -> None:
        async for _, piece in lab_of(speaker).stream_many(["p"]):
            said.append(piece)
            if busy or len(said) == 3:
                await later(lambda: speaker.said == 3)
                signal.raise_signal(signal.SIGINT)
                for _ in range(20 * busy):
                    await asyncio.sleep(0)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())
    assert said == (["a"] if busy else ["a", "b", "c"])
    assert speaker.open == []


def test_a_stream_left_half_read_ends_with_its_loop_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    speaker = one("x", 50.0, "y")
    kept: list[Any] = []

    def source() -> Iterator[str]:
        yield "p"
        raise OSError("nobody wants to know any more")

    async def main(*, keep: bool) -> None:
        failing = lab_of(one("a")).stream_many(source())
        failing_pieces = aiter(failing)
        await anext(failing_pieces)
        await later(lambda: failing.job.done)
        await failing_pieces.aclose()
        pieces = aiter(lab_of(speaker).stream("p"))
        await anext(pieces)
        if keep:
            kept.append(pieces)

    for keep in (True, False):
        asyncio.run(main(keep=keep))
        gc.collect()
        assert speaker.open == []
    assert not caplog.records


# -- the event loop ---------------------------------------------------------------------------------------


def test_a_body_that_never_waits_lets_the_event_loop_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "BREATH", -1.0)

    async def main() -> int:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0)

        pieces = aiter(lab_of(one(*"x" * 1000)).stream("p"))
        await anext(pieces)
        await asyncio.sleep(1)
        task = asyncio.get_running_loop().create_task(tick())
        rest = [piece async for piece in pieces]
        task.cancel()
        return ticks if len(rest) == 999 else -1

    assert run_virtual(main) > 900


def test_waiting_pieces_are_read_without_a_turn_of_the_event_loop_for_each() -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        pieces = aiter(lab_of(one(*"x" * 1000)).stream("p"))
        await anext(pieces)
        await asyncio.sleep(1)
        began = loop.time()  # a turn takes a virtual microsecond
        rest = [piece async for piece in pieces]
        return (loop.time() - began) * 1e6 if len(rest) == 999 else -1

    assert 0 <= run_virtual(main) < 100


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from(["word ", "One. ", "Dr. ", "。", "é", "\n\n", 0.5, 2.0]), max_size=8), max_size=5)
)
def test_joined_the_pieces_of_a_row_are_its_text_whatever_the_rhythm(scripts: list[list[Step]]) -> None:
    speaker = Speaker({f"p{n}": [[*script, "end"]] for n, script in enumerate(scripts)})

    async def main() -> None:
        for by in ("piece", "sentence", 3):
            lab = lab_of(speaker, strategy=Strategy.bare(concurrency=2))
            stream = lab.stream_many(list(speaker.scripts), by=by)
            said: dict[int, str] = {}
            async for row, piece in stream:
                said[row] = said.get(row, "") + str(piece)
                await asyncio.sleep(0.3)
            assert said == {row: outcome.reply.content for row, outcome in stream.outcomes.items() if outcome.reply}
            assert len(said) == len(scripts)

    run_virtual(main)


class Heard:
    """A policy that lets the reader hear only so many pieces."""

    def __init__(self, pieces: int) -> None:
        self.pieces = pieces

    async def __call__(self, call: Call, inner: Handler) -> llmlab.Reply:
        emit = call.emit

        def hear(event: Any) -> None:
            self.pieces -= type(event) is Delta
            if type(event) is not Delta or self.pieces >= 0:
                emit(event)

        call.emit = hear
        return await inner(call)


@pytest.mark.parametrize(
    ("by", "heard", "said"),
    [("piece", 0, ["One. Two"]), ("sentence", 0, ["One. ", "Two"]), ("sentence", 1, ["One. ", "Two"])],
)
def test_an_answer_of_which_nothing_was_given_out_is_given_out_from_its_reply(
    by: Any, heard: int, said: list[str]
) -> None:
    lab = lab_of(one("On", "e. ", "Two"), strategy=Strategy("heard", (Heard(heard),)))
    assert run_virtual(lambda: texts(lab.stream("p", by=by))) == said


def test_of_a_hedged_answer_the_text_is_its_replys() -> None:
    pieces: list[Step] = ["a", 0.1] * 20
    speaker = Speaker({"warm": [pieces], "p": [["Half a sen", 900.0], ["A whole one. ", "And"]]})
    hedge = Hedge(samples=1)

    async def main() -> None:
        lab = lab_of(speaker, strategy=Strategy("hedged", (hedge, Admit((Slots(8),)))))
        await texts(lab.stream("warm"))
        stream = lab.stream("p", by="sentence")
        assert await texts(stream) == ["A whole one. ", "And"]
        assert stream.reply.content == "A whole one. And"

    run_virtual(main)
    assert speaker.asked == ["warm", "p", "p"]
