"""The views of a notebook without a browser: what goes over the wire, and what crafted messages do."""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import anywidget
import comm
import pytest
from comm.base_comm import BaseComm
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmlab import places
from llmlab.clock import run_virtual
from llmlab.events import Admitted
from llmlab.job import Job
from llmlab.lab import Lab
from llmlab.sim import Physics, Simulator
from llmlab.widgets import MOST, Board

KEY = "sk-made-up-0123456789"
WIDGET = "application/vnd.jupyter.widget-view+json"


class Wire(BaseComm):
    """Keeps what a kernel would send to the browser."""

    sent: list[tuple[str, Any]]

    def publish_msg(self, msg_type: str, data: Any = None, *_: Any, **__: Any) -> None:
        self.sent.append((msg_type, data))


@dataclass
class Handle:
    """What an output can be redrawn by."""

    display_id: str
    output: list[dict[str, Any]]

    def update(self, data: dict[str, Any], *, raw: bool) -> None:
        assert raw
        self.output.append(data)


class Screen:
    """The outputs of a notebook, by display id, and the cell at work."""

    def __init__(self) -> None:
        self.outputs: list[list[dict[str, Any]]] = []
        self.cell: str | None = "cell 1"
        self.sent: list[tuple[str, Any]] = []

    def display(self, data: dict[str, Any], *, raw: bool, display_id: bool = False, **_: Any) -> Any:
        assert raw
        output = [data]
        self.outputs.append(output)
        return Handle(f"d{len(self.outputs)}", output) if display_id else None

    @property
    def looks(self) -> list[Any]:
        """The looks sent to the browser as messages."""
        return [data["content"] for kind, data in self.sent if kind == "comm_msg" and data["method"] == "custom"]


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """A notebook of which nobody is in front."""
    made = Screen()

    def create_comm(*args: Any, **named: Any) -> Wire:
        wire = Wire.__new__(Wire)
        wire.sent = made.sent
        wire.__init__(*args, **named)  # type: ignore[misc]
        return wire

    monkeypatch.setattr(comm, "create_comm", create_comm)
    monkeypatch.setattr(places, "display", made.display)
    monkeypatch.setattr(places, "cell_at_work", lambda: made.cell)
    monkeypatch.setenv("LLMLAB_UI", "widget")
    return made


def start(rows: int = 100, seconds: float = 1.0, **wanted: Any) -> Job[Any]:
    physics = Physics.instant(ttft=seconds)
    lab = Lab("openai:small", transport=Simulator(physics=physics), concurrency=4, api_key=KEY, **wanted)
    return lab.run_many([f"p{number}" for number in range(rows)])


def board_of(job: Job[Any]) -> Board:
    view: Any = job._showing._view
    board: Board = view._widget
    return board


def say(job: Job[Any], content: Any) -> None:
    """What a browser would say to the job's board."""
    message = {"content": {"data": {"method": "custom", "content": content}}, "buffers": []}
    board_of(job)._handle_msg(message)


def run(main: Callable[[], Awaitable[Any]]) -> Any:
    return run_virtual(main)


# -- what is shown ----------------------------------------------------------------------------------------


def test_the_board_is_displayed_with_a_table_beside_it_and_replaced_by_one(screen: Screen) -> None:
    run(lambda: start(rows=8).wait())
    (output,) = screen.outputs
    assert set(output[0]) == {WIDGET, "text/html", "text/plain"}
    assert set(output[-1]) == {"text/html", "text/plain"}
    assert "run_many: done" in output[-1]["text/html"]
    assert "8 of 8" in output[-1]["text/plain"]
    assert screen.sent[-1][0] == "comm_close"


