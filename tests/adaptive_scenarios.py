"""A closed loop over a processor-sharing server on a plain heap: where concurrency controllers are compared.

The server is `llmlab.sim.physics` without its event loop (17,500 requests in 0.2 s): `slots` requests
share one machine, the others wait in line; each active request generates at `1 / (itl + load * (active - 1))` tokens
a second. Scenarios and figures are those of resilience.md 4.2: answers lognormal with median 150 tokens, 0.25 s to the
first token, 20 ms between tokens, which is 14.6 requests/s at 64 slots. There is always another row to send.

`python -m tests.adaptive_scenarios` prints the comparison.
"""

import heapq
import math
import random
from dataclasses import dataclass, field, replace
from statistics import fmean, median

from llmlab.errors import RateLimited
from llmlab.rules.adapt import Controller, Sample
from llmlab.rules.classic import AIMD, Fixed, Gradient
from llmlab.rules.elastic import Elastic

TTFT, ITL = 0.25, 0.02
RETRY_AFTER = 1.0


@dataclass(frozen=True)
class Scenario:
    """What the provider does; the times are shares of the horizon."""

    name: str
    seconds: float = 1200.0
    slots: tuple[tuple[float, int], ...] = ((0.0, 64),)
    """From which share of the run on how many requests are worked on at a time."""
    slower: tuple[tuple[float, float], ...] = ((0.0, 1.0),)
    """From which share of the run on everything takes how many times as long."""
    load: float = 0.0
    """Seconds added to the time between tokens by each other active request."""
    median_tokens: float = 150.0
    sigma: float = 0.8
    rps: float | None = None
    """The provider's rate limit; beyond it a request is refused after 50 ms and the line waits for a second."""
    burst: float = 12.0
    ledger: float | None = None
    """The client's own rate limit, which it keeps to before it sends."""
    rows_per_s: float | None = None
    """What the source delivers. None: there is always another row."""
    streamed: bool = False


HARD = Scenario("hard64")
SOFT = Scenario("soft", slots=((0.0, 100_000),), load=0.001)
DRIFT = Scenario("drift x4", slower=((0.0, 1.0), (1 / 3, 4.0)))
CAP = Scenario("cap 64-16-64", slots=((0.0, 64), (1 / 3, 16), (2 / 3, 64)))
HEAVY = Scenario("heavy tail", sigma=1.5)
RATED = Scenario("12 rps, 429s", slots=((0.0, 100_000),), rps=12.0)
LEDGER = Scenario("12 rps, ledger", slots=((0.0, 100_000),), rps=12.0, ledger=11.76)
SCENARIOS = (HARD, SOFT, DRIFT, CAP, HEAVY, RATED, LEDGER)


@dataclass
class Bucket:
    """So many a second, so many at once."""

    rate: float
    burst: float
    level: float = field(init=False)
    at: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.level = self.burst

    def wait(self, now: float) -> float:
        self.level = min(self.burst, self.level + (now - self.at) * self.rate)
        self.at = now
        return max(0.0, (1.0 - self.level) / self.rate)

    def take(self) -> None:
        self.level -= 1.0


@dataclass
class Run:
    """What came of it."""

    scenario: Scenario
    controller: Controller
    done: list[tuple[float, float]] = field(default_factory=list)
    """(when, how many times slower than alone) for each request."""
    limits: list[tuple[float, int]] = field(default_factory=list)
    """(when, limit) each time it changed."""
    starts: list[float] = field(default_factory=list)
    rejects: int = 0

    def rps(self, begin: float = 0.0, end: float = 1.0) -> float:
        """Requests a second in a part of the run, given as shares of it."""
        low, high = begin * self.scenario.seconds, end * self.scenario.seconds
        return sum(low < at <= high for at, _ in self.done) / (high - low)

    def slowdown(self, begin: float = 0.0) -> float:
        return median(s for at, s in self.done if at > begin * self.scenario.seconds)

    def limit_mean(self, begin: float = 0.0, end: float = 1.0) -> float:
        """Mean limit over time in a part of the run."""
        low, high = begin * self.scenario.seconds, end * self.scenario.seconds
        total = 0.0
        for (at, limit), (until, _) in zip(self.limits, [*self.limits[1:], (high, 0)], strict=True):
            total += limit * max(0.0, min(until, high) - max(at, low))
        return total / (high - low)


