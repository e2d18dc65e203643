"""Senseless settings are refused, by name and with what would be accepted."""

import math
from collections.abc import Callable, Iterable
from typing import TypeAlias

Setting: TypeAlias = tuple[str, Callable[[float], bool], str]
"""Names of fields, what their values must fulfil, and that in words."""


def check(who: object, *, whole: Iterable[str] = (), above: Iterable[str] = (), share: Iterable[str] = ()) -> None:
    """Refuse senseless settings of a controller.

    Args:
        who: The controller.
        whole: Fields that are whole numbers of at least 1.
        above: Fields that are finite numbers above 0.
        share: Fields that are numbers between 0 and 1, both excluded.

    Raises:
        ValueError: a field has none of these values, or `least` is above `most`.
    """
    kind = type(who).__name__
    for name in whole:
        count(f"{kind}: {name}", getattr(who, name))
    for name, top in ((each, most) for names, most in ((above, math.inf), (share, 1.0)) for each in names):
        value = getattr(who, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < top:
            wanted = "a number above 0" if top == math.inf else "a number between 0 and 1"
            raise ValueError(f"{kind}: {name} must be {wanted}, not {value!r}")
    least, most = getattr(who, "least", 1), getattr(who, "most", 1)
    if least > most:
        raise ValueError(f"{kind}: least must not be above most, not {least} > {most}")


def check_all(who: object, settings: Iterable[Setting]) -> None:
    """Refuse settings that do not fulfil a table.

    Raises:
        ValueError: a field's value is no number, or not one that the table accepts.
    """
    for names, fits, wanted in settings:
        for name in names.split():
            value = getattr(who, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not fits(value):
                raise ValueError(f"{type(who).__name__}: {name} must be {wanted}, not {value!r}")


def count(name: str, value: object) -> int:
    """Refuse what is no whole number of at least 1.

    Raises:
        ValueError: it is none; the message begins with `name`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
    return value


def amount_above_zero(name: str, value: object) -> None:
    """Refuse what is no finite number above 0.

    Raises:
        TypeError: it is no number; the message begins with `name`.
        ValueError: it is one, but not finite or not above 0.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, not {value!r}")
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be a finite number above 0, not {value!r}")
