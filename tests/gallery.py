"""Every plot as a picture, from simulated runs in virtual time: `python -m tests.gallery FOLDER`."""

import sys
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import llmlab
from llmlab import core, plots
from llmlab.clock import run_virtual
from llmlab.job import Job
from llmlab.scenario import Scenario
from llmlab.sim.faults import Faults, Outage
from llmlab.sim.physics import Physics
from llmlab.sim.transport import Simulator

PRICES = {"large": (2.5, 10.0), "small": (0.15, 0.6)}


@cache
def job(rows: int) -> Job[Any]:
    """A job on a provider that is flaky, limits the rate and is down for 15 s; a small model helps out."""
    faults = Faults.mixed(0.06) | Faults({"bad_request": 0.01, "context_too_long": 0.005})
    large = Simulator(
        seed=1,
        physics=Physics(slots=64, rpm=1800, burst=30, ttft=0.4, tail=0.02),
        faults=faults | Faults(windows=(Outage(25, 15),)),
    )
    small = Simulator(seed=2, physics=Physics(slots=8, ttft=0.2))

    async def main() -> Job[Any]:
        spare = llmlab.Lab("openai:small", transport=small, concurrency=4, prices=PRICES)
        lab = llmlab.Lab("openai:large", transport=large, concurrency=48, prices=PRICES, fallback=[spare], seed=1)
        started = lab.run_many([f"Question {n}: what is {n} squared?" for n in range(rows)], stream=True)
        await started
        return started

    return run_virtual(main)


@cache
def compared(n: int) -> pd.DataFrame:
    """Strategies on an outage, three seeds each."""

    def alone(**retry: Any) -> llmlab.Strategy:
        """Retries in front of concurrency, and neither limiter nor breaker."""
        return llmlab.Strategy("", (llmlab.Retry(**retry), llmlab.Admit((llmlab.Slots(100),))))

    strategies = {
        "no retries": llmlab.Strategy.bare(concurrency=100),
        "2 retries, as SDKs do": alone(attempts=3, throttled=None, backoff="openai"),
        "constant 1 s": alone(attempts=12, throttled=None, growth="constant", base=1.0, jitter="none"),
        "exponential, full jitter": alone(attempts=12, throttled=None),
        "default, concurrency 8": llmlab.Strategy.default(concurrency=8),
        "default": llmlab.Strategy.default(concurrency=100),
    }
    job = llmlab.Lab(progress=False).compare(strategies, n=n, scenario="outage", seeds=[1, 2, 3])
    frame: pd.DataFrame = job.result()
    return frame


@cache
def swept(n: int) -> pd.DataFrame:
    """A sweep over a provider with 24 slots, two measurements each."""
    scene = Scenario("24 slots", Physics(slots=24, queue=200, ttft=0.3, load=0.0005, rpm=3000, burst=200), stream=True)
    levels = (1, 2, 4, 8, 16, 24, 32, 48, 64)
    lab = llmlab.Lab(progress=False)
    frame: pd.DataFrame = lab.sweep(levels, n=n, scenario=scene, repeats=2, slo=4.0).result()
    return frame


@cache
def foretold(n: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What a twin predicts from two pilot runs of so many rows and three times as many, and its calibration."""
    runs = []
    for concurrency, count in ((8, n), (24, 3 * n)):
        provider = Simulator(seed=concurrency, physics=Physics(slots=64, ttft=0.3, load=0.0008))
        lab = llmlab.Lab("openai:m", transport=provider, concurrency=concurrency, prices={"m": (2.5, 10.0)}, seed=1)
        runs.append(run_virtual(partial(_run, lab, count)))
    twin = llmlab.Twin.fit(runs)
    return twin.predict(20_000, [4, 8, 12, 16, 24, 32, 48, 64], runs=10), twin.calibration()


async def _run(lab: llmlab.Lab, rows: int) -> Job[Any]:
    job = lab.run_many([f"Question {n}: what is {n} squared?" for n in range(rows)], progress=False)
    await job
    return job


def pictures(rows: int = 1200) -> Iterator[tuple[str, Callable[[], Axes | Figure]]]:
    """Name and maker of each, of a job of so many rows."""
    done = job(rows)
    out, attempts, limits = done.frame, done.attempts, done.limits
    yield "latency", lambda: plots.latency(out)
    yield "latency_by", lambda: plots.latency(out, by="model")
    yield "latency_ecdf", lambda: plots.latency(out, by="model", kind="ecdf")
    yield "streams", lambda: plots.streams(attempts)
    yield "timeline", lambda: plots.timeline(attempts)
    yield "timeline_of_result", lambda: plots.timeline(out)
    yield "throughput", lambda: plots.throughput(out)
    yield "throughput_tokens", lambda: plots.throughput(out, unit="tokens")
    yield "requests", lambda: plots.requests(attempts, limits=limits)
    yield "in_flight", lambda: plots.in_flight(attempts, limits=limits)
    yield "in_flight_sampled", lambda: plots.in_flight(limits)
    yield "cost", lambda: plots.cost(attempts)
    yield "cost_by", lambda: plots.cost(attempts, by="target")
    yield "retries", lambda: plots.retries(out)
    yield "errors", lambda: plots.errors(attempts)
    yield "errors_of_result", lambda: plots.errors(out)
    yield "bound_by", lambda: plots.bound_by(limits)
    yield "breaker", lambda: plots.breaker(limits)
    yield "limiter", lambda: plots.limiter(limits)
    yield "compare", lambda: plots.compare(compared(rows))
    yield "sweep", lambda: plots.sweep(swept(rows), slo=4.0)
    yield "twin", lambda: plots.twin(foretold(max(rows // 4, 100))[0])
    yield "twin_p99", lambda: plots.twin(foretold(max(rows // 4, 100))[0], of="p99")
    yield "calibration", lambda: plots.calibration(foretold(max(rows // 4, 100))[1])
    yield "report", lambda: plots.report(done)


def main(folder: Path, rows: int = 1200) -> None:
    """Draw them all into a folder."""
    core._told = True
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in pictures(rows):
        picture: Any = draw()
        png, _ = picture._repr_png_()
        (folder / f"{name}.png").write_bytes(png)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
