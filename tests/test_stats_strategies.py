import numpy as np
import pandas as pd
import pytest

from llmlab.stats import strategies
from tests.frames import compared


def test_strategies_by_hand() -> None:
    out = strategies(compared(("a", 1, 90, 10, 10.0, 1.0), ("a", 2, 100, 0, 20.0, 2.0), ("b", 1, 50, 50, 5.0, 4.0)))
    assert out["strategy"].tolist() == ["a", "b"]
    assert out["seeds"].tolist() == [2, 1]
    assert out["failed_share"].tolist() == pytest.approx([0.05, 0.5])
    assert out["makespan_s"].tolist() == [15, 5]
    assert out["makespan_s_min"].tolist() == [10, 5]
    assert out["attempts_per_ok"].tolist() == [1.5, 4]
    assert out["attempts_per_ok_max"].tolist() == [2, 4]


@pytest.mark.parametrize("none", [float("nan"), float("inf"), None])
def test_a_seed_without_an_answer_has_no_attempts_per_ok(none: float) -> None:
    out = strategies(compared(("a", 1, 0, 100, 1.0, none), ("a", 2, 100, 0, 9.0, 1.5)))
    assert out["attempts_per_ok"].tolist() == [1.5]
    assert out["failed_share"].tolist() == [0.5]
    assert np.isnan(strategies(compared(("a", 1, 0, 9, 1.0, none)))["attempts_per_ok"]).all()


def test_of_no_runs_there_are_no_strategies() -> None:
    assert strategies(compared()).empty


def test_without_rows_there_is_no_share() -> None:
    assert np.isnan(strategies(compared(("a", 1, 0, 0, 0.0, np.nan)))["failed_share"]).all()


def test_a_frame_that_lacks_a_column_is_refused_with_its_name() -> None:
    with pytest.raises(
        ValueError, match=r"^strategies takes a result of lab.compare; this frame has no column 'seed'$"
    ):
        strategies(pd.DataFrame({"strategy": []}))
