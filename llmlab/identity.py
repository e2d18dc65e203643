"""Which row is which: the same request has the same key, in every process and on every Python.

A row's identity is its request's key and its occurrence: the first, second, third row that asks exactly this.

    key = blake2b-128 of the JSON, keys sorted, ASCII, no spaces, of
        v            1, the version of this recipe
        provider     as in Lab("provider:model")
        model        the prompt's own, or else the lab's
        messages     [[role, text or content parts], …]
        temperature  a float, or null
        max_tokens   a whole number, or null
        extra        the further request fields, as they are sent
    schema       [name, JSON schema], only if the answer is to fit one

So all that may change the answer is in it, and nothing else: API keys, URLs, concurrency, retries, timeouts and
whether the answer is streamed are not.
"""

import json
from collections import Counter
from hashlib import blake2b
from typing import Any

import orjson

from llmlab.types import Prompt

KEY_VERSION = 1
KEY_BYTES = 16
UNREADABLE = bytes(KEY_BYTES)
"""Stands in for the key of a row that could not be read as a prompt."""

# Not orjson: it refuses lone surrogates, and its way to write a number is not promised to stay.
_encoder = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


def key_of(prompt: Prompt, *, provider: str, model: str) -> bytes:
    """The 16-byte key of a request; see the recipe above.

    Args:
        prompt: What is asked.
        provider: The provider's name.
        model: The lab's model, for a prompt that has none of its own.

    Raises:
        TypeError: `extra` or a content part holds what cannot be sent as JSON.
    """
    request: dict[str, Any] = {
        "v": KEY_VERSION,
        "provider": provider,
        "model": prompt.model or model,
        "messages": [(message.role, message.content) for message in prompt.messages],
        "temperature": None if prompt.temperature is None else prompt.temperature + 0.0,  # 0, 0.0 and -0.0 are one
        "max_tokens": prompt.max_tokens,
        "extra": dict(prompt.extra),
    }
    if prompt.schema is not None:
        request["schema"] = [prompt.schema.name, prompt.schema.text]
    return blake2b(canonical(request).encode("ascii"), digest_size=KEY_BYTES).digest()


def canonical(value: Any) -> str:
    """One text for equal JSON, whatever the order of its keys.

    Raises:
        TypeError: `value` holds what is no JSON.
    """
    try:
        return _encoder.encode(value)
    except TypeError:  # numpy values, keys that are numbers, dataclasses: as they would be sent
        sent = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)
        return _encoder.encode(orjson.loads(sent))


class Occurrences:
    """Counts the rows of one run that ask the same. Rows must be counted in the order of the input."""

    def __init__(self) -> None:
        self._seen: Counter[bytes] = Counter()

    def next(self, key: bytes) -> int:
        """The occurrence of the next row with this key, from 0."""
        occ = self._seen[key]
        self._seen[key] = occ + 1
        return occ