def test_looks_go_ten_times_a_second_and_the_first_at_once(screen: Screen) -> None:
    run(lambda: start(rows=20, seconds=1.0).wait())  # 5 s
    assert 49 <= len(screen.looks) <= 51
    assert {frozenset(look) for look in screen.looks} == {frozenset({"kind", "look", "heard"})}
    done = [look["look"]["done"] for look in screen.looks]
    assert done[0] == 0
    assert done == sorted(done)
    first = next(data["state"]["look"] for kind, data in screen.sent if "uid" in (data or {}).get("state", {}))
    assert (first["state"], first["done"], first["total"]) == ("running", 0, 20)


def test_a_job_that_stands_still_sends_no_look_twice(screen: Screen) -> None:
    async def main() -> None:
        job = start()
        await asyncio.sleep(1.05)
        view: Any = job._showing._view
        sent = len(screen.looks)
        view.draw()
        view.draw()  # no time has passed, and nothing has happened
        assert len(screen.looks) == sent + 1
        job.cancel()
        await job

    run(main)


def test_one_cell_shows_a_job_once_and_each_cell_for_itself(screen: Screen) -> None:
    async def main() -> None:
        job = start(rows=8)
        await asyncio.sleep(0.5)
        view: Any = job._showing._view
        view.show()
        assert len(screen.outputs) == 1
        screen.cell = "cell 2"
        view.show()
        assert len(screen.outputs) == 2
        screen.cell = None  # nobody knows: rather twice than not at all
        view.show()
        view.show()
        assert len(screen.outputs) == 4
        await job
        assert ["8 of 8" in output[-1].get("text/html", "") for output in screen.outputs] == [True] * 4
        assert all(WIDGET not in output[-1] for output in screen.outputs)

    run(main)


def test_a_job_that_is_over_is_shown_as_a_table(screen: Screen) -> None:
    async def main() -> None:
        job = start(rows=4)
        await job
        view: Any = job._showing._view
        view.show()
        assert len(screen.outputs) == 1, "it stands below this cell already"
        screen.cell = "cell 2"
        view.show()
        assert set(screen.outputs[-1][0]) == {"text/html", "text/plain"}
        assert "4 of 4" in screen.outputs[-1][0]["text/html"]

    run(main)


def test_the_board_has_no_state_but_its_name_and_a_look_and_no_key(screen: Screen) -> None:
    own = set(Board.class_traits(sync=True)) - set(anywidget.AnyWidget.class_traits(sync=True))
    assert own == {"uid", "look"}

    async def main() -> None:
        job = start(rows=8)
        await asyncio.sleep(0.5)
        assert KEY not in json.dumps(board_of(job).get_state())
        await job

    run(main)
    assert KEY not in json.dumps(screen.sent)
    assert KEY not in json.dumps(screen.outputs)


# -- what is heard ----------------------------------------------------------------------------------------


def test_stop_ends_the_job_with_the_rows_so_far(screen: Screen) -> None:
    async def main() -> None:
        job = start()
        asyncio.get_running_loop().call_later(2.5, say, job, {"kind": "stop"})
        began = asyncio.get_running_loop().time()
        out = await job
        assert asyncio.get_running_loop().time() - began == pytest.approx(2.5, abs=0.1)
        assert out.status.value_counts().to_dict() == {"cancelled": 92, "ok": 8}

    run(main)
    assert "run_many: stopped" in screen.outputs[0][-1]["text/html"]


def test_a_paused_job_sends_nothing_until_it_is_resumed(screen: Screen) -> None:
    async def main() -> None:
        job = start(rows=12)
        await asyncio.sleep(0.5)
        say(job, {"kind": "pause"})
        await asyncio.sleep(60)
        assert (job.look().state, job.look().done, job.look().in_flight) == ("paused", 4, 0)
        say(job, {"kind": "resume"})
        out = await job
        assert out.status.eq("ok").all()

    run(main)
    assert screen.looks


def test_the_slider_sets_the_labs_concurrency(screen: Screen) -> None:
    async def main() -> None:
        job = start()
        await asyncio.sleep(0.5)
        for limit in (5, 9, MOST, 7):
            say(job, {"kind": "concurrency", "limit": limit})
            assert job.concurrency == limit
        await asyncio.sleep(2)
        assert job.look().in_flight == 7
        say(job, {"kind": "stop"})
        await job

    run(main)
    assert screen.looks


