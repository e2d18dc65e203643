"""The view of a tuning without a browser: what it shows, what its knobs do, and what crafted messages do not."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import llmlab
from llmlab.sim import Physics, Simulator
from llmlab.tune import Tuning
from llmlab.tunehtml import TuneHtml
from llmlab.tunelook import as_html, as_text, bundle, look_of
from llmlab.tuneview import TuneView
from tests.test_widgets import JUNK, WIDGET, Screen, screen  # noqa: F401  the fixture

SOON = 60.0
"""Seconds that anything may take on a busy machine."""
KEY = "sk-made-up-0123456789"
SOFT = Physics(slots=200, rtt=0.0, ttft=0.2, itl=0.02, jitter=0.0, load=0.002, reply_tokens=40)
HOSTILE = '<img src=x onerror="pwned()"> $x^2$ \\(y\\)'


@pytest.fixture
def kernel(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> Screen:  # noqa: F811
    """A notebook's kernel."""
    monkeypatch.setattr("llmlab.views.in_kernel", lambda: True)
    return screen


def begin(rows: int = 3000, **fields: Any) -> tuple[llmlab.Lab, Tuning]:
    simulator = Simulator(physics=SOFT)
    lab = llmlab.Lab("openai:small", transport=simulator, prices={"small": (1, 2)}, api_key=KEY, progress=False)
    prompts = [f"question {n}" for n in range(rows)]
    return lab, lab.tune(prompts, **{"n": 200, "concurrency": (1, 4, 16, 64), **fields})


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(SOON):
        while not holds():
            await asyncio.sleep(0.01)


