"""How long an attempt takes, by its tokens and by how many others are under way: fitted to what has been measured.

    N        mean in flight over the attempt's own life, itself included (sweep line)
    plain    W    = a + c n_in + f N + n_out (b + d N)
    streamed TTFT = a + c n_in + f N,   W - TTFT = (n_out - 1) (b + d N)

All coefficients are 0 or more. The error is relative: squares of (W - fit) / fit, with Huber's weights. With s slots
at the provider, the rest waits: N counts up to s, and by Little's law the wait is (N - s) / s mean times of service:

    W = fit(min(N, s)) + max(0, N - s) / s mean fit(s)

Slots are believed when that explains the latencies better by ten points of AICc or more; never saturated, never known.
"""

import itertools
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]

TERMS = ("a", "c", "f", "b", "d")
"""The coefficients' names: seconds; per input token; per request in flight; per output token; per both."""
WHOLE, FIRST, REST = (0, 1, 2, 3, 4), (0, 1, 2), (3, 4)
HUBER, ROUNDS = 1.345, 12
EVIDENCE = 10.0
ROUNDING = 1e-12
CHOICES = 24


def mean_in_flight(sent: Array, ended: Array) -> Array:
    """Time-average of the attempts in flight over each attempt's own life; (n,), all at least 1.

    Args:
        sent: Seconds, when each was sent.
        ended: Seconds, when each had ended.
    """
    times = np.concatenate([sent, ended])
    order = np.argsort(times, kind="stable")
    steps = np.concatenate([np.ones(len(sent)), -np.ones(len(ended))])[order]
    times = times[order]
    area = np.concatenate([[0.0], np.cumsum(np.cumsum(steps)[:-1] * np.diff(times))])
    lived = ended - sent
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (np.interp(ended, times, area) - np.interp(sent, times, area)) / lived
    return np.asarray(np.where(lived > 0, np.maximum(mean, 1.0), 1.0))


@dataclass(frozen=True)
class Latency:
    """A fitted model of an attempt's latency, seconds."""

    whole: tuple[float, ...]
    """a, c, f, b, d."""
    streamed: bool
    """Whether TTFT and the rest were fitted apart."""
    slots: float | None
    """Requests worked on at a time; None: never saturated, so not known."""

    def parts(self, n_in: Array, n_out: Array) -> tuple[Array, Array]:
        """Seconds of an attempt without company, and seconds more for each request in flight."""
        a, c, f, b, d = self.whole
        tokens = n_out - 1 if self.streamed else n_out
        return a + c * n_in + b * tokens, f + d * tokens

    def predict(self, n_in: Array, n_out: Array, in_flight: Array) -> Array:
        """Seconds of attempts among so many in flight on average."""
        alone, each = self.parts(n_in, n_out)
        if self.slots is None:
            return np.asarray(alone + each * in_flight)
        wait = np.maximum(in_flight - self.slots, 0.0) / self.slots * float(np.mean(alone + each * self.slots))
        return np.asarray(alone + each * np.minimum(in_flight, self.slots) + wait)


def fit_latency(
    n_in: Array, n_out: Array, in_flight: Array, latency: Array, ttft: Array | None, slots: float | None
) -> Latency:
    """Fit the model; all arrays (n,), seconds.

    Args:
        n_in: Input tokens.
        n_out: Output tokens.
        in_flight: As `mean_in_flight` gives it.
        latency: From sending to the complete answer.
        ttft: From sending to the first piece. None: not streamed.
        slots: As `find_slots` gives it.
    """
    if ttft is None:
        found = _solve(_table(n_in, n_out, in_flight, slots), latency, WHOLE)[0]
        return Latency(tuple(found.tolist()), streamed=False, slots=slots)
    tokens = np.maximum(n_out - 1, 0.0)
    first = _solve(_table(n_in, tokens, in_flight, slots), ttft, FIRST)[0]
    more = tokens > 0
    if slots is not None:  # the line stands before the first token
        in_flight = np.minimum(in_flight, slots)
    rest = _solve(_table(n_in, tokens, in_flight, None)[more], (latency - ttft)[more], REST)[0]
    return Latency(tuple((first + rest).tolist()), streamed=True, slots=slots)


