import asyncio
import itertools
import logging
import shutil
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import llmlab
from llmlab import answers
from llmlab.call import Call
from llmlab.clock import run_virtual
from llmlab.errors import BadRequest, ServerError
from llmlab.events import Delta
from llmlab.policies import cache as cache_module
from llmlab.policies.cache import Cache
from llmlab.sim import Simulator
from llmlab.strategy import Strategy
from llmlab.types import Message, Prompt, Reply, Usage

PAID = Reply(
    "answer", "stop", "test", "model", Usage(10, 20), "req-1", "thoughts", (), latency_s=3.0, ttft_s=1.0, cost_usd=0.5
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "answers.sqlite"


@pytest.fixture
def cache(path: Path) -> Iterator[Cache]:
    cache = Cache(path)
    yield cache
    cache.close()


def ask(prompt: str | Prompt = "What is tea?", index: int = 0, **given_fields: Any) -> Call:
    names: dict[str, Any] = {"provider": "test", "model": "model", "emit": lambda _: None, **given_fields}
    return Call(index, Prompt.of(prompt), **names)


class Provider:
    """Answers after `seconds`; what stands in `answers` is given (or raised) first. Notes who was sent, and when.

    `just_before` happens before the first answer, `meanwhile` when that has decided whose turn is next, and not more.
    """

    def __init__(self, *answers: Reply | BaseException, seconds: float = 1.0) -> None:
        self.answers, self.seconds = list(answers), seconds
        self.sent: list[tuple[int, float]] = []
        self.meanwhile: Callable[[], object] | None = None
        self.just_before: Callable[[], object] | None = None

    async def __call__(self, call: Call) -> Reply:
        self.sent.append((call.index, round(asyncio.get_running_loop().time(), 3)))
        call.attempts += 1
        await asyncio.sleep(self.seconds)
        if self.just_before is not None:
            self.just_before()
            self.just_before = None
        if self.meanwhile is not None:
            asyncio.get_running_loop().call_soon(self.meanwhile)
            self.meanwhile = None
        answer = self.answers.pop(0) if self.answers else PAID
        if isinstance(answer, BaseException):
            raise answer
        return answer


def in_turn(cache: Cache, inner: Callable[[Call], Awaitable[Reply]], *calls: Call) -> list[Reply]:
    async def main() -> list[Reply]:
        return [await cache(call, inner) for call in calls]

    return run_virtual(main)


def together(cache: Cache, inner: Callable[[Call], Awaitable[Reply]], *calls: Call) -> list[Any]:
    async def main() -> list[Any]:
        return await asyncio.gather(*(cache(call, inner) for call in calls), return_exceptions=True)

    return run_virtual(main)


# -- hits -------------------------------------------------------------------------------------------------


def test_an_answer_is_paid_for_once(cache: Cache) -> None:
    provider, second = Provider(), ask(index=1)
    paid, hit = in_turn(cache, provider, ask(), second)
    assert paid == PAID
    assert hit == replace(PAID, cache_hit=True, cost_usd=0.0, latency_s=hit.latency_s, ttft_s=None)
    assert hit.latency_s < 0.001
    assert second.attempts == 0
    assert len(provider.sent) == 1


def test_a_later_process_finds_it(path: Path) -> None:
    first, second = Cache(path), Cache(path)
    in_turn(first, Provider(), ask())
    first.close()
    [hit] = in_turn(second, Provider(BadRequest("not to be asked")), ask())
    second.close()
    assert (hit.content, hit.usage, hit.cache_hit) == ("answer", Usage(10, 20), True)


BASE = Prompt.of("What is tea?", model="m", temperature=0.5, max_tokens=10, extra={"seed": 1})


@pytest.mark.parametrize(
    "other",
    [
        {"prompt": replace(BASE, messages=(Message("user", "What is tea"),))},
        {"prompt": replace(BASE, messages=(Message("system", "What is tea?"),))},
        {"prompt": replace(BASE, messages=(Message("system", "Be brief."), *BASE.messages))},
        {"prompt": replace(BASE, messages=(Message("user", ({"type": "text", "text": "What is tea?"},)),))},
        {"prompt": replace(BASE, model="n")},
        {"prompt": replace(BASE, temperature=0.6)},
        {"prompt": replace(BASE, temperature=None)},
        {"prompt": replace(BASE, max_tokens=11)},
        {"prompt": replace(BASE, extra={"seed": 2})},
        {"prompt": replace(BASE, extra={"seed": 1, "stop": "."})},
        {"provider": "another"},
    ],
)
def test_whatever_may_change_the_answer_is_asked_anew(cache: Cache, other: dict[str, Any]) -> None:
    provider = Provider()
    replies = in_turn(cache, provider, ask(BASE), ask(**{"prompt": BASE, **other}))
    assert [reply.cache_hit for reply in replies] == [False, False]


def test_the_targets_model_counts_for_a_prompt_that_names_none(cache: Cache) -> None:
    replies = in_turn(cache, Provider(), ask(model="a"), ask(model="b"), ask(Prompt.of("What is tea?", model="a")))
    assert [reply.cache_hit for reply in replies] == [False, False, True]


def test_what_cannot_change_the_answer_is_not_asked_anew(cache: Cache) -> None:
    again = ask(replace(BASE, extra={"seed": 1}), 7, stream=True, seq=9, attempts=3)
    assert [reply.cache_hit for reply in in_turn(cache, Provider(), ask(BASE), again)] == [False, True]


def circular() -> list[Any]:
    loop: list[Any] = []
    loop.append(loop)
    return loop


@pytest.mark.parametrize("value", [object(), circular()], ids=["object", "circular"])
def test_a_prompt_that_is_no_json_goes_straight_on(path: Path, value: object) -> None:
    provider, odd = Provider(), replace(BASE, extra={"x": value})
    cache = Cache(path)
    assert in_turn(cache, provider, ask(odd), ask(odd)) == [PAID, PAID]
    assert len(provider.sent) == 2
    assert not path.exists()


# -- what is kept -----------------------------------------------------------------------------------------

CALLS = ({"id": "1", "function": {"name": "f", "arguments": "{}"}},)


@pytest.mark.parametrize(
    ("reason", "content", "tool_calls", "kept"),
    [
        ("stop", "yes", (), True),
        ("length", "ye", (), True),
        ("tool_calls", "", CALLS, True),
        ("content_filter", "y", (), False),
        ("other", "y", (), False),
        ("stop", "", (), False),
        ("length", "", (), False),
        ("tool_calls", "", (), False),
    ],
)
def test_only_whole_answers_with_something_in_them_are_kept(
    cache: Cache, reason: str, content: str, tool_calls: Any, *, kept: bool
) -> None:
    answer = replace(PAID, finish_reason=reason, content=content, tool_calls=tool_calls)
    paid, second = in_turn(cache, Provider(answer, answer), ask(), ask())
    assert paid == answer
    assert second.cache_hit is kept
    assert (second.content, second.tool_calls) == (content, tool_calls)
    assert len(cache) == kept


def test_a_failure_is_not_kept(cache: Cache) -> None:
    provider = Provider(ServerError("boom"))
    with pytest.raises(ServerError):
        in_turn(cache, provider, ask())
    assert [reply.cache_hit for reply in in_turn(cache, provider, ask())] == [False]


@pytest.mark.parametrize("place", [("test", "small"), ("second", "model")])
def test_another_targets_answer_is_shared_but_not_kept_as_the_first_ones(cache: Cache, place: tuple[str, str]) -> None:
    async def fallen_back(call: Call) -> Reply:
        call.provider, call.model = place
        await asyncio.sleep(1)
        return replace(PAID, content="stand-in")

    replies = together(cache, fallen_back, ask(), ask())
    assert [reply.content for reply in replies] == ["stand-in", "stand-in"]
    [later] = in_turn(cache, Provider(), ask())
    assert (later.content, later.cache_hit) == ("answer", False)


# -- streams ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stream", "content", "pieces"), [(True, "tea", ["tea"]), (False, "tea", []), (True, "", [])])
def test_a_streamed_hit_comes_in_one_piece(cache: Cache, content: str, pieces: list[str], *, stream: bool) -> None:
    provider = Provider(replace(PAID, content=content, tool_calls=CALLS))
    seen: list[Any] = []
    again = [ask(index=n, stream=stream, emit=seen.append) for n in (1, 2)]
    together(cache, provider, ask(), again[0])  # one that follows
    in_turn(cache, provider, again[1])  # one from the file
    assert [each for each in seen if isinstance(each, Delta)] == [Delta(n, text) for n in (1, 2) for text in pieces]


# -- one for all ------------------------------------------------------------------------------------------


def test_rows_that_ask_the_same_at_once_share_one_request(cache: Cache) -> None:
    provider = Provider(seconds=2.0)
    calls = [ask(index=n) for n in range(5)]
    replies = together(cache, provider, *calls)
    assert [index for index, _ in provider.sent] == [0]
    assert [reply.cache_hit for reply in replies] == [False, True, True, True, True]
    assert [call.attempts for call in calls] == [1, 0, 0, 0, 0]
    assert sum(reply.cost_usd for reply in replies) == PAID.cost_usd
    assert replies[4].latency_s == pytest.approx(2.0, abs=0.001), "it is what the row has waited"


def test_rows_that_ask_different_things_do_not_wait_for_each_other(cache: Cache) -> None:
    provider = Provider()
    together(cache, provider, *(ask(f"prompt {n}", n) for n in range(3)))
    assert provider.sent == [(0, 0.0), (1, 0.0), (2, 0.0)]


def test_an_answer_that_somebody_else_has_found_meanwhile_is_not_waited_for(cache: Cache, path: Path) -> None:
    other = Cache(path)

    async def main() -> None:
        leader = asyncio.create_task(cache(ask(), Provider(seconds=9.0)))
        await other(ask(), Provider(seconds=1.0))
        assert (await cache(ask(), Provider())).latency_s < 0.001
        assert not leader.done()
        await leader

    run_virtual(main)
    other.close()


def test_an_answer_not_worth_keeping_is_still_shared_by_those_that_wait(cache: Cache) -> None:
    provider = Provider(replace(PAID, finish_reason="content_filter"))
    replies = together(cache, provider, ask(), ask())
    assert [reply.finish_reason for reply in replies] == ["content_filter"] * 2
    assert len(provider.sent) == 1


def test_a_leaders_failure_is_its_own_and_the_next_in_order_leads(cache: Cache) -> None:
    first, third = ServerError("first"), ServerError("third")
    provider = Provider(first, replace(PAID, content="second"), third)
    replies = together(cache, provider, *(ask(index=n) for n in range(4)))
    assert replies[0] is first
    assert [reply.content for reply in replies[1:]] == ["second"] * 3
    assert [reply.cache_hit for reply in replies[1:]] == [False, True, True]
    assert provider.sent == [(0, 0.0), (1, 1.0)]


def test_a_row_that_comes_between_two_leaders_stands_last(cache: Cache) -> None:
    provider = Provider(*(ServerError(name) for name in ("one", "two", "three")))

    async def main() -> list[Any]:
        tasks = [asyncio.create_task(cache(ask(index=n), provider)) for n in range(3)]
        provider.meanwhile = lambda: tasks.append(asyncio.create_task(cache(ask(index=3), provider)))
        await asyncio.wait(tasks)
        return await asyncio.gather(*tasks, return_exceptions=True)

    assert [type(each) for each in run_virtual(main)] == [ServerError, ServerError, ServerError, Reply]
    assert provider.sent == [(n, float(n)) for n in range(4)]


def test_a_cancelled_leader_is_followed_by_the_next(cache: Cache) -> None:
    provider = Provider()

    async def main() -> list[Any]:
        tasks = [asyncio.create_task(cache(ask(index=n), provider)) for n in range(3)]
        await asyncio.sleep(0.5)
        tasks[0].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    cancelled, led, followed = run_virtual(main)
    assert isinstance(cancelled, asyncio.CancelledError)
    assert (led.cache_hit, followed.cache_hit) == (False, True)
    assert provider.sent == [(0, 0.0), (1, 0.5)]


@pytest.mark.parametrize("boom", [True, False])
@pytest.mark.parametrize("before", [True, False])
def test_one_cancelled_in_the_moment_its_turn_is_decided_harms_nobody(
    cache: Cache, *, boom: bool, before: bool
) -> None:
    provider = Provider(*[ServerError("boom")] * boom)

    async def main() -> list[Any]:
        tasks = [asyncio.create_task(cache(ask(index=n), provider)) for n in range(4)]
        if before:
            provider.just_before = tasks[1].cancel
        else:
            provider.meanwhile = tasks[1].cancel
        return await asyncio.gather(*tasks, return_exceptions=True)

    replies = run_virtual(main)
    assert [type(each) for each in replies] == [ServerError if boom else Reply, asyncio.CancelledError, Reply, Reply]
    assert [index for index, _ in provider.sent] == [0, 2][: 1 + boom]
    assert cache._flights == {}


def test_those_that_give_up_waiting_leave_nothing_behind(cache: Cache) -> None:
    async def main() -> None:
        leader = asyncio.create_task(cache(ask(), Provider()))
        await asyncio.sleep(0)
        impatient = [asyncio.create_task(cache(ask(), Provider())) for _ in range(100)]
        await asyncio.sleep(0.5)
        [followers] = cache._flights.values()
        assert len(followers) == 100
        for task in impatient:
            task.cancel()
        await asyncio.wait(impatient)
        assert followers == {}
        assert not (await leader).cache_hit

    run_virtual(main)


class Row(NamedTuple):
    asks: int
    at: float
    takes: float
    fails: bool
    gives_up: float | None


TENTHS = st.integers(0, 30).map(lambda n: n / 10)  # coarse: many things happen at the same moment
RUNS = itertools.count()
ROWS = st.builds(Row, st.integers(0, 1), TENTHS, TENTHS, st.booleans(), st.none() | TENTHS)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ROWS, min_size=1, max_size=12))
def test_in_any_schedule_each_row_is_settled_once_and_by_right(cache: Cache, rows: list[Row]) -> None:
    run = next(RUNS)  # one file for all runs: it costs more time than they do
    sent: list[int] = []
    flying: set[int] = set()
    errors = [ServerError(str(n)) for n in range(len(rows))]

    async def inner(call: Call) -> Reply:
        row = rows[call.index]
        assert row.asks not in flying, "one request at a time for the same prompt"
        assert call.index not in sent, "one try each"
        waited = [n for n in asking if rows[n].asks == row.asks and asking.index(n) < asking.index(call.index)]
        assert not waited, "those that came first lead first"
        flying.add(row.asks)
        sent.append(call.index)
        try:
            await asyncio.sleep(row.takes)
        finally:
            flying.discard(row.asks)
        if row.fails:
            raise errors[call.index]
        return replace(PAID, content=str(row.asks), request_id=str(call.index))

    asking: list[int] = []  # those neither answered, failed nor cancelled, in the order in which they came

    async def live(n: int) -> Reply:
        await asyncio.sleep(rows[n].at)
        asking.append(n)
        try:
            async with asyncio.timeout(rows[n].gives_up):
                return await cache(ask(f"run {run}, prompt {rows[n].asks}", n), inner)
        finally:
            asking.remove(n)

    async def main() -> list[Any]:
        settled = await asyncio.gather(*map(live, range(len(rows))), return_exceptions=True)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return settled

    settled = run_virtual(main)
    assert cache._flights == {}
    for n, (row, end) in enumerate(zip(rows, settled, strict=True)):
        if isinstance(end, Reply):
            assert end.content == str(row.asks)
            assert end.cache_hit is (n not in sent)
            assert end.cache_hit or (end.request_id == str(n) and not row.fails)
            assert not rows[int(end.request_id or "")].fails
        else:
            assert (end is errors[n] and row.fails) or (isinstance(end, TimeoutError) and row.gives_up is not None)


