"""A program to be killed: writes a journal, and says on stdout what it was told is committed.

    python -m tests.logbook_victim PATH ROWS [--window N] [--hold] [--fork]

    had I     row I was in the file already, with the right answer
    asked I   row I goes out (the request that costs money)
    done I    row I is committed
    end       all rows are

A line is one write to the pipe, so that a kill never tears one that was counted. `--hold` stays alive at the end until
stdin closes; `--fork` leaves a child alive that has all of the parent's handles, and stops there.
"""

import argparse
import asyncio
import os
import sys
import time
from functools import partial

from llmlab.logbook import Attempt, Journal, Occurrences, key_of
from llmlab.types import Outcome, Prompt, Reply, Usage

CHUNK = 500


def tell(line: str) -> None:
    os.write(1, f"{line}\n".encode())


def prompt_of(index: int) -> Prompt:
    return Prompt.of(f"prompt {index // 2}")  # each twice: the second is another occurrence


def answer_of(index: int) -> str:
    return f"answer to {index // 2} " + "x" * (index % 1000)


def outcome_of(index: int) -> Outcome:
    reply = Reply(answer_of(index), "stop", "sim", "small", Usage(10, 20))
    now = time.time()
    return Outcome(index, prompt_of(index), "ok", reply, None, 1, 0.1, 0.0, now, now)


async def run(path: str, rows: int, window: int) -> None:
    loop = asyncio.get_running_loop()
    journal = Journal(path)
    journal.open({"model": "sim:small"}, deliver=loop.call_soon_threadsafe)
    occurrences = Occurrences()
    news = asyncio.Event()
    flying: set[int] = set()

    def done(index: int) -> None:
        tell(f"done {index}")
        flying.discard(index)
        news.set()

    try:
        past: list[tuple[int, bytes, int]] = []
        for index in range(rows):
            key = key_of(prompt_of(index), provider="sim", model="small")
            occ = occurrences.next(key)
            if journal.is_done(key, occ):
                past.append((index, key, occ))
                if len(past) >= CHUNK:
                    await replay(journal, past)
                continue
            while len(flying) >= window:
                news.clear()
                await news.wait()
            flying.add(index)
            tell(f"asked {index}")
            journal.append(index, outcome_of(index), key=key, occ=occ, attempts=[Attempt(1)], then=partial(done, index))
            if index % 20 == 0:
                await asyncio.sleep(0)
        await replay(journal, past)
        await journal.flush()
    finally:
        await journal.aclose()


async def replay(journal: Journal, past: list[tuple[int, bytes, int]]) -> None:
    for index, row in (await journal.recall(past)).items():
        assert row.reply is not None
        assert row.reply.content == answer_of(index)
        tell(f"had {index}")
    past.clear()


def hold(path: str, *, fork: bool) -> None:
    """Hold the journal without end; with `fork`, in a process whose child outlives it."""
    journal = Journal(path)
    journal.open({"model": "sim:small"})
    if fork and os.fork() == 0:
        journal.close()  # as its exit would do; the file is still the parent's
        tell("child")
        sys.stdin.read()
        os._exit(0)
    tell("held")
    sys.stdin.read()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("path")
    parser.add_argument("rows", type=int)
    parser.add_argument("--window", type=int, default=400)
    parser.add_argument("--hold", action="store_true")
    parser.add_argument("--fork", action="store_true")
    given = parser.parse_args()
    if given.hold or given.fork:
        hold(given.path, fork=given.fork)
        return
    asyncio.run(run(given.path, given.rows, given.window))
    tell("end")


if __name__ == "__main__":
    main()
