import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.call import Call, Handler, Policy, chain
from llmlab.clock import run_virtual
from llmlab.errors import ServerError
from llmlab.types import Prompt, Reply
from tests.conftest import reply


class Layer:
    """Notes when a call goes in and out."""

    def __init__(self, name: Any, trace: list[Any]) -> None:
        self.name, self.trace = name, trace

    async def __call__(self, call: Call, inner: Handler) -> Reply:
        self.trace.append((self.name, "in"))
        try:
            return await inner(call)
        finally:
            self.trace.append((self.name, "out"))


def a_call() -> Call:
    return Call(0, Prompt.of("hi"), lambda _: None)


async def endpoint(_: Call) -> Reply:
    return reply("from the end")


def test_without_policies_the_endpoint_answers() -> None:
    assert chain((), endpoint) is endpoint


def test_the_first_policy_is_the_outermost() -> None:
    trace: list[Any] = []
    handler = chain([Layer("outer", trace), Layer("inner", trace)], endpoint)
    assert run_virtual(lambda: handler(a_call())).content == "from the end"
    assert trace == [("outer", "in"), ("inner", "in"), ("inner", "out"), ("outer", "out")]


@settings(deadline=None)
@given(st.integers(0, 30))
def test_every_policy_is_passed_once_each_way(depth: int) -> None:
    trace: list[Any] = []
    handler = chain((Layer(n, trace) for n in range(depth)), endpoint)
    run_virtual(lambda: handler(a_call()))
    down, up = trace[:depth], trace[depth:]
    assert down == [(n, "in") for n in range(depth)]
    assert up == [(n, "out") for n in reversed(range(depth))]


def test_a_chain_can_be_used_again_and_by_many_calls_at_once() -> None:
    trace: list[Any] = []
    handler = chain([Layer("only", trace)], endpoint)

    async def main() -> None:
        await asyncio.gather(*(handler(a_call()) for _ in range(5)))

    run_virtual(main)
    assert len(trace) == 10


def test_an_error_passes_all_policies_as_it_is() -> None:
    error = ServerError("boom")

    async def failing(_: Call) -> Reply:
        raise error

    with pytest.raises(ServerError) as raised:
        run_virtual(lambda: chain([Layer(1, []), Layer(2, [])], failing)(a_call()))
    assert raised.value is error


def test_a_policy_may_answer_by_itself_or_ask_often() -> None:
    asked: list[int] = []

    async def answers(call: Call, inner: Handler) -> Reply:  # noqa: ARG001
        return reply("cached")

    async def thrice(call: Call, inner: Handler) -> Reply:
        return [await inner(call) for _ in range(3)][-1]

    async def counting(call: Call) -> Reply:
        asked.append(call.index)
        return reply()

    cached: list[Policy] = [answers]
    repeated: list[Policy] = [thrice]
    assert run_virtual(lambda: chain(cached, counting)(a_call())).content == "cached"
    assert asked == []
    run_virtual(lambda: chain(repeated, counting)(a_call()))
    assert len(asked) == 3


def test_all_policies_see_the_same_call() -> None:
    async def count(call: Call, inner: Handler) -> Reply:
        call.attempts += 1
        return await inner(call)

    call = a_call()
    run_virtual(lambda: chain([count, count, count], endpoint)(call))
    assert call.attempts == 3


def test_calls_share_no_randomness_unless_they_are_given_it() -> None:
    assert a_call().rng is not a_call().rng
