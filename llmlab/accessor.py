"""`df.llm` and `df.column.llm`: the lab's main verb and the summary, from the side of the data.

Registered with pandas when llmlab is imported.
"""

from importlib import import_module
from typing import Any

import pandas as pd

from llmlab.job import Job
from llmlab.lab import Lab


@pd.api.extensions.register_dataframe_accessor("llm")
class FrameAccessor:
    """What llmlab does with a DataFrame: `df.llm.run(lab, template="…{column}…")`, `out.llm.summary()`.

    Args:
        frame: The DataFrame.
    """

    def __init__(self, frame: pd.DataFrame) -> None:
        self._frame = frame

    def run(self, lab: Lab, **options: Any) -> Job[pd.DataFrame]:
        """Answer one prompt a row: `lab.run_many(df, …)`.

        Args:
            lab: The lab that answers.
            options: As for `Lab.run_many`: `template`, `journal`, `model`, ….

        Returns:
            A Job: `await` it, or call its `result()`, for a DataFrame with this one's index.

        Raises:
            TypeError, ValueError: `lab` is none, or the input or an option is not usable; nothing was sent.
        """
        return _checked(lab).run_many(self._frame, **options)

    def grid(self, lab: Lab, **options: Any) -> Job[pd.DataFrame]:
        """Ask each row with every combination of factors: `lab.grid(df, …)`; a GridForecast with `dry_run=True`."""
        job: Job[pd.DataFrame] = _checked(lab).grid(self._frame, **options)
        return job

    def summary(self) -> "pd.Series[Any]":
        """Sum up a result of `run_many`; see `llmlab.summary`.

        Raises:
            ValueError: the frame is none.
        """
        found: pd.Series[Any] = import_module("llmlab.stats").summary(self._frame)
        return found


@pd.api.extensions.register_series_accessor("llm")
class SeriesAccessor:
    """What llmlab does with a column of prompts: `df.prompt.llm.run(lab)`.

    Args:
        series: The prompts.
    """

    def __init__(self, series: "pd.Series[Any]") -> None:
        self._series = series

    def run(self, lab: Lab, **options: Any) -> Job[pd.DataFrame]:
        """Answer each prompt: `lab.run_many(series, …)`; as `FrameAccessor.run`."""
        return _checked(lab).run_many(self._series, **options)

    def grid(self, lab: Lab, **options: Any) -> Job[pd.DataFrame]:
        """Ask each prompt with every combination of factors: `lab.grid(series, …)`; as `FrameAccessor.grid`."""
        job: Job[pd.DataFrame] = _checked(lab).grid(self._series, **options)
        return job


def _checked(lab: object) -> Lab:
    if not isinstance(lab, Lab):
        raise TypeError(f"llm.run takes the lab that answers, as in df.llm.run(lab), not {type(lab).__name__}")
    return lab
