"""Anthropic's Message Batches, as the simulated provider serves them.

Formats: `research/providers.md` section C.2. Error texts not shown there are worded by us in their manner. What is
wrong with a single request shows in its result; only the list itself is checked at once.
"""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeAlias

import orjson

from llmlab.sim.batches import MB, Batch, BatchPace, Result, Row, Shelf, shuffled
from llmlab.sim.wire import Errand, Refusal
from llmlab.types import JSON

MOST_ROWS, MOST_BYTES = 100_000, 256 * MB
LONGEST_ID = 64

_PATH = re.compile(r"/messages/batches(?:/(?P<id>[\w-]+)(?:/(?P<verb>cancel|results))?)?$")
_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")

Answerer: TypeAlias = Callable[[bytes], Result]


class AnthropicBatches:
    """Serves the path `/messages/batches`.

    Args:
        pace: How fast batches go.
    """

    def __init__(self, pace: BatchPace) -> None:
        self._pace = pace
        self._shelf = Shelf()

    def serves(self, path: str) -> bool:
        """Whether a path is one of these."""
        return bool(_PATH.search(path))

    def handle(self, errand: Errand, answer: Answerer) -> JSON | bytes:
        """Answer one request; raises Refusal as Anthropic would answer."""
        if not errand.headers.get("anthropic-version"):
            raise Refusal("bad_request", "anthropic-version: header is required")
        found = _PATH.search(errand.path)
        name, verb, begin = (found["id"], found["verb"], found.start()) if found else (None, None, None)
        root = f"http://{errand.headers.get('host') or 'simulated'}{errand.path[:begin]}"
        if name is None and errand.method == "POST":
            return _show(self._create(errand, answer), errand.now, root)
        if name is None and errand.method == "GET":
            return self._list(errand.query, errand.now, root)
        batch = self._shelf.get(name or "")
        if batch is None:
            raise Refusal("not_found", f"No message batch found with id {name}")
        return self._on_one(batch, errand, verb, root)

    def _on_one(self, batch: Batch, errand: Errand, verb: str | None, root: str) -> JSON | bytes:
        method, now = errand.method, errand.now
        if method == "POST" and verb == "cancel":
            if not batch.live(now):
                raise Refusal("bad_request", f"Message batch {batch.id} has ended and cannot be canceled.")
            batch.cancel(now)
        elif method == "GET" and verb == "results":
            if batch.live(now):
                raise Refusal("not_found", f"Message batch {batch.id} has no available results.")
            return b"".join(orjson.dumps(line) + b"\n" for line in _results(batch, now))
        elif method == "DELETE" and verb is None:
            if batch.live(now):
                raise Refusal("bad_request", f"Message batch {batch.id} is still under way and cannot be deleted.")
            self._shelf.drop(batch.id)
            return {"id": batch.id, "type": "message_batch_deleted"}
        elif method != "GET" or verb is not None:
            raise Refusal("bad_request", f"Not allowed to {method} here.")
        return _show(batch, now, root)

    def _create(self, errand: Errand, answer: Answerer) -> Batch:
        if len(errand.body) > (self._pace.bytes or MOST_BYTES):
            raise Refusal("too_large")
        rows, name = _read(errand.body, self._pace.rows or MOST_ROWS), errand.stamp.id
        batch = Batch(f"msgbatch_{name}", shuffled(rows, name), errand.now, self._pace, answer)
        self._shelf.put(batch)
        return batch

    def _list(self, query: Mapping[str, str], now: float, root: str) -> JSON:
        found, more = self._shelf.page(query.get("after_id"), int(query.get("limit") or 20))
        ends = (found[0].id, found[-1].id) if found else (None, None)
        data = [_show(each, now, root) for each in found]
        return {"data": data, "has_more": more, "first_id": ends[0], "last_id": ends[1]}


def _show(batch: Batch, now: float, root: str) -> JSON:
    batch.settle(now)
    ended = not batch.live(now)
    state = "ended" if ended else "in_progress" if batch.cancelled is None else "canceling"
    counts = dict.fromkeys(("processing", "succeeded", "errored", "canceled", "expired"), 0)
    for each in _kinds(batch) if ended else ["processing"] * len(batch.rows):
        counts[each] += 1
    return {
        "id": batch.id,
        "type": "message_batch",
        "processing_status": state,
        "request_counts": counts,
        "created_at": _iso(batch.made),
        "expires_at": _iso(batch.expires),
        "ended_at": _iso(batch.ended) if ended else None,
        "cancel_initiated_at": _iso(batch.cancelled),
        "archived_at": None,
        "results_url": f"{root}/messages/batches/{batch.id}/results" if ended else None,
    }


def _kinds(batch: Batch) -> list[str]:
    """What became of each row of an ended batch."""
    kinds = ["succeeded" if each.status == 200 else "errored" for each in batch.results]  # noqa: PLR2004
    left = "expired" if batch.fate() == "expired" else "canceled"
    return kinds + [left] * (len(batch.rows) - len(kinds))


def _results(batch: Batch, now: float) -> list[JSON]:
    found = batch.settle(now)
    bodies: list[JSON] = []
    for kind, result in zip(_kinds(batch), [*found, *[None] * (len(batch.rows) - len(found))], strict=True):
        said = {"succeeded": "message", "errored": "error"}.get(kind)
        bodies.append({"type": kind} if result is None or said is None else {"type": kind, said: result.body})
    return [{"custom_id": row.custom_id, "result": body} for row, body in zip(batch.rows, bodies, strict=True)]


def _iso(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")


def _read(body: bytes, most: int) -> list[Row]:
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        data = None
    if not isinstance(data, dict):
        raise Refusal("bad_request", "The request body is not valid JSON.")
    asked = data.get("requests")
    if not isinstance(asked, list):
        raise Refusal("bad_request", "requests: Field required")
    if not asked:
        raise Refusal("bad_request", "requests: List should have at least 1 item")
    if len(asked) > most:
        raise Refusal("bad_request", f"requests: List should have at most {most} items")
    rows = [_row(f"requests.{number}", each) for number, each in enumerate(asked)]
    if len({row.custom_id for row in rows}) < len(rows):
        raise Refusal("bad_request", "requests: custom_id must be unique within a batch")
    return rows


def _row(where: str, asked: Any) -> Row:
    if not isinstance(asked, dict) or not isinstance(asked.get("params"), dict):
        raise Refusal("bad_request", f"{where}.params: Field required")
    name = asked.get("custom_id")
    if not isinstance(name, str):
        raise Refusal("bad_request", f"{where}.custom_id: Input should be a valid string")
    if len(name) > LONGEST_ID:
        raise Refusal("bad_request", f"{where}.custom_id: String should have at most {LONGEST_ID} characters")
    if not _ID.fullmatch(name):
        raise Refusal("bad_request", f"{where}.custom_id: String should match pattern '^[a-zA-Z0-9_-]{{1,64}}$'")
    return Row(name, orjson.dumps(asked["params"]))
