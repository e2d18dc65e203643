"""Each plot draws what its numbers say: artists are read back."""

from typing import Any, cast

import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from llmlab import plots
from llmlab.plots.canvas import FAILED, OK, WARN, dollars, duration, percent, plain
from tests.frames import ZERO, attempts, compared, limits, lost, result, rows, sampled, tried


def legend(ax: Axes) -> list[str]:
    box = ax.get_legend()
    return [] if box is None else [text.get_text() for text in box.get_texts()]


def texts(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts]


def drawn(ax: Axes) -> Axes:
    ax.figure.canvas.draw()
    return ax


def test_latency_marks_its_percentiles_and_counts_the_failed() -> None:
    frame = result(*({"latency_ms": float(ms)} for ms in range(101)), lost())
    ax: Any = plots.latency(frame)
    assert [line.get_xdata()[0] for line in ax.lines] == [50, 95, 99]
    assert legend(ax) == ["101 answered · 1 failed", "p50: 50 ms", "p95: 95 ms", "p99: 99 ms"]


def test_long_latencies_are_in_seconds() -> None:
    ax: Any = plots.latency(result({"latency_ms": 30_000.0}, {"latency_ms": 40_000.0}))
    assert ax.get_xlabel() == "latency of the successful attempt (s)"
    assert ax.lines[0].get_xdata()[0] == pytest.approx(35)


def test_a_long_tail_is_drawn_on_a_logarithmic_axis() -> None:
    assert plots.latency(result({"latency_ms": 10.0}, {"latency_ms": 1000.0})).get_xscale() == "log"
    assert plots.latency(result({"latency_ms": 10.0}, {"latency_ms": 100.0})).get_xscale() == "linear"


def test_an_ecdf_that_lost_rows_ends_below_1() -> None:
    ax: Any = plots.latency(result({}, {}, {}, lost()), kind="ecdf")
    assert ax.lines[0].get_ydata().max() == 0.75


def test_rows_without_a_model_are_named_with_their_failures() -> None:
    frame = result({"model": "big"}, {"model": "big"}, lost())
    assert legend(plots.latency(frame, by="model"))[1:] == ["no model · 0 answered · 1 failed"]


def test_of_many_groups_the_largest_are_drawn_and_the_rest_are_said() -> None:
    frame = result(*({"model": f"m{n}"} for n in range(20) for _ in range(n + 1)))
    names = legend(plots.latency(frame, by="model"))
    assert names[0].startswith("m19 ")
    assert len(names) == 8
    assert names[-1] == "and 13 smaller groups, not drawn"


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="kind is 'histogram' or 'ecdf', not 'violin'"):
        plots.latency(result(), kind=cast("Any", "violin"))


def test_the_timeline_draws_each_phase_where_it_happened() -> None:
    ax: Any = plots.timeline(tried("a"))
    boxes = {to_hex(each.get_facecolor()[0]): each for each in ax.collections[:-1]}
    failed = [path.get_extents() for path in boxes[FAILED.lower()].get_paths()]
    assert [(round(box.x0, 3), round(box.x1, 3)) for box in failed] == [(0.1, 0.4), (1.0, 2.0)]
    assert legend(ax)[-1] == "another attempt"
    ((at, _),) = ax.collections[-1].get_offsets()
    assert at == pytest.approx(3.0)


def test_a_long_timeline_keeps_each_kind_of_row() -> None:
    good = [{"position": n, "begin": float(n), "end": n + 1.0} for n in range(900)]
    bad = [{"position": 900 + n, "begin": float(n), "end": n + 0.1, "status": "error"} for n in range(100)]
    ax: Any = plots.timeline(attempts(*good, *bad), rows=50)
    assert ax.get_title(loc="left") == "50 of 1,000 rows"
    lost_rows, answered = ax.collections[0], ax.collections[1]
    assert len(lost_rows.get_paths()) == 5
    assert len(answered.get_paths()) == 45


