import functools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmlab.call import Lane
from llmlab.clock import run_virtual
from llmlab.errors import LLMError
from llmlab.line import AGE, Held, Line, Waiter

TOKENS = st.floats(1, 5000)


@dataclass
class Desk:
    """A line, and a clerk who lets one call go each second."""

    line: Line = field(default_factory=Line)
    now: float = 0.0
    places: int = 0
    went: list[Waiter] = field(default_factory=list)

    def join(self, lane: Lane, tokens: float = 1.0, *, place: int | None = None, waited: float = 0.0) -> Waiter:
        self.places += 1
        place = self.places if place is None else place
        cost = {"total_tokens": tokens}
        return self.line.join(place, lane, cost, cost, now=self.now, waited=waited)

    def serve(self, held: Held = lambda _: False) -> Waiter | None:
        first = self.line.first(self.now, held)
        if first is not None:
            self.line.admit(first, None)
            self.went.append(first)
        self.now += 1.0
        return first

    def crowd(self, count: int, *lanes: Lane, tokens: float = 1.0) -> None:
        for _ in range(count):
            for lane in lanes:
                self.join(lane, tokens)

    def serve_all(self, count: int, held: Held = lambda _: False) -> None:
        for _ in range(count):
            self.serve(held)

    def press(self, lane: Lane, count: int) -> None:
        for _ in range(count):
            self.join(lane)
            self.serve()

    def drain(self) -> list[int]:
        while self.line.waiting:
            assert self.serve() is not None
        return [each.place for each in self.went]

    def tokens(self, lane: Lane) -> float:
        return sum(each.tokens for each in self.went if each.lane is lane)

    def lanes(self) -> int:
        return sum(len(group.queues) for group in self.line._classes.values())

    def cancel(self, waiter: Waiter) -> bool:
        waiter.granted.cancel()
        return self.line.leave(waiter)


