"""The values that travel: what is asked, what is answered, what became of a row.

All are frozen: policies, listeners and frames share them without copying. Times are float seconds,
token counts are whole numbers, money is US dollars.
"""

from collections.abc import AsyncIterable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self, TypeAlias

JSON: TypeAlias = dict[str, Any]
"""One JSON object."""

Role: TypeAlias = Literal["system", "developer", "user", "assistant"]
Status: TypeAlias = Literal["ok", "error", "cancelled"]
Kind: TypeAlias = Literal["first", "packed", "retry", "hedge", "fallback", "reask"]
"""Why a request was sent."""
Form: TypeAlias = Literal["json_schema", "json_object", "instructions"]
"""How a model is held to a JSON schema; see `llmlab.providers.forms`."""

ROLES: tuple[Role, ...] = ("system", "developer", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    """Who speaks: system, developer, user or assistant."""
    content: str | tuple[JSON, ...]
    """The text, or the content parts (`{"type": "text", …}`, `{"type": "image_url", …}`), passed through."""

    @classmethod
    def of(cls, value: "Message | Mapping[str, Any]") -> Self | "Message":
        """Read a message from a `{"role": …, "content": …}` mapping.

        Raises:
            TypeError: `value` is no mapping, or its content is neither text nor a list of parts.
            ValueError: the role is not one of system, developer, user, assistant, or a key is unknown.
        """
        if isinstance(value, Message):
            return value
        if not isinstance(value, Mapping):
            raise TypeError(f"a message is a mapping with 'role' and 'content', not {type(value).__name__}")
        if extra := set(value) - {"role", "content"}:
            raise ValueError(f"a message has the keys 'role' and 'content'; unknown: {sorted(map(str, extra))}")
        role = value.get("role")
        if role not in ROLES:
            raise ValueError(f"a message's role is one of {', '.join(ROLES)}, not {role!r}")
        return cls(role, _content(value.get("content")))

    @property
    def text(self) -> str:
        """The text of the message: its text parts joined, other parts left out."""
        if isinstance(self.content, str):
            return self.content
        texts = (part.get("text") for part in self.content if part.get("type") == "text")
        return "".join(text for text in texts if isinstance(text, str))


def _content(value: object) -> str | tuple[JSON, ...]:
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence) and value and all(isinstance(part, dict) for part in value):
        return tuple(value)
    raise TypeError(f"a message's content is a str or a non-empty list of part dicts, not {_say(value)}")


def _say(value: object) -> str:
    return "a missing value (None or NaN)" if is_missing(value) else f"{type(value).__name__} ({value!r:.60})"


def is_missing(value: object) -> bool:
    """Say whether `value` is None, NaN or pandas' NA (which answers no comparison)."""
    if value is None:
        return True
    if isinstance(value, str) or isinstance(value, list | tuple | Mapping):  # noqa: SIM101  texts are the many
        return False
    try:
        return bool(value != value)  # noqa: PLR0124  NaN is the value that differs from itself
    except (TypeError, ValueError):
        return type(value).__name__ == "NAType"


