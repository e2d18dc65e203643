"""Tokens that a prompt will use, guessed before it is sent.

    input     = ratio (ascii characters / 4 + CJK characters + other characters / 2 + 4 a message + 3 + 800 an image
                       + characters of the schema / 4)
    output    = min(max_tokens, 80% of the model's recent answers were no longer)

`ratio` is learned per model: actual over guessed input tokens, both averaged exponentially, so that long prompts
weigh more, as they do in a rate limit. No tokenizer: they download their tables on first use, and have none for many
models.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from llmlab.types import Message, Prompt, Usage

PER_MESSAGE, PER_PROMPT, PER_PART = 4.0, 3.0, 800.0
"""Tokens around each message, around the conversation, and of an image or any other part that is not text."""
LOWEST, HIGHEST = 0.3, 3.0
"""Bounds of the learned ratio."""

_EVERY = 16  # answers between two looks at how long answers are
# High bytes of the UTF-16 of CJK; their rare characters beyond 16 bits pass as others.
_DENSE = frozenset([0x11, *range(0x2E, 0xA0), *range(0xAC, 0xD8), 0xF9, 0xFA, 0xFF])
_NOT_DENSE = bytes(set(range(256)) - _DENSE)


class Estimate(dict[str, float]):
    """A cost by dimension: `requests`, `input_tokens`, `output_tokens`, `total_tokens`.

    A dict; it remembers of which model it is and what was guessed before the learned ratio was applied. More
    dimensions may be added in place; a copy made by `|` or `dict()` can no longer be learned from.
    """

    __slots__ = ("guess", "model")

    def __init__(self, model: str, guess: float, input_tokens: float, output_tokens: float) -> None:
        super().__init__(
            requests=1.0,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            total_tokens=input_tokens + output_tokens,
        )
        self.model = model
        self.guess = guess


@dataclass
class Estimator:
    """Estimates tokens, and learns from each answer's usage.

    Raises:
        ValueError: a figure is out of its range.
    """

    pessimistic: bool = False
    """Reserve all of a prompt's `max_tokens`, as OpenAI's limits do; Anthropic's count what is written."""
    default_output: int = 256
    """Output tokens assumed while nothing is known: no answer seen and no `max_tokens` named; at least 1."""
    window: int = 64
    """Recent answers of a model that the output is estimated from, at least 1."""
    forget: float = 0.05
    """Weight of the newest answer in the learned ratio, above 0, at most 1."""
    _models: dict[str, "_Model"] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("default_output", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"Estimator: {name} must be at least 1, not {getattr(self, name)!r}")
        if not 0 < self.forget <= 1:
            raise ValueError(f"Estimator: forget must be above 0 and at most 1, not {self.forget!r}")

    def cost(self, prompt: Prompt, model: str) -> Estimate:
        """Estimate what `prompt` will use when sent to `model`."""
        known = self._models.get(model)
        guess = tokens(prompt.messages) + (0.0 if prompt.schema is None else len(prompt.schema.text) / 4)
        return Estimate(model, guess, guess * (known.ratio if known else 1.0), self._output(prompt.max_tokens, known))

    def learn(self, cost: Estimate, usage: Usage) -> None:
        """Correct the next estimates for a model by what `cost` has really been. A count of 0 input teaches nothing."""
        if usage.input_tokens <= 0:
            return
        known = self._models.get(cost.model)
        if known is None:
            known = self._models[cost.model] = _Model(deque(maxlen=self.window))
        known.learn(cost.guess, usage, self.forget)

    def _output(self, most: int | None, known: "_Model | None") -> float:
        if most is not None and (self.pessimistic or known is None):
            return float(most)
        usual = known.output if known else float(self.default_output)
        return usual if most is None or usual < most else float(most)


@dataclass(slots=True)
class _Model:
    outputs: deque[int]
    output: float = 0.0
    ratio: float = 1.0
    guessed: float = 0.0
    actual: float = 0.0
    seen: int = 0

    def learn(self, guess: float, usage: Usage, forget: float) -> None:
        self.seen += 1
        weight = max(forget, 1 / self.seen)  # a plain mean, until there is something to forget
        self.guessed += weight * (guess - self.guessed)
        self.actual += weight * (usage.input_tokens - self.actual)
        self.ratio = min(HIGHEST, max(LOWEST, self.actual / self.guessed))
        self.outputs.append(usage.output_tokens)
        # Sorting now and then keeps learning O(1); at first each answer counts.
        if self.seen < _EVERY or self.seen % _EVERY == 0:
            self.output = float(sorted(self.outputs)[(4 * len(self.outputs) - 1) // 5])


def tokens(messages: Iterable[Message]) -> float:
    """Guess the input tokens of a conversation from its characters."""
    total = PER_PROMPT
    for message in messages:
        content = message.content
        total += PER_MESSAGE
        if isinstance(content, str):
            total += _text(content)
        else:
            total += sum(map(_part, content))
    return total


def _part(part: dict[str, object]) -> float:
    text = part.get("text")
    return _text(text) if isinstance(text, str) else PER_PART


def _text(text: str) -> float:
    if text.isascii():
        return len(text) / 4
    plain = len(text.encode("ascii", "ignore"))
    dense = len(text.encode("utf-16-be", "surrogatepass")[::2].translate(None, _NOT_DENSE))
    return plain / 4 + dense + (len(text) - plain - dense) / 2
