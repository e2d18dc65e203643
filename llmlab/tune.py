"""`lab.tune`: finds the concurrency for a job by trying, and goes on with the job at what was found.

in virtual time     a geometric grid of numbers, then three more around the knee
on a real provider  a share of the job's own rows, about 5%, is spent on it; their answers are kept, and `rest`
asks the other rows at the setting found
"""

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from llmlab.call import NORMAL
from llmlab.fits import knee
from llmlab.frame import COLUMNS, Frame, Rows
from llmlab.handle import Handle
from llmlab.job import Job
from llmlab.loops import Home
from llmlab.recommend import Recommendation, recommend
from llmlab.steady import LEAST
from llmlab.sweep import Sweep
from llmlab.types import Prompt

COARSE = (1, 2, 4, 8, 16, 32, 64, 128)
"""Numbers tried first, if nothing else is said."""
AROUND = (0.6, 1.0, 1.6)
"""Times the knee: numbers tried then."""
FEWEST, BETTER = 2, 3
"""Numbers without which there is nothing to compare, and that a smaller range is accepted for."""

Begin = Callable[[tuple[int, ...]], Sweep]
"""Begins a sweep over some numbers."""


@dataclass(frozen=True, kw_only=True)
class Rest:
    """How the rows that tuning has left are asked; as `lab.run_many` takes it."""

    stream: bool = False
    """Ask for the answers in pieces."""
    journal: str | Path | None = None
    """A file in which each row is written down."""
    durability: Literal["process", "power"] = "process"
    """What it survives."""
    budget_usd: float | None = None
    """Dollars that these rows may cost."""
    budget_tokens: int | None = None
    """Tokens that they may use."""
    priority: int = NORMAL
    """Place in the lab's line."""
    progress: bool | None = None
    """Show a line of progress."""


GoOn = Callable[["Tuning", Rest], Job[Frame]]
"""Begins the job of the rows that have no answer yet."""


class Tuning(Handle[Recommendation]):
    """The job of `lab.tune`: `await` it, or call its `result()`, for a Recommendation.

    Args:
        grid: Numbers to try first.
        begin: Begins a sweep.
        refine: Try three numbers more, around the knee.
        elasticity: As in `llmlab.recommend.recommend`.
        attainment: Likewise.
        use: Sets a recommendation on the lab.
        rest: Begins the rest of the job. None: no rows of the user's were spent.
        home: The event loop it lives on.
    """

    def __init__(
        self,
        grid: tuple[int, ...],
        begin: Begin,
        *,
        refine: bool,
        elasticity: float,
        attainment: float,
        use: Callable[[Recommendation], object],
        rest: GoOn | None,
        home: Home,
    ) -> None:
        super().__init__("tune", home)
        self._grid, self._begin_sweep, self._refine = grid, begin, refine
        self._elasticity, self._attainment, self._use, self._rest = elasticity, attainment, use, rest
        self._sweeps: list[Sweep] = []
        self._begin_by_itself()

    @property
    def frame(self) -> Frame:
        """What was measured so far; see `llmlab.sweep.SWEPT`."""
        frames = [sweep.frame for sweep in self._sweeps if len(sweep.frame)]
        if not frames:
            return self._sweeps[0].frame if self._sweeps else pd.DataFrame()
        # the same number may be in both sweeps: they are repeats of each other
        out = pd.concat(frames, ignore_index=True).sort_values("concurrency", kind="stable", ignore_index=True)
        out["repeat"] = out.groupby("concurrency").cumcount() + 1
        return out

    @property
    def rows(self) -> Frame:
        """The rows sent for it; see `Sweep.rows`. On a real provider its index is the input rows' positions."""
        frames = [sweep.rows for sweep in self._sweeps]
        return pd.concat(frames) if frames else pd.DataFrame()

    @property
    def recommendation(self) -> Recommendation:
        """What the points measured so far speak for.

        Raises:
            ValueError: there is none yet.
        """
        frame = self.frame
        if frame.empty:
            raise ValueError("nothing was measured yet")
        return recommend(frame, elasticity=self._elasticity, attainment=self._attainment)

    def use(self) -> Recommendation:
        """Set the recommended concurrency on the lab; gives the recommendation."""
        found = self.recommendation
        self._use(found)
        return found

    def rest(self, **settings: Any) -> Job[Frame]:
        """Use the recommendation, and ask the rows that tuning has not answered yet.

        Args:
            settings: `stream`, `journal`, `durability`, `budget_usd`, `budget_tokens`, `priority` and `progress`, as
                `lab.run_many` takes them. The journal is the rest's own: tuning's answers are in the result only.

        Returns:
            A Job whose result is that of `run_many` for all rows, those answered while tuning included.

        Raises:
            TypeError, ValueError: a setting is not usable, or no rows of the user's own were tuned on.
        """
        if self._rest is None:
            raise ValueError("there is no rest: this was tuned on made-up rows; use() sets what was found")
        how = Rest(**settings)
        self.use()
        return self._rest(self, how)

    # -- inside -------------------------------------------------------------------------------------------

    def _make(self) -> Coroutine[Any, Any, Recommendation]:
        return self._main()

    async def _main(self) -> Recommendation:
        await self._sweep(self._grid)
        closer = self._closer() if self._refine and self._stopped is None else ()
        if closer:
            await self._sweep(closer)
        return self.recommendation

    async def _sweep(self, grid: tuple[int, ...]) -> None:
        sweep = self._begin_sweep(grid)
        self._sweeps.append(sweep)
        await sweep

    def _closer(self) -> tuple[int, ...]:
        """Numbers around the knee that were not tried, if the data have one."""
        found = knee(self.frame, elasticity=self._elasticity)
        if found.n is None:
            return ()
        wanted = {max(1, round(found.n * factor)) for factor in AROUND}
        return tuple(sorted(wanted - set(self.frame["concurrency"])))

    def _stop(self, reason: str) -> None:
        self._stopped = self._stopped or reason
        for sweep in self._sweeps:
            sweep.stop(reason)

    def __repr__(self) -> str:
        state = "done" if self.done else "running" if self._task is not None else "not started"
        found = f", {self.recommendation}" if len(self.frame) else ""
        return f"<Tuning: {len(self.frame)} points, {state}{found}>"


