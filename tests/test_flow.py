import asyncio
import socket
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import Any

import httpx
import pytest

import llmlab
from llmlab import flow as flow_module
from llmlab.clock import run_virtual
from llmlab.errors import LLMError, TimedOut
from llmlab.flow import FULL, Flow, Hold, Pipe
from llmlab.policies.admit import Admit
from llmlab.policies.timeout import Timeout
from llmlab.rules.slots import Slots
from llmlab.sim.physics import Physics
from llmlab.sim.server import serve
from llmlab.sim.transport import Simulator
from llmlab.strategy import Strategy
from tests.test_streams import Speaker, Step, chunk, lab_of, one

# -- a call's hold ----------------------------------------------------------------------------------------


def test_an_open_tap_costs_no_turn_of_the_event_loop() -> None:
    async def main() -> None:
        waiting = Hold(Flow()).wait()
        with pytest.raises(StopIteration):
            waiting.send(None)

    run_virtual(main)


@pytest.mark.parametrize(("allowed", "in_time"), [(3.1, True), (2.9, False)])
def test_a_deadline_is_put_off_by_the_time_waited_and_no_more(allowed: float, in_time: bool) -> None:
    async def attempt(flow: Flow) -> float:
        loop, hold = asyncio.get_running_loop(), Hold(flow)
        async with asyncio.timeout(allowed) as hold.deadline:
            await asyncio.sleep(1)
            await hold.wait()
            await asyncio.sleep(2)
        return loop.time()

    async def main() -> float:
        flow = Flow()
        flow.close()
        asyncio.get_running_loop().call_later(101, flow.reopen)
        return await attempt(flow)

    if in_time:
        assert run_virtual(main) == pytest.approx(103, abs=0.01)
    else:
        with pytest.raises(TimeoutError):
            run_virtual(main)


def test_the_deadline_of_an_attempt_that_has_ended_is_left_alone() -> None:
    async def main() -> None:
        flow = Flow()
        hold = Hold(flow)
        async with asyncio.timeout(5) as hold.deadline:
            await asyncio.sleep(1)
        for _ in range(2):
            flow.close()
            asyncio.get_running_loop().call_later(10, flow.reopen)
            await hold.wait()

    run_virtual(main)


def test_a_hold_that_is_given_up_passes_the_cancellation_on() -> None:
    async def main() -> None:
        flow = Flow()
        flow.close()
        loop, hold = asyncio.get_running_loop(), Hold(flow)

        async def attempt() -> None:
            async with asyncio.timeout(None) as hold.deadline:
                loop.call_later(5, hold.deadline.reschedule, 6.0)
                await hold.wait()

        with pytest.raises(TimeoutError):
            await attempt()
        assert loop.time() == pytest.approx(6, abs=0.01)

    run_virtual(main)


def test_silence_counts_from_the_end_of_the_wait() -> None:
    async def main() -> None:
        flow = Flow()
        hold = Hold(flow)
        assert hold.since(3.0, 8.0) == 3.0
        flow.close()
        waiting = asyncio.get_running_loop().create_task(hold.wait())
        await asyncio.sleep(10)
        assert hold.since(3.0, 8.0) == 8.0
        flow.reopen()
        await waiting
        assert hold.since(3.0, 20.0) == pytest.approx(10, abs=0.01)
        assert hold.since(15.0, 20.0) == 15.0

    run_virtual(main)


def test_those_held_go_on_one_by_one_when_the_first_fills_it_again() -> None:
    async def main() -> int:
        flow, went = Flow(), 0
        flow.close()

        async def call() -> None:
            nonlocal went
            await Hold(flow).wait()
            went += 1
            flow.close()

        tasks = [asyncio.get_running_loop().create_task(call()) for _ in range(10)]
        await asyncio.sleep(1)
        flow.reopen()
        await asyncio.sleep(1)
        for task in tasks:
            task.cancel()
        return went

    assert run_virtual(main) == 1


# -- a slow consumer --------------------------------------------------------------------------------------


def long(words: int, size: int = 1000) -> list[Step]:
    return [f"{n:>{size}}" for n in range(words)]