def test_the_jobs_of_a_lab_share_their_requests(path: Path) -> None:
    prompts = [f"What is {n % 5}?" for n in range(20)]

    async def main(cache: Cache) -> list[Any]:
        strategy = Strategy("cached", (cache, *Strategy.default(concurrency=3).policies))
        lab = llmlab.Lab(strategy=strategy, seed=1, progress=False)
        jobs = [lab.run_many(prompts), lab.run_many(prompts, stream=True)]
        frames = [await job for job in jobs]
        for policy in lab.strategy.policies:
            if isinstance(policy, Cache):
                policy.close()
        return frames

    first, second = run_virtual(partial(main, Cache(path)))
    assert first.attempts.sum() + second.attempts.sum() >= 5
    assert (~first.cache_hit).sum() + (~second.cache_hit).sum() == 5
    assert (first.content == second.content).all()
    later = run_virtual(partial(main, Cache(path)))
    assert all(frame.cache_hit.all() and frame.attempts.sum() == 0 for frame in later)
    assert (later[0].content == first.content).all()


# -- age --------------------------------------------------------------------------------------------------


def test_an_answer_older_than_its_ttl_is_asked_for_anew_and_replaced(path: Path) -> None:
    cache, careless = Cache(path, ttl=60), Cache(path)
    provider = Provider(*(replace(PAID, content=text) for text in ("old", "new")), seconds=0)

    async def main() -> None:
        assert (await cache(ask(), provider)).content == "old"
        await asyncio.sleep(59.9)
        assert (await cache(ask(), provider)).content == "old"
        await asyncio.sleep(0.2)
        assert (await careless(ask(), provider)).content == "old", "the ttl is the reader's"
        assert (await cache(ask(), provider)).content == "new"
        assert (await careless(ask(), provider)).content == "new"
        await asyncio.sleep(59.9)
        assert (await cache(ask(), provider)).cache_hit, "its age is that of the new one"

    run_virtual(main)
    assert len(cache) == 1
    cache.close()
    careless.close()


