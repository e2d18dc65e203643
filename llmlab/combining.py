"""The verbs of a lab whose rows follow from the answers to others: run_chains, map_reduce."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from llmlab.call import NORMAL
from llmlab.chains import Chains, read_chains
from llmlab.core import Core
from llmlab.frame import Frame
from llmlab.job import Job
from llmlab.logbook import Journal
from llmlab.progress import line_of
from llmlab.settings import budget_of
from llmlab.streaming import frame_of
from llmlab.views import maker


class Combining(Core):
    """A lab with the verbs that ask with answers; the arguments are described at `llmlab.Lab`."""

    def run_chains(
        self,
        text: str,
        chains: Chains,
        *,
        model: str | None = None,
        system: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        extra: Mapping[str, Any] | None = None,
        journal: str | Path | None = None,
        durability: Literal["process", "power"] = "process",
        budget_usd: float | None = None,
        budget_tokens: int | None = None,
        priority: int = NORMAL,
        progress: bool | None = None,
    ) -> Job[Frame]:
        """Put one text through several chains of prompts, side by side.

        Args:
            text: The input of every chain.
            chains: Each a list of steps, `[["Translate: {context}", "Shorten: {context}"], […]]`, or a mapping of
                names to such lists. `{context}` is the answer to the step before, at first the text. A step may be a
                function that makes a prompt of the context: a text, a list of messages or a Prompt.
            model: Overrides the lab's model, likewise the other parameters.
            system: System prompt.
            temperature: Sampling temperature, 0 to 2.
            max_tokens: Output tokens at most per step.
            extra: Further request fields; replaces the lab's.
            journal: As in `run_many`, likewise the parameters after it.
            durability: What the journal survives.
            budget_usd: Dollars that this job may spend.
            budget_tokens: Tokens that it may use.
            priority: Place in the lab's line: 0 critical, 1 high, 2 normal, 3 low.
            progress: Show a line of progress. None: as the lab does.

        Returns:
            A Job: `await` it, or call its `result()`, for a DataFrame with a row for each step of each chain:
            `chain` (position or name), `step` (from 0) and the columns of `llmlab.frame.COLUMNS`. A step that fails
            ends its own chain only: the steps after it have status `cancelled` and error NotAsked.

        Raises:
            TypeError, ValueError: the text, a step or a parameter is not usable; nothing was sent.
        """
        defaults = self._parameters(model, system, temperature, max_tokens, extra)
        rows, steps = read_chains(text, chains, defaults=defaults)
        view = maker(line_of, wanted=self._progress if progress is None else progress)
        keeper = None
        if journal is not None:
            keeper = self._keeper(Journal(journal, durability=durability), {"chains": steps, **defaults})
        lane = self._lane(priority, budget_of(self.target, budget_usd, budget_tokens), patient=True)
        return self._job("run_chains", rows, stream=False, view=view, finish=frame_of, journal=keeper, lane=lane)
