"""Whether the provider says that so many calls are too many, or only fails now and then as it always does.

Some calls fail at any number in flight: a gateway, a deadline too short, a 429 for somebody else's sake. Only more of
that than usual speaks against the number.

    lately     share of refusals among the latest 40 calls or so since the last cut
    usual      share among 500 or so; after a cut only of those sent with no more in flight than it left
    too much   lately > 3 (usual + what one refusal more would add), or 30%

A cut must show that it helped before there is another: refusals count again once a call sent after it has succeeded.
Where nothing gets through the provider is down, which no number mends.
"""

import math
from dataclasses import dataclass

TIMES, MOST = 3.0, 0.3
"""So many times the usual share is too much; a share that is too much whatever is usual."""
LATELY, USUAL = 1 / 40, 1 / 500
"""Weight of the latest call in either share."""


@dataclass
class Strain:
    """Shares of calls refused or timed out. `tag` is the controller's epoch in which a call was sent."""

    cut_at: float = -math.inf
    """Loop time of the last cut, seconds."""
    lately: float = 0.0
    """Share among the latest calls since the last cut."""
    usual: float = 0.0
    """Share at numbers in flight that are above suspicion."""
    _seen: float = 0.0
    _epoch: int = 0
    _through: bool = True
    _safe: float = math.inf

    def succeed(self, tag: int, limit: int) -> None:
        """Count a call that succeeded, with so many allowed in flight."""
        if tag >= self._epoch:
            self._through = True
            self._count(0.0, limit)

    def refuse(self, tag: int, limit: int) -> bool:
        """Count a call that was refused or timed out; returns whether that is too much."""
        if tag < self._epoch or not self._through:
            return False
        allowed = min(MOST, TIMES * (self.usual + (1.0 - self.usual) / (self._seen + 1.0)))
        self._count(1.0, limit)
        return self.lately > allowed

    def cut(self, now: float, epoch: int, limit: int) -> None:
        """Begin anew with what is sent from this epoch on; more than this limit is under suspicion."""
        self.cut_at, self._epoch, self._safe = now, epoch, limit
        self._through, self.lately = False, 0.0

    def _count(self, refused: float, limit: int) -> None:
        self.lately += LATELY * (refused - self.lately)
        if limit <= self._safe:
            self._seen += 1.0 - USUAL * self._seen
            self.usual += (refused - self.usual) / self._seen
