"""What strategies are compared on: a simulated provider that behaves in some way, and prompts for it.

steady           a decent hosted API without limits, nothing goes wrong
rate_limited     1,200 requests a minute with a burst of 10 s
outage           2,400 requests a minute, and down for 30 s from second 20 on
overload         16 slots and as few places in line: whoever sends more than 32 at a time is refused
heavy_tail       answers of very different length, and one request in 50 takes 20 times as long to begin
flaky            one request in ten goes wrong, in all the ways that a retry mends, and bad spells of some seconds
capacity_drop    from second 30 to second 90 a quarter of the slots, at half the speed
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count, islice

from llmlab.prices import Price
from llmlab.sim.faults import Burst, Faults, Outage
from llmlab.sim.physics import Change, Physics
from llmlab.sim.transport import Simulator
from llmlab.template import did_you_mean

TEXT = (
    "the tea came late and the box was torn but it tastes as it did last year so we will order a second one "
    "for my sister who asked about the price of the large tin with the blue lid"
)
WORDS = TEXT.split()
"""A token each, with the blank before them."""
PRICE = Price(0.5, 1.5)
"""Made up, US dollars per million tokens."""
LONGEST = 20_000
"""Tokens of a made-up prompt at most."""


@dataclass(frozen=True)
class Scenario:
    """A simulated provider and its prompts. The same seed gives the same prompts, answers, delays and faults.

    Raises:
        ValueError: a field is out of its range.
    """

    name: str
    """Its name in tables."""
    physics: Physics = field(default_factory=Physics)
    """What the provider can do."""
    faults: Faults = field(default_factory=Faults)
    """What goes wrong."""
    changes: tuple[Change, ...] = ()
    """What becomes of it while it runs."""
    prompt_tokens: float = 40.0
    """Median length of the made-up prompts in tokens, at least 1."""
    prompt_sigma: float = 0.4
    """Sigma of the lognormal distribution of their lengths; 0: all have the median."""
    stream: bool = False
    """Ask for the answers in pieces, so that they have a time to first token."""
    price: Price | None = PRICE
    """What the tokens are reckoned at, US dollars per million; made up. None: they have no price."""
    backup: Physics = field(default_factory=Physics)
    """A second provider, where nothing goes wrong, for strategies with a Fallback."""

    def __post_init__(self) -> None:
        if not 1 <= self.prompt_tokens <= LONGEST:
            raise ValueError(f"Scenario: prompt_tokens must be from 1 to {LONGEST}, not {self.prompt_tokens!r}")
        if not 0 <= self.prompt_sigma <= 3:  # noqa: PLR2004  e^3: 20 times as long
            raise ValueError(f"Scenario: prompt_sigma must be from 0 to 3, not {self.prompt_sigma!r}")

    def prompts(self, n: int, *, seed: int) -> list[str]:
        """Make up `n` prompts, each with its number in it; those of a smaller n are the first of a larger."""
        return list(islice(self.endless(seed=seed), n))

    def endless(self, *, seed: int) -> Iterator[str]:
        """Make up prompts without end."""
        rng = random.Random(f"prompts {seed}")
        return (self._prompt(number, rng) for number in count())

    @classmethod
    def of(cls, simulator: Simulator, name: str = "own") -> "Scenario":
        """What a simulated provider does, with made-up prompts."""
        world = simulator.world
        return cls(name, physics=world.physics, faults=world.faults, changes=world.changes)

    def _prompt(self, number: int, rng: random.Random) -> str:
        length = min(LONGEST, round(self.prompt_tokens * rng.lognormvariate(0.0, self.prompt_sigma)))
        start = rng.randrange(len(WORDS))
        words = (WORDS[at % len(WORDS)] for at in range(start, start + LONGEST))
        return " ".join([f"Review {number}:", *islice(words, max(0, length - 3))])

    @property
    def turns_at(self) -> float:
        """Seconds after the first request at which it begins to do what it is for; 0: at once."""
        windows = [each.start if isinstance(each, Outage) else 0.0 for each in self.faults.windows]
        return min([*windows, *(change.at for change in self.changes)], default=0.0)

    def provider(self, seed: int) -> Simulator:
        """A new simulated provider."""
        return Simulator(seed=seed, physics=self.physics, faults=self.faults, changes=self.changes)

    def second(self, seed: int) -> Simulator:
        """A new simulated provider to fall back to."""
        return Simulator(seed=seed, physics=self.backup)


SCENARIOS: dict[str, Scenario] = {
    each.name: each
    for each in (
        Scenario("steady"),
        Scenario("rate_limited", Physics(slots=400, load=0.0, rpm=1200, burst=10)),
        Scenario(
            "outage",
            Physics(slots=400, load=0.0, ttft=0.5, reply_tokens=30, rpm=2400, burst=10),
            Faults(windows=(Outage(20, 30),)),
        ),
        Scenario("overload", Physics(slots=16, queue=16, ttft=0.3, itl=0.015, load=0.001)),
        Scenario("heavy_tail", Physics(slots=256, tail=0.02, tail_factor=20, reply_sigma=1.2)),
        Scenario("flaky", faults=Faults.mixed(0.1) | Faults(windows=(Burst(60, 5),))),
        Scenario(
            "capacity_drop",
            changes=(Change(30, Physics(slots=16, slowdown=2)), Change(90, Physics())),
        ),
    )
}
"""The ready-made ones by name."""


def find(scenario: str | Scenario) -> Scenario:
    """A scenario by its name, or as it is.

    Raises:
        TypeError, ValueError: it is neither, or there is none of that name.
    """
    if isinstance(scenario, Scenario):
        return scenario
    if not isinstance(scenario, str):
        raise TypeError(f"scenario must be a name or a Scenario, not {type(scenario).__name__}")
    if scenario not in SCENARIOS:
        raise ValueError(f"no scenario {scenario!r}; {did_you_mean(scenario, SCENARIOS)}")
    return SCENARIOS[scenario]
