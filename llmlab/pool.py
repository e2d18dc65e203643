"""The attempts of a pilot as a pool to draw from: each with what it says of the next one that is like it.

An answer keeps its tokens, its cost and its residual, the factor by which it was slower than fitted; a failure its
error, its seconds and its Retry-After. Drawn are blocks of attempts that were sent one after the other, so that bursts
stay bursts and slow spells slow.
"""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from llmlab import errors
from llmlab.closed import Draw
from llmlab.errors import Verdict
from llmlab.loadfit import Array, Latency, fit_latency
from llmlab.pilot import Flags, Pilot

Places: TypeAlias = npt.NDArray[np.intp]

BLOCK = 20
"""Attempts in a row that are drawn together."""
FEWEST, LONG, STRAY, ACCEPTED = 5, 5.0, 0.1, 20
"""429s that speak of a limit: so many at least, over so many seconds, this share of the attempts meanwhile, and so many
others let through; fewer are a provider's stray ones."""
REFUSED = 429


@dataclass(frozen=True, eq=False)
class Pool:
    """A pilot, fitted and ready to be drawn from."""

    latency: Latency
    """The fit."""
    draws: list[Draw]
    """One per attempt."""
    runs: list[Places]
    """The places of each run's attempts in `draws`, in the order in which they were sent."""

    def stream(self, rng: random.Random) -> Iterator[Draw]:
        """Draw without end, block by block."""
        sizes = [len(run) for run in self.runs]
        while True:
            run = rng.choices(self.runs, sizes)[0]
            start = rng.randrange(len(run))
            for place in range(start, start + min(BLOCK, len(run))):
                yield self.draws[run[place % len(run)]]


def make_pool(pilot: Pilot, slots: float | None, *, limited: bool) -> Pool:
    """Fit a pilot and make its attempts draws.

    Args:
        pilot: The attempts.
        slots: The provider's, None: not known.
        limited: 429s come of a limit that is played elsewhere, so they are none of the pool's failures.
    """
    usable = np.flatnonzero(pilot.usable)
    good = pilot.take(usable)
    ttft = good.ttft if is_streamed(good) else None
    fit = fit_latency(good.n_in, good.n_out, good.in_flight, good.latency, ttft, slots)
    alone, each = residuals_of(good, fit)
    answers = [
        Draw(*values) for values in zip(alone.tolist(), each.tolist(), good.cost.tolist(), good.n_in.tolist(),
                                        good.n_out.tolist(), strict=True)
    ]  # fmt: skip
    kept = ~(limited & is_refused(pilot))
    # An answer whose own tokens are not known still is one: in its place stands the next that has them.
    stands = np.searchsorted(usable, np.arange(len(pilot.ok))) % len(usable)
    draws = [answers[stands[at]] if pilot.ok[at] else _failure(pilot, at) for at in range(len(pilot.ok))]
    runs = [np.flatnonzero((pilot.run == run) & kept) for run in np.unique(pilot.run)]
    return Pool(fit, draws, runs)


def residuals_of(good: Pilot, fit: Latency) -> tuple[Array, Array]:
    """Seconds without company and more for each in flight, of each attempt, times the factor by which it was off."""
    if not fit.streamed:
        off = good.latency / fit.predict(good.n_in, good.n_out, good.in_flight)
        alone, each = fit.parts(good.n_in, good.n_out)
        return alone * off, each * off
    ones = np.ones_like(good.n_out)
    first = fit.parts(good.n_in, ones)
    off = good.ttft / fit.predict(good.n_in, ones, good.in_flight)
    whole = fit.parts(good.n_in, good.n_out)
    rest = whole[0] - first[0], whole[1] - first[1]
    served = good.in_flight if fit.slots is None else np.minimum(good.in_flight, fit.slots)
    expected = rest[0] + rest[1] * served
    later = np.where(expected > 0, (good.latency - good.ttft) / np.maximum(expected, 1e-12), 1.0)
    return first[0] * off + rest[0] * later, first[1] * off + rest[1] * later


def redraw(pilot: Pilot, rng: np.random.Generator) -> Pilot:
    """A pilot of the same size, its runs drawn anew from their own blocks."""
    drawn = []
    for run in np.unique(pilot.run):
        places = np.flatnonzero(pilot.run == run)
        block = min(BLOCK, len(places))
        starts = rng.integers(len(places), size=math.ceil(len(places) / block))
        drawn.append(places[((starts[:, None] + np.arange(block)) % len(places)).ravel()[: len(places)]])
    return pilot.take(np.concatenate(drawn))


def is_streamed(good: Pilot) -> bool:
    """Whether all these answers have a time to first token."""
    return bool(np.isfinite(good.ttft).all())


def is_refused(pilot: Pilot) -> Flags:
    """Which attempts met a 429."""
    return np.asarray((pilot.status == REFUSED) | (pilot.error == errors.RateLimited.__name__))


def find_limit(pilot: Pilot) -> float | None:
    """Requests a minute that the provider let through while it refused others; None: it never did in earnest."""
    found = [_limit(pilot.take(pilot.run == run)) for run in np.unique(pilot.run)]
    return max((each for each in found if each is not None), default=None)


def _limit(run: Pilot) -> float | None:
    refused = is_refused(run)
    if refused.sum() < FEWEST:
        return None
    begun, over = run.sent[refused][0], run.sent[refused][-1]
    meanwhile = (run.sent > begun) & (run.sent <= over)
    accepted = int((meanwhile & ~refused).sum())
    if over - begun < LONG or accepted < ACCEPTED or refused.sum() < STRAY * meanwhile.sum():
        return None
    return 60.0 * accepted / float(over - begun)


def _failure(pilot: Pilot, at: int) -> Draw:
    kind = getattr(errors, str(pilot.error[at]), None)
    known = isinstance(kind, type) and issubclass(kind, errors.LLMError)
    verdict: Verdict = kind.verdict if known else errors.ServerError.verdict  # type: ignore[union-attr]
    asked = float(pilot.retry_after[at])
    after = None if math.isnan(asked) else asked
    return Draw(
        float(pilot.latency[at]), 0.0, float(pilot.cost[at]), error=str(pilot.error[at]), verdict=verdict,
        retry_after=after,
    )  # fmt: skip
