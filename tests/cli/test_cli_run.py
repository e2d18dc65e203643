"""`llmlab run`: files in, files out, and what the exit code says."""

import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

import llmlab
from llmlab.__main__ import main
from llmlab.cli import run as command
from llmlab.frame import COLUMNS
from llmlab.sim import Faults, Physics, Simulator
from llmlab.sim.wire import Ask

RESULT = [column.name for column in COLUMNS]


def echo(ask: Ask) -> str:
    return f"heard: {ask.text}"


@pytest.fixture
def simulator(monkeypatch: pytest.MonkeyPatch) -> Simulator:
    """What `--model openai:m` talks to."""
    simulator = Simulator(physics=Physics.instant(), say=echo)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setattr(command, "Lab", partial(llmlab.Lab, transport=simulator))
    return simulator


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    path = tmp_path / "reviews.csv"
    path.write_text('id,review,content\n7,"Great, tea",x\n8,NA,y\n9,It leaks,z\n')
    return path


def run(*arguments: object) -> int:
    return main(["run", "--model", "openai:m", "--quiet", *map(str, arguments)])


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_what_goes_in_comes_out_with_answers_beside_it(
    suffix: str, reviews: Path, tmp_path: Path, simulator: Simulator
) -> None:
    given, out = tmp_path / f"in.{suffix}", tmp_path / f"out.{suffix}"
    table = pd.read_csv(reviews, keep_default_na=False)
    writers: dict[str, Callable[[Path], object]] = {
        "csv": partial(table.to_csv, index=False),
        "jsonl": partial(table.to_json, orient="records", lines=True),
        "parquet": table.to_parquet,
    }
    writers[suffix](given)
    assert run(given, "--template", "Sum up: {review}", "-o", out) == 0
    readers: dict[str, Callable[[Path], pd.DataFrame]] = {
        "csv": lambda path: pd.read_csv(path, keep_default_na=False),
        "jsonl": lambda path: pd.read_json(path, lines=True),
        "parquet": pd.read_parquet,
    }
    got = readers[suffix](out)
    assert got.columns.tolist() == ["id", "review", "input_content", *RESULT]
    assert got.id.tolist() == [7, 8, 9], "in input order"
    assert got.review.tolist() == ["Great, tea", "NA", "It leaks"], "NA is a text like any other"
    assert got.content.tolist() == [f"heard: Sum up: {review}" for review in got.review]
    assert got.input_content.tolist() == ["x", "y", "z"]
    assert simulator.requests == 3


def test_a_column_of_prompts_needs_no_template(
    reviews: Path, simulator: Simulator, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(reviews, "--column", "review", "--rows", 1) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["content"] for row in rows] == ["heard: Great, tea"]
    assert simulator.requests == 1


def test_standard_input_and_output_are_lines_of_json(
    simulator: Simulator, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    lines = tmp_path / "lines"
    lines.write_text('{"prompt": "a", "id": "007"}\n{"prompt": "b", "id": "x"}\n')
    with lines.open() as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        assert run("-") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["id"], row["prompt"], row["content"]) for row in rows] == [
        ("007", "a", "heard: a"),
        ("x", "b", "heard: b"),
    ]
    assert simulator.requests == 2


