"""One step of a chain or a tree: a template, or a function of the user's, that makes a prompt."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeAlias

from llmlab.template import Template
from llmlab.types import Prompt

Given: TypeAlias = str | Callable[[Any], Any]
"""A template, or a function that gives a prompt: a text, a list of messages or a Prompt."""


class Step:
    """Makes a prompt of one argument, or of named values.

    Args:
        name: What the user calls it, for messages: "map", "reduce", "chain[0]".
        given: A template, which is filled with the named values, or a function, which is called with the argument.

    Raises:
        TypeError: `given` is neither.
        ValueError: a template is none.
    """

    def __init__(self, name: str, given: object) -> None:
        self.name = name
        self.template: Template | None = None
        """The template; None if it is a function."""
        self._function: Callable[[Any], Any] | None = None
        if isinstance(given, str):
            self.template = self._read(given)
        elif callable(given):
            self._function = given
        else:
            raise TypeError(f"{name} must be a template or a function that makes a prompt, not {given!r:.80}")

    def _read(self, text: str) -> Template:
        try:
            return Template(text)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None

    @property
    def columns(self) -> tuple[str, ...]:
        """The names that a template uses."""
        return () if self.template is None else self.template.columns

    @property
    def known_as(self) -> str:
        """A name that is the same in the next run, for the settings of a journal."""
        if self.template is not None:
            return self.template.text
        return f"function {getattr(self._function, '__qualname__', type(self._function).__name__)}"

    def check(self, known: Collection[str]) -> None:
        """Complain if a template uses names that are not known, or none.

        Raises:
            ValueError: it does.
        """
        if self.template is not None:
            try:
                self.template.check(list(known))
            except ValueError as error:
                raise ValueError(f"{self.name}: {error}") from None

    def make(self, argument: Any, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> Prompt:
        """Make the prompt. What comes from a model is put in as it is: braces in it mean nothing.

        Args:
            argument: What a function is called with.
            values: What a template is filled with.
            defaults: The prompt's parameters, as in `Prompt.of`; of no effect on a Prompt that a function gives.

        Raises:
            TypeError, ValueError: a value is missing, or the prompt is none.
            Exception: whatever the function raises.
        """
        if self.template is not None:
            return Prompt.of(self.template.fill(dict(values)), **defaults)
        assert self._function is not None  # noqa: S101  a step is one or the other
        made = self._function(argument)
        try:
            return Prompt.of(made, **defaults)
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"{self.name} is a function that gave no prompt: {error}") from None
