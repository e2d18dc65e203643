"""Providers by name: from "openai:MODEL" to the endpoint that a strategy stands on."""

import os
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING

import httpx

from llmlab.pricelist import PriceBook
from llmlab.prices import Price
from llmlab.providers.endpoint import Provider, Secret
from llmlab.providers.openai import OpenAI
from llmlab.providers.openai_batches import OpenAIBatches
from llmlab.providers.presets import PRESETS, Preset
from llmlab.template import did_you_mean

if TYPE_CHECKING:
    from llmlab.sim.transport import Simulator

SIMULATED = "sim"


def connect(
    model: str,
    *,
    base_url: str | None = None,
    api_key: str | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
    prices: Mapping[str, Price] | None = None,
    seed: int | None = None,
) -> Provider:
    """Make the endpoint for "provider:model". Sends nothing.

    Raises:
        TypeError, ValueError: an argument is not usable, the provider is unknown, or its key is missing.
    """
    name, model_name = _split(model)
    # At another address it may be another one's model under the same name. Azure always has an address of its own.
    own = base_url is None or name == "azure"
    simulated = transport is not None and isinstance(transport, _simulator())
    listed = name if own and not simulated else None
    book = PriceBook(prices or {}, provider=listed)
    if transport is not None and not isinstance(transport, httpx.AsyncBaseTransport):
        raise TypeError(f"transport must be an httpx.AsyncBaseTransport, not {type(transport).__name__}")
    if name == SIMULATED:
        sender = transport or _simulator()(seed=seed or 0)
        url = base_url or "http://simulated/v1"
        return Provider(name, OpenAI(), model_name, url, transport=sender, prices=book, batches=OpenAIBatches())
    preset = PRESETS[name]
    key = _key(name, preset, api_key, needed=base_url is None and not simulated)
    if key is not None and httpx.URL(base_url or "").userinfo:
        raise ValueError("base_url carries a user and password, and there is a key too: only one of them can be sent")
    return Provider(
        name,
        preset.codec(),
        model_name,
        _url(name, base_url or preset.base_url),
        key=key,
        key_hint=_key_hint(preset),
        transport=transport,
        prices=book,
        batches=preset.batches(),
    )


def _simulator() -> "type[Simulator]":
    """Loaded when it is needed: who asks a real provider need not wait for it."""
    found: type[Simulator] = import_module("llmlab.sim.transport").Simulator
    return found


def _split(model: str) -> tuple[str, str]:
    if not isinstance(model, str):
        raise TypeError(f"model must be a str like 'openai:MODEL', not {type(model).__name__}")
    name, colon, model_name = model.partition(":")
    known = [SIMULATED, *PRESETS]
    if not colon:
        if model == SIMULATED:
            return SIMULATED, "small"
        raise ValueError(f"model {model!r} names no provider: write 'provider:model', as in 'openai:{model}'")
    if name not in known:
        raise ValueError(f"unknown provider {name!r}; {did_you_mean(name, known)}")
    if not model_name:
        raise ValueError(f"model {model!r} names no model: write '{name}:MODEL'")
    return name, model_name


def _url(name: str, base_url: str | None) -> str:
    if base_url is None:
        raise ValueError(f"{name} has no address of its own: give base_url=")
    try:
        url = httpx.URL(base_url)
    except (httpx.InvalidURL, TypeError) as error:
        raise ValueError(f"base_url {base_url!r} is no URL: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"base_url must begin with http:// or https:// and name a host, not {base_url!r}")
    if url.port is not None and not 0 < url.port < 2**16:
        raise ValueError(f"base_url names port {url.port}; ports end at 65535")
    return base_url


def _key_hint(preset: Preset) -> str:
    return " or ".join((*preset.key_vars, "api_key="))


def _key(name: str, preset: Preset, given: str | None, *, needed: bool) -> Secret | None:
    sources = (given, *(os.environ.get(var) for var in preset.key_vars))
    key = next((clean for each in sources if each is not None and (clean := _clean(each))), None)
    if key is not None:
        return Secret(key)
    if preset.key_required and needed:
        variables = " or ".join(preset.key_vars)
        raise ValueError(f"{name} needs a key: set the environment variable {variables}, or pass api_key=")
    return None


def _clean(key: str) -> str:
    """A key without the blanks and line ends that copying brings along."""
    if not isinstance(key, str):
        raise TypeError(f"api_key must be a str, not {type(key).__name__}")
    key = key.strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError("api_key holds characters that no HTTP header can carry: copy it again")
    return key
