from collections.abc import MutableMapping
from typing import cast
from urllib.parse import urlsplit

import orjson
import pytest

from llmlab.providers.anthropic import Anthropic
from llmlab.providers.openai import OpenAI
from llmlab.providers.presets import PRESETS, Preset
from llmlab.types import Message, Prompt

LOCAL = {"llamacpp", "lmstudio", "ollama", "sglang", "vllm"}


def test_the_promised_names_are_there() -> None:
    assert set(PRESETS) == LOCAL | {
        "anthropic",
        "azure",
        "deepseek",
        "gemini",
        "groq",
        "mistral",
        "openai",
        "openrouter",
        "together",
        "xai",
    }


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        cast("MutableMapping[str, Preset]", PRESETS)["x"] = PRESETS["openai"]


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_makes_a_fresh_codec(name: str) -> None:
    preset = PRESETS[name]
    first, second = preset.codec(), preset.codec()
    assert first == second
    assert first is not second
    assert b'"hello"' in first.encode(Prompt.of("hello"), "m", stream=False)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_an_address_is_whole_and_ends_where_the_path_begins(name: str) -> None:
    preset = PRESETS[name]
    if preset.base_url is None:
        assert name == "azure"
        return
    url = urlsplit(preset.base_url)
    assert url.scheme == ("http" if name in LOCAL else "https")
    assert (url.hostname == "127.0.0.1") == (name in LOCAL)
    assert not preset.base_url.endswith("/")


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_only_local_servers_need_no_key(name: str) -> None:
    preset = PRESETS[name]
    assert preset.key_required == (name not in LOCAL)
    assert preset.key_vars or name in LOCAL


def test_openai_is_called_by_the_field_names_that_its_newer_models_ask_for() -> None:
    body = orjson.loads(PRESETS["openai"].codec().encode(Prompt.of("x", max_tokens=5), "m", stream=True))
    assert body["max_completion_tokens"] == 5
    assert body["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"openai", "azure", "anthropic"}))
def test_compatible_servers_get_the_names_that_all_of_them_know(name: str) -> None:
    prompt = Prompt((Message("developer", "d"), Message("user", "u")), max_tokens=5)
    body = orjson.loads(PRESETS[name].codec().encode(prompt, "m", stream=True))
    assert body["max_tokens"] == 5
    assert body["messages"][0]["role"] == "system"
    assert ("stream_options" in body) == (name != "mistral")


def test_azure_wants_its_own_header_and_an_address() -> None:
    assert PRESETS["azure"].codec().headers("k") == {"api-key": "k"}
    assert PRESETS["azure"].key_vars == ("AZURE_OPENAI_API_KEY",)


def test_the_dialects_are_of_two_formats() -> None:
    assert isinstance(PRESETS["anthropic"].codec(), Anthropic)
    assert all(isinstance(PRESETS[name].codec(), OpenAI) for name in PRESETS if name != "anthropic")
