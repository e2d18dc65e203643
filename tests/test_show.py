import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

import llmlab
from llmlab.clock import run_virtual
from llmlab.frame import COLUMNS
from llmlab.show import MOST, Show
from llmlab.sim import Faults, Physics, Simulator
from llmlab.types import Prompt

SLOW = Physics(rtt=0.0, ttft=0.1, itl=0.02, load=0.0, jitter=0.0, reply_sigma=0.0)
"""50 tokens a second."""


def simulated(physics: Physics = SLOW, faults: str = "none", say: Callable[[Any], str] | None = None) -> Simulator:
    return Simulator(seed=3, physics=physics, faults=Faults.parse(faults), say=say)


def lab_of(transport: Simulator, model: str = "m", **settings: Any) -> llmlab.Lab:
    return llmlab.Lab(f"openai:{model}", api_key="k", transport=transport, seed=1, **settings)


def shown(make: Callable[[], Show]) -> tuple[pd.DataFrame, Show]:
    """Run a show in virtual time: its frame, and the show."""

    async def main() -> tuple[pd.DataFrame, Show]:
        show = make()
        return await show, show

    return run_virtual(main)


# -- what is shown ----------------------------------------------------------------------------------------


def test_there_is_a_row_and_a_pane_for_each_prompt_with_its_index() -> None:
    prompts = pd.Series(["Green tea?", "Black tea?"], index=["g", "b"])
    out, show = shown(lambda: lab_of(simulated()).show(prompts))
    assert list(out.columns) == [column.name for column in COLUMNS]
    assert out.index.tolist() == ["g", "b"]
    assert out.status.tolist() == ["ok", "ok"]
    assert [pane.title for pane in show.grid.panes] == ["Green tea?", "Black tea?"]
    assert show.texts == out.content.tolist()


def test_answers_are_streamed_and_timed() -> None:
    out, show = shown(lambda: lab_of(simulated()).show(["a", "b"]))
    assert (out.ttft_ms.between(99, 102)).all()
    for pane in show.grid.panes:
        assert pane.ttft_ms == pytest.approx(100, abs=2)
        assert pane.rate == pytest.approx(50, rel=0.01)
        assert pane.tokens is not None


def test_panes_fill_while_the_job_runs() -> None:
    async def main() -> list[str]:
        show = lab_of(simulated()).show(["a", "b"])
        await asyncio.sleep(0.5)
        states: list[str] = [pane.state for pane in show.grid.panes]
        halfway = show.texts
        await show
        assert all(0 < len(half) < len(text) for half, text in zip(halfway, show.texts, strict=True))
        return states

    assert run_virtual(main) == ["streaming", "streaming"]


@pytest.mark.parametrize("prompt", ["One text", Prompt.of("One text")])
def test_one_prompt_is_one_pane(prompt: str | Prompt) -> None:
    out, show = shown(lambda: lab_of(simulated()).show(prompt))
    assert len(out) == 1
    assert show.grid.panes[0].title == "One text"


def test_a_table_takes_a_template_and_the_verbs_parameters_hold() -> None:
    table = pd.DataFrame({"tea": ["green", "black"], "model": ["x", None]})
    out, show = shown(
        lambda: lab_of(simulated(say=lambda ask: ask.model)).show(
            table, template="Is {tea} good?", model="y", max_tokens=8
        )
    )
    assert out.content.tolist() == ["x", "y"]
    assert [pane.title for pane in show.grid.panes] == ["Is green good?", "Is black good?"]


def test_no_prompts_are_no_panes() -> None:
    out, show = shown(lambda: lab_of(simulated()).show([]))
    assert len(out) == 0
    assert show.texts == []


def test_more_than_one_prompt_at_a_time_wait_for_their_turn() -> None:
    out, _ = shown(lambda: lab_of(simulated(), concurrency=1).show(["a", "b", "c"]))
    assert out.queue_ms.is_monotonic_increasing
    assert out.queue_ms[2] > 1000


# -- several models ---------------------------------------------------------------------------------------


def test_models_are_each_asked_the_same_and_are_the_frames_index() -> None:
    out, show = shown(
        lambda: lab_of(simulated(say=lambda ask: f"{ask.model}: {ask.text}")).show("Hi", models=["a", "b"])
    )
    assert out.content.tolist() == ["a: Hi", "b: Hi"]
    assert out.index.tolist() == ["a", "b"]
    assert [pane.title for pane in show.grid.panes] == ["a", "b"]


def test_one_model_may_be_asked_twice() -> None:
    out, _ = shown(lambda: lab_of(simulated()).show("Hi", models=["a", "a"]))
    assert out.index.tolist() == ["a", "a"]


