"""Faults as data: drawn from the seed, in windows, in mixtures, and read from text."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmlab.sim import anthropic_wire, openai_wire
from llmlab.sim.faults import MIXED, QUIRKS, Burst, Faults, Outage
from llmlab.sim.kinds import HINTS, KINDS
from llmlab.sim.script import MIDWAY


def draw(faults: Faults, *, at: float = 0.0, n: int = 4000, seed: int = 0) -> list[str]:
    kinds = (faults.pick(random.Random(f"{seed} {i}"), at, seed) for i in range(n))
    return [kind.name if kind else "" for kind in kinds]


def test_no_faults_by_default() -> None:
    assert set(draw(Faults())) == {""}


def test_the_mixture_meets_its_rate_with_all_its_kinds_and_only_recoverable_ones() -> None:
    drawn = draw(Faults.mixed(0.3), n=8000)
    assert 1 - drawn.count("") / 8000 == pytest.approx(0.3, abs=0.02)
    assert set(drawn) - {""} == set(MIXED)
    assert all(KINDS[name].recoverable for name in MIXED)


def test_quirks_are_harmless_and_together_meet_the_rate() -> None:
    drawn = draw(Faults.quirks(0.5))
    assert set(drawn) - {""} == set(QUIRKS)
    assert all(KINDS[name].harmless and not KINDS[name].recoverable for name in QUIRKS)
    assert drawn.count("") / 4000 == pytest.approx(0.5, abs=0.03)


def test_a_draw_is_decided_by_its_own_source_alone() -> None:
    faults = Faults.mixed(0.5)
    assert draw(faults, n=200) == draw(faults, n=200)
    assert draw(faults, n=200) != draw(faults, n=200, seed=1)


def test_a_window_changes_no_draw_after_it() -> None:
    plain, windowed = Faults.mixed(0.5), Faults.mixed(0.5) | Faults.outage(10, 5)
    assert draw(plain, at=20) == draw(windowed, at=20)


def test_an_outage_holds_from_its_start_until_before_its_end() -> None:
    faults = Faults.outage(10, 5, kind="reset")
    assert set(draw(faults, at=9.99)) == {""}
    assert set(draw(faults, at=10)) == {"reset"}
    assert set(draw(faults, at=14.99)) == {"reset"}
    assert set(draw(faults, at=15)) == {""}


def test_a_window_with_a_rate_lets_the_others_through() -> None:
    faults = Faults(windows=(Outage(0, 10, "server_error", rate=0.4),))
    assert draw(faults).count("server_error") / 4000 == pytest.approx(0.4, abs=0.03)


@given(seed=st.integers(0, 1000), times=st.lists(st.floats(0, 500), min_size=1, max_size=30))
def test_a_burst_is_the_same_in_whatever_order_it_is_asked(seed: int, times: list[float]) -> None:
    forwards, backwards = Burst(20, 5), Burst(20, 5)
    first = [forwards.holds(at, seed) for at in times]
    assert [backwards.holds(at, seed) for at in reversed(times)] == first[::-1]


def test_a_burst_is_bad_for_its_share_of_the_time() -> None:
    burst = Burst(good=30, bad=10)
    bad = [burst.holds(at / 10, seed=3) for at in range(200_000)]
    assert sum(bad) / len(bad) == pytest.approx(0.25, abs=0.04)
    assert not bad[0]


def test_joined_faults_add_rates_and_windows() -> None:
    joined = Faults.only("cut", 0.1) | Faults({"cut": 0.1, "reset": 0.2}) | Faults.outage(1, 2)
    assert dict(joined.rates) == pytest.approx({"cut": 0.2, "reset": 0.2})
    assert joined.windows == (Outage(1, 2),)


def test_the_text_form_reads_every_item() -> None:
    text = "mixed:0.1, cut:0.05,outage:10+5,storm:20+2,outage:30+1@reset,burst:60/5@overloaded"
    text += ",retry_after:3,stall_for:9"
    faults = Faults.parse(text)
    assert sum(faults.rates.values()) == pytest.approx(0.15)
    assert faults.rates["cut"] > 0.05
    assert faults.windows == (
        Outage(10, 5),
        Outage(20, 2, "rate_limited"),
        Outage(30, 1, "reset"),
        Burst(60, 5, "overloaded"),
    )
    assert (faults.retry_after, faults.stall) == (3, 9)


def test_settings_hold_wherever_they_stand_in_the_text() -> None:
    assert Faults.parse("stall_for:9,mixed:0.1") == Faults.parse("mixed:0.1,stall_for:9")


@pytest.mark.parametrize("text", ["", "none", " , "])
def test_an_empty_text_means_no_faults(text: str) -> None:
    assert Faults.parse(text) == Faults()


@pytest.mark.parametrize(
    "text",
    [
        "gremlins:0.1",
        "cut:2",
        "cut:x",
        "outage:5",
        "outage:a+b",
        "burst:1",
        "outage:1+1@x",
        "mixed:0.6,cut:0.6",
        "none:1",
    ],
)
def test_a_text_that_cannot_be_read_names_its_item(text: str) -> None:
    with pytest.raises(ValueError, match=r"faults: cannot read '"):
        Faults.parse(text)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Faults({"gremlins": 0.1}),
        lambda: Faults({"cut": -0.1}),
        lambda: Faults({"cut": 0.7, "reset": 0.7}),
        lambda: Faults(stall=-1),
        lambda: Outage(-1, 5),
        lambda: Outage(0, 5, rate=2),
        lambda: Burst(0, 1),
    ],
)
def test_impossible_faults_are_refused(make: object) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=r"\w"):
        make()


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS.values() if kind.family == "refusal"], ids=lambda kind: kind.name
)
def test_each_refusal_is_in_the_error_tables_of_both_dialects(kind: object) -> None:
    error = getattr(kind, "error", "")
    assert error in openai_wire.ERRORS
    assert error in anthropic_wire.ERRORS


def test_the_tables_of_kinds_agree() -> None:
    assert all(kind.hint in HINTS for kind in KINDS.values())
    assert set(MIDWAY) == {name for name in KINDS if name.endswith("_midway") or name.startswith("cut")}
    assert all(name == kind.name and kind.about for name, kind in KINDS.items())
    assert all(kind.recoverable for kind in KINDS.values() if kind.family in ("break", "body"))
