"""Go on to the next target when one's whole stack has given up.

error of a target                       what happens
its verdict says another may do better  the next target is asked, with limits of its own
the same, but text was shown already    the error stands: another answer would not fit to what was read
no row can escape it there (bad key)    the next is asked, and this one is passed over for a while
any other (the request is wrong)        the error stands: it is wrong everywhere
of the last target                      the error of the last that did not fail for good, so that a bad key of
                                        one target does not stop a job that others can serve
"""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from llmlab.call import Call, Handler
from llmlab.errors import LLMError, ProviderDown
from llmlab.events import Rerouted
from llmlab.types import Reply


@dataclass
class Fallback:
    """Ask one target after the other until one answers. The others are set by the lab: `Lab(…, fallback=[…])`.

    Stands above Retry: a target is left when its retries are spent, or its breaker gives up. A row keeps its account:
    attempts, tokens and money of all targets are in it. Its own `model` holds for the first target only.

    Raises:
        ValueError: `retire` is negative or no number.
    """

    retire: float = 60.0
    """Seconds for which a target is passed over after an error that no row can escape there; at least 0."""
    others: tuple[tuple[str, Handler], ...] = field(default=(), init=False, repr=False, compare=False)
    """The further targets in order: name and stack."""
    _back: dict[int, float] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.retire, bool) or not isinstance(self.retire, int | float) or not self.retire >= 0:
            raise ValueError(f"Fallback: retire must be a number of seconds of at least 0, not {self.retire!r}")

    async def __call__(self, call: Call, inner: Handler) -> Reply:
        """Pass the call on to the first target, and from there to the next."""
        targets = [("", inner), *self.others]
        failures: list[LLMError] = []
        open_now = self._open(len(targets))
        for n, place in enumerate(open_now):
            name, handler = targets[place]
            if place:
                _redirect(call, name, failures)
            try:
                return await handler(call)
            except LLMError as error:
                failures.append(error)
                self._note(place, error)
                if not error.verdict.fallback or call.committed:
                    raise
                if n + 1 == len(open_now):
                    break
        raise _worst(failures)

    def _open(self, count: int) -> Sequence[int]:
        """The targets that are not passed over at present; if all are, the first."""
        if not self._back:
            return range(count)
        now = asyncio.get_running_loop().time()
        return [place for place in range(count) if self._back.get(place, -math.inf) <= now] or [0]

    def _note(self, place: int, error: LLMError) -> None:
        # A provider that is down is its breaker's business, which finds out when it is back.
        if error.verdict.fatal and not isinstance(error, ProviderDown):
            self._back[place] = asyncio.get_running_loop().time() + self.retire


def _redirect(call: Call, name: str, failures: list[LLMError]) -> None:
    call.kind = "fallback"
    if call.prompt.model is not None:  # a name of the first target's
        call.prompt = replace(call.prompt, model=None)
    if failures:
        call.emit(Rerouted(call.index, failures[-1], name))


def _worst(failures: list[LLMError]) -> LLMError:
    return next((error for error in reversed(failures) if not error.verdict.fatal), failures[0])
