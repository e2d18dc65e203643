"""The picture of a sweep, and the curve behind it."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex

from llmlab import plots
from llmlab.fits import knee
from llmlab.plots.canvas import FAILED
from llmlab.stats import curve
from llmlab.stats.sweeps import BEYOND
from tests.frames import swept


def legend(ax: Any) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_the_curve_goes_a_little_beyond_what_was_measured_and_says_so() -> None:
    line = curve(swept(), points=50)
    assert len(line) == 50
    most = swept()["in_flight"].max()
    assert line["in_flight"].iloc[[0, -1]].tolist() == pytest.approx([0.95, BEYOND * most])
    assert (line["measured"] == (line["in_flight"] <= most)).all()
    assert (line["low"] <= line["value"] * 1.001).all()
    assert (line["value"] <= line["high"] * 1.001).all()


def test_the_curve_is_the_fit_of_the_column_asked_for() -> None:
    rows, tokens = curve(swept()), curve(swept(), throughput="tokens_per_s")
    assert tokens["value"].to_numpy() == pytest.approx(20 * rows["value"].to_numpy(), rel=1e-3)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_of_fewer_than_two_levels_there_is_no_curve(count: int) -> None:
    line = curve(swept().head(count))
    assert line.empty
    assert line["measured"].dtype == bool


def test_windows_without_throughput_have_no_say() -> None:
    frame = swept()
    frame.loc[0, "rows_per_s"] = np.nan
    assert len(curve(frame))


def test_the_knee_is_marked_in_every_panel() -> None:
    found = knee(swept())
    assert found.n is not None
    ax = plots.sweep(swept())
    panels: Any = ax.figure.axes
    assert len(panels) == 3
    for panel in panels:
        assert any(line.get_xdata()[0] == found.n and line.get_xdata()[-1] == found.n for line in panel.lines)
    assert ax.get_title(loc="left").startswith(f"knee at {found.n:.3g} in flight (")


def test_a_knee_that_the_data_do_not_tell_is_said_in_words() -> None:
    frame = swept()
    said = plots.sweep(frame[frame["concurrency"] <= 4]).get_title(loc="left")
    assert said.startswith("no knee: too few measurements")


def test_windows_that_were_not_steady_are_hollow_and_failed_rows_have_a_ring() -> None:
    ax: Any = plots.sweep(swept())
    assert legend(ax)[2:] == [
        "measured", "measured, not steady", "within the SLO (rows)", "rows failed: 0.3% of all",
    ]  # fmt: skip
    rings = [
        each
        for each in ax.collections
        if len(each.get_edgecolor()) and to_hex(each.get_edgecolor()[0]) == FAILED.lower()
    ]
    assert len(rings[0].get_offsets()) == 4


def test_the_sweeps_own_word_on_steadiness_is_taken() -> None:
    assert "measured, not steady" not in legend(plots.sweep(swept().assign(steady=True)))
    assert "measured" not in legend(plots.sweep(swept().assign(steady=False)))


def test_what_was_not_measured_is_hatched() -> None:
    ax: Any = plots.sweep(swept())
    hatched = [patch for patch in ax.patches if patch.get_hatch()]
    assert len(hatched) == 1
    assert hatched[0].get_x() == pytest.approx(swept()["in_flight"].max(), rel=0.06)


def test_an_slo_is_a_line_in_the_latency_panel() -> None:
    latency: Any = plots.sweep(swept(), slo=2.5).figure.axes[1]
    assert latency.lines[-1].get_ydata()[0] == 2500 or latency.lines[-2].get_ydata()[0] == 2500
    assert "SLO 2.5 s" in legend(latency)


def test_the_place_given_is_divided_and_no_other() -> None:
    figure, (left, right) = plt.subplots(1, 2)
    before = left.get_position().bounds
    assert plots.sweep(swept(), ax=right) is right
    assert left.get_position().bounds == before
    assert len(figure.axes) == 4
    plt.close(figure)


def test_axes_without_a_grid_are_divided_too() -> None:
    figure = plt.figure()
    ax = figure.add_axes((0.1, 0.1, 0.5, 0.8))
    plots.sweep(swept(), ax=ax)
    boxes = [each.get_position() for each in figure.axes]
    assert [round(box.x0, 6) for box in boxes] == [0.1] * 3
    assert boxes[0].y1 == pytest.approx(0.9)
    assert boxes[2].y0 == pytest.approx(0.1)
    assert boxes[0].y0 > boxes[1].y1 > boxes[1].y0 > boxes[2].y1
    plt.close(figure)


@pytest.mark.parametrize("wanted", [0, 1, -0.2, 2])
def test_an_elasticity_that_is_none_is_refused(wanted: float) -> None:
    with pytest.raises(ValueError, match="elasticity must be between 0 and 1"):
        plots.sweep(swept(), elasticity=wanted)


def test_one_level_stands_in_the_middle_of_an_axis_from_0() -> None:
    frame = swept().head(1).assign(in_flight=0.9999987)
    figure: Any = plots.sweep(frame).figure
    figure.draw_without_rendering()
    bottom = figure.axes[-1]
    assert bottom.get_xlim() == pytest.approx((0, 2), abs=0.01)
    assert not bottom.xaxis.get_offset_text().get_text()
