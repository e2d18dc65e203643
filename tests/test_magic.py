from collections.abc import Iterator
from typing import Any

import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell

import llmlab
from llmlab import magic
from llmlab.sim import Faults, Simulator


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch) -> Iterator[InteractiveShell]:
    monkeypatch.setattr(magic, "_labs", {})
    shell = InteractiveShell()
    llmlab.load_ipython_extension(shell)
    shell.user_ns["lab"] = llmlab.Lab("openai:m", transport=Simulator(seed=1))
    yield shell
    shell.history_manager = None


def run(shell: InteractiveShell, line: str, cell: str) -> Any:
    return shell.run_cell_magic("llm", line, cell)


def test_the_answer_is_written_below_the_cell_and_kept_if_asked_for(shell, capsys) -> None:
    run(shell, "lab -o reply", "Tell me a story")
    reply = shell.user_ns["reply"]
    assert len(reply.content) > 20
    assert capsys.readouterr().out == reply.content + "\n"
    assert reply.ttft_s > 0


def test_the_lab_made_last_answers_if_none_is_named(shell, capsys) -> None:
    shell.user_ns["other"] = llmlab.Lab("openai:other", transport=Simulator(seed=1))
    run(shell, "-o reply", "Tell me a story")
    assert shell.user_ns["reply"].model == "other"
    assert capsys.readouterr().out


def test_without_any_lab_the_simulated_provider_answers(shell, capsys) -> None:
    del shell.user_ns["lab"]
    run(shell, "--max-tokens 5 -o reply", "Tell me a story")
    assert shell.user_ns["reply"].finish_reason == "length"
    assert capsys.readouterr().out


def test_options_reach_the_request(shell, capsys) -> None:
    run(shell, "lab --max-tokens 3 --system 'Be brief' --temperature 0 -o reply", "Tell me a story")
    assert shell.user_ns["reply"].usage.output_tokens == 3
    capsys.readouterr()


@pytest.mark.parametrize(
    ("line", "cell", "complaint"),
    [
        ("lab", "  \n", "the cell is empty"),
        ("nothing", "hello", "neither a variable that holds a Lab nor provider:model"),
        ("nobody:m", "hello", "unknown provider 'nobody'"),
        ("lab --temperature hot", "hello", "invalid float value"),
        ("lab --quiet", "hello", "unrecognized arguments"),
        ("lab -o 'x", "hello", "No closing quotation"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(shell, line: str, cell: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        run(shell, line, cell)


def test_a_failure_is_said_in_one_line_after_the_text_that_had_come(shell) -> None:
    faults = Faults(rates={"auth": 1.0})
    shell.user_ns["lab"] = llmlab.Lab("openai:m", transport=Simulator(faults=faults))
    with pytest.raises(UsageError, match="AuthFailed: HTTP 401"):
        run(shell, "lab", "hello")


def test_help_sends_nothing(shell, capsys) -> None:
    run(shell, "--help", "hello")
    assert "provider:model" in capsys.readouterr().out
