"""What holds for every plot."""

import subprocess
import sys
from collections.abc import Callable, Iterator

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from llmlab import bootstrap, plots
from llmlab.plots.canvas import Picture
from tests.frames import calibrated, predicted, rows, runs, sampled, swept, tried

HOSTILE = [r"$\frac{a$", "<script>alert(1)</script>", "_under", "a\nb\tc", "$x$ and $y$", "x" * 300]


@pytest.fixture(autouse=True)
def _no_window(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(bootstrap, "DRAWS", 20)  # how good the curve is has tests of its own
    mpl.use("agg")
    yield
    plt.close("all")


PLOTS: dict[str, tuple[Callable[..., Axes], Callable[..., pd.DataFrame], str]] = {
    "latency": (plots.latency, rows, "latency_ms"),
    "latency by": (lambda frame, **k: plots.latency(frame, by="model", **k), rows, "model"),
    "latency ecdf": (lambda frame, **k: plots.latency(frame, by="model", kind="ecdf", **k), rows, "status"),
    "streams": (plots.streams, tried, "ttft_ms"),
    "timeline": (plots.timeline, tried, "queue_ms"),
    "timeline of a result": (plots.timeline, rows, "queue_ms"),
    "throughput": (plots.throughput, rows, "finished_at"),
    "throughput in tokens": (lambda frame, **k: plots.throughput(frame, unit="tokens", **k), rows, "output_tokens"),
    "requests": (plots.requests, tried, "http_status"),
    "requests and limits": (lambda frame, **k: plots.requests(frame, limits=sampled("p:m"), **k), tried, "sent_at"),
    "in_flight": (plots.in_flight, tried, "ended_at"),
    "in_flight as sampled": (plots.in_flight, sampled, "limit"),
    "in_flight and limits": (lambda frame, **k: plots.in_flight(frame, limits=sampled("p:m"), **k), tried, "sent_at"),
    "cost": (plots.cost, tried, "cost_usd"),
    "cost by": (lambda frame, **k: plots.cost(frame, by="target", **k), tried, "target"),
    "retries": (plots.retries, rows, "attempts"),
    "errors": (plots.errors, tried, "error_type"),
    "bound_by": (plots.bound_by, sampled, "bound_by"),
    "breaker": (plots.breaker, sampled, "breaker"),
    "limiter": (plots.limiter, sampled, "requests_level"),
    "compare": (plots.compare, runs, "attempts_per_ok"),
    "sweep": (plots.sweep, swept, "in_flight"),
    "twin": (plots.twin, predicted, "makespan_low_s"),
    "calibration": (plots.calibration, calibrated, "coverage"),
}
each_plot = pytest.mark.parametrize(("draw", "make"), [case[:2] for case in PLOTS.values()], ids=PLOTS)


def drawn(ax: Axes) -> Axes:
    """Axes whose figure has been drawn in full."""
    figure = ax.figure
    assert isinstance(figure, Figure)
    figure.canvas.draw()
    return ax


def texts(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.figure.findobj(Text) if isinstance(text, Text)]


def test_every_plot_stands_here() -> None:
    covered = {name.split(" ")[0] for name in PLOTS} | {"report"}
    assert covered == set(plots.__all__)
    assert plots.__all__ == sorted(plots.__all__)


# -- the contract -----------------------------------------------------------------------------------------


@each_plot
def test_it_draws_into_the_axes_given_and_touches_no_other_figure(draw, make) -> None:
    other = plt.figure()
    figure, (left, right) = plt.subplots(1, 2)
    plt.figure(other)
    assert draw(make("a", "b"), ax=right) is right
    drawn(right)
    assert plt.gcf() is other
    assert plt.get_fignums() == [other.number, figure.number]
    assert not other.axes
    assert not left.has_data()
    assert right.has_data()


@each_plot
def test_without_axes_it_makes_a_figure_that_pyplot_does_not_know(draw, make) -> None:
    ax = drawn(draw(make("a", "b")))
    assert plt.get_fignums() == []
    assert isinstance(ax, Picture)
    assert ax.has_data()


@each_plot
@pytest.mark.parametrize("count", [0, 1], ids=["empty", "one row"])
def test_an_empty_frame_and_one_of_one_row_draw(draw, make, count: int) -> None:
    ax = drawn(draw(make("a").head(count)))
    assert any(each.get_xlabel() for each in ax.figure.axes)
    if not count and not ax.lines:
        assert any(text.startswith("no ") for text in texts(ax))


@each_plot
def test_only_rows_that_failed_draw_too(draw, make) -> None:
    frame = make("a")
    if "status" in frame:
        drawn(draw(frame[frame["status"] == "error"]))
        drawn(draw(frame[frame["status"] == "cancelled"]))


@each_plot
def test_its_labels_carry_their_units(draw, make) -> None:
    ax = draw(make("a", "b"))
    for label in (label for each in ax.figure.axes for label in (each.get_xlabel(), each.get_ylabel())):
        named = not label or label == "requests sent per answered row"
        assert named or (label.endswith(")") and "(" in label), label


@each_plot
def test_names_from_outside_are_drawn_as_they_stand(draw, make) -> None:
    ax = draw(make(*HOSTILE))
    with mpl.rc_context({"text.usetex": False}):
        drawn(ax)  # mathtext would raise on "$\frac{a$"
    shown = texts(ax)
    for text in ax.figure.findobj(Text):
        assert isinstance(text, Text)
        if "$" in text.get_text() or "<script>" in text.get_text():
            assert not text.get_parse_math()
            assert not text.get_usetex()
    assert not any(len(text) > 160 for text in shown)


@pytest.mark.parametrize(("draw", "make", "column"), PLOTS.values(), ids=PLOTS)
def test_a_frame_that_lacks_a_column_is_refused_with_its_name(draw, make, column) -> None:
    with pytest.raises(ValueError, match=f"this frame has no column '{column}'"):
        draw(make("a").drop(columns=column))
    with pytest.raises(TypeError, match=r"takes the DataFrame that is .*, not list"):
        draw([1, 2])


@each_plot
def test_the_frame_is_left_as_it_was(draw, make) -> None:
    frame = make("a", "b")
    before = frame.copy(deep=True)
    draw(frame)
    pd.testing.assert_frame_equal(frame, before)


@each_plot
def test_under_usetex_no_text_but_the_numbers_is_tex(draw, make) -> None:
    with mpl.rc_context({"text.usetex": True}):
        ax = draw(make("a", "b"))
        for text in ax.figure.findobj(Text):
            words = text.get_text()
            assert not text.get_usetex() or not set(words) & set("%_&#^~\\{}$"), words


@each_plot
def test_it_draws_under_a_dark_style(draw, make) -> None:
    with mpl.rc_context({"text.color": "white", "axes.facecolor": "black", "axes.edgecolor": "white"}):
        drawn(draw(make("a", "b")))


@each_plot
def test_axes_of_pyplots_array_are_refused(draw, make) -> None:
    _, both = plt.subplots(1, 2)
    with pytest.raises(TypeError, match="ax is one matplotlib Axes"):
        draw(make("a"), ax=both)


# -- being shown ------------------------------------------------------------------------------------------


def test_a_notebook_shows_the_axes_as_one_picture() -> None:
    from IPython.core.formatters import DisplayFormatter  # noqa: PLC0415  a test dependency alone

    data, metadata = DisplayFormatter().format(plots.latency(rows("a")))
    assert set(data) == {"image/png", "text/plain"}
    assert data["image/png"].startswith(b"\x89PNG") if isinstance(data["image/png"], bytes) else data["image/png"]
    assert metadata["image/png"] == {"width": 720, "height": 360}


def test_axes_of_somebody_elses_figure_show_themselves_as_ever() -> None:
    _, ax = plt.subplots()
    assert not hasattr(plots.latency(rows("a"), ax=ax), "_repr_png_")


def test_plots_are_imported_when_asked_for() -> None:
    code = (
        "import sys, llmlab; print('matplotlib' in sys.modules, 'plots' in dir(llmlab)); llmlab.plots.latency; "
        "print('matplotlib' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.split() == ["False", "True", "True", "False"]


def test_without_matplotlib_the_error_names_the_extra() -> None:
    code = "import sys; sys.modules['matplotlib'] = None\nimport llmlab\nllmlab.plots"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)  # noqa: S603
    assert 'ImportError: llmlab.plots needs matplotlib: pip install "llmlab[plots]"' in done.stderr
