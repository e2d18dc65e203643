"""`llmlab models`: the providers and the models of one."""

import asyncio
import threading
from collections.abc import Iterator
from functools import partial

import httpx
import pytest

import llmlab
from llmlab.__main__ import main
from llmlab.providers.presets import PRESETS
from llmlab.sim import Simulator
from llmlab.sim.server import serve


@pytest.fixture
def simulated() -> Iterator[str]:
    """The address of a simulated server, in a thread."""
    ready, over = threading.Event(), asyncio.Event()
    found: list[object] = []

    async def run() -> None:
        server = await serve(Simulator(models=["small", "large"]))
        found.extend([server.base_url, asyncio.get_running_loop()])
        ready.set()
        await over.wait()
        await server.aclose()

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    ready.wait()
    yield str(found[0])
    found[1].call_soon_threadsafe(over.set)  # type: ignore[attr-defined]
    thread.join()


def test_all_providers_are_listed_with_the_state_of_their_keys(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for preset in PRESETS.values():
        for variable in preset.key_vars:
            monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-mine")
    assert main(["models"]) == 0
    said = capsys.readouterr().out
    lines = {line.split()[0]: line for line in said.splitlines()}
    assert set(PRESETS) | {"sim"} <= set(lines)
    assert "OPENAI_API_KEY: set" in lines["openai"]
    assert "ANTHROPIC_API_KEY: not set" in lines["anthropic"]
    assert "none needed" in lines["ollama"]
    assert "sk-secret" not in said


@pytest.mark.parametrize(("provider", "path"), [("vllm", "/v1"), ("anthropic", "")])
def test_the_models_of_a_provider_are_asked_for(
    simulated: str, provider: str, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models", provider, "--base-url", simulated + path]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert names == ["large", "small"]


def test_a_list_of_several_pages_is_read_to_its_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pages = [
        {"data": [{"id": "a"}], "has_more": True, "last_id": "a"},
        {"data": [{"id": "b"}], "has_more": False, "last_id": "b"},
    ]
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(str(request.url))
        return httpx.Response(200, json=pages[len(seen) - 1])

    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
    monkeypatch.setattr("llmlab.cli.models.Lab", partial(llmlab.Lab, transport=httpx.MockTransport(answer)))
    assert main(["models", "anthropic"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == ["a", "b"]
    assert "after_id=a" in seen[1]


def test_a_provider_that_cannot_be_reached_is_said_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "vllm", "--base-url", "http://127.0.0.1:9/v1"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("llmlab: vllm: ")
    assert len(said.splitlines()) == 1


def test_an_unknown_provider_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "opnai"]) == 2
    assert "did you mean 'openai'?" in capsys.readouterr().err