def test_a_slow_consumer_holds_the_provider_back_and_misses_nothing() -> None:
    speaker = Speaker({prompt: [long(500)] for prompt in "abc"})

    async def main() -> None:
        most, eaten, rows = 0, 0, {0: "", 1: "", 2: ""}
        async for row, piece in lab_of(speaker).stream_many(list("abc")):
            await asyncio.sleep(0.1)
            most = max(most, speaker.said - eaten)
            eaten += len(str(piece))
            rows[row] += str(piece)
        assert FULL < most < FULL + 3 * 1000 + 1
        assert set(rows.values()) == {"".join(map(str, long(500)))}

    run_virtual(main)


def test_a_fast_consumer_holds_nobody_back() -> None:
    async def main() -> float:
        said = [piece async for piece in lab_of(one(*long(500), 1.0, *long(500))).stream("p")]
        return asyncio.get_running_loop().time() if len(said) == 1000 else -1

    assert run_virtual(main) == pytest.approx(1.0, abs=0.01)


def strict(**deadlines: float) -> Strategy:
    return Strategy("strict", (Admit((Slots(8),)), Timeout(**deadlines)))


@pytest.mark.parametrize(
    "deadlines", [{"attempt": 10.0}, {"between_tokens": 10.0}, {"attempt": 10.0, "first_token": 5.0}]
)
def test_deadlines_stand_still_while_the_consumer_is_slow(deadlines: dict[str, float]) -> None:
    async def main() -> int:
        lab, count = lab_of(one(*long(200)), strategy=strict(**deadlines)), 0
        async for _piece in lab.stream("p"):
            count += 1
            await asyncio.sleep(15 if count in (1, 100) else 0)
        return count

    assert run_virtual(main) == 200


@pytest.mark.parametrize(("deadline", "phase"), [("attempt", "attempt"), ("between_tokens", "between_tokens")])
def test_deadlines_hold_when_it_is_the_provider_that_is_slow(deadline: str, phase: str) -> None:
    async def main() -> None:
        count = 0
        lab = lab_of(one(*long(200), 100.0, "x"), strategy=strict(**{deadline: 10.0}))

        async def read() -> None:
            nonlocal count
            async for _piece in lab.stream("p"):
                count += 1
                await asyncio.sleep(15 if count == 1 else 0)

        with pytest.raises(TimedOut) as raised:
            await read()
        assert raised.value.phase == phase
        assert count == 200
        assert asyncio.get_running_loop().time() == pytest.approx(25, abs=0.1)

    run_virtual(main)


@pytest.mark.parametrize(("silent", "last"), [(5.0, "b"), (40.0, "no token came within 10 s")])
def test_the_deadline_of_the_first_token_stands_still_as_well(silent: float, last: str) -> None:
    speaker = Speaker({"a": [long(200)], "b": [[silent, "b"]]})

    async def main() -> list[str]:
        said: list[str] = []
        lab = lab_of(speaker, strategy=strict(first_token=10.0))
        async for _, piece in lab.stream_many(["a", "b"]):
            await asyncio.sleep(0 if said else 15)
            said.append(str(piece))
        return said

    assert run_virtual(main)[-1] == last


def test_rows_answered_at_once_do_not_pile_up_before_a_slow_consumer() -> None:
    class AtOnce(Speaker):
        async def handle_async_request(self, _: httpx.Request) -> httpx.Response:
            self.said += 1000
            return httpx.Response(200, content=chunk({"content": "x" * 1000}, "stop"))

    async def main() -> None:
        speaker, most, eaten = AtOnce({}), 0, 0
        async for _, piece in lab_of(speaker, concurrency=8).stream_many(["p"] * 1000):
            await asyncio.sleep(0.1)
            most = max(most, speaker.said - eaten)
            eaten += len(str(piece))
        assert eaten == 1_000_000
        assert most < FULL + 40 * 1000  # those in flight and in line

    run_virtual(main)


def test_rows_that_are_no_prompts_do_not_pile_up_before_a_slow_consumer() -> None:
    taken = 0

    def source() -> Iterator[None]:
        nonlocal taken
        for _ in range(10_000):
            taken += 1
            yield None

    async def main() -> None:
        async for _row, _error in lab_of(one()).stream_many(source()):
            await asyncio.sleep(100)
            return

    run_virtual(main)
    assert taken < 100


