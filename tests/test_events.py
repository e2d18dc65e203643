import dataclasses
import logging
from functools import partial
from typing import Any, get_args

import pytest

from llmlab import events
from llmlab.errors import ServerError
from llmlab.events import (
    Admitted,
    Attempted,
    Bus,
    Delta,
    Event,
    Finished,
    Following,
    Reported,
    Rerouted,
    Retrying,
    Stopped,
    Told,
)
from llmlab.types import Outcome, Usage

ONE_OF_EACH: list[Event] = [
    Admitted(0, 1.0, 0.5),
    Attempted(0, 1, 1.0, 2.0, None, Usage(1, 2)),
    Delta(0, "text"),
    Following(0),
    Rerouted(0, ServerError("boom"), "openai:b"),
    Told("openai:a", object()),
    Retrying(0, 1, 0.5, ServerError("boom")),
    Finished(Outcome(0, None, "cancelled", None, None)),
    Reported(3, 1),
    Stopped("because"),
]


class Heard(list[Event]):
    """What a listener has heard."""


def test_there_is_an_example_of_every_event() -> None:
    assert {type(event) for event in ONE_OF_EACH} == set(get_args(Event))


@pytest.mark.parametrize("event", ONE_OF_EACH, ids=lambda event: type(event).__name__)
def test_an_event_is_small_and_but_for_tokens_frozen(event: Any) -> None:
    assert not hasattr(event, "__dict__")
    if not isinstance(event, Delta):  # made for each token: freezing one takes as long as all else that emits it
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(event, dataclasses.fields(event)[0].name, None)


@pytest.mark.parametrize("event", ONE_OF_EACH, ids=lambda event: type(event).__name__)
def test_an_event_reaches_those_who_asked_for_its_kind_and_nobody_else(event: Event) -> None:
    bus = Bus()
    heard: dict[type, list[Event]] = {kind: [] for kind in get_args(Event)}
    for kind, box in heard.items():
        bus.subscribe(box.append, kind)
    bus.emit(event)
    assert {kind: box for kind, box in heard.items() if box} == {type(event): [event]}


def test_one_listener_may_ask_for_several_kinds() -> None:
    bus, heard = Bus(), Heard()
    bus.subscribe(heard.append, Delta, Stopped)
    for event in ONE_OF_EACH:
        bus.emit(event)
    assert [type(event) for event in heard] == [Delta, Stopped]


def test_listeners_are_called_in_the_order_of_their_subscription() -> None:
    bus = Bus()
    order: list[str] = []
    for name in ("first", "second", "third"):
        bus.subscribe(partial(lambda name, _: order.append(name), name), Delta)
    bus.emit(Delta(0, "x"))
    assert order == ["first", "second", "third"]


def test_an_event_nobody_listens_to_is_no_trouble() -> None:
    Bus().emit(Delta(0, "x"))


def test_who_has_unsubscribed_hears_nothing_more() -> None:
    bus, heard, others = Bus(), Heard(), Heard()
    end = bus.subscribe(heard.append, Delta, Stopped)
    bus.subscribe(others.append, Delta)
    end()
    end()  # twice does no harm
    bus.emit(Delta(0, "x"))
    bus.emit(Stopped("y"))
    assert heard == []
    assert len(others) == 1


def test_ending_one_subscription_leaves_the_listeners_others() -> None:
    bus, heard = Bus(), Heard()
    listener = heard.append
    end = bus.subscribe(listener, Delta)
    bus.subscribe(listener, Stopped)
    end()
    bus.emit(Delta(0, "x"))
    bus.emit(Stopped("y"))
    assert heard == [Stopped("y")]


def test_a_listener_that_raises_is_logged_and_gets_no_more_events(caplog) -> None:
    bus, heard = Bus(), Heard()

    def broken(event: Event) -> None:
        heard.append(event)
        raise ZeroDivisionError("oops")

    bus.subscribe(broken, Delta, Stopped)
    with caplog.at_level(logging.ERROR, logger="llmlab"):
        for event in (Delta(0, "x"), Delta(0, "y"), Stopped("z")):
            bus.emit(event)
    assert heard == [Delta(0, "x")]
    (record,) = caplog.records
    assert "a listener failed and gets no more events" in record.message
    assert "ZeroDivisionError: oops" in caplog.text


def test_a_listener_that_raises_does_not_keep_the_event_from_the_others() -> None:
    bus, heard = Bus(), Heard()

    def broken(_: Event) -> None:
        raise ZeroDivisionError

    bus.subscribe(broken, Delta)
    bus.subscribe(heard.append, Delta)
    bus.emit(Delta(0, "x"))
    bus.emit(Delta(0, "y"))
    assert len(heard) == 2


def test_a_listener_may_unsubscribe_while_it_is_called() -> None:
    bus, heard, others = Bus(), Heard(), Heard()

    def once(event: Event) -> None:
        heard.append(event)
        end()

    end = bus.subscribe(once, Delta)
    bus.subscribe(others.append, Delta)
    bus.emit(Delta(0, "x"))
    bus.emit(Delta(0, "y"))
    assert len(heard) == 1
    assert len(others) == 2


def test_a_listener_that_comes_during_an_event_hears_the_next_one() -> None:
    bus, late = Bus(), Heard()

    def invite(_: Event) -> None:
        bus.subscribe(late.append, Delta)

    end = bus.subscribe(invite, Delta)
    bus.emit(Delta(0, "x"))
    assert late == []
    end()
    bus.emit(Delta(0, "y"))
    assert late == [Delta(0, "y")]


def test_an_event_emitted_by_a_listener_arrives() -> None:
    bus, heard = Bus(), Heard()
    bus.subscribe(lambda event: bus.emit(Stopped(event.text)), Delta)
    bus.subscribe(heard.append, Stopped)
    bus.emit(Delta(0, "enough"))
    assert heard == [Stopped("enough")]


def test_an_interrupt_is_not_swallowed() -> None:
    def interrupted(_: Event) -> None:
        raise KeyboardInterrupt

    bus = Bus()
    bus.subscribe(interrupted, Delta)
    with pytest.raises(KeyboardInterrupt):
        bus.emit(Delta(0, "x"))


def test_every_event_type_of_the_module_is_in_the_union() -> None:
    classes = {each for each in vars(events).values() if dataclasses.is_dataclass(each)}
    assert {each for each in classes if each.__module__ == events.__name__} == set(get_args(Event))