def test_a_prompts_own_model_gives_way_to_models_and_labs() -> None:
    prompt, said = Prompt.of("Hi", model="own"), simulated(say=lambda ask: ask.model)
    out, _ = shown(lambda: lab_of(said).show(prompt, models=["a", lab_of(said, "b")]))
    assert out.content.tolist() == ["a", "b"]


def test_a_lab_among_the_models_streams_from_its_own_provider() -> None:
    here, there = simulated(say=lambda ask: f"here {ask.model}"), simulated(say=lambda ask: f"there {ask.model}")
    out, _ = shown(lambda: lab_of(here).show("Hi", models=["a", lab_of(there, "b"), lab_of(there, "c")]))
    assert out.content.tolist() == ["here a", "there b", "there c"]
    assert out.index.tolist() == ["a", "openai:b", "openai:c"]
    assert (here.requests, there.requests) == (1, 2)


def test_a_lab_among_the_models_keeps_to_its_own_limits() -> None:
    def make() -> Show:
        narrow = lab_of(simulated(), "n", concurrency=1)
        return lab_of(simulated()).show("Hi", models=["a", "b", narrow, narrow])

    out, show = shown(make)
    assert out.queue_ms.tolist()[:3] == pytest.approx([0, 0, 0], abs=1)
    assert out.queue_ms.iloc[3] > 1000
    assert set(show.attempts.target) == {"openai:a", "openai:b", "openai:n"}


def test_a_lab_among_the_models_falls_back_as_it_would_at_home() -> None:
    def make() -> Show:
        spare = lab_of(simulated(say=lambda _: "spare"), "spare")
        broken = lab_of(simulated(faults="server_error:1"), "broken", fallback=[spare])
        return lab_of(simulated()).show("Hi", models=[broken])

    out, _ = shown(make)
    assert out.content.tolist() == ["spare"]


def test_the_labs_parameters_hold_for_all() -> None:
    out, _ = shown(
        lambda: lab_of(simulated(), max_tokens=3).show("Hi", models=["a", lab_of(simulated(), "b", max_tokens=9)])
    )
    assert out.output_tokens.tolist() == [3, 3]