def on_loop(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test inside a loop, which its futures belong to; nothing here waits for it."""

    @functools.wraps(test)
    def run(*args: object, **named: object) -> None:
        async def main() -> None:
            test(*args, **named)

        run_virtual(main)

    return run


@given(st.permutations(range(12)), st.permutations(range(5)))
@on_loop
def test_within_a_lane_the_lower_place_goes_first_retries_too(places: list[int], again: list[int]) -> None:
    desk, lane = Desk(), Lane()
    for place in places:
        desk.join(lane, place=place)
    desk.serve_all(5)
    for place in again:
        desk.join(lane, place=place)
    assert desk.drain() == [*range(5), *range(12)]


@settings(deadline=None)
@given(st.lists(st.lists(TOKENS, min_size=8, max_size=8), min_size=2, max_size=5), st.data())
@on_loop
def test_lanes_of_a_class_share_by_tokens_to_within_two_requests(sizes: list[list[float]], data: st.DataObject) -> None:
    """While two lanes both have rows in line, what they got differs by at most the largest request of each."""
    desk, lanes = Desk(), [Lane() for _ in sizes]
    left = {lane: list(each) for lane, each in zip(lanes, sizes, strict=True)}
    for lane in data.draw(st.permutations([lane for lane in lanes for _ in range(8)])):
        desk.join(lane, left[lane].pop())
    waiting = Counter(dict.fromkeys(lanes, 8))
    largest = {lane: max(each) for lane, each in zip(lanes, sizes, strict=True)}
    while min(waiting.values()) > 0:
        went = desk.serve()
        assert went is not None
        waiting[went.lane] -= 1
        for one, other in combinations(lanes, 2):
            assert abs(desk.tokens(one) - desk.tokens(other)) <= largest[one] + largest[other] + 1e-6


@settings(deadline=None)
@given(TOKENS, TOKENS, TOKENS, st.integers(0, 40))
@on_loop
def test_who_joins_late_gets_an_even_share_from_then_on(old: float, new: float, urgent: float, before: int) -> None:
    """It inherits neither a debt nor a credit, also if urgent calls went in between."""
    desk, first, second, hurry = Desk(), Lane(), Lane(), Lane(0)
    desk.join(first, old)
    for _ in range(before):
        desk.join(first, old)
        desk.join(hurry, urgent)
        desk.serve_all(2)
    got = desk.tokens(first)
    desk.join(second, new)
    for _ in range(60):
        desk.join(first, old)
        desk.join(second, new)
        desk.serve()
        assert abs(desk.tokens(first) - got - desk.tokens(second)) <= old + new + 1e-6


@on_loop
def test_a_small_request_does_not_wait_behind_a_large_one_of_another_job() -> None:
    desk, large, small = Desk(), Lane(), Lane()
    desk.join(large, 1000.0)
    desk.crowd(20, small, tokens=10.0)
    desk.serve_all(10)
    assert desk.tokens(small) == 100.0
    desk.join(large, 10.0, place=0)  # a retry, which goes next and turns nothing back
    desk.serve_all(1)
    newcomer = desk.join(Lane(), 15.0)
    assert desk.serve() is not newcomer


@on_loop
def test_a_stream_of_jobs_of_one_row_neither_starves_a_long_one_nor_leaves_lanes_behind() -> None:
    desk, long = Desk(), Lane()
    desk.crowd(100, long, tokens=10.0)
    short = desk.join(Lane(), 10.0)
    for _ in range(60):
        desk.serve()
        if short.granted.done():
            short = desk.join(Lane(), 10.0)  # there is always one of them
        assert desk.lanes() <= 3
    assert desk.tokens(long) == 300.0


@on_loop
def test_a_lane_that_has_one_row_in_line_at_a_time_gets_no_more_than_its_share() -> None:
    desk, steady, sparse = Desk(), Lane(), Lane()
    desk.crowd(1000, steady, tokens=10.0)
    last = desk.join(sparse, 1000.0)
    for _ in range(500):
        desk.serve()
        if last.granted.done():
            last = desk.join(sparse, 1000.0)
    assert abs(desk.tokens(sparse) - desk.tokens(steady)) <= 1010.0


@given(st.permutations([0, 0, 1, 1, 2, 2, 3, 3]))
@on_loop
def test_urgent_classes_go_first(priorities: list[int]) -> None:
    desk, lanes = Desk(), [Lane(priority) for priority in range(4)]
    for priority in priorities:
        desk.join(lanes[priority], 100.0 / (1 + priority))
    desk.drain()
    assert [each.lane.priority for each in desk.went] == sorted(priorities)


@pytest.mark.parametrize(("rival", "priority"), [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)])
@on_loop
def test_who_is_passed_over_goes_after_a_minute_per_class(rival: int, priority: int) -> None:
    desk = Desk()
    desk.crowd(400, Lane(rival))
    waiter = desk.join(Lane(priority))
    while not waiter.granted.done() and desk.now < 300:
        desk.serve()
    assert 0 <= desk.now - AGE * (priority - rival) <= 3


@on_loop
def test_critical_calls_wait_for_at_most_one_that_has_aged() -> None:
    desk, urgent, low = Desk(), Lane(0), Lane(3)
    desk.crowd(80, low)
    desk.press(urgent, 300)
    lately = [each.lane.priority for each in desk.went[200:]]
    assert set(pairwise(lately)) == {(0, 3), (3, 0)}  # they take turns


@on_loop
def test_waiting_in_a_slow_line_makes_nobody_more_urgent() -> None:
    """Else all rows of a low job that may send a few a minute were ahead of a question that has just come."""
    desk, low = Desk(), Lane(3)
    desk.crowd(40, low)
    for _ in range(30):
        desk.serve()
        desk.now += 19.0
    question = desk.join(Lane(2))
    desk.serve()
    assert question.granted.done()


@on_loop
def test_only_the_time_counts_for_which_somebody_more_urgent_was_in_line() -> None:
    desk, urgent = Desk(), Lane(0)
    desk.crowd(2, urgent)
    desk.serve()
    desk.now += 1000.0
    early = desk.join(Lane(1))
    desk.serve_all(1)
    assert not early.granted.done()  # it came when nearly all of that time was over
    desk.press(urgent, 1)
    desk.serve_all(1)
    desk.press(urgent, 1)
    desk.now += 1000.0  # idle
    low = desk.join(Lane(1))
    desk.now += 1000.0  # it is alone, and a rule says no
    desk.press(urgent, 50)
    assert not low.granted.done()
    desk.press(urgent, 12)
    assert low.granted.done()


@on_loop
def test_what_a_row_has_waited_before_counts() -> None:
    desk = Desk()
    fresh = desk.join(Lane(1))
    retry = desk.join(Lane(3), waited=2.5 * AGE)
    desk.serve()
    assert fresh.granted.done()  # the same level, and the more urgent class has not had more turns
    desk.join(Lane(1))
    desk.serve()
    assert retry.granted.done()


@on_loop
def test_a_lane_that_is_held_back_holds_nobody_else() -> None:
    desk, held, free = Desk(), Lane(0), Lane(3)
    kept = desk.join(held)
    desk.join(held)
    waiter = desk.join(free)
    assert desk.serve(lambda each: each.lane is held) is waiter
    assert desk.serve(lambda each: each.lane is held) is None
    assert desk.line.waiting == 2
    assert desk.line.first_of(held) is kept
    assert desk.line.first_of(free) is None


@on_loop
def test_a_lane_that_was_held_back_has_saved_up_no_turns() -> None:
    desk, held, free = Desk(), Lane(), Lane()
    desk.crowd(100, held, free)
    desk.serve_all(50, lambda each: each.lane is held)
    desk.serve_all(20)
    assert desk.tokens(held) in (10.0, 11.0)


@on_loop
def test_who_is_held_back_passes_nobody_over() -> None:
    desk, held = Desk(), Lane(0)
    desk.press(Lane(0), 1)
    desk.join(held)
    low = desk.join(Lane(1))
    desk.line.first(desk.now, lambda each: each.lane is held)
    desk.now += 100.0
    desk.join(Lane(0))
    desk.serve(lambda each: each.lane is held)
    assert not low.granted.done()


@on_loop
def test_a_waiter_refused_while_being_looked_at_is_passed_and_the_next_of_its_lane_is_asked() -> None:
    desk, lane, error = Desk(), Lane(), LLMError("too large")
    large, small = desk.join(lane, 100.0), desk.join(lane, 1.0)

    def held(each: Waiter) -> bool:
        if each.tokens > 10:
            desk.line.refuse(each, error)
            return True
        return False

    assert desk.line.first(0.0, held) is small
    assert large.granted.exception() is error
    assert desk.line.waiting == 1


@on_loop
def test_only_the_first_of_a_lane_leads_it() -> None:
    desk, one, other = Desk(), Lane(), Lane()
    a, b, c = desk.join(one), desk.join(one), desk.join(other)
    assert [desk.line.leads(each) for each in (a, b, c)] == [True, False, True]
    assert desk.cancel(b) is False
    assert desk.cancel(c) is True
    assert desk.cancel(a) is True
    assert desk.line.waiting == 0


@on_loop
def test_all_are_dismissed_with_an_error_each() -> None:
    desk = Desk()
    waiters = [desk.join(Lane(n % 4)) for n in range(6)]
    desk.cancel(waiters[0])
    desk.line.dismiss(LLMError)
    errors = [each.granted.exception() for each in waiters[1:]]
    assert len({id(error) for error in errors}) == 5
    assert desk.line.waiting == 0
    assert desk.serve() is None


@settings(deadline=None, max_examples=150)
@given(st.lists(st.sampled_from(["join", "join", "serve", "cancel", "dismiss"]), max_size=60), st.randoms())
@on_loop
def test_whatever_happens_each_waiter_is_done_once_and_nothing_is_left_behind(
    steps: list[str], rng: random.Random
) -> None:
    desk, lanes = Desk(), [Lane(n % 4) for n in range(6)]
    waiting: list[Waiter] = []
    for step in steps:
        if step == "join":
            waiting.append(desk.join(rng.choice(lanes), rng.uniform(1, 50)))
        elif step == "serve":
            went = desk.serve()
            assert (went is None) == (not waiting)
        elif step == "cancel" and waiting:
            desk.cancel(rng.choice(waiting))
        elif step == "dismiss":
            desk.line.dismiss(LLMError)
        dismissed = [each for each in waiting if each.granted.done() and not each.granted.cancelled()]
        assert all(step == "dismiss" or each.granted.exception() is None for each in dismissed)
        waiting = [each for each in waiting if not each.granted.done()]
        assert desk.line.waiting == len(waiting)
    desk.drain()
    assert desk.lanes() == 0


@on_loop
def test_a_crowd_of_single_calls_takes_turns_with_a_job_as_if_it_were_one() -> None:
    desk, job, shared = Desk(), Lane(), Lane()
    desk.crowd(20, job)
    for _ in range(20):
        desk.join(Lane(among=shared))
    desk.serve_all(20)
    assert sum(each.lane is job for each in desk.went) == 10
    singles = [each.place for each in desk.went if each.lane is not job]
    assert singles == sorted(singles)