@pytest.mark.parametrize("limit", [0, -1, True, 1.5, "8", None, [8], MOST + 1])
def test_a_limit_that_is_none_changes_nothing(screen: Screen, limit: Any) -> None:
    async def main() -> None:
        job = start(rows=4)
        await asyncio.sleep(0.5)
        view: Any = job._showing._view
        view._heard(None, {"kind": "concurrency", "limit": limit}, [])  # ipywidgets would swallow an error
        assert job.concurrency == 4
        await job

    run(main)
    assert screen.looks


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["kind", "limit", "number", "x"]), inner)
    ),
    max_leaves=6,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=st.lists(JUNK, min_size=1, max_size=6))
def test_no_message_whatever_its_shape_breaks_a_job(screen: Screen, messages: list[Any]) -> None:
    async def main() -> None:
        job = start(rows=4)
        await asyncio.sleep(0.5)
        view: Any = job._showing._view
        for message in messages:
            view._heard(None, message, [])
        assert (await job).status.eq("ok").all()

    run(main)
    assert screen.looks


def test_a_look_says_which_message_was_heard_last(screen: Screen) -> None:
    async def main() -> None:
        job = start(rows=4)
        await asyncio.sleep(0.25)
        assert screen.looks[-1]["heard"] == 0
        say(job, {"kind": "resume", "number": 41})
        say(job, {"kind": "resume", "number": "43"})
        await asyncio.sleep(0.25)
        assert screen.looks[-1]["heard"] == 41
        await job

    run(main)


def test_a_message_on_another_thread_leaves_word_on_the_jobs_loop(screen: Screen) -> None:
    # JupyterLab with ipykernel 7.0 to 7.3 handles messages on a subshell's thread.
    async def main() -> None:
        job = start(seconds=60.0)
        begun = asyncio.Event()
        job.bus.subscribe(lambda _: begun.set(), Admitted)
        await begun.wait()
        for message in ({"kind": "concurrency", "limit": 9}, {"kind": "pause"}, {"kind": "stop"}):
            other = threading.Thread(target=say, args=(job, message))
            other.start()
            other.join()
        assert (job.stopped, job.look().state, job.concurrency) == (None, "running", 4), "it only leaves word"
        out = await job
        assert job.concurrency == 9
        assert set(out.status) == {"cancelled"}

    asyncio.run(main())  # a virtual loop hears no other thread
    assert screen.looks


def test_a_message_that_comes_after_the_end_changes_nothing(screen: Screen) -> None:
    async def main() -> None:
        job = start(rows=4)
        await job
        say(job, {"kind": "stop"})
        assert job.look().state == "done"
        assert job.stopped is None

    run(main)
    assert "run_many: done" in screen.outputs[0][-1]["text/html"]


# -- without widgets --------------------------------------------------------------------------------------


def test_without_widgets_one_output_is_redrawn_twice_a_second(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMLAB_UI", "html")
    run(lambda: start(rows=20).wait())  # 5 s
    (output,) = screen.outputs
    assert 10 <= len(output) <= 13
    assert all(set(data) == {"text/html", "text/plain"} for data in output)
    assert "0 of 20" in output[0]["text/html"]
    assert "run_many: done" in output[-1]["text/html"]
    assert not screen.sent


def test_without_widgets_too_one_cell_shows_a_job_once(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMLAB_UI", "html")

    async def main() -> None:
        job = start(rows=8)
        await asyncio.sleep(0.1)
        view: Any = job._showing._view
        view.show()
        assert len(screen.outputs) == 1
        screen.cell = "cell 2"
        view.show()
        await job
        assert ["8 of 8" in output[-1]["text/html"] for output in screen.outputs] == [True, True]

    run(main)
