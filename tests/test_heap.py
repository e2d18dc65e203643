import gc
import weakref

import pytest

from llmlab.heap import set_aside


class Knot:
    """Garbage that only the collector can find."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture(autouse=True)
def _thawed():
    gc.unfreeze()
    yield
    gc.unfreeze()


def test_objects_are_set_aside_and_given_back() -> None:
    with set_aside():
        assert gc.get_freeze_count() > 1000
    assert gc.get_freeze_count() == 0


def test_garbage_made_meanwhile_is_collected() -> None:
    with set_aside():
        gone = weakref.ref(Knot())
        gc.collect()
        assert gone() is None


def test_garbage_from_before_is_collected_afterwards() -> None:
    gc.disable()
    try:
        gone = weakref.ref(Knot())
        with set_aside():
            gc.collect()
            assert gone() is not None
        gc.collect()
        assert gone() is None
    finally:
        gc.enable()


def test_overlapping_uses_end_with_the_last() -> None:
    first, second = set_aside(), set_aside()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert gc.get_freeze_count() > 0
    second.__exit__(None, None, None)
    assert gc.get_freeze_count() == 0


def test_a_process_that_froze_objects_itself_keeps_them_frozen() -> None:
    gc.freeze()
    with set_aside():
        pass
    assert gc.get_freeze_count() > 0


def test_the_collectors_threshold_is_put_back() -> None:
    before = gc.get_threshold()
    with set_aside():
        assert gc.get_threshold()[0] >= before[0]
        with set_aside():
            pass
    assert gc.get_threshold() == before


def test_a_collector_that_is_switched_off_stays_off() -> None:
    before = gc.get_threshold()
    gc.set_threshold(0)
    try:
        with set_aside():
            assert gc.get_threshold()[0] == 0
        assert gc.get_threshold()[0] == 0
    finally:
        gc.set_threshold(*before)