def run(main: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(main())  # type: ignore[arg-type]


def shown(tuning: Tuning) -> TuneView:
    tuning._ipython_display_()
    view: Any = tuning.shown._view
    assert isinstance(view, TuneView)
    return view


def say(view: TuneView, **message: Any) -> None:
    view._heard(None, message, [])


def turn(view: TuneView, name: str, value: object) -> None:
    say(view, kind="set", name=name, value=value)


# -- what is shown ----------------------------------------------------------------------------------------


def test_looks_come_while_it_runs_and_a_still_table_takes_its_place_when_it_is_closed(kernel: Screen) -> None:
    async def main() -> None:
        _, tuning = begin()
        view = shown(tuning)
        await until(lambda: kernel.looks and kernel.looks[-1]["look"]["state"] == "done")
        counts = [len(look["look"]["points"]) for look in kernel.looks]
        assert counts == sorted(counts)
        assert kernel.looks[-1]["look"]["found"]["concurrency"] == tuning.recommendation.concurrency
        (output,) = kernel.outputs
        assert set(output[0]) == {WIDGET, "text/html", "text/plain"}
        assert set(output[-1]) == {WIDGET, "text/html", "text/plain"}, "its knobs are of use now"
        assert "concurrency" in output[-1]["text/html"], "for who opens the notebook without a kernel"
        say(view, kind="close")
        assert set(output[-1]) == {"text/html", "text/plain"}
        assert kernel.sent[-1][0] == "comm_close"

    run(main)


def test_who_awaits_it_closes_it_and_may_show_it_again(kernel: Screen) -> None:
    async def main() -> None:
        _, tuning = begin()
        shown(tuning)
        found = await tuning
        assert WIDGET not in kernel.outputs[0][-1]
        kernel.cell = "cell 2"
        view = shown(tuning)
        assert WIDGET in kernel.outputs[1][-1]
        turn(view, "elasticity", 0.6)
        assert tuning.recommendation.concurrency < found.concurrency
        say(view, kind="close")

    run(main)


def test_no_key_is_in_anything_that_is_sent(kernel: Screen) -> None:
    async def main() -> None:
        _, tuning = begin()
        view = shown(tuning)
        turn(view, "scenario", "live")
        await tuning

    run(main)
    assert KEY not in json.dumps(kernel.sent)
    assert KEY not in json.dumps(kernel.outputs)


def test_names_are_escaped_in_the_table() -> None:
    scenario = llmlab.Scenario(HOSTILE, SOFT)
    tuning = llmlab.Lab(progress=False).tune(scenario=scenario, n=70, concurrency=(1, 2))
    tuning.result()
    tuning.used = HOSTILE
    html = as_html(look_of(tuning))
    assert "<img" not in html
    assert "&lt;img" in html
    assert "mathjax_ignore" in html


def test_the_look_says_the_same_in_words() -> None:
    tuning = begin(slo=3.0)[1]
    assert "waiting" in as_text(look_of(tuning))
    found = tuning.result()
    text, html = bundle(look_of(tuning)).values()
    for said in (f"concurrency {found.concurrency}", "miss the SLO", "3,000 rows would take"):
        assert said in text
        assert said in html
    assert "within 3 s" in html
    assert html.count("<tr>") == 1 + len(tuning.frame)
    json.dumps(look_of(tuning), allow_nan=False)


def test_in_a_terminal_it_is_its_repr(capsys: pytest.CaptureFixture[str]) -> None:
    _, tuning = begin()
    tuning.result()
    tuning._ipython_display_()
    out = capsys.readouterr().out
    assert out.startswith("<Tuning: ")
    assert f"concurrency={tuning.recommendation.concurrency}" in out


def test_without_widgets_one_output_is_redrawn(kernel: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMLAB_UI", "html")
    monkeypatch.setattr("llmlab.tunehtml.EVERY", 0.01)

    async def main() -> None:
        _, tuning = begin()
        tuning._ipython_display_()
        assert isinstance(tuning.shown._view, TuneHtml)
        await tuning

    run(main)
    (output,) = kernel.outputs
    assert len(output) > 2
    assert "tune: done" in output[-1]["text/html"]


# -- what the knobs do ------------------------------------------------------------------------------------


def test_what_is_aimed_at_changes_at_once_and_use_this_sets_it(kernel: Screen) -> None:
    async def main() -> None:
        lab, tuning = begin()
        view = shown(tuning)
        await until(lambda: tuning.state == "done")
        free, points = tuning.recommendation, len(tuning.frame)
        turn(view, "slo", 3)
        assert tuning.recommendation.concurrency < free.concurrency
        say(view, kind="use", number=7)
        assert lab.concurrency == tuning.recommendation.concurrency
        await until(lambda: kernel.looks[-1]["heard"] == 7 and kernel.looks[-1]["look"]["used"])
        assert kernel.looks[-1]["look"]["used"] == f"lab.concurrency = {lab.concurrency}"
        turn(view, "slo", None)
        assert tuning.recommendation == free
        assert len(tuning.frame) == points
        say(view, kind="close")

    run(main)


def test_what_is_tried_is_tried_anew_once_after_several_turns(kernel: Screen) -> None:
    async def main() -> None:
        lab, tuning = begin()
        view = shown(tuning)
        await until(lambda: tuning.state == "done")
        first = tuning.sweeps
        for name, value in (("rpm", 600), ("rpm", 120), ("attempts", 3), ("jitter", "openai"), ("most", 8)):
            turn(view, name, value)
        assert tuning.sweeps == first, "a moment passes first"
        await until(lambda: tuning.sweeps[:1] != first[:1] and tuning.state == "done")
        knobs = tuning.setup.knobs
        assert (knobs.rpm, knobs.attempts, knobs.jitter, tuning.setup.most) == (120, 3, "openai", 8)
        assert tuning.frame.concurrency.max() <= 8
        assert tuning.frame.rows_per_s.max() == pytest.approx(2, rel=0.15)
        await until(lambda: kernel.looks[-1]["look"]["before"])
        say(view, kind="use")
        assert "rpm=120" in (tuning.used or "")
        assert lab.strategy.policies[0].attempts == 3  # type: ignore[attr-defined]
        say(view, kind="close")

    run(main)


def test_nothing_is_sent_to_the_provider_before_its_price_was_shown_and_agreed_to(kernel: Screen) -> None:
    async def main() -> None:
        simulator = Simulator(physics=replace(SOFT, ttft=0.01, itl=0.0002, load=0.0))
        lab = llmlab.Lab("openai:small", transport=simulator, prices={"small": (1, 2)}, api_key=KEY, progress=False)
        tuning = lab.tune([f"question {n}" for n in range(400)], n=100, concurrency=(2, 4), share=0.5)
        view = shown(tuning)
        say(view, kind="confirm")
        await until(lambda: tuning.state == "done")
        turn(view, "scenario", "live")
        await until(lambda: "requests to openai:small" in (kernel.looks[-1]["look"]["offer"] or ""))
        assert "$" in kernel.looks[-1]["look"]["offer"]
        assert simulator.requests == 0
        say(view, kind="confirm")
        await until(lambda: tuning.setup.scenario == "live" and tuning.state == "done")
        spent = simulator.requests
        assert 0 < spent <= 200
        turn(view, "rpm", 60)
        turn(view, "scenario", "steady")
        await until(lambda: tuning.setup.scenario == "steady" and tuning.state == "done")
        out = await tuning.rest()
        assert simulator.requests == 400, "what was answered is not asked again"
        assert out.status.eq("ok").all()

    run(main)


@pytest.mark.usefixtures("kernel")
def test_on_a_real_provider_nothing_begins_before_something_is_chosen() -> None:
    async def main() -> None:
        lab = llmlab.Lab("openai:small", api_key=KEY, progress=False)
        tuning = lab.tune(["a"] * 5000, n=100, concurrency=(1, 2))
        view = shown(tuning)
        await asyncio.sleep(0.05)
        assert tuning.state == "undecided"
        turn(view, "attempts", 2)
        await until(lambda: tuning.setup.knobs.attempts == 2)
        assert tuning.state == "undecided"
        turn(view, "scenario", "steady")
        await until(lambda: tuning.state == "done")
        assert tuning.setup.knobs.attempts == 2
        assert tuning.recommendation.concurrency == 2
        say(view, kind="close")

    run(main)


@pytest.mark.usefixtures("kernel")
def test_stop_keeps_what_was_measured() -> None:
    async def main() -> None:
        _, tuning = begin(n=5000, concurrency=(1, 2, 3, 4, 5, 6, 7, 8))
        view = shown(tuning)
        await until(lambda: len(tuning.frame) > 1)
        say(view, kind="stop")
        found = await tuning
        assert tuning.state == "stopped"
        assert len(found.sweep) < 8

    run(main)


@pytest.mark.parametrize(
    ("name", "value"),
    [("elasticity", 2), ("elasticity", "x"), ("slo", -1), ("slo", float("nan")), ("slo", True), ("rpm", 0),
     ("most", 1.5), ("most", 10**9), ("attempts", 0), ("jitter", "none of these"), ("jitter", [1]),
     ("scenario", {"a": 1})],
)  # fmt: skip
@pytest.mark.usefixtures("kernel")
def test_values_that_make_no_sense_change_nothing(name: str, value: Any) -> None:
    async def main() -> None:
        _, tuning = begin(n=70, concurrency=(1, 2))
        view = shown(tuning)
        await until(lambda: tuning.state == "done")
        aims, setup = tuning.aims, tuning.setup
        turn(view, name, value)
        if view._timer is not None:
            view._timer.cancel()
            view._try()
        assert (tuning.aims, tuning.wanted, tuning.state) == (aims, setup, "done")
        say(view, kind="close")

    run(main)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=st.lists(JUNK, min_size=1, max_size=6))
def test_no_message_whatever_its_shape_breaks_a_tuning(kernel: Screen, messages: list[Any]) -> None:
    async def main() -> None:
        lab = llmlab.Lab("openai:small", api_key=KEY, progress=False)
        view = shown(lab.tune(["a"], n=70, concurrency=(1, 2)))
        for message in messages:
            view._heard(None, message, [])
        view._tuning.close()

    run(main)
    assert kernel.outputs


def test_a_frame_of_its_own_is_no_part_of_the_view() -> None:
    tuning = begin(n=70, concurrency=(1, 2))[1]
    tuning.result()
    frame = tuning.frame
    frame["rows_per_s"] = 0.0
    assert (tuning.frame["rows_per_s"] > 0).all()
    assert isinstance(frame, pd.DataFrame)
