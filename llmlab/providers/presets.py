"""The providers that `Lab("name:model")` knows by name: wire format, address and where the key lies.

One line each, no model names: models come and go. Any other server of these formats is reached with
`base_url=`. Field by field the differences are explained in the codecs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

from llmlab.providers.anthropic import Anthropic
from llmlab.providers.anthropic_batches import AnthropicBatches
from llmlab.providers.base import Codec
from llmlab.providers.batches import BatchAPI
from llmlab.providers.openai import OpenAI
from llmlab.providers.openai_batches import OpenAIBatches


@dataclass(frozen=True, slots=True)
class Preset:
    """How to reach one provider."""

    codec: Callable[[], Codec]
    """Makes the wire format, in this provider's dialect."""
    base_url: str | None
    """Where its API begins; None: the user must say."""
    key_vars: tuple[str, ...] = ()
    """Environment variables that may hold the key, the first one set wins."""
    key_required: bool = True
    """Whether it answers nobody without a key."""
    batches: Callable[[], BatchAPI | None] = lambda: None
    """Makes its Batch API, if it has one that llmlab speaks."""


_COMPATIBLE = partial(OpenAI, max_tokens_field="max_tokens", developer_role=False)

_SCHEMA_ONLY = partial(_COMPATIBLE, forms=("json_schema",))

_PRESETS = {
    "openai": Preset(OpenAI, "https://api.openai.com/v1", ("OPENAI_API_KEY",), batches=OpenAIBatches),
    "anthropic": Preset(Anthropic, "https://api.anthropic.com", ("ANTHROPIC_API_KEY",), batches=AnthropicBatches),
    "azure": Preset(partial(OpenAI, auth="api-key"), None, ("AZURE_OPENAI_API_KEY",)),
    "deepseek": Preset(partial(_COMPATIBLE, forms=("json_object",)), "https://api.deepseek.com", ("DEEPSEEK_API_KEY",)),
    "gemini": Preset(
        _COMPATIBLE,
        "https://generativelanguage.googleapis.com/v1beta/openai",
        ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    ),
    "groq": Preset(_COMPATIBLE, "https://api.groq.com/openai/v1", ("GROQ_API_KEY",)),
    "mistral": Preset(partial(_COMPATIBLE, stream_options=False), "https://api.mistral.ai/v1", ("MISTRAL_API_KEY",)),
    "openrouter": Preset(_COMPATIBLE, "https://openrouter.ai/api/v1", ("OPENROUTER_API_KEY",)),
    "together": Preset(_COMPATIBLE, "https://api.together.ai/v1", ("TOGETHER_API_KEY",)),
    "xai": Preset(_COMPATIBLE, "https://api.x.ai/v1", ("XAI_API_KEY",)),
    "llamacpp": Preset(_COMPATIBLE, "http://127.0.0.1:8080/v1", ("LLAMA_API_KEY",), key_required=False),
    "lmstudio": Preset(_SCHEMA_ONLY, "http://127.0.0.1:1234/v1", (), key_required=False),
    "ollama": Preset(_COMPATIBLE, "http://127.0.0.1:11434/v1", ("OLLAMA_API_KEY",), key_required=False),
    "sglang": Preset(_COMPATIBLE, "http://127.0.0.1:30000/v1", (), key_required=False),
    "vllm": Preset(_COMPATIBLE, "http://127.0.0.1:8000/v1", ("VLLM_API_KEY",), key_required=False),
}

PRESETS: Mapping[str, Preset] = MappingProxyType(_PRESETS)
"""Name -> preset; read-only."""
