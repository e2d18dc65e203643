"""Who waits how long in a lab's queue: whole labs on the simulated provider, in virtual time.

    urgent     a batch of hundreds of rows is at work; now and then somebody submits a single question
    starving   low-priority questions while questions of a more urgent class come faster than the provider can answer

`python -m tests.queue_scenarios` prints the figures.
"""

import asyncio
import random
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from llmlab import Lab, Strategy
from llmlab.clock import run_virtual
from llmlab.job import Job
from llmlab.sim import Physics, Simulator
from llmlab.types import Reply

CONCURRENCY = 8
PHYSICS = Physics(reply_tokens=100, reply_sigma=0.5)


def lab_of(seed: int) -> Lab:
    """A lab of eight slots on a provider that takes some seconds an answer."""
    simulator = Simulator(seed=seed, physics=PHYSICS)
    return Lab("openai:m", transport=simulator, seed=seed, strategy=Strategy.default(concurrency=CONCURRENCY))


def quantile(times: Iterable[float], share: float) -> float:
    """A quantile of some seconds."""
    ranked = sorted(times)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]


@dataclass
class Urgent:
    """What single questions met beside a batch."""

    priority: int
    """Theirs; the batch has 2."""
    seconds: list[float]
    """From submitting to the answer, each."""
    batch_left: list[int]
    """Rows of the batch not yet settled when each was submitted."""
    batch_s: float
    """Seconds that the batch took."""
    batch_ok: int
    """Its rows answered."""


def urgent(*, rows: int = 600, questions: int = 30, priority: int = 0, seed: int = 1) -> Urgent:
    """Submit questions while a batch is at work."""

    async def main() -> Urgent:
        lab, rng, loop = lab_of(seed), random.Random(seed), asyncio.get_running_loop()
        batch = lab.run_many([f"Row {n}" for n in range(rows)], progress=False)
        found = Urgent(priority, [], [], 0.0, 0)

        async def ask(n: int, at: float) -> None:
            await asyncio.sleep(at)
            found.batch_left.append(rows - batch.progress.now.done)
            came = loop.time()
            await lab.submit(f"Question {n}", priority=priority)
            found.seconds.append(loop.time() - came)

        async with asyncio.TaskGroup() as group:
            for n in range(questions):
                group.create_task(ask(n, rng.uniform(5, 60)))
            out = await batch
            found.batch_s, found.batch_ok = loop.time(), int((out.status == "ok").sum())
        return found

    return run_virtual(main)


@dataclass
class Starving:
    """What low-priority questions met under a stream of more urgent ones."""

    waited: list[float]
    """Seconds from submitting each of them to its answer; those not answered by the end are missing."""
    urgent_done: int
    """More urgent ones answered until then."""
    line: list[int]
    """Calls in line, looked at every ten seconds."""


def starving(*, low: int = 5, stream: int = 0, load: float = 1.2, seconds: float = 900.0, seed: int = 1) -> Starving:
    """Submit `low` questions of priority 3, then for `seconds` others of priority `stream`, `load` times too many."""

    async def main() -> Starving:
        lab, rng, loop = lab_of(seed), random.Random(seed), asyncio.get_running_loop()
        found, answer_s = Starving([], 0, []), 0.0
        began = loop.time()
        await asyncio.gather(*(lab.submit(f"Warm {n}") for n in range(64)))
        answer_s = (loop.time() - began) * CONCURRENCY / 64  # a slot's seconds per answer
        jobs: list[Job[Reply]] = []

        async def press() -> None:
            while True:
                jobs.append(lab.submit(f"Urgent {len(jobs)}", priority=stream))
                await asyncio.sleep(rng.expovariate(load * CONCURRENCY / answer_s))

        async def ask(n: int) -> None:
            came = loop.time()
            await lab.submit(f"Low {n}", priority=3)
            found.waited.append(loop.time() - came)

        pressing = asyncio.create_task(press())
        await asyncio.sleep(5 * answer_s)
        asking = [asyncio.create_task(ask(n)) for n in range(low)]
        until = loop.time() + seconds
        while loop.time() < until and not all(each.done() for each in asking):
            await asyncio.sleep(10.0)
            found.line.append(lab.target.line.waiting if lab.target.line else 0)
        pressing.cancel()
        found.urgent_done = sum(job.done for job in jobs)
        await lab.aclose(cancel=True)
        await asyncio.gather(*asking, return_exceptions=True)
        return found

    return run_virtual(main)


def main() -> None:
    """Print the figures."""
    say = partial(print, flush=True)
    say("a single question beside a batch of 600 rows, seconds from submitting to the answer")
    say("priority    n    p50    p95    max   rows left then   batch ok   batch s")
    for priority in (0, 1, 2, 3):
        found = urgent(priority=priority)
        times = found.seconds
        p50, p95 = quantile(times, 0.5), quantile(times, 0.95)
        left = f"{min(found.batch_left)} to {max(found.batch_left)}"
        say(
            f"{priority:8} {len(times):4} {p50:6.2f} {p95:6.2f} {max(times):6.2f} {left:>16}"
            f" {found.batch_ok:10} {found.batch_s:9.1f}"
        )
    say("\n5 questions of priority 3 under a stream that offers 1.2 times what the provider can answer")
    say("stream's priority   answered   first s   last s   others done meanwhile   longest line")
    for stream in (0, 1, 2):
        lone = starving(stream=stream)
        say(
            f"{stream:17} {len(lone.waited):8}/5 {min(lone.waited):9.1f} {max(lone.waited):8.1f}"
            f" {lone.urgent_done:23} {max(lone.line):14}"
        )


if __name__ == "__main__":
    main()
