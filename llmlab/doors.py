"""Verbs that are loaded when they are first used: what few sessions need is not to slow every `import llmlab` down."""

from importlib import import_module
from typing import Any


class Door:
    """Stands in a class for a method of a mixin, until it is asked for; then the whole mixin takes its place.

    Args:
        module: Where the mixin is.
        mixin: Its name.
    """

    def __init__(self, module: str, mixin: str) -> None:
        self._module, self._mixin = module, mixin

    def __set_name__(self, owner: type, name: str) -> None:
        self._owner, self._name = owner, name

    def __get__(self, instance: object, owner: type) -> Any:
        mixin = getattr(import_module(self._module), self._mixin)
        for base in reversed(mixin.__mro__):
            if base not in self._owner.__mro__:
                self._take(vars(base))
        return vars(self._owner)[self._name].__get__(instance, owner)

    def _take(self, members: Any) -> None:
        for name, member in members.items():
            if not name.startswith("__"):
                setattr(self._owner, name, member)