_NOTHING: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Schema:
    """The form that an answer is to have, in no provider's dialect."""

    name: str
    """A name for it: letters, digits, _ and -, 64 at most."""
    text: str
    """A JSON schema whose root is an object, as JSON."""

    @property
    def instruction(self) -> str:
        """What to tell a model that cannot be held to the schema in any other way."""
        return f"Answer with one JSON object and nothing else. It must fit this JSON schema:\n{self.text}"


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request, complete but for the provider: messages and sampling parameters."""

    messages: tuple[Message, ...]
    """The conversation, oldest first; never empty."""
    model: str | None = None
    """Overrides the lab's model for this prompt. None: the lab's."""
    temperature: float | None = None
    """Sampling temperature, 0 to 2. None: not sent."""
    max_tokens: int | None = None
    """Most output tokens, at least 1. None: not sent (a provider that requires it gets its default)."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further request fields, sent as they are (`stop`, `seed`, `response_format`, …)."""
    schema: Schema | None = None
    """The form that the answer is to have, sent in the way that the provider knows. None: any text."""

    @classmethod
    def of(
        cls,
        value: "str | Prompt | Sequence[Message | Mapping[str, Any]]",
        *,
        system: str | None = None,
        model: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> "Prompt":
        """Make a prompt of a text or a list of messages; a Prompt is returned as it is.

        Raises:
            TypeError: `value` is neither, or a parameter has the wrong type.
            ValueError: `value` is missing (None, NaN) or an empty list, or a parameter is out of range.
        """
        if isinstance(value, Prompt):
            return value
        messages = _messages(value)
        if system is not None:
            if not isinstance(system, str):
                raise TypeError(f"system must be a str, not {_say(system)}")
            messages = (Message("system", system), *messages)
        if temperature is not None or max_tokens is not None or model is not None:
            _check(model, temperature, max_tokens)
        if extra is not None and not isinstance(extra, Mapping):
            raise TypeError(f"extra must be a mapping of request fields, not {_say(extra)}")
        return cls(messages, model, temperature, max_tokens, extra or _NOTHING)

    @property
    def text(self) -> str:
        """The text of the last user message (of the last message, if no user speaks)."""
        for message in reversed(self.messages):
            if message.role == "user":
                return message.text
        return self.messages[-1].text


def _messages(value: object) -> tuple[Message, ...]:
    if isinstance(value, str):
        return (Message("user", value),)
    if is_missing(value):
        raise ValueError("a prompt is missing (None or NaN): drop or fill it first")
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        if not value:
            raise ValueError("a prompt is an empty list of messages")
        return tuple(Message.of(item) for item in value)
    raise TypeError(f"a prompt is a str or a list of messages, not {_say(value)}")


def _check(model: object, temperature: object, max_tokens: object) -> None:
    if model is not None and not (isinstance(model, str) and model):
        raise TypeError(f"model must be a non-empty str, not {_say(model)}")
    if temperature is not None:
        if isinstance(temperature, bool) or not isinstance(temperature, int | float):
            raise TypeError(f"temperature must be a number, not {_say(temperature)}")
        if not 0 <= temperature <= 2:  # noqa: PLR2004  the widest range any provider takes
            raise ValueError(f"temperature must be between 0 and 2, not {temperature}")
    if max_tokens is not None:
        if isinstance(max_tokens, bool) or not isinstance(max_tokens, int):
            raise TypeError(f"max_tokens must be an int, not {_say(max_tokens)}")
        if max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, not {max_tokens}")


Item: TypeAlias = Prompt | Exception
"""A row as read: a prompt, or why it is none (rows of a generator are only seen when their turn comes)."""


def asking(items: Iterable[Item] | AsyncIterable[Item], schema: Schema) -> Iterable[Item] | AsyncIterable[Item]:
    """The same rows, lazily, whose answers are to have this form."""
    if isinstance(items, Iterable):
        return (_asking(item, schema) for item in items)
    return (_asking(item, schema) async for item in items)


def _asking(item: Item, schema: Schema) -> Item:
    return replace(item, schema=schema) if isinstance(item, Prompt) else item


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer, in one convention for all providers."""

    input_tokens: int = 0
    """All input tokens, those read from or written to the provider's cache included."""
    output_tokens: int = 0
    """All output tokens, reasoning included."""
    cached_tokens: int = 0
    """Input tokens read from the provider's prompt cache (part of `input_tokens`)."""
    cache_write_tokens: int = 0
    """Input tokens written to the provider's prompt cache (part of `input_tokens`)."""
    reasoning_tokens: int = 0
    """Output tokens spent on reasoning (part of `output_tokens`)."""

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cached_tokens + other.cached_tokens,
            self.cache_write_tokens + other.cache_write_tokens,
            self.reasoning_tokens + other.reasoning_tokens,
        )


@dataclass(frozen=True, slots=True)
class Reply:
    """One complete answer."""

    content: str
    """The answer's text; "" when the model answered with tool calls or nothing."""
    finish_reason: str
    """Why the model stopped: stop, length, tool_calls, content_filter or other."""
    provider: str
    """The provider's name, as in `Lab("provider:model")`."""
    model: str
    """The model that answered, as the provider names it."""
    usage: Usage | None = None
    """Tokens of this answer; None when the provider did not say."""
    request_id: str | None = None
    """The provider's id of the request, for its support."""
    reasoning: str = ""
    """The reasoning text, where the provider shows it."""
    tool_calls: tuple[JSON, ...] = ()
    """Tool calls, in the provider's own form."""
    latency_s: float = 0.0
    """Seconds from sending the successful attempt to the end of its answer; nan from a Batch API, which has none."""
    ttft_s: float | None = None
    """Seconds from sending to the first piece of text; None unless streamed."""
    cost_usd: float | None = None
    """Price of this answer; None when the model's price is not known."""
    cache_hit: bool = False
    """Whether the answer came from llmlab's own cache and cost nothing."""
    itl_s: float | None = None
    """Mean seconds between two pieces of text; None unless streamed in two pieces or more."""
    parsed: Any = None
    """The answer as what `schema=` asked for: a model, a number, a dict, …; None without a schema."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one row: a reply, an error, or a cancellation."""

    index: int
    """The row's position in the input, from 0."""
    prompt: Prompt | None
    """What was asked; None when the row could not be read as a prompt."""
    status: Status
    """ok, error or cancelled."""
    reply: Reply | None
    """The answer of an ok row."""
    error: BaseException | None
    """Why the row has no answer."""
    attempts: int = 0
    """Requests sent for this row."""
    queue_s: float = 0.0
    """Seconds spent waiting for admission."""
    wait_s: float = 0.0
    """Seconds spent backing off between attempts."""
    started_at: float = 0.0
    """Unix time at which the row was taken up."""
    finished_at: float = 0.0
    """Unix time at which it was settled."""
    wasted: Usage | None = None
    """Tokens that its other attempts (failed, hedged in vain) are known to have used."""
    wasted_usd: float | None = None
    """Dollars for them; None when no price is known."""

    @property
    def said(self) -> Reply | None:
        """What the model said: the answer, or the one that did not fit its schema; the latter without its tokens."""
        return getattr(self.error, "reply", None) if self.reply is None else self.reply