# -- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompts", "options", "error", "words"),
    [
        (5, {}, TypeError, "show takes a prompt, or a Series"),
        (["a", None], {}, ValueError, "row 1"),
        (["a"] * (MOST + 1), {}, ValueError, "room for 100 prompts"),
        ((str(n) for n in itertools.count()), {}, ValueError, "room for 100 prompts"),
        ("Hi", {"models": "a"}, TypeError, r"models must be a list .* not 'a'"),
        ("Hi", {"models": {"a": 1}}, TypeError, "models must be a list"),
        ("Hi", {"models": 5}, TypeError, "models must be a list"),
        ("Hi", {"models": []}, ValueError, "at least one"),
        ("Hi", {"models": ["a", 5]}, TypeError, "not 5"),
        ("Hi", {"models": [""]}, TypeError, "not ''"),
        ("Hi", {"models": ["a"] * (MOST + 1)}, ValueError, "room for 100 models"),
        (["Hi", "you"], {"models": ["a"]}, TypeError, "takes one prompt, a text or a list of messages"),
        ("Hi", {"models": ["a"], "model": "b"}, ValueError, "model and models exclude each other"),
        ("Hi", {"models": ["a"], "template": "{x}"}, ValueError, "template"),
        ("Hi", {"by": "word"}, ValueError, "by must be"),
        ("Hi", {"priority": 9}, ValueError, "priority"),
        ("Hi", {"temperature": 9}, ValueError, "temperature"),
    ],
)
def test_what_cannot_be_shown_is_refused_before_anything_is_sent(
    prompts: Any, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    transport = simulated()
    with pytest.raises(error, match=words):
        lab_of(transport).show(prompts, **options)
    assert transport.requests == 0


def test_an_asynchronous_source_is_refused() -> None:
    async def source() -> Any:
        yield "a"

    with pytest.raises(TypeError, match="not async_generator"):
        lab_of(simulated()).show(source())


# -- failures, and stopping -------------------------------------------------------------------------------


def test_an_answer_that_broke_off_is_begun_anew_and_ends_whole() -> None:
    out, show = shown(lambda: lab_of(simulated(faults="cut:0.5")).show([f"p{n}" for n in range(8)]))
    assert (out.status == "ok").all()
    assert any(pane.take for pane in show.grid.panes), "no answer broke off: the test shows nothing"
    assert show.texts == out.content.tolist()


def test_a_failure_is_said_in_its_pane_and_the_others_go_on() -> None:
    def make() -> Show:
        refusing = Simulator(seed=1, physics=SLOW, models=["good"])
        return lab_of(refusing).show("Hi", models=["good", "bad"])

    out, show = shown(make)
    assert out.status.tolist() == ["ok", "error"]
    assert show.grid.panes[1].state == "error"
    assert show.grid.panes[1].error.startswith("NotFound: ")


def test_dropping_a_pane_stops_it_and_leaves_the_others() -> None:
    async def main() -> tuple[pd.DataFrame, Show]:
        show = lab_of(simulated()).show(["a", "b", "c"])
        await asyncio.sleep(0.5)
        show.drop(1)
        return await show, show

    out, show = run_virtual(main)
    assert out.status.tolist() == ["ok", "cancelled", "ok"]
    assert [pane.state for pane in show.grid.panes] == ["done", "stopped", "done"]
    assert show.texts[1], "what had come is kept"


def test_a_pane_that_stands_in_line_can_be_stopped() -> None:
    async def main() -> list[str]:
        show = lab_of(simulated(), concurrency=1).show([f"p{n}" for n in range(MOST)], max_tokens=2)
        await asyncio.sleep(0.05)
        show.drop(MOST - 1)
        await asyncio.sleep(0)
        assert show.grid.panes[-1].state == "stopped"
        return (await show).status.tolist()

    assert run_virtual(main) == ["ok"] * (MOST - 1) + ["cancelled"]


def test_cancelling_gives_the_partial_frame_with_all_panes_stopped() -> None:
    async def main() -> tuple[pd.DataFrame, Show]:
        show = lab_of(simulated(), concurrency=2).show(["a", "b", "c"])
        await asyncio.sleep(0.5)
        show.cancel()
        return await show, show

    out, show = run_virtual(main)
    assert out.status.tolist() == ["cancelled"] * 3
    assert {pane.state for pane in show.grid.panes} == {"stopped"}
    assert [bool(text) for text in show.texts] == [True, True, False]


def test_a_show_runs_in_the_background_and_is_the_labs_last_job() -> None:
    async def main() -> bool:
        lab = lab_of(simulated())
        show = lab.show(["a"])
        assert lab.last is show
        await asyncio.sleep(60)
        return show.done

    assert run_virtual(main)


def test_a_lab_on_a_thread_of_its_own_loses_no_piece() -> None:
    lab = lab_of(simulated(Physics.instant()), loop="thread")
    show = lab.show([f"p{n}" for n in range(20)])
    out = show.result()
    assert show.texts == out.content.tolist()
    lab.wait_for(lab.aclose)


def test_a_show_works_without_await() -> None:
    assert lab_of(simulated(Physics.instant())).show(["a", "b"]).result().status.tolist() == ["ok", "ok"]


# -- in a terminal ----------------------------------------------------------------------------------------


def written(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], make: Callable[[], Show]) -> list[str]:
    monkeypatch.setenv("LLMLAB_UI", "text")
    shown(make)
    return capsys.readouterr().err.splitlines()


def test_a_terminal_gets_pane_by_pane_as_they_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = {"long": "many many many many many words", "short": "few"}
    lines = written(monkeypatch, capsys, lambda: lab_of(simulated(say=lambda ask: said[ask.text])).show([*said]))
    assert [line.partition(",")[0] for line in lines] == ["short: done", "few", "long: done", said["long"]]


def test_a_pane_is_written_before_the_others_have_ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLMLAB_UI", "text")

    async def main() -> list[str]:
        said = []
        async for _ in lab_of(simulated(), concurrency=1).show(["a", "b"]):
            await asyncio.sleep(0.15)
            said.append(capsys.readouterr().err.partition(":")[0])
        return said

    assert run_virtual(main) == ["a", "b"]


def test_an_answer_cannot_steer_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = "\x1b]0;owned\x07\x1b[2J\r\x9b1m tab\tline\nnaïve 👩‍💻"
    lines = written(monkeypatch, capsys, lambda: lab_of(simulated(say=lambda _: hostile)).show("\x1b[31mred"))
    assert lines[0].startswith("\N{REPLACEMENT CHARACTER}[31mred: done")
    assert lines[1:] == ["�]0;owned��[2J��1m tab\tline", "naïve 👩‍💻"]


def test_where_nobody_looks_nothing_is_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLMLAB_UI", "none")
    shown(lambda: lab_of(simulated()).show("a"))
    assert capsys.readouterr() == ("", "")
