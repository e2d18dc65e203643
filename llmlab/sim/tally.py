"""The provider's own counts: what a client's account must agree with."""

from collections import Counter
from dataclasses import dataclass, field

from llmlab.types import JSON


@dataclass
class Tally:
    """Counts since the simulator was made."""

    received: int = 0
    """Completions asked for, whatever became of them."""
    in_flight: int = 0
    """Requests in the provider's hands now."""
    max_in_flight: int = 0
    """Most of them at any time."""
    statuses: Counter[str] = field(default_factory=Counter)
    """Responses begun, by HTTP status; `broken`: the connection ended before one; `left`: the client did."""
    faults: Counter[str] = field(default_factory=Counter)
    """Requests that met a fault, by kind."""
    input_tokens: int = 0
    """Tokens read."""
    output_tokens: int = 0
    """Tokens written, also into answers that were broken off."""

    wasted_input: int = 0
    """Tokens read for answers that never went out whole, or were none."""
    wasted_output: int = 0
    """Tokens written into such answers, as far as they had come."""
    in_outage: int = 0
    """Requests that came while an outage was on."""
    errands: int = 0
    """Requests of the Batch APIs: uploads, polls, downloads."""
    batch_rows: int = 0
    """Rows of batches that were worked on, failed ones included."""

    def enter(self, fault: str) -> None:
        """Count a request in; `fault` is the kind it meets, "" for none."""
        self.received += 1
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        if fault:
            self.faults[fault] += 1

    def table(self, queued: int) -> JSON:
        """Give the counts as JSON; `queued` is how many requests wait for a slot now."""
        return {
            "received": self.received,
            "by_status": dict(self.statuses),
            "by_fault": dict(self.faults),
            "in_flight": self.in_flight,
            "max_in_flight": self.max_in_flight,
            "queued": queued,
            "batch": {"requests": self.errands, "rows": self.batch_rows},
            "tokens": {"input": self.input_tokens, "output": self.output_tokens},
            "wasted": {"input": self.wasted_input, "output": self.wasted_output},
            "in_outage": self.in_outage,
        }