# -- its life ---------------------------------------------------------------------------------------------


def test_a_copy_has_the_settings_and_none_of_the_state(cache: Cache, path: Path) -> None:
    in_turn(cache, Provider(), ask())
    copy = replace(cache, ttl=5)
    assert copy == Cache(path, ttl=5)
    assert (copy._lease, copy._flights, copy._refusal) == (None, {}, None)
    assert {each.name for each in fields(Cache) if each.init} == {"path", "ttl"}


def test_the_copies_that_a_lab_makes_for_each_new_loop_cost_no_thread_each(cache: Cache) -> None:
    in_turn(cache, Provider(), ask())
    threads = threading.active_count()
    copies = [replace(cache) for _ in range(5)]
    assert all(in_turn(copy, Provider(), ask())[0].cache_hit for copy in copies)
    assert threading.active_count() == threads


def test_its_path_stays_the_same_file_when_the_process_moves(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    cache = Cache("answers.sqlite")
    monkeypatch.chdir("/")
    assert replace(cache).path == path


def test_an_empty_cache_is_true_and_its_length_is_that_of_the_file(cache: Cache) -> None:
    assert cache
    assert len(cache) == 0
    in_turn(cache, Provider(), ask(), ask("What is coffee?"))
    assert len(cache) == 2


def test_a_cleared_cache_asks_again_and_keeps_again(cache: Cache) -> None:
    provider = Provider()
    in_turn(cache, provider, ask())
    cache.clear()
    assert len(cache) == 0
    assert [reply.cache_hit for reply in in_turn(cache, provider, ask(), ask())] == [False, True]


def test_a_closed_cache_opens_again_when_it_is_asked(cache: Cache) -> None:
    provider = Provider()
    in_turn(cache, provider, ask())
    cache.close()
    cache.close()
    assert in_turn(cache, provider, ask())[0].cache_hit


def test_a_cache_closed_while_a_row_is_in_flight_costs_the_row_nothing(
    cache: Cache, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> Reply:
        leader = asyncio.create_task(cache(ask(), Provider()))
        await asyncio.sleep(0.5)
        cache.close()
        path.unlink()  # noqa: ASYNC240  what the user does meanwhile
        monkeypatch.setattr(cache_module, "lease", _refuse)
        return await leader

    assert run_virtual(main) == PAID


def _refuse(_: Path) -> answers.Lease:
    raise OSError("no more")


@pytest.mark.parametrize("value", [5, None, b"answers.sqlite"])
def test_a_path_that_is_none_is_refused_by_name(value: Any) -> None:
    with pytest.raises(TypeError, match=r"Cache: path must be a file's name, as 'answers\.sqlite', not "):
        Cache(value)


@pytest.mark.parametrize("value", [0, -1.0, float("inf"), float("nan"), True, "60"])
def test_a_senseless_ttl_is_refused_by_name(path: Path, value: Any) -> None:
    with pytest.raises(ValueError, match="Cache: ttl must be a number of seconds above 0"):
        Cache(path, ttl=value)


# -- trouble ----------------------------------------------------------------------------------------------


def test_a_file_that_cannot_be_used_is_an_error_before_anything_is_sent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    provider, folder = Provider(), tmp_path / "nowhere"
    cache = Cache(folder / "answers.sqlite")
    error, second = together(cache, provider, ask(), ask())
    assert isinstance(error, FileNotFoundError)
    assert "nowhere is not there; make it first" in str(error)
    assert (type(second), str(second)) == (type(error), str(error))
    assert provider.sent == []
    assert caplog.records == [], "an error that is raised need not be logged"
    with pytest.raises(FileNotFoundError):
        cache.open()
    folder.mkdir()
    cache.open()
    assert [reply.cache_hit for reply in in_turn(cache, provider, ask(), ask())] == [False, True], "used at once"
    cache.close()


def test_the_rows_of_a_job_do_not_each_try_a_file_that_cannot_be_opened(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, tries = Cache(path), []

    def refuse(path: Path) -> answers.Lease:
        tries.append(path)
        return _refuse(path)

    async def main() -> None:
        for _ in range(100):
            with pytest.raises(OSError, match="no more"):
                await cache(ask(), Provider())
        assert len(tries) == 1
        await asyncio.sleep(cache_module.RESPITE)
        for _ in range(100):
            with pytest.raises(OSError, match="no more"):
                await cache(ask(), Provider())
        assert len(tries) == 2
        monkeypatch.undo()
        await asyncio.sleep(cache_module.RESPITE)
        await cache(ask(), Provider())

    monkeypatch.setattr(cache_module, "lease", refuse)
    run_virtual(main)
    cache.close()


def test_trouble_later_costs_the_caching_and_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    cache, provider = Cache(folder / "answers.sqlite"), Provider()

    async def main() -> list[Reply]:
        await cache(ask(), provider)
        shutil.rmtree(folder)
        replies = []
        for _ in range(20):
            replies.append(await cache(ask(), provider))
            await asyncio.sleep(cache_module.RESPITE / 4)
        assert cache._refusal is not None
        folder.mkdir()
        await asyncio.sleep(cache_module.RESPITE)
        replies.append(await cache(ask(), provider))
        replies.append(await cache(ask(), provider))
        return replies

    with caplog.at_level(logging.WARNING, logger="llmlab"):
        replies = run_virtual(main)
    assert [reply.cache_hit for reply in replies] == [False] * 21 + [True]
    said = [record.getMessage() for record in caplog.records if "neither looked up" in record.getMessage()]
    assert len(said) == 1
    assert str(folder) in said[0]
    cache.close()


def test_neither_prompt_nor_url_is_in_the_file(cache: Cache, path: Path) -> None:
    picture = {"type": "image_url", "image_url": {"url": "https://secret.example/picture?key=sk-123"}}
    prompt = Prompt((Message("user", ({"type": "text", "text": "confidential"}, picture)),), extra={"user": "sk-456"})
    in_turn(cache, Provider(), ask(prompt))
    cache.close()
    content = path.read_bytes()
    assert b"answer" in content
    assert not any(secret in content for secret in (b"confidential", b"secret.example", b"sk-"))


def test_rows_that_follow_do_not_keep_others_from_being_taken(tmp_path: Path) -> None:
    """Twenty rows that ask the same one after the other are one request, and the slots are for the next ones."""

    async def main(prompts: list[str], name: str) -> float:
        lab = llmlab.Lab("openai:m", transport=Simulator(seed=1), concurrency=16, cache=tmp_path / name)
        out = await lab.run_many(prompts)
        assert (out.attempts.sum(), out.cache_hit.sum()) == (20, 380)
        assert llmlab.summary(out).input_tokens == out[~out.cache_hit].input_tokens.sum()
        return asyncio.get_running_loop().time()

    each = [f"question {n % 20}" for n in range(400)]
    assert run_virtual(lambda: main(sorted(each), "sorted")) < 1.5 * run_virtual(lambda: main(each, "mixed"))