def test_failed_rows_are_in_the_output_and_in_the_exit_code(
    reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Simulator(physics=Physics.instant(), faults=Faults.parse("bad_request:1.0"))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setattr(command, "Lab", partial(llmlab.Lab, transport=broken))
    out = tmp_path / "out.csv"
    assert run(reviews, "--column", "review", "-o", out) == 1
    got = pd.read_csv(out)
    assert got.status.tolist() == ["error"] * 3
    assert "0 of 3 rows answered, 3 BadRequest" in capsys.readouterr().err
    assert "sk-secret" not in out.read_text()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["{in}"], "has no column 'prompt', it has 'id', 'review', 'content'"),
        (["{in}", "--template", "{revue}"], "did you mean 'review'?"),
        (["{in}", "--column", "review", "-o", "{dir}/nowhere/out.csv"], "there is no folder"),
        (["{in}", "--column", "review", "-o", "{in}"], "is there already: --force replaces it"),
        (["{in}", "--column", "review", "-o", "{dir}/out.xlsx"], "name it .csv, .jsonl or .parquet"),
        (["{dir}/missing.csv"], "missing.csv"),
        (["{in}", "--input-format", "parquet"], "cannot be read as parquet"),
        (["{in}", "--column", "review", "--temperature", "3"], "temperature must be between 0 and 2"),
        (["{in}", "--column", "review", "--budget-usd", "1"], "budget_usd needs the price"),
    ],
)
def test_a_mistake_in_the_call_is_said_before_anything_is_sent(
    arguments: list[str],
    complaint: str,
    reviews: Path,
    tmp_path: Path,
    simulator: Simulator,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = reviews.read_text()
    filled = [each.replace("{in}", str(reviews)).replace("{dir}", str(tmp_path)) for each in arguments]
    assert run(*filled) == 2
    said = capsys.readouterr()
    assert complaint in said.err
    assert said.out == ""
    assert simulator.requests == 0
    assert reviews.read_text() == given
    assert [path.name for path in tmp_path.iterdir()] == ["reviews.csv"], "nothing is left behind"


@pytest.mark.parametrize(
    "arguments", [["--concurrency", "0"], ["--extra", "[1]"], ["--max-tokens", "many"], ["--extra", "{"]]
)
def test_an_unusable_value_is_named_by_its_option(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run("in.csv", *arguments)
    assert ended.value.code == 2
    assert f"argument {arguments[0]}" in capsys.readouterr().err


def test_running_again_with_a_journal_asks_nothing_twice(reviews: Path, tmp_path: Path, simulator: Simulator) -> None:
    call = (reviews, "--column", "review", "--journal", tmp_path / "run.sqlite", "-o", tmp_path / "out.csv")
    assert run(*call, "--rows", 2) == 0
    assert run(*call) == 0
    assert simulator.requests == 3
    assert len(pd.read_csv(tmp_path / "out.csv")) == 3


def test_a_result_that_cannot_be_written_is_kept_elsewhere(
    reviews: Path,
    tmp_path: Path,
    simulator: Simulator,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "folder" / "out.csv"
    out.parent.mkdir()
    monkeypatch.setattr(command, "check_place", lambda *_, **__: out.parent.rmdir())  # it is gone by the end
    assert run(reviews, "--column", "review", "-o", out) == 1
    said = capsys.readouterr().err
    assert "cannot be written" in said
    rescued = Path(said.rpartition("the result is in ")[2].strip())
    assert len(pd.read_json(rescued, lines=True)) == simulator.requests == 3
    rescued.unlink()


@pytest.fixture
def slow() -> Iterator[str]:
    """The address of a simulated server whose answers take a while."""
    code = (
        "import asyncio; from llmlab.sim import Physics, Simulator; from llmlab.sim.server import run_server; "
        "s = Simulator(physics=Physics(ttft=0.2, itl=0.0, jitter=0.0)); "
        "asyncio.run(run_server(s, '127.0.0.1', 0, announce=lambda text: print(text, flush=True), anywhere=False))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)  # noqa: S603
    assert process.stdout is not None
    yield process.stdout.readline().split()[-1]
    process.send_signal(signal.SIGINT)
    process.wait(10)
    process.stdout.close()


def answered(journal: Path) -> int:
    try:
        return len(llmlab.journal.read(journal))
    except (FileNotFoundError, ValueError, sqlite3.Error):
        return 0


def test_ctrl_c_leaves_the_rows_answered_and_a_journal_that_goes_on(slow: str, tmp_path: Path) -> None:
    pd.DataFrame({"prompt": [f"row {n}" for n in range(40)]}).to_csv(tmp_path / "in.csv", index=False)
    journal, out = tmp_path / "run.sqlite", tmp_path / "out.csv"
    call = [sys.executable, "-m", "llmlab", "run", str(tmp_path / "in.csv"), "--model", "vllm:m", "--base-url", slow,
            "--concurrency", "2", "--journal", str(journal), "-o", str(out)]  # fmt: skip
    process = subprocess.Popen(call, stderr=subprocess.PIPE, text=True)  # noqa: S603
    while answered(journal) < 4:
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 130, said
    assert "the same command goes on where it stopped" in said
    assert "Traceback" not in said
    partial_rows = pd.read_csv(out)
    done = (partial_rows.status == "ok").sum()
    assert len(partial_rows) == 40
    assert 4 <= done < 40
    again = subprocess.run([*call, "--concurrency", "40"], check=False, capture_output=True, text=True)  # noqa: S603
    assert again.returncode == 0, again.stderr
    whole = pd.read_csv(out)
    assert (whole.status == "ok").all()
    kept = partial_rows[partial_rows.status == "ok"].request_id
    assert whole.request_id[kept.index].tolist() == kept.tolist(), "rows answered before were not asked again"


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_schema_makes_columns_of_the_answers(
    suffix: str, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    simulator = Simulator(physics=Physics.instant(), say=lambda _: '{"label": "good", "stars": 4, "words": ["a"]}')
    monkeypatch.setattr(command, "Lab", partial(llmlab.Lab, transport=simulator))
    schema, out = tmp_path / "schema.json", tmp_path / f"out.{suffix}"
    fields = {"label": {"enum": ["good", "bad"]}, "stars": {"type": "integer"}, "words": {"type": "array"}}
    schema.write_text(json.dumps({"type": "object", "properties": fields, "required": ["label", "stars"]}))
    assert run(reviews, "--template", "Rate: {review}", "--schema", schema, "-o", out) == 0
    readers: dict[str, Callable[[Path], pd.DataFrame]] = {
        "csv": pd.read_csv,
        "jsonl": lambda path: pd.read_json(path, lines=True),
        "parquet": pd.read_parquet,
    }
    got = readers[suffix](out)
    assert got.columns.tolist()[-3:] == ["label", "stars", "words"]
    assert got["stars"].tolist() == [4, 4, 4]
    assert set(got["label"]) == {"good"}
    schema.write_text("[]")
    for wrong in (schema, tmp_path / "none.json"):
        with pytest.raises(SystemExit):
            run(reviews, "--column", "review", "--schema", wrong)
    assert simulator.requests == 3
    assert "argument --schema" in capsys.readouterr().err


def test_rows_are_packed_if_that_is_asked_for(
    reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    simulator = Simulator(physics=Physics.instant())
    monkeypatch.setattr(command, "Lab", partial(llmlab.Lab, transport=simulator))
    assert run(reviews, "--column", "review", "--pack", 3, "-o", tmp_path / "out.csv") == 0
    assert "3 of 3 rows answered" in capsys.readouterr().err
    assert simulator.requests == 1
