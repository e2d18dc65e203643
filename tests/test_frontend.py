import io
import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from llmlab.fields import AS_TEXT, show_as_text
from llmlab.frame import to_frame
from llmlab.frontend import cell_at_work, frontend
from llmlab.lab import Lab
from llmlab.views import MAKERS, live_maker, maker


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's notebook, nobody's wishes; stderr is a pipe."""
    for name in ("LLMLAB_UI", "SPYDER_ARGS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    monkeypatch.setattr(sys, "stderr", io.StringIO())


def in_ipython(monkeypatch: pytest.MonkeyPatch, shell: object) -> None:
    ipython = ModuleType("IPython")
    ipython.get_ipython = lambda: shell  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)


def in_notebook(monkeypatch: pytest.MonkeyPatch, *, anywidget: bool) -> None:
    in_ipython(monkeypatch, SimpleNamespace(kernel=object()))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: object() if anywidget else None)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_text(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert frontend() == "text"


def test_a_log_file_shows_nothing() -> None:
    assert frontend() == "none"


def test_without_any_stderr_nothing_is_shown(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert frontend() == "none"


@pytest.mark.parametrize("shell", [None, SimpleNamespace()])
def test_ipython_in_a_pipe_shows_nothing(monkeypatch, shell: Any) -> None:
    in_ipython(monkeypatch, shell)
    assert frontend() == "none"


def test_a_notebook_shows_widgets_though_its_stderr_is_no_terminal(monkeypatch) -> None:
    in_notebook(monkeypatch, anywidget=True)
    assert frontend() == "widget"


def test_a_notebook_without_anywidget_shows_a_table(monkeypatch) -> None:
    in_notebook(monkeypatch, anywidget=False)
    assert frontend() == "html"


def test_spyder_shows_a_table_as_it_draws_no_widget(monkeypatch) -> None:
    in_notebook(monkeypatch, anywidget=True)
    monkeypatch.setenv("SPYDER_ARGS", "[]")
    assert frontend() == "html"


@pytest.mark.parametrize("kind", ["widget", "html", "text", "none"])
def test_the_environment_has_the_last_word(monkeypatch, kind: str) -> None:
    in_notebook(monkeypatch, anywidget=True)
    monkeypatch.setenv("LLMLAB_UI", kind)
    assert frontend() == kind


def test_another_word_in_the_environment_is_refused(monkeypatch) -> None:
    monkeypatch.setenv("LLMLAB_UI", "wigdet")
    with pytest.raises(ValueError, match="LLMLAB_UI must be one of widget, html, text, none, not 'wigdet'"):
        frontend()


def text(_: object) -> Any:
    return "a line"


def test_nothing_is_shown_to_nobody_unless_it_is_wanted() -> None:
    assert maker(text, wanted=None) is None
    assert maker(text, wanted=True) is text


def test_nothing_is_shown_to_who_does_not_want_it(monkeypatch) -> None:
    in_notebook(monkeypatch, anywidget=True)
    assert maker(text, wanted=False) is None


def test_a_notebook_gets_the_board_and_a_terminal_the_line(monkeypatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert maker(text, wanted=None) is text
    in_notebook(monkeypatch, anywidget=True)
    assert maker(text, wanted=None) is MAKERS["widget"]


def test_only_a_notebook_has_live_views(monkeypatch) -> None:
    monkeypatch.setenv("LLMLAB_UI", "widget")
    assert live_maker() is None
    in_notebook(monkeypatch, anywidget=True)
    assert live_maker() is MAKERS["widget"]


def test_a_cell_is_named_by_the_message_that_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    in_ipython(monkeypatch, SimpleNamespace(display_pub=SimpleNamespace(parent_header={"msg_id": "a1"})))
    assert cell_at_work() == "a1"


@pytest.mark.parametrize(
    "shell", [None, SimpleNamespace(), SimpleNamespace(display_pub=SimpleNamespace(parent_header={}))]
)
def test_outside_of_a_kernel_no_cell_is_at_work(monkeypatch: pytest.MonkeyPatch, shell: object) -> None:
    in_ipython(monkeypatch, shell)
    assert cell_at_work() is None
    monkeypatch.delitem(sys.modules, "IPython")
    assert cell_at_work() is None


@pytest.fixture
def pandas_options() -> Iterator[Callable[[], dict[str, object]]]:
    """What pandas' options are; put back afterwards."""
    show_as_text.cache_clear()
    before = {name: pd.get_option(name) for name in AS_TEXT}
    yield lambda: {name: pd.get_option(name) for name in AS_TEXT}
    for name, value in before.items():
        pd.set_option(name, value)
    show_as_text.cache_clear()


def test_in_a_notebook_the_first_lab_lets_frames_be_shown_as_text(monkeypatch, pandas_options) -> None:
    in_notebook(monkeypatch, anywidget=True)
    assert pandas_options() != AS_TEXT
    Lab()
    assert pandas_options() == AS_TEXT


def test_a_frame_that_was_made_without_a_lab_is_shown_as_text_too(monkeypatch, pandas_options) -> None:
    in_notebook(monkeypatch, anywidget=True)
    to_frame([])
    assert pandas_options() == AS_TEXT
    assert "tex2jax_ignore" in pd.DataFrame({"a": ["$x$"]}).to_html()


def test_who_sets_pandas_otherwise_later_has_the_last_word(monkeypatch, pandas_options) -> None:
    in_notebook(monkeypatch, anywidget=True)
    Lab()
    pd.options.display.html.use_mathjax = True
    Lab()
    to_frame([])
    assert pandas_options() == AS_TEXT | {"display.html.use_mathjax": True}


def test_outside_of_a_notebook_pandas_is_left_alone(pandas_options) -> None:
    before = pandas_options()
    Lab()
    to_frame([])
    assert pandas_options() == before