def test_a_whole_answer_gives_its_slot_back_before_it_has_been_read() -> None:
    class AtOnce(Speaker):
        async def handle_async_request(self, _: httpx.Request) -> httpx.Response:
            return httpx.Response(200, stream=Chunks())

    class Chunks(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield chunk({"role": "assistant"})
            yield chunk({"content": "x" * 2 * FULL}, "stop")

    async def main() -> None:
        lab = lab_of(AtOnce({}), concurrency=1)
        async for piece in lab.stream("p"):
            assert (await lab.run("p", stream=True)).content == piece

    run_virtual(main)


def test_a_slow_consumer_is_not_seen_in_the_times_of_the_answer() -> None:
    async def main() -> llmlab.Reply:
        pieces: list[Step] = ["x" * 1000, 0.01] * 200
        stream = lab_of(one(*pieces)).stream("p")
        async for _piece in stream:
            await asyncio.sleep(1)
        assert asyncio.get_running_loop().time() > 200
        return stream.reply

    reply = run_virtual(main)
    assert reply.itl_s == pytest.approx(0.01, abs=0.001)
    assert reply.latency_s == pytest.approx(2.0, abs=0.1)


# -- over two event loops ---------------------------------------------------------------------------------


class Source:
    """A job in a thread of its own that puts as fast as the tap lets it."""

    stopped = None

    def __init__(self, pieces: int, *, and_later: bool = False) -> None:
        self.pieces, self.flow = pieces, Flow()
        self.and_later, self.more, self.cancelled = and_later, asyncio.Event(), threading.Event()
        self.pipe: Pipe[LLMError] | None = None
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()

    def on_loop(self, callback: Callable[[], object]) -> None:
        self.loop.call_soon_threadsafe(callback)

    def cancel(self) -> None:
        self.cancelled.set()

    async def wait(self) -> None:
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._put(), self.loop))

    async def _put(self) -> None:
        assert self.pipe is not None
        hold = Hold(self.flow)
        for n in range(self.pieces):
            self.pipe.put(n, "x")
            await hold.wait()
        while self.and_later and not self.cancelled.is_set():
            await self.more.wait()
            self.pipe.put(self.pieces, "x")

    def end(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads that take turns a hundred times as often as usual."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(interval / 100)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize(("full", "low"), [(0, 0), (5, 2), (200, 50)])
def test_two_threads_lose_no_piece_and_no_wake_up(monkeypatch: pytest.MonkeyPatch, full: int, low: int) -> None:
    monkeypatch.setattr(flow_module, "FULL", full)
    monkeypatch.setattr(flow_module, "LOW", low)
    source = Source(5000)

    async def main() -> list[int]:
        pipe = source.pipe = Pipe(source, source.flow)
        got: list[int] = []
        async with asyncio.timeout(30):
            while batch := await pipe.take():
                assert len(batch) <= full + 1
                got += [row for row, _ in batch]
        return got

    try:
        assert asyncio.run(main()) == list(range(5000))
    finally:
        source.end()


class Meanwhile(asyncio.Event):
    """At the very moment at which it is cleared, the other thread does something."""

    def __init__(self, *acts: Callable[[], object]) -> None:
        super().__init__()
        self.acts = list(acts)

    def clear(self) -> None:
        if self.acts:
            self.acts.pop(0)()
        super().clear()


class Idle:
    """A job that only others make do something."""

    stopped = None

    async def wait(self) -> None:
        await asyncio.get_running_loop().create_future()

    def on_loop(self, callback: Callable[[], object]) -> None:
        callback()

    def cancel(self) -> None: ...


def test_a_tap_closed_just_after_all_was_taken_is_opened_again() -> None:
    async def main() -> None:
        flow = Flow()
        pipe: Pipe[LLMError] = Pipe(Idle(), flow)
        flow.open = Meanwhile(lambda: setattr(pipe, "_taken", pipe._put))
        flow.reopen()
        pipe.put(0, "x" * (FULL + 1))
        assert flow.open.is_set()
        pipe.put(0, "x" * (FULL + 1))
        assert not flow.open.is_set()

    run_virtual(main)


def test_a_piece_put_just_before_the_consumer_falls_asleep_wakes_it() -> None:
    async def main() -> None:
        pipe: Pipe[LLMError] = Pipe(Idle(), Flow())
        pipe._news = Meanwhile(lambda: pipe.put(0, "x"))
        assert await pipe.take() == [(0, "x")]

    run_virtual(main)


def test_a_piece_put_while_the_consumer_takes_the_others_is_not_lost() -> None:
    class Busy(list[tuple[int, str | LLMError]]):
        def __getitem__(self, key: Any) -> Any:
            got = super().__getitem__(key)
            if len(self) == 1:
                self.append((1, "y"))
            return got

    async def main() -> None:
        pipe: Pipe[LLMError] = Pipe(Idle(), Flow())
        pipe._queue = Busy([(0, "x")])
        assert await pipe.take() == [(0, "x")]
        assert pipe._queue == [(1, "y")]

    run_virtual(main)


def test_a_batch_counts_once_though_the_next_was_asked_for_twice() -> None:
    async def main() -> None:
        flow = Flow()
        pipe: Pipe[LLMError] = Pipe(Idle(), flow)
        pipe.put(0, "x" * FULL)
        assert len(await pipe.take()) == 1
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(pipe.take(), 1)
        pipe.put(0, "x" * (FULL + 1))
        assert not flow.open.is_set()

    run_virtual(main)


# -- a reader that needs what its answers occupy ----------------------------------------------------------


LONG: list[Step] = ["x" * 1000] * (3 * FULL // 1000)
"""An answer that is held back three times before it is read."""


def speaker_of(rows: int) -> Speaker:
    return Speaker({**{f"p{n}": [LONG] for n in range(rows)}, "a": [["b"]]})


@pytest.mark.parametrize("single", [True, False], ids=["run", "run_many"])
def test_a_reader_may_ask_the_same_lab_before_it_reads_on(single: bool) -> None:
    rows = 60
    speaker = speaker_of(rows)
    lab = lab_of(speaker, concurrency=2)

    async def ask() -> object:
        if single:
            return (await lab.run("a", stream=True)).content
        return (await lab.run_many(["a"], stream=True)).content[0]

    async def main() -> float:
        said, ahead = [0] * rows, 0
        async for row, piece in lab.stream_many([f"p{n}" for n in range(rows)]):
            assert isinstance(piece, str)
            said[row] += len(piece)
            if said[row] % 50_000 == 0:
                assert await ask() == "b"
                ahead = max(ahead, speaker.said - sum(said))
        assert said == [len(LONG) * 1000] * rows
        return ahead / len(LONG) / 1000

    # Answers that have begun are read to their ends, and those in line; no further ones are taken.
    assert run_virtual(main) <= 2 + 16 + 1


def test_a_slow_reader_does_not_keep_the_lab_from_others() -> None:
    lab = lab_of(speaker_of(1), concurrency=1)

    async def main() -> None:
        async with aclosing(aiter(lab.stream("p0"))) as pieces:
            await anext(pieces)
            await asyncio.sleep(60)  # held back since long
            reply = await asyncio.wait_for(lab.run("a", stream=True).wait(), 60)
            assert reply.content == "b"

    run_virtual(main)


def test_while_nobody_else_waits_a_slow_reader_holds_its_answers_back() -> None:
    speaker = speaker_of(4)

    async def main() -> None:
        async with aclosing(aiter(lab_of(speaker, concurrency=2).stream_many(["p0", "p1", "p2", "p3"]))) as pieces:
            await anext(pieces)
            await asyncio.sleep(600)
            assert FULL < speaker.said <= FULL + 4 * 1000

    run_virtual(main)


# -- between threads --------------------------------------------------------------------------------------


def test_a_consumer_whose_loop_is_closed_stops_the_job() -> None:
    source = Source(1, and_later=True)
    loop = asyncio.new_event_loop()
    kept: list[Any] = []

    async def begin() -> None:
        pipe = source.pipe = Pipe(source, source.flow)
        assert await pipe.take() == [(0, "x")]
        kept.append(loop.create_task(pipe.take()))
        await asyncio.sleep(0)

    try:
        loop.run_until_complete(begin())
        loop.close()
        source.on_loop(source.more.set)
        assert source.cancelled.wait(10)
    finally:
        source.end()


def test_a_lab_in_a_thread_is_read_from_another_loop() -> None:
    simulator = Simulator(physics=Physics.instant(), seed=2)
    lab = llmlab.Lab("openai:m", transport=simulator, loop="thread")

    async def main() -> None:
        stream = lab.stream_many([f"Question {n}" for n in range(50)])
        said: dict[int, str] = {}
        async for row, piece in stream:
            said[row] = said.get(row, "") + str(piece)
        assert said == {row: outcome.reply.content for row, outcome in stream.outcomes.items() if outcome.reply}
        assert len(said) == 50

    asyncio.run(main())


def test_leaving_a_stream_of_another_thread_closes_its_connection() -> None:
    speaker = one("x", 50.0, "y")
    lab = lab_of(speaker, loop="thread")

    async def main() -> None:
        async with lab.stream("p") as stream:
            async for piece in stream:
                assert piece == "x"
                break
        assert speaker.open == []

    asyncio.run(main())


@pytest.mark.usefixtures("hasty")
def test_of_a_lab_in_a_thread_not_even_the_first_piece_is_missed() -> None:
    lab = lab_of(one("first", " second"), loop="thread")

    async def main() -> None:
        for _ in range(200):
            assert [piece async for piece in lab.stream("p")] == ["first", " second"]

    asyncio.run(main())


# -- over a socket ----------------------------------------------------------------------------------------


class Torrent:
    """A server that writes an answer as fast as its client takes it, and counts."""

    PIECE = "x" * 1000

    def __init__(self, pieces: int) -> None:
        self.pieces, self.written, self.hung_up = pieces, 0, asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        try:
            for _ in range(self.pieces):
                writer.write(chunk({"content": self.PIECE}))
                await writer.drain()
                self.written += 1
            writer.write(chunk({}, "stop") + b"data: [DONE]\n\n")
        except ConnectionError:
            self.hung_up.set()
        writer.close()


async def with_torrent(pieces: int, use: Callable[[llmlab.Lab, Torrent], Awaitable[None]]) -> None:
    torrent = Torrent(pieces)
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
    server = await asyncio.start_server(torrent, sock=listening)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    async with server, llmlab.Lab("openai:m", api_key="k", base_url=url) as lab:
        await use(lab, torrent)


async def blocked(torrent: Torrent) -> int:
    """Turns of the event loop until the server has written nothing for many of them; what it had written."""
    before, still = -1, 0
    while still < 300:
        still = still + 1 if torrent.written == before else 0
        before = torrent.written
        await asyncio.sleep(0)
    return before


def test_a_slow_consumer_blocks_the_servers_writes() -> None:
    async def use(lab: llmlab.Lab, torrent: Torrent) -> None:
        pieces = aiter(lab.stream("p"))
        await anext(pieces)
        stuck = await blocked(torrent)
        assert stuck < 12_000  # what the system's buffers take, 6 MB by default, and little more
        for _ in range(100):
            await anext(pieces)
        rest = [piece async for piece in pieces]
        assert set(rest) == {torrent.PIECE}
        assert len(rest) == torrent.pieces - 101

    asyncio.run(with_torrent(24_000, use))


def test_leaving_early_hangs_up_on_a_server_that_still_writes() -> None:
    async def use(lab: llmlab.Lab, torrent: Torrent) -> None:
        async for _piece in lab.stream("p"):
            break
        async with asyncio.timeout(10):
            await torrent.hung_up.wait()
        assert torrent.written < torrent.pieces

    asyncio.run(with_torrent(1_000_000, use))


def slow_provider() -> Simulator:
    """The first token at once, the next one tomorrow."""
    return Simulator(physics=Physics(rtt=0.0, ttft=0.0, itl=86_400.0, load=0.0, jitter=0.0, prefill=1e9))


async def with_simulator(use: Callable[[llmlab.Lab, Simulator], Awaitable[None]]) -> None:
    simulator = slow_provider()
    server = await serve(simulator)
    try:
        async with llmlab.Lab("openai:m", api_key="k", base_url=f"{server.base_url}/v1") as lab:
            await use(lab, simulator)
    finally:
        await server.aclose()


async def gone(simulator: Simulator, left: int) -> None:
    """Until the provider has only so many requests in its hands."""
    async with asyncio.timeout(10):
        while simulator.stats()["in_flight"] != left:
            await asyncio.sleep(0)


def test_the_provider_sees_who_leaves_early_hang_up() -> None:
    async def use(lab: llmlab.Lab, simulator: Simulator) -> None:
        async for _row, _piece in lab.stream_many(["a", "b", "c"]):
            if simulator.stats()["in_flight"] == 3:
                break
        await gone(simulator, 0)

    asyncio.run(with_simulator(use))


def test_the_provider_sees_the_losers_of_a_race_hang_up() -> None:
    async def use(lab: llmlab.Lab, simulator: Simulator) -> None:
        async with lab.race(["a", "b", "c", "d"]) as race:
            async for _row, _piece in race:
                await gone(simulator, 1)
                break
        await gone(simulator, 0)
        assert simulator.requests == 4

    asyncio.run(with_simulator(use))