def find_slots(n_in: Array, n_out: Array, in_flight: Array, latency: Array) -> float | None:
    """How many the provider works on at a time, if the latencies show that more than those had to wait."""
    n = len(latency)
    without = n * np.log(_solve(_table(n_in, n_out, in_flight, None), latency, WHOLE)[1])
    choices = np.unique(np.quantile(in_flight, np.linspace(0.05, 0.95, CHOICES)).round(1))
    between = np.geomspace(max(2.0, float(choices[0])), float(in_flight.max()), CHOICES)
    tried = np.unique(np.concatenate([choices[choices >= 2], between]))  # noqa: PLR2004
    scores = [n * np.log(_solve(_table(n_in, n_out, in_flight, each), latency, WHOLE)[1]) + 2 for each in tried]
    best = int(np.argmin(scores))
    waited = float(np.mean(in_flight > 1.1 * tried[best]))
    return float(tried[best]) if scores[best] < without - EVIDENCE and waited > 0.05 else None  # noqa: PLR2004


def _table(n_in: Array, n_out: Array, in_flight: Array, slots: float | None) -> Array:
    """(n, 5) what each coefficient is multiplied by."""
    if slots is None:
        return np.stack([np.ones_like(n_in), n_in, in_flight, n_out, n_out * in_flight], axis=1)
    served = np.minimum(in_flight, slots)
    table = np.stack([np.ones_like(n_in), n_in, served, n_out, n_out * served], axis=1)
    full = np.stack([np.ones_like(n_in), n_in, np.full_like(n_in, slots), n_out, n_out * slots], axis=1).mean(axis=0)
    return np.asarray(table + (np.maximum(in_flight - slots, 0.0) / slots)[:, None] * full)


def _solve(table: Array, wanted: Array, terms: tuple[int, ...]) -> tuple[Array, float]:
    """The five coefficients (those not among `terms` are 0), and the mean squared relative error, Huber's."""
    columns = table[:, terms]
    weight = 1 / np.maximum(wanted, 1e-9) ** 2
    found = np.zeros(len(terms))
    loss = np.inf
    for _ in range(ROUNDS):
        before, found = found, _non_negative(columns, wanted, weight)
        fit = np.maximum(columns @ found, 1e-9)
        error = np.abs(wanted / fit - 1)
        delta = HUBER * max(float(np.median(error)) / 0.6745, 1e-9)
        loss = float(np.mean(np.where(error <= delta, error**2, delta * (2 * error - delta))))
        if np.allclose(before, found, rtol=1e-4, atol=0):
            break
        weight = np.minimum(1.0, delta / np.maximum(error, 1e-12)) / fit**2
    whole = np.zeros(len(TERMS))
    whole[list(terms)] = found
    return whole, max(loss, 1e-18)


def _non_negative(columns: Array, wanted: Array, weight: Array) -> Array:
    """Weighted least squares with all coefficients at least 0: the best of all subsets, exact for so few."""
    p = columns.shape[1]
    size = np.sqrt((columns**2 * weight[:, None]).sum(axis=0)) + 1e-300
    scaled = columns / size
    normal = (scaled * weight[:, None]).T @ scaled
    pull = (scaled * weight[:, None]).T @ wanted
    kept = np.array(list(itertools.product([0.0, 1.0], repeat=p))[1:])
    tables = kept[:, :, None] * kept[:, None, :] * normal + np.eye(p) * (1 - kept + 1e-10)[:, None, :]
    found = np.linalg.solve(tables, (kept * pull)[..., None])[..., 0]
    gain = np.where((found >= -ROUNDING).all(axis=1), found @ pull, -np.inf)
    return np.asarray(np.maximum(found[int(np.argmax(gain))], 0.0) / size)