@pytest.mark.parametrize("count", [0, -1, 2.5, "all"])
def test_a_timeline_of_no_rows_is_refused(count: Any) -> None:
    with pytest.raises(ValueError, match="rows is a whole number of at least 1"):
        plots.timeline(result(), rows=count)


def test_throughput_stacks_the_failed_on_the_answered() -> None:
    frame = result({"end": 1.0}, {"end": 2.0}, lost(end=10.0))
    ax: Any = plots.throughput(frame, window=5)
    answered, failed = ax.patches
    assert answered.get_data()[0].tolist() == [0.4, 0]
    assert failed.get_data()[0].tolist() == [0.4, 0.2]
    assert failed.get_data()[2].tolist() == [0.4, 0]
    assert legend(ax) == ["answered: 2", "failed: 1"]


def test_requests_show_what_was_refused() -> None:
    ax: Any = plots.requests(tried("a"))
    assert legend(ax) == ["answered: 2", "refused (429): 1", "failed: 1"]
    assert to_hex(ax.patches[1].get_facecolor()) == WARN.lower()


def test_requests_are_shaded_while_a_breaker_was_open() -> None:
    ax: Any = plots.requests(tried("a"), limits=limits({"breaker": "open", "begin": 1.0}, {"begin": 2.5}))
    assert legend(ax)[-1] == "breaker open"
    assert (ax.patches[-1].get_x(), ax.patches[-1].get_width()) == (1.0, 1.5)


def test_costs_of_many_groups_are_drawn_for_the_largest() -> None:
    frame = attempts(*({"target": f"t{n}", "cost_usd": 1.0} for n in range(9) for _ in range(n + 1)))
    names = legend(plots.cost(frame, by="target"))
    assert names[0] == "t8: 9.00 USD"
    assert names[-1] == "and 2 smaller groups, not drawn"


def test_in_flight_stands_against_the_limit_in_force() -> None:
    frame = attempts({"begin": 0, "end": 4}, {"begin": 0, "end": 2})
    seen = limits({"begin": 0, "limit": 2}, {"begin": 3, "limit": 5})
    ax: Any = plots.in_flight(frame, limits=seen)
    assert legend(ax) == ["in flight, mean 1.5", "limit"]
    (line,) = ax.lines
    assert list(zip(*line.get_data(), strict=True)) == [(0, 2), (3, 5)]


def test_samples_of_two_targets_of_one_moment_are_added_up() -> None:
    seen = limits({"target": "a", "in_flight": 3}, {"target": "a", "in_flight": 4}, {"target": "b", "in_flight": 2})
    ax: Any = plots.in_flight(seen)
    assert ax.dataLim.y1 == 6


def test_cost_tells_what_was_wasted_and_what_has_no_price() -> None:
    frame = attempts({"cost_usd": 2.0}, {"cost_usd": 0.5, "status": "error", "end": 2.0}, {"cost_usd": None})
    assert legend(plots.cost(frame)) == [
        "in all: 2.50 USD", "brought no answer: 0.50 USD",
        "1 of 3 have tokens but no known price: they add nothing",
    ]  # fmt: skip


def test_without_a_price_cost_counts_tokens() -> None:
    ax: Any = plots.cost(attempts({}, {}))
    assert ax.get_ylabel() == "used so far (tokens)"
    assert legend(ax) == ["in all: 30 tokens"]


def test_retries_are_labelled_with_their_counts() -> None:
    ax: Any = plots.retries(result({}, {}, {"attempts": 2}, lost(attempts=2)))
    assert legend(ax) == ["answered: 3", "failed: 1"]
    assert ax.get_title(loc="left") == "6 requests for 3 answers: 2.00 each"
    assert [bar.get_height() for bar in ax.patches] == [2, 1, 1]


