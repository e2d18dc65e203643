import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

import llmlab
from llmlab.__main__ import main
from llmlab.frame import COLUMNS


class Simulated:
    """`llmlab simulate` in a process of its own."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "llmlab", "simulate", "--port", "0", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603  our own program
        assert self.process.stdout is not None
        lines = [self.process.stdout.readline() for _ in range(2)]
        self.openai, self.anthropic = (line.split()[-1] for line in lines)

    def stats(self) -> dict[str, int]:
        with urllib.request.urlopen(f"{self.anthropic}/sim/stats") as answer:  # noqa: S310  loopback
            return dict(json.load(answer))

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


@pytest.fixture
def faulty() -> Iterator[Simulated]:
    simulated = Simulated("--faults", "mixed:0.1", "--seed", "5")
    yield simulated
    simulated.stop()


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
@pytest.mark.parametrize("stream", [False, True])
def test_rows_over_a_socket_with_faults_are_all_answered_and_all_counted(
    faulty: Simulated, dialect: str, stream: bool
) -> None:
    prompts = [f"Row {n}: say something about {n % 7}." for n in range(150)]

    async def ask() -> pd.DataFrame:
        lab = llmlab.Lab(f"{dialect}:any", base_url=getattr(faulty, dialect), api_key="k", concurrency=60, seed=1)
        return await lab.run_many(prompts, stream=stream, max_tokens=30)

    out = asyncio.run(ask())
    assert out[out.status != "ok"][["error_type", "error"]].to_dict("records") == []
    assert out.prompt.tolist() == prompts
    assert faulty.stats()["received"] == out.attempts.sum() > 150


def test_simulate_serves_until_it_is_interrupted() -> None:
    simulated = Simulated()
    assert simulated.openai.endswith("/v1")
    with urllib.request.urlopen(f"{simulated.openai}/models") as answer:  # noqa: S310
        assert json.load(answer)["object"] == "list"
    assert simulated.stop() == 0


def test_demo_writes_what_it_says(tmp_path: Path, capsys) -> None:
    assert main(["demo", "--rows", "40", "--out", str(tmp_path / "out"), "--seed", "2"]) == 0
    said = capsys.readouterr().out
    csv, parquet, png = (tmp_path / "out" / f"demo.{kind}" for kind in ("csv", "parquet", "png"))
    for path in (csv, parquet, png):
        assert str(path) in said
    table = pd.read_parquet(parquet)
    assert len(table) == len(pd.read_csv(csv)) == 40
    assert list(table.columns) == [column.name for column in COLUMNS]
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "success_count" in said
    assert f"{table.attempts.sum()} requests" in said


def test_the_shipped_prompts_are_many_and_all_different() -> None:
    prompts = pd.read_csv(Path(llmlab.__file__).parent / "data" / "prompts.csv")
    assert len(prompts) >= 300
    assert prompts.prompt.is_unique
    assert prompts.notna().all(axis=None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["simulate", "--faults", "gremlins:0.1"], "gremlins"),
        (["simulate", "--host", "0.0.0.0"], "loopback"),  # noqa: S104  refused
        (["demo", "--concurrency", "0"], "concurrency must be at least 1"),
    ],
)
def test_a_wrong_argument_is_one_line_on_stderr(arguments: list[str], said: str, capsys) -> None:
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err


def test_a_port_in_use_is_one_line_on_stderr(faulty: Simulated, capsys) -> None:
    port = faulty.anthropic.rpartition(":")[2]
    assert main(["simulate", "--port", port]) == 1
    assert "address already in use" in capsys.readouterr().err


def test_a_lab_moves_from_loop_to_loop_and_takes_no_dead_connection_along(faulty: Simulated) -> None:
    lab = llmlab.Lab("openai:any", base_url=faulty.openai, api_key="k", max_tokens=5)

    async def awaited() -> list[str]:
        return list((await lab.run_many(["a", "b"])).status)

    async def nested() -> list[str]:
        return list(lab.run_many(["a", "b"]).result().status)

    ok = ["ok", "ok"]
    assert asyncio.run(awaited()) == ok
    assert list(lab.run_many(["a", "b"]).result().status) == ok
    assert asyncio.run(awaited()) == ok
    assert asyncio.run(nested()) == ok
    assert list(lab.run_many(["a", "b"]).result().status) == ok


LABS_COME_AND_GO = """
import asyncio, gc, sys
import llmlab

def ask(where):
    lab = llmlab.Lab("openai:any", base_url=sys.argv[1], api_key="k", max_tokens=3, loop=where)
    assert (lab.run_many(["a", "b"]).result().status == "ok").all()

async def asked():
    lab = llmlab.Lab("openai:any", base_url=sys.argv[1], api_key="k", max_tokens=3)
    assert ((await lab.run_many(["a", "b"])).status == "ok").all()

async def asked_and_collected():
    await asked()
    gc.collect()
    await asyncio.sleep(0)

for where in ("caller", "thread"):
    ask(where)
    ask(where)
    gc.collect()
asyncio.run(asked())
asyncio.run(asked_and_collected())
last = llmlab.Lab("openai:any", base_url=sys.argv[1], api_key="k", max_tokens=3, loop="thread")
last.run("a").result()
"""


def test_labs_that_come_and_go_leave_not_a_word(faulty: Simulated) -> None:
    command = [sys.executable, "-W", "error", "-c", LABS_COME_AND_GO, faulty.openai]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_help_names_the_commands(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert "demo" in said
    assert "simulate" in said


def test_importing_llmlab_loads_neither_plots_nor_widgets_nor_a_server() -> None:
    heavy = [
        "matplotlib",
        "ipywidgets",
        "anywidget",
        "fastapi",
        "uvicorn",
        "aiohttp",
        "httpx_aiohttp",
        "nest_asyncio2",
    ]
    code = f"import sys, llmlab; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.strip() == "[]"
