"""The pictures of what a twin predicts."""

from typing import Any

import numpy as np
import pytest

from llmlab import plots
from llmlab.plots.canvas import SERIES
from tests.frames import calibrated, predicted


def legend(ax: Any) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def hatched(ax: Any) -> list[Any]:
    return [patch for patch in ax.patches if patch.get_hatch()]


def test_the_fan_has_the_median_and_the_band() -> None:
    ax: Any = plots.twin(predicted("mine"))
    (line,) = [each for each in ax.lines if each.get_color() == SERIES[0] and len(each.get_xdata()) == 4]
    assert line.get_xdata().tolist() == [8, 16, 32, 64]
    assert line.get_ydata().tolist() == [100, 50, 25, 12.5]
    band = ax.collections[0].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == pytest.approx((0.9 * 12.5, 120))


def test_what_is_outside_the_measured_range_is_hatched_and_hollow() -> None:
    ax: Any = plots.twin(predicted("mine"))
    (area,) = hatched(ax)
    assert area.get_x() == pytest.approx(np.sqrt(32 * 64))
    assert "outside what the pilot measured" in legend(ax)
    assert [opacity for *_, opacity in ax.collections[-1].get_facecolor()] == [1, 1, 1, 0]


def test_inside_the_measured_range_nothing_is_hatched() -> None:
    frame = predicted("mine")
    assert hatched(plots.twin(frame[~frame["outside"]])) == []


def test_where_all_is_outside_all_is_hatched() -> None:
    frame = predicted("mine").assign(outside=True)
    (area,) = hatched(plots.twin(frame))
    assert area.get_x() < 8
    assert area.get_x() + area.get_width() > 64


def test_below_the_measured_range_is_outside_too() -> None:
    frame = predicted("mine")
    (area,) = hatched(plots.twin(frame.assign(outside=frame["concurrency"] == 8)))
    assert area.get_x() + area.get_width() == pytest.approx(np.sqrt(8 * 16))


def test_strategies_stand_with_the_rows_they_lose() -> None:
    assert legend(plots.twin(predicted("a", "b")))[:2] == [
        "a: 0.8% to 6.4% of rows failed",
        "b: 0.8% to 6.4% of rows failed",
    ]


@pytest.mark.parametrize(
    ("of", "label"),
    [
        ("makespan", "time until the job is done (s)"),
        ("p50", "latency, median of the rows (ms)"),
        ("p99", "latency, p99 of the rows (ms)"),
        ("cost", "cost (USD)"),
    ],
)
def test_other_figures_have_their_own_fan(of: Any, label: str) -> None:
    assert plots.twin(predicted("a"), of=of).get_ylabel() == label


def test_a_long_job_is_in_hours() -> None:
    frame = predicted("a")
    for end in ("_low", "", "_high"):
        frame[f"makespan{end}_s"] *= 1000
    ax: Any = plots.twin(frame)
    assert ax.get_ylabel() == "time until the job is done (h)"


def test_a_strategy_that_sets_no_number_stands_where_it_flies() -> None:
    frame = predicted("auto").head(1).assign(concurrency=None, in_flight=21.5)
    ax: Any = plots.twin(frame)
    assert ax.collections[-1].get_offsets()[0][0] == 21.5


def test_a_cost_that_is_not_known_is_said_to_be_so() -> None:
    frame = predicted("a").assign(cost_low_usd=np.nan, cost_usd=np.nan, cost_high_usd=np.nan)
    assert [text.get_text() for text in plots.twin(frame, of="cost").texts] == ["no price is known"]


def test_an_unknown_figure_is_refused() -> None:
    wrong: Any = "speed"
    with pytest.raises(ValueError, match="of is one of makespan, p50, p95, p99, cost, not 'speed'"):
        plots.twin(predicted("a"), of=wrong)


def test_calibration_stands_beside_the_diagonal() -> None:
    ax: Any = plots.calibration(calibrated())
    every, *_, diagonal = ax.lines
    assert every.get_xdata().tolist() == pytest.approx([1100, 1500, 1900, 1990])
    assert every.get_ydata().tolist() == pytest.approx([1111, 1515, 1919, 2009.9])
    assert diagonal.get_xdata().tolist() == diagonal.get_ydata().tolist()
    assert ax.get_xlim() == ax.get_ylim()
    assert legend(ax)[:2] == ["all runs: 78% of 50", "run 0, 8 in flight: 78% of 50"]
    assert [text.get_text() for text in ax.texts] == ["p50", "p90", "p99"]