def test_errors_tell_the_mended_from_the_lost() -> None:
    ax: Any = plots.errors(tried("a"))
    assert legend(ax) == ["answered by another attempt: 1", "lost: 1"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["Lost", "a"]
    assert ax.get_title(loc="left") == "2 of 4 requests failed (50%)"


def test_errors_beyond_the_most_are_summed_up() -> None:
    frame = attempts(*({"status": "error", "error_type": f"E{n}"} for n in range(20)))
    names = [label.get_text() for label in plots.errors(frame, most=3).get_yticklabels()]
    assert names == ["E0", "E1", "E10", "17 other classes"]


def test_the_breaker_is_a_ribbon_of_its_states() -> None:
    ax: Any = plots.breaker(sampled("p:m"))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["breaker", "asked to wait"]
    assert legend(ax) == ["closed", "half-open: probing", "open: left alone", "asked to wait"]


def test_bound_by_tells_each_share() -> None:
    ax: Any = plots.bound_by(limits({"bound_by": "provider"}, {"bound_by": "rate limit", "begin": 1}, {"begin": 4}))
    assert legend(ax) == ["provider: 25%", "rate limit: 75%"]


def test_the_limiter_shades_when_it_bound_the_job() -> None:
    ax: Any = plots.limiter(sampled("p:m"))
    assert legend(ax) == ["requests, 600/min", "rate limit bound the job"]
    assert ax.lines[0].get_ydata()[0] == pytest.approx(100 * 10 / 600)
    assert legend(plots.limiter(limits({}))) == []


def test_compare_shows_the_share_of_failed_rows() -> None:
    cmp = compared(("fast", 1, 20, 80, 10.0, 5.0), ("sure", 1, 100, 0, 40.0, 1.1), ("sure", 2, 100, 0, 44.0, 1.3))
    ax: Any = plots.compare(cmp)
    assert legend(ax) == ["fast: 80% failed", "sure: 0% failed", "ring's area: share of rows failed"]
    rings = [each for each in ax.collections if to_hex(each.get_edgecolor()[0]) == FAILED.lower()]
    assert len(rings) == 1
    assert rings[0].get_offsets().tolist() == [[5.0, 10.0]]


def test_a_strategy_without_an_answer_stands_in_the_legend_alone() -> None:
    ax: Any = drawn(plots.compare(compared(("none", 1, 0, 50, 3.0, float("inf")))))
    assert legend(ax)[0] == "none: 100% failed"
    assert "no answers" in texts(ax)


@pytest.mark.parametrize("name", ["throughput", "in_flight", "timeline", "cost"])
def test_plots_of_one_job_can_share_a_clock(name: str) -> None:
    frame = rows("a") if name == "throughput" else tried("a")
    ax: Any = getattr(plots, name)(frame, since=ZERO - pd.Timedelta(hours=4))
    assert ax.get_xlabel() == "time since the job began (h)"
    assert ax.get_xlim()[1] == pytest.approx(4.0, abs=0.01)


# -- words ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a\nb", "a b"),
        ("x" * 50, "x" * 39 + "…"),
        ("\ud800", "\N{REPLACEMENT CHARACTER}"),
        (None, "None"),
        ("$a$", "$a$"),
    ],
)
def test_names_are_made_fit_to_be_drawn(name: object, said: str) -> None:
    assert plain(name) == said


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (0.0, "0%"),
        (1.0, "100%"),
        (0.0001, "<0.1%"),
        (0.9999, ">99.9%"),
        (0.012, "1.2%"),
        (0.42, "42%"),
        (float("nan"), "-"),
    ],
)
def test_a_share_never_says_none_or_all_for_what_is_not(share: float, said: str) -> None:
    assert percent(share) == said


def test_durations_are_in_words() -> None:
    assert [duration(ms) for ms in (812.4, 9_999, 12_345, float("nan"))] == ["812 ms", "9,999 ms", "12.3 s", "-"]


def test_answered_and_failed_are_told_apart_by_the_colour_blind() -> None:
    """The palette of Okabe and Ito (2008)."""
    assert (OK, FAILED) == ("#0072B2", "#D55E00")


@pytest.mark.parametrize(
    ("usd", "said"), [(0.0, "0.00 USD"), (1234.5, "1,234.50 USD"), (0.5, "0.50 USD"), (0.00123, "0.0012 USD")]
)
def test_small_amounts_keep_their_digits(usd: float, said: str) -> None:
    assert dollars(usd) == said
