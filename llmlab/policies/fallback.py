"""Go on to the next target when one's whole stack has given up.

error of a target                       what happens
its verdict says another may do better  the next target is asked, with limits of its own
the same, but text was shown already    the error stands for this row: another answer would not fit to what was read
no row can escape it there (bad key)    the next is asked, and this one is passed over for a while
any other (the request is wrong)        the error stands: it is wrong everywhere
of the last target                      the error of the last that did not fail for good, so that a bad key of
                                        one target does not stop a job that others can serve
"""

import asyncio
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
    _retired: dict[int, tuple[float, LLMError]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.retire, bool) or not isinstance(self.retire, int | float) or not self.retire >= 0:
            raise ValueError(f"Fallback: retire must be a number of seconds of at least 0, not {self.retire!r}")

    async def __call__(self, call: Call, inner: Handler) -> Reply:
        """Pass the call on to the first target, and from there to the next."""
        targets = [("", inner), *self.others]
        deadline = call.deadline
        failures: list[LLMError] = []
        for place in self._open(len(targets)):
            name, handler = targets[place]
            if place:
                call.deadline = deadline  # a target's own total is its own
                _redirect(call, name, failures[-1] if failures else self._retired[0][1])
            try:
                return await handler(call)
            except LLMError as error:
                failures.append(error)
                self._note(place, error)
                if call.committed and error.verdict.fallback and self.others:
                    error.judge(fatal=False)  # other rows can escape it
                if call.committed or not error.verdict.fallback:
                    raise
        raise _worst(failures)

    def _open(self, count: int) -> Sequence[int]:
        """The targets that are not passed over at present; if all are, the first."""
        if not self._retired:
            return range(count)
        now = asyncio.get_running_loop().time()
        for place in [place for place, (until, _) in self._retired.items() if until <= now]:
            del self._retired[place]
        return [place for place in range(count) if place not in self._retired] or [0]

    def _note(self, place: int, error: LLMError) -> None:
        # A provider that is down is its breaker's business, which finds out when it is back.
        if error.verdict.fatal and error.verdict.fallback and not isinstance(error, ProviderDown):
            self._retired[place] = asyncio.get_running_loop().time() + self.retire, error


def _redirect(call: Call, name: str, why: LLMError) -> None:
    call.kind = "fallback"
    if call.prompt.model is not None:  # a name of the first target's
        call.prompt = replace(call.prompt, model=None)
    call.emit(Rerouted(call.index, why, name))


def _worst(failures: list[LLMError]) -> LLMError:
    return next((error for error in reversed(failures) if not error.verdict.fatal), failures[0])