class Loop:
    """One run. Events: a request is worked off, a refusal arrives, the scenario changes, somebody may go again."""

    def __init__(self, scenario: Scenario, controller: Controller, seed: int) -> None:
        self.s = scenario
        self.c = controller
        self.rng = random.Random(seed)
        self.run = Run(scenario, controller, limits=[(0.0, controller.limit)])
        self.now = self.work = 0.0
        self.active: list[tuple[float, int, tuple[int, float, int, float]]] = []
        self.queue: list[tuple[int, float, int, float]] = []
        self.head = 0
        self.refused: list[tuple[float, int, int, float]] = []
        self.order = self.in_flight = self.sent = 0
        self.slots, self.slower, self.paused = scenario.slots[0][1], 1.0, 0.0
        changes: list[tuple[float, str, float]] = [(at, "slots", value) for at, value in scenario.slots[1:]]
        changes += [(at, "slower", value) for at, value in scenario.slower[1:]]
        self.changes = sorted((at * scenario.seconds, name, value) for at, name, value in changes)
        self.provider = Bucket(scenario.rps, scenario.burst) if scenario.rps else None
        self.ledger = Bucket(scenario.ledger, 1.0) if scenario.ledger else None
        self.wake = math.inf

    def speed(self) -> float:
        return 1.0 / (self.slower * (1.0 + self.s.load / ITL * max(0, len(self.active) - 1)))

    def go(self) -> Run:
        self.admit()
        tick = self.c.tick(self.now)
        while True:
            due = self.now + max(0.0, self.active[0][0] - self.work) / self.speed() if self.active else math.inf
            changed = self.changes[0][0] if self.changes else math.inf
            refused = self.refused[0][0] if self.refused else math.inf
            at = min(due, changed, refused, self.wake, tick)
            if at > self.s.seconds:
                return self.run
            self.work += (at - self.now) * self.speed()
            self.now = at
            if at == due:
                self.complete()
            elif at == changed:
                _, name, value = self.changes.pop(0)
                setattr(self, name, value)
                self.seat()
            elif at == refused:
                self.refuse()
            self.admit()
            tick = self.c.tick(at) if at >= tick or tick == math.inf else tick
            if self.c.limit != self.run.limits[-1][1]:
                self.run.limits.append((at, self.c.limit))

    def complete(self) -> None:
        _, _, (tag, began, tokens, alone) = heapq.heappop(self.active)
        self.seat()
        seconds = self.now - began
        self.run.done.append((self.now, seconds / alone))
        ttft = itl = None
        if self.s.streamed:
            itl = self.slower * (ITL + self.s.load * len(self.active))
            ttft = max(0.0, seconds - tokens * itl)
        self.finish(tag, Sample(seconds, 100, tokens, ttft, itl), None)

    def refuse(self) -> None:
        _, _, tag, began = heapq.heappop(self.refused)
        self.run.rejects += 1
        self.finish(tag, Sample(self.now - began), RateLimited("slow down", retry_after=RETRY_AFTER))

    def finish(self, tag: int, sample: Sample, error: RateLimited | None) -> None:
        bound = self.ledger is not None and self.in_flight < self.c.limit and self.ledger.wait(self.now) > 0
        self.c.finish(
            self.now, tag, sample, error, in_flight=self.in_flight, line_waiting=self.waiting(), rate_bound=bound
        )
        self.in_flight -= 1

    def waiting(self) -> int:
        if self.s.rows_per_s is None:
            return 1_000
        return int(self.s.rows_per_s * self.now) - self.sent

    def admit(self) -> None:
        """Let in who may go, and note when the next one may if it is for time alone to tell."""
        self.wake = math.inf
        while self.in_flight < self.c.limit:
            wait = self.ledger.wait(self.now) if self.ledger else 0.0
            wait = max(wait, self.paused - self.now)
            if self.s.rows_per_s is not None and self.waiting() < 1:
                wait = max(wait, (self.sent + 1) / self.s.rows_per_s - self.now + 1e-9)
            if wait > 1e-9:
                self.wake = self.now + wait
                return
            self.send()

    def send(self) -> None:
        if self.ledger:
            self.ledger.take()
        self.in_flight += 1
        self.sent += 1
        self.order += 1
        self.run.starts.append(self.now)
        tag = self.c.start(self.now)
        if self.provider and self.provider.wait(self.now) > 1e-9:
            self.paused = self.now + RETRY_AFTER
            heapq.heappush(self.refused, (self.now + 0.05, self.order, tag, self.now))
            return
        if self.provider:
            self.provider.take()
        tokens = max(1, round(self.s.median_tokens * math.exp(self.rng.gauss(0.0, self.s.sigma))))
        self.queue.append((tag, self.now, tokens, (TTFT + tokens * ITL) * self.slower))
        self.seat()

    def seat(self) -> None:
        while self.head < len(self.queue) and len(self.active) < self.slots:
            job = self.queue[self.head]
            self.head += 1
            self.order += 1
            heapq.heappush(self.active, (self.work + TTFT + job[2] * ITL, self.order, job))


def run(scenario: Scenario, controller: Controller, seed: int = 0) -> Run:
    """Let a fresh copy of the controller meet the scenario."""
    return Loop(scenario, replace(controller), seed).go()  # type: ignore[type-var]


STRATEGIES: dict[str, Controller] = {
    "AIMD": AIMD(),
    "AIMD most=1000": AIMD(most=1000),
    "Gradient most=1000": Gradient(most=1000),
    "Elastic": Elastic(),
}
GRID = (8, 16, 24, 32, 48, 64, 80, 96, 128, 192, 256)


def best_fixed(scenario: Scenario, seed: int = 0) -> Run:
    """The fewest calls in flight that reach 99% of the most that any fixed number reaches."""
    runs = [run(scenario, Fixed(n), seed) for n in GRID]
    most = max(each.rps() for each in runs)
    return next(each for each in runs if each.rps() >= 0.99 * most)


def _cell(runs: list[Run]) -> str:
    rps, slow, limit = (fmean(f(r) for r in runs) for f in (Run.rps, Run.slowdown, Run.limit_mean))
    rejects = f" {fmean(r.rejects for r in runs):.0f}x" if runs[0].scenario.rps else ""
    return f"{rps:.2f}/{slow:.2f}/{limit:.0f}{rejects}"


def table(seeds: range = range(3)) -> str:
    """Requests/s / median slowdown / mean limit (and refusals) per strategy and scenario, means over the seeds."""
    rows = {"": [scenario.name for scenario in SCENARIOS]}
    rows["best Fixed"] = [_cell([best_fixed(s, k) for k in seeds]) for s in SCENARIOS]
    for name, controller in STRATEGIES.items():
        rows[name] = [_cell([run(s, controller, k) for k in seeds]) for s in SCENARIOS]
    return "\n".join(f"{name:18}" + "".join(f"{cell:>21}" for cell in cells) for name, cells in rows.items())


if __name__ == "__main__":
    print(table())  # noqa: T201  the table is what it is for
