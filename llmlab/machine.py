"""The provider of a prediction: who is in flight slows down all others, and who finds no slot waits in line.

An attempt takes T = A + F Nbar, where Nbar is the mean in flight over its own life (at most the slots). When N stays as
it is from now on, it ends at the T that solves T^2 - A T - F area(T) = 0. Ends are kept in a heap, reckoned anew when
they come up, and all of them when N has moved by more than a twentieth (looked for once all that happens at one moment
has happened: who leaves is mostly followed at once). Knows no clock and no loop: times are
given to it, so that a plain heap simulation and the virtual loop drive the very same machine.
"""

import heapq
import math
from collections import deque
from dataclasses import dataclass, field
from itertools import count
from typing import Any

MOVED = 0.05


@dataclass(eq=False, slots=True)
class Visit:
    """One attempt at the provider."""

    alone: float
    """Seconds it takes without company (A)."""
    each: float
    """Seconds more for each request in flight (F)."""
    note: Any = None
    """Its maker's."""
    began: float = 0.0
    """When its work began."""
    area: float = 0.0
    """Attempt seconds that the machine had served until then."""
    due: float = math.inf
    """When it ends, as last reckoned."""
    gone: bool = False
    """Whether it has left."""


@dataclass(slots=True)
class Machine:
    """All attempts in flight."""

    slots: float | None = None
    """Worked on at a time; the others wait. None: all are."""
    slack: float = 0.5
    """A change of N by no more than this is not worth reckoning anew."""
    in_flight: int = 0
    """Attempts in flight, those that wait included."""
    peak: int = 0
    """Most of them at any time."""
    area: float = 0.0
    """Integral of `in_flight` over time, attempt seconds."""
    _now: float = 0.0
    _served: float = 0.0
    _working: dict[Visit, None] = field(default_factory=dict)  # in order, so that the same run runs the same
    _line: deque[Visit] = field(default_factory=deque)
    _ends: list[tuple[float, int, Visit]] = field(default_factory=list)
    _order: Any = field(default_factory=count)
    _reckoned: float = 0.0

    def enter(self, now: float, visit: Visit, *, slot: bool = True) -> None:
        """Take an attempt in; one without `slot`, as one that is refused, waits for none."""
        self._move(now)
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        if slot and self.slots is not None and len(self._working) >= self.slots:
            self._line.append(visit)
        else:
            self._begin(visit)

    def leave(self, now: float, visit: Visit) -> None:
        """Let an attempt go, ended or given up."""
        if visit.gone:
            return
        self._move(now)
        visit.gone = True
        self.in_flight -= 1
        self._working.pop(visit, None)
        while self._line and len(self._working) < (self.slots or math.inf):
            waiting = self._line.popleft()
            if not waiting.gone:
                self._begin(waiting)

    def next_end(self) -> float:
        """When somebody may be done, if nothing else happens now; inf: nobody is at work."""
        if abs(self._busy() - self._reckoned) > max(self.slack, MOVED * self._reckoned):
            self._reckoned = self._busy()
            for visit in self._working:
                self._reckon(visit)
        return self._first()

    def _first(self) -> float:
        while self._ends and (self._ends[0][2].gone or self._ends[0][0] != self._ends[0][2].due):
            heapq.heappop(self._ends)
        return self._ends[0][0] if self._ends else math.inf

    def ended(self, now: float) -> Visit | None:
        """One who is done by now; it has left."""
        while self._first() <= now:
            visit = heapq.heappop(self._ends)[2]
            self._move(now)
            if self._end_of(visit) <= now + 1e-9:
                self.leave(now, visit)
                return visit
            self._reckon(visit)
        return None

    def _begin(self, visit: Visit) -> None:
        visit.began, visit.area = self._now, self._served
        self._working[visit] = None
        self._reckon(visit)

    def _busy(self) -> float:
        return self.in_flight if self.slots is None else min(self.in_flight, self.slots)

    def _move(self, now: float) -> None:
        passed = now - self._now
        self.area += self.in_flight * passed
        self._served += self._busy() * passed
        self._now = now

    def _reckon(self, visit: Visit) -> None:
        visit.due = self._end_of(visit)
        heapq.heappush(self._ends, (visit.due, next(self._order), visit))

    def _end_of(self, visit: Visit) -> float:
        """When it ends, if as many are at work from now on."""
        if not visit.each:
            return visit.began + visit.alone
        busy = self._busy()
        past = self._served - visit.area - busy * (self._now - visit.began)
        straight = visit.alone + visit.each * busy
        root = math.sqrt(max(0.0, straight * straight + 4 * visit.each * past))
        return max(self._now, visit.began + (straight + root) / 2)
