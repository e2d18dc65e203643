"""What the simulated provider answers besides completions: models, token counts, its own statistics."""

from collections.abc import Callable

from llmlab.sim.wire import Refusal, Wire
from llmlab.types import JSON

STATS = "/sim/stats"
"""Where the simulator's own counts are read; no key is asked for."""
MODELS = ("sim-small", "sim-large", "sim-reasoning")
"""Models listed where the simulator is not told others; it then answers for any name."""

_COMPLETIONS = ("/chat/completions", "/messages", "/count_tokens")


def look_up(
    wire: Wire,
    method: str,
    path: str,
    *,
    models: tuple[str, ...] | None,
    stats: Callable[[], JSON],
    count: Callable[[], int],
) -> tuple[int, JSON | None]:
    """Answer a request that is no completion; None for a path that does not exist.

    Raises:
        Refusal: as the provider would refuse it.
    """
    if path == STATS:
        return 200, stats()
    if path.endswith("/messages/count_tokens") and method == "POST":
        return 200, {"input_tokens": count()}
    if path.endswith(_COMPLETIONS):
        return 405, wire.error(Refusal("bad_request", f"Not allowed to {method} on {path}."), "req_aside")[1]
    known = MODELS if models is None else models
    if path.endswith("/models"):
        return 200, wire.models(known)
    _, found, name = path.rpartition("/models/")
    if found and name not in known:
        raise Refusal("not_found", facts={"model": name})
    return (200, wire.model(name)) if found else (404, None)
