"""The live view of a tuning in a notebook: curves, and knobs to turn. Imported only when one is displayed.

What the browser says may arrive on another thread, so a message only ever leaves word on the tuning's loop; its knobs
are custom messages, numbered as the board's are (see `llmlab.widgets`). What is aimed at changes at once; what is tried
is tried anew a moment after the last knob was turned. Nothing is sent to a real provider before its price was shown and
agreed to. The view stays when everything was tried, for its knobs are of use then: it is replaced by a still table when
it is closed, or when somebody has awaited the tuning.
"""

import asyncio
import math
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from llmlab.places import Places
from llmlab.tune import LIVE, Tuning
from llmlab.tunelook import bundle, look_of

EVERY = 0.25
"""Seconds between two looks."""
MOMENT = 0.3
"""Seconds without another turn of a knob after which it is tried anew."""
KNOBS = ("rpm", "attempts", "jitter")
"""Settings of the strategy."""
_STATIC = Path(__file__).parent / "static"


class TuneWidget(anywidget.AnyWidget):
    """The browser's side: draws looks, sends the knobs' messages."""

    _esm = _STATIC / "tune.js"
    _css = _STATIC / "tune.css"

    uid = traitlets.Unicode().tag(sync=True)
    """Names the model in the browser."""
    look = traitlets.Dict().tag(sync=True)
    """The first look; those after it go as messages."""


class TuneView:
    """Shows a tuning, wherever it is displayed.

    Args:
        tuning: The tuning.
    """

    def __init__(self, tuning: Tuning) -> None:
        self._tuning = tuning
        self._note: str | None = None
        self._offer: str | None = None
        self._wanted: dict[str, Any] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._heard_last = 0
        self._drawn: tuple[Any, ...] | None = None
        self._kept = False  # a still table of what was found first is beside the widget
        self._over = False
        self._widget = TuneWidget(uid=uuid.uuid4().hex, look=self._look())
        self._widget.on_msg(self._heard)
        self._bundle: Any = self._widget._repr_mimebundle_() or ({}, {})
        self._places = Places()

    def show(self) -> None:
        """Display it in the cell at work."""
        data, metadata = self._bundle
        self._places.add(data | bundle(look_of(self._tuning)), metadata=metadata, raw=True)

    async def run(self) -> None:
        """Send looks until cancelled."""
        while True:
            if self._moment != self._drawn:
                self._drawn = self._moment
                self._send(await asyncio.to_thread(self._look))  # a fit takes a tenth of a second
            await asyncio.sleep(EVERY)

    def close(self) -> None:
        """Put a still table in the place of each view."""
        self._over = True
        self._places.end(bundle(look_of(self._tuning)))
        self._widget.close()

    # -- looks --------------------------------------------------------------------------------------------

    @property
    def _moment(self) -> tuple[Any, ...]:
        """Differs if there is something new to see."""
        tuning = self._tuning
        points = tuple(sweep.measured for sweep in tuning.sweeps)
        return (tuning.state, tuning.at_work_on, points, tuning.aims, tuning.wanted, tuning.used, self._note,
                self._offer, self._heard_last)  # fmt: skip

    def _look(self) -> dict[str, Any]:
        look = look_of(self._tuning)
        return look | {"note": self._note or look["note"], "offer": self._offer}

    def _send(self, look: dict[str, Any]) -> None:
        self._widget.send({"kind": "look", "look": look, "heard": self._heard_last})
        if look["state"] == "done" and not self._kept and not self._heard_last:
            # For who opens the notebook without a kernel. Once only: it takes the focus from whoever turns a knob.
            self._kept = True
            self._places.replace(self._bundle[0] | bundle(look))

    # -- messages -----------------------------------------------------------------------------------------

    def _heard(self, _: object, message: object, __: object) -> None:
        """Leave word of what a knob asks for. May be called on any thread."""
        if not self._over and isinstance(message, Mapping):
            self._tuning.on_loop(partial(self._do, dict(message)))

    def _do(self, message: dict[str, Any]) -> None:
        """Do what a knob asks for, on the tuning's loop."""
        kind, number = message.get("kind"), message.get("number")
        known: dict[str, Callable[[], object]] = {
            "set": partial(self._set, message),
            "stop": self._tuning.cancel,
            "use": self._tuning.use,
            "close": self._tuning.close,
            "confirm": self._confirm,
        }
        doing = known.get(str(kind))
        self._note = None
        try:
            if doing is not None:
                doing()
        except (TypeError, ValueError, RuntimeError) as error:
            self._note = str(error)
        if isinstance(number, int):
            self._heard_last = number

    def _set(self, message: dict[str, Any]) -> None:
        name, value = message.get("name"), message.get("value")
        if name in ("elasticity", "slo"):
            aimed: dict[str, Any] = {name: None if value is None and name == "slo" else _amount(name, value)}
            self._tuning.aims = replace(self._tuning.aims, **aimed)
        elif name == "scenario" and value == LIVE:
            self._offer_live()
        elif name == "scenario" and value in dict(self._tuning.ways.scenarios):
            self._offer = None
            self._want("scenario", value)
        elif (name == "most" or name in KNOBS) and self._tuning.wanted.scenario != LIVE:  # to try anew there costs
            self._want(str(name), _checked(str(name), value))

    def _want(self, name: str, value: Any) -> None:
        self._wanted[name] = value
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(MOMENT, self._try)

    def _try(self) -> None:
        wanted, self._wanted = self._wanted, {}
        turned = {name: wanted.pop(name) for name in KNOBS if name in wanted}
        try:
            self._tuning.change(**wanted, knobs=replace(self._tuning.wanted.knobs, **turned))
        except (TypeError, ValueError) as error:
            self._note = str(error)

    def _offer_live(self) -> None:
        if self._tuning.ways.offer is None:
            raise ValueError("there are too few rows to try on the live provider: tune(prompts, share=…)")
        self._offer = str(self._tuning.ways.offer())

    def _confirm(self) -> None:
        """Go to the real provider, at the price that was shown."""
        if self._offer is not None:
            self._offer = None
            self._tuning.change(scenario=LIVE)


def _amount(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name} must be a number above 0, not {value!r}")
    return float(value)


def _checked(name: str, value: object) -> Any:
    if name == "jitter":
        return str(value)
    if name == "rpm":
        return None if value is None else _amount(name, value)
    if isinstance(value, bool) or not isinstance(value, int) or not value >= 1:
        raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
    return value
