"""What a batch job knows of its rows: what was asked, under which names, and what came of it."""

import contextlib
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import orjson

from llmlab.batch.names import Name, new_token, read_name, request_key
from llmlab.call import Reader
from llmlab.errors import BadPayload, LLMError, SchemaMismatch
from llmlab.providers.base import Draft, unpack
from llmlab.providers.batches import Line
from llmlab.providers.endpoint import Provider
from llmlab.types import Item, Prompt, Reply, Usage


class Mismatch(ValueError):
    """Prompts given along with a batch's id are not those that were submitted."""


@dataclass
class Manifest:
    """The rows of a batch job; survives a resubmission."""

    provider: Provider
    """Whom they are for."""
    items: dict[int, Item] = field(default_factory=dict)
    """The prompts, by position, as far as they are known."""
    reader: Reader | None = None
    """Reads the answers into what was asked for. None: they are text."""
    given: bool = True
    """Whether the user gave them: then the names of results must fit."""
    token: str | None = None
    """The job's own, in all its names. None: taken up by an id, not seen yet."""
    ids: list[str] = field(default_factory=list)
    """The batches, in the order in which they were made."""
    custom_ids: dict[int, str] = field(default_factory=dict)
    """The rows' names, by position."""
    bodies: dict[int, bytes] = field(default_factory=dict)
    """Requests of rows without an answer, where the provider gave them back."""
    tries: Counter[int] = field(default_factory=Counter)
    """How often each row was in a batch."""
    wasted: dict[int, tuple[Usage, float | None]] = field(default_factory=dict)
    """Tokens and dollars of answers that were paid for and did not fit, by row."""
    errors: dict[int, BaseException] = field(default_factory=dict)
    """Of the rows that have no answer, why."""
    aliases: dict[str, int | None] = field(default_factory=dict)
    """Where rows of an earlier run's batches stand now, by their names. None: not in the input any more."""
    places: dict[str, int] = field(default_factory=dict)
    """Positions of rows whose names llmlab did not give, in the order in which they came."""

    # -- names --------------------------------------------------------------------------------------------

    def name(self, position: int) -> str:
        """The name under which a row is sent."""
        if position not in self.custom_ids:
            self.token = self.token or new_token()
            self.custom_ids[position] = str(Name(self.token, position, self._key(position)))
        return self.custom_ids[position]

    def place(self, custom_id: str) -> int:
        """The position of a row by its name.

        Raises:
            Mismatch: it is another job's, or another prompt's than the one given.
        """
        known = self.aliases.get(custom_id)
        if known is not None:
            return known
        name = read_name(custom_id)
        if name is None and self.given:
            raise Mismatch(f"llmlab did not submit row {custom_id!r}: take the batch up without the prompts")
        foreign = len(self.places)
        position = self.places.setdefault(custom_id, foreign) if name is None else self._placed(name)
        self.custom_ids[position] = custom_id
        return position

    def _placed(self, name: Name) -> int:
        if self.token is None:
            self.token = name.token
        if name.token != self.token:
            raise Mismatch(f"a result is of another job than the others: {name}")
        if self.given and (name.position not in self.items or name.key != self._key(name.position)):
            raise Mismatch(
                f"row {name.position} is not what was submitted under this id: give the same prompts, template, model "
                "and parameters in the same order, or none"
            )
        return name.position

    def _key(self, position: int) -> bytes:
        return request_key(self.items[position], self.provider.name, self.provider.model)

    @property
    def foreign(self) -> list[str] | None:
        """The rows' names, if llmlab gave none of them."""
        return list(self.places) if self.places and len(self.places) == len(self.custom_ids) else None

    # -- requests -----------------------------------------------------------------------------------------

    def model(self, position: int) -> str:
        """The model that a row asks."""
        if position in self.bodies:
            asked = orjson.loads(self.bodies[position]).get("model")
            return asked if isinstance(asked, str) else self.provider.model
        item = self.items[position]
        return item.model or self.provider.model if isinstance(item, Prompt) else ""

    def body(self, position: int) -> bytes:
        """A row's request.

        Raises:
            Exception: the row could not be read as a prompt, or cannot be sent.
        """
        if position in self.bodies:
            return self.bodies[position]
        item = self.items[position]
        if not isinstance(item, Prompt):
            raise item
        return self.provider.codec.encode(item, self.model(position), stream=False)

    def remember(self, custom_id: str, body: bytes) -> int:
        """Take down a row that the provider has given back as it was sent; gives its position."""
        position = self.place(custom_id)
        self.bodies[position] = body
        if not self.given and (prompt := _prompt(body)) is not None:
            self.items[position] = prompt if self.reader is None else replace(prompt, schema=self.reader.schema)
        return position

    def without_answer(self, *, refused: bool) -> list[int]:
        """Rows that may be sent once more; with `refused` also those that the provider found wrong."""
        return [position for position, error in sorted(self.errors.items()) if refused or _mendable(error)]

    # -- answers ------------------------------------------------------------------------------------------

    def reply(self, line: Line) -> Reply:
        """Read a row's answer.

        Raises:
            LLMError: it is none.
        """
        draft, provider = Draft(), self.provider
        provider.codec.decode(line.body or b"", draft)
        model = draft.model or provider.model
        return draft.reply(
            provider=provider.name,
            model=model,
            request_id=line.request_id,
            latency_s=math.nan,
            ttft_s=None,
            cost_usd=self._cost(draft, self.model_asked(line.custom_id) or model),
        )

    def waste(self, position: int, usage: Usage, cost_usd: float | None) -> None:
        """Account for an answer that was paid for and is of no use."""
        before, usd = self.wasted.get(position, (Usage(), None))
        cost = usd if cost_usd is None else cost_usd + (usd or 0.0)
        self.wasted[position] = before + usage, cost

    def model_asked(self, custom_id: str) -> str | None:
        """The model that a row asked, which is the one with a price; None: not known."""
        position = self.place(custom_id)
        known = position in self.bodies or isinstance(self.items.get(position), Prompt)
        return self.model(position) if known else None

    def _cost(self, draft: Draft, model: str) -> float | None:
        price, api = self.provider.prices.get(model), self.provider.batches
        if price is None and model == draft.model and model.startswith(self.provider.model):
            price = self.provider.prices.get(self.provider.model)  # the answer alone names it, with a date behind it
        if price is None or draft.usage is None or api is None:
            return None
        return price.cost(draft.usage) * api.discount


def read_lines(body: bytes) -> Iterable[bytes]:
    """The lines of a file that are not blank."""
    return (line for line in body.split(b"\n") if line.strip())


def _mendable(error: BaseException) -> bool:
    """Whether the same request may succeed another time; what was cancelled may."""
    if isinstance(error, LLMError):
        return error.verdict.retry or isinstance(error, SchemaMismatch)
    return not isinstance(error, TypeError | ValueError)


def _prompt(body: bytes) -> Prompt | None:
    """The prompt in a request, for the frame; None: it holds what a prompt cannot."""
    with contextlib.suppress(BadPayload, TypeError, ValueError):
        found = unpack(body)
        messages = found.get("messages") if isinstance(found, dict) else None
        if isinstance(messages, list):
            return Prompt.of(messages)
    return None