def affordable(grid: Sequence[int], rows: int) -> tuple[tuple[int, ...], int]:
    """The numbers that so many rows can measure, and the rows for each.

    A number n needs 60 answered rows in its window, n for the warm-up, and n that are still in flight when it ends. As
    wide a range is kept as leaves three numbers, evenly spread; or else two.

    Raises:
        ValueError: not even two can be measured.
    """
    known = sorted(set(grid))
    for fewest in (BETTER, FEWEST):
        for count in range(len(known), fewest - 1, -1):
            most = rows // _needed(known[count - 1])
            if most >= fewest:
                left = _spread(known[:count], min(count, most))
                return left, rows // len(left) - left[-1]
    if len(known) < FEWEST:
        raise ValueError("concurrency: tuning needs two numbers at least")
    raise ValueError(
        f"{rows} rows are too few to tune on: {FEWEST * _needed(known[1])} are the least; a greater share=, smaller "
        "numbers for concurrency=, or scenario= to tune on a simulated provider"
    )


def _needed(number: int) -> int:
    return LEAST + 2 * number


def _spread(numbers: Sequence[int], count: int) -> tuple[int, ...]:
    """So many of them, the first and the last among them."""
    step = (len(numbers) - 1) / (count - 1)
    return tuple(numbers[round(place * step)] for place in range(count))


def whole(answers: Frame, rest: Frame, index: pd.Index | None, total: int) -> Frame:
    """One frame of two parts by position, in input order, with the input's index."""
    names = [column.name for column in COLUMNS]
    out = pd.concat([answers[names], rest[names]]).sort_index(kind="stable") if len(answers) else rest[names]
    out = out[~out.index.duplicated(keep="last")]
    out.index = pd.RangeIndex(total) if index is None else index
    return out


def unanswered(items: Sequence[Prompt], answers: Frame) -> list[int]:
    """Positions of the rows that have no answer yet."""
    done = set(answers.index[answers["status"] == "ok"]) if len(answers) else set()
    return [position for position in range(len(items)) if position not in done]


def remaining(items: Sequence[Prompt], positions: Sequence[int]) -> Rows:
    """Those rows, for a job; its frame has their positions as its index."""
    return Rows([items[position] for position in positions], pd.Index(list(positions), dtype="int64"), len(positions))
