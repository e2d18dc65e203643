"""What the simulated provider answers besides completions: models, token counts, its own statistics."""

from collections.abc import Callable, Collection

from llmlab.sim.wire import Ask, Headers, Refusal, Wire
from llmlab.types import JSON

STATS = "/sim/stats"
"""Where the simulator's own counts are read; no key is asked for."""
MODELS = ("sim-small", "sim-large", "sim-reasoning")
"""Models listed where the simulator is not told others; it then answers for any name."""

_COMPLETIONS = ("/chat/completions", "/messages", "/count_tokens")


def authorize(keys: Collection[str] | None, headers: Headers) -> None:
    """Let a request in by its key; None: any. Raises Refusal as the provider would."""
    if keys is None:
        return
    bearer = (headers.get("authorization") or "").removeprefix("Bearer ")
    key = bearer or headers.get("x-api-key") or headers.get("api-key") or ""
    if key not in keys:
        masked = f"{key[:3]}***{key[-4:]}" if len(key) > 12 else "***"  # noqa: PLR2004  as OpenAI masks it
        raise Refusal("auth", facts={"key": masked})


def check(ask: Ask, tokens: int, models: Collection[str] | None, context: int) -> None:
    """Refuse a model that is not there, and what does not fit it: `tokens` read, and what may be written."""
    if models is not None and ask.model not in models:
        raise Refusal("not_found", facts={"model": ask.model})
    used = tokens + (ask.max_tokens or 0)
    if used > context:
        raise Refusal("context_too_long", param="messages", facts={"limit": context, "used": used})


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
