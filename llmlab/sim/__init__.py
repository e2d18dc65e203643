"""A simulated LLM provider: both dialects, real delays, real faults, no key; in process or on a socket."""

from llmlab.sim.batches import BatchPace
from llmlab.sim.faults import Faults
from llmlab.sim.physics import Change, Physics
from llmlab.sim.transport import Simulator

__all__ = ["BatchPace", "Change", "Faults", "Physics", "Simulator"]
