import io
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from llmlab.frontend import frontend
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
