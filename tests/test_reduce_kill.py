"""A map-reduce killed outright in the middle of a level: what was reported is not asked again."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from llmlab.journal import read
from tests.echo import Model, lab_on

ITEMS = [f"i{n}" for n in range(30)]
ASK: dict[str, Any] = {"map": "m {item}", "reduce": "r {mapped_outputs}", "fan_in": 3}
IN_FLIGHT = 4

VICTIM = """
import asyncio, os, sys
from llmlab.events import Admitted, Finished
from tests.echo import Model, lab_on
from tests.test_reduce_kill import ASK, IN_FLIGHT, ITEMS

async def main():
    job = lab_on(Model(0.01), concurrency=IN_FLIGHT).map_reduce(ITEMS, journal=sys.argv[1], **ASK)
    job.bus.subscribe(lambda event: os.write(1, b"asked\\n"), Admitted)
    job.bus.subscribe(lambda event: os.write(1, b"done\\n"), Finished)
    await job

asyncio.run(main())
"""


@pytest.mark.parametrize("after", [7, 33, 43])
def test_after_a_kill_only_what_was_in_flight_is_paid_for_twice(tmp_path: Path, after: int) -> None:
    path = tmp_path / "run.sqlite"
    victim = subprocess.Popen([sys.executable, "-c", VICTIM, str(path)], stdout=subprocess.PIPE, text=True)  # noqa: S603
    assert victim.stdout is not None
    told: list[str] = []
    for line in victim.stdout:
        told.append(line.strip())
        if told.count("done") == after:
            os.kill(victim.pid, signal.SIGKILL)
            break
    told += victim.stdout.read().split()
    victim.stdout.close()
    assert victim.wait() == -signal.SIGKILL
    kept = len(read(path))
    assert kept >= told.count("done") >= after
    assert told.count("asked") - kept <= IN_FLIGHT

    again = Model(0)
    answer = lab_on(again).map_reduce(ITEMS, journal=path, **ASK).result()
    assert len(again.asked) == answer.calls - kept
    assert answer.content == lab_on(Model(0)).map_reduce(ITEMS, **ASK).result().content
