"""OpenAI's files and batches, as the simulated provider serves them.

Formats: `research/providers.md` section C.1. Error texts and codes not shown there are worded by us in their manner,
not captured from the real API. An input file is looked at after the batch is made: what is wrong with it shows as a
batch that has failed, with a code and the line.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import orjson

from llmlab.sim.batches import MB, Batch, BatchPace, Result, Row, Shelf, shuffled
from llmlab.sim.openai_upload import ENDPOINT, read_form, read_lines
from llmlab.sim.wire import Errand, Refusal
from llmlab.types import JSON

MOST_ROWS, MOST_BYTES = 50_000, 200 * MB
MONTH = 30 * 86_400

_FILES = re.compile(r"/files(?:/(?P<id>[\w-]+)(?P<content>/content)?)?$")
_BATCHES = re.compile(r"(?<!/messages)/batches(?:/(?P<id>[\w-]+)(?P<cancel>/cancel)?)?$")
_STAGES = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")

Answerer: TypeAlias = Callable[[bytes], Result]


@dataclass(frozen=True, slots=True)
class _File:
    """An uploaded file."""

    id: str
    name: str
    purpose: str
    made: float
    data: bytes


class OpenAIBatches:
    """Serves the paths `/files` and `/batches`.

    Args:
        pace: How fast batches go.
    """

    def __init__(self, pace: BatchPace) -> None:
        self._pace = pace
        self._files: dict[str, _File] = {}
        self._shelf = Shelf()

    def serves(self, path: str) -> bool:
        """Whether a path is one of these."""
        return bool(_FILES.search(path) or _BATCHES.search(path))

    def handle(self, errand: Errand, answer: Answerer) -> JSON | bytes:
        """Answer one request; raises Refusal as OpenAI would answer."""
        if on_file := _FILES.search(errand.path):
            return self._on_files(errand, on_file["id"], content=bool(on_file["content"]))
        found = _BATCHES.search(errand.path)
        name, cancels = (found["id"], bool(found["cancel"])) if found else (None, False)
        if name is None and errand.method == "POST":
            return self._create(errand, answer)
        if name is None and errand.method == "GET":
            return self._list(errand.query, errand.now)
        batch = self._shelf.get(name or "")
        if batch is None:
            raise Refusal("not_found", f"No batch found with id '{name}'.", param="id", code="not_found")
        if errand.method != ("POST" if cancels else "GET"):
            raise _not_allowed(errand)
        if cancels and batch.state(errand.now) in ("failed", "ended"):
            raise Refusal("conflict", f"Cannot cancel a batch with status '{_status(batch, errand.now)}'.")
        if cancels:
            batch.cancel(errand.now)
        return self._show(batch, errand.now)

    # -- files --------------------------------------------------------------------------------------------

    def _on_files(self, errand: Errand, name: str | None, *, content: bool) -> JSON | bytes:
        if name is None and errand.method == "POST":
            return self._upload(errand)
        if name is None and errand.method == "GET":
            return {"object": "list", "data": [_file(each) for each in self._files.values()], "has_more": False}
        file = self._files.get(name or "")
        if file is None:
            raise Refusal("not_found", f"No such File object: {name}", param="id", code="not_found")
        if errand.method == "DELETE" and not content:
            del self._files[file.id]
            return {"id": file.id, "object": "file", "deleted": True}
        if errand.method != "GET":
            raise _not_allowed(errand)
        return file.data if content else _file(file)

    def _upload(self, errand: Errand) -> JSON:
        parts = read_form(errand.headers.get("content-type") or "", errand.body)
        purpose = parts.get("purpose", ("", b""))[1].decode(errors="replace")
        if "file" not in parts or not purpose:
            missing = "file" if "file" not in parts else "purpose"
            text = f"'{missing}' is a required property"
            raise Refusal("bad_request", text, param=missing, code="missing_required_parameter")
        name, data = parts["file"]
        if len(data) > (self._pace.bytes or MOST_BYTES):
            raise Refusal("too_large", f"File is too large: {len(data)} bytes")
        if purpose == "batch" and not name.endswith(".jsonl"):
            raise Refusal("bad_request", "Invalid file format for Batch API. Must be .jsonl", param="file")
        file = _File(f"file-{errand.stamp.id}", name, purpose, errand.now, data)
        self._files[file.id] = file
        return _file(file)

    # -- batches ------------------------------------------------------------------------------------------

    def _create(self, errand: Errand, answer: Answerer) -> JSON:
        asked = _object(errand.body)
        file = self._files.get(str(asked.get("input_file_id")))
        if file is None:
            text = f"No such File object: {asked.get('input_file_id')}"
            raise Refusal("bad_request", text, param="input_file_id")
        for name, value in (("endpoint", ENDPOINT), ("completion_window", "24h")):
            if asked.get(name) != value:
                text = f"Invalid value: '{asked.get(name)}'. Supported values are: '{value}'."
                raise Refusal("bad_request", text, param=name, code="invalid_value")
        rows, flaws, model = read_lines(file.data, self._pace.rows or MOST_ROWS)
        facts = {"input_file_id": file.id, "metadata": _metadata(asked.get("metadata")), "model": model}
        name, now = errand.stamp.id, errand.now
        batch = Batch(f"batch_{name}", shuffled(rows, name), now, self._pace, answer, facts, flaws)
        self._shelf.put(batch)
        return self._show(batch, now)

    def _list(self, query: Mapping[str, str], now: float) -> JSON:
        found, more = self._shelf.page(query.get("after"), int(query.get("limit") or 20))
        shown = [self._show(each, now) for each in found]
        ends = {"first_id": found[0].id, "last_id": found[-1].id} if found else {"first_id": None, "last_id": None}
        return {"object": "list", "data": shown, "has_more": more} | ends

    def _show(self, batch: Batch, now: float) -> JSON:
        results, status = batch.settle(now), _status(batch, now)
        failed = sum(each.status != 200 for each in results)  # noqa: PLR2004
        expired = len(batch.rows) - len(results) if status == "expired" else 0
        if status in ("completed", "expired", "cancelled"):
            self._write_files(batch)
        return {
            "id": batch.id,
            "object": "batch",
            "endpoint": ENDPOINT,
            "model": batch.facts["model"],
            "errors": {"object": "list", "data": batch.flaws} if status == "failed" else None,
            "input_file_id": batch.facts["input_file_id"],
            "completion_window": "24h",
            "status": status,
            "output_file_id": batch.facts.get("output_file_id"),
            "error_file_id": batch.facts.get("error_file_id"),
            "created_at": int(batch.made),
            "expires_at": int(batch.expires),
            **_stages(batch, status, now),
            "request_counts": {
                "total": 0 if status in ("validating", "failed") else len(batch.rows),
                "completed": len(results) - failed,
                "failed": failed + expired,
            },
            "usage": _usage(results),
            "metadata": batch.facts["metadata"],
        }

    def _write_files(self, batch: Batch) -> None:
        if "written" in batch.facts:
            return
        batch.facts["written"] = True
        pairs = list(zip(batch.rows, batch.results, strict=False))
        good = [_line(row, result) for row, result in pairs if result.status == 200]  # noqa: PLR2004
        bad = [_line(row, result) for row, result in pairs if result.status != 200]  # noqa: PLR2004
        if batch.fate() == "expired":
            bad += [_expired(row) for row in batch.rows[len(pairs) :]]
        tail = batch.id.removeprefix("batch_")
        for key, name, lines in (("output_file_id", f"file-o{tail}", good), ("error_file_id", f"file-e{tail}", bad)):
            if lines:
                data = b"\n".join(map(orjson.dumps, lines)) + b"\n"
                self._files[name] = _File(name, f"{batch.id}_{key[:-8]}.jsonl", "batch_output", batch.ended, data)
                batch.facts[key] = name


def _line(row: Row, result: Result) -> JSON:
    response = {"status_code": result.status, "request_id": result.id, "body": result.body}
    return {"id": f"batch_req_{result.id}", "custom_id": row.custom_id, "response": response, "error": None}


def _expired(row: Row) -> JSON:
    error = {"code": "batch_expired", "message": "This request could not be executed before the completion window."}
    return {"id": f"batch_req_{row.custom_id}", "custom_id": row.custom_id, "response": None, "error": error}


def _status(batch: Batch, now: float) -> str:
    state = batch.state(now)
    if state != "ended":
        return state
    return {"done": "completed", "expired": "expired", "cancelled": "cancelled"}[batch.fate()]


def _stages(batch: Batch, status: str, now: float) -> JSON:
    """When it came into each of its states so far."""
    at = {
        "in_progress": batch.began,
        "finalizing": batch.last if batch.cancelled is None else None,
        status: batch.ended if status in ("completed", "failed", "expired", "cancelled") else None,
        "cancelling": batch.cancelled,
    }
    passed = {name: when for name, when in at.items() if when is not None and when <= now}
    if status == "failed":
        passed = {"failed": batch.ended}
    return {f"{name}_at": int(passed[name]) if name in passed else None for name in _STAGES}


def _usage(results: list[Result]) -> JSON:
    read, written = sum(each.input_tokens for each in results), sum(each.output_tokens for each in results)
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": read + written,
    }


def _file(file: _File) -> JSON:
    return {
        "id": file.id,
        "object": "file",
        "bytes": len(file.data),
        "created_at": int(file.made),
        "expires_at": int(file.made) + MONTH,
        "filename": file.name,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


def _metadata(given: Any) -> JSON | None:
    if given is None:
        return None
    sound = isinstance(given, dict) and len(given) <= 16 and all(  # noqa: PLR2004  the API's own limits
        len(key) <= 64 and isinstance(value, str) and len(value) <= 512 for key, value in given.items()  # noqa: PLR2004
    )  # fmt: skip
    if not sound:
        raise Refusal("bad_request", "Invalid 'metadata': at most 16 pairs of short strings.", param="metadata")
    return dict(given)


def _object(body: bytes) -> JSON:
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError:
        data = None
    if not isinstance(data, dict):
        raise Refusal("bad_request", "We could not parse the JSON body of your request.")
    return data


def _not_allowed(errand: Errand) -> Refusal:
    return Refusal("bad_request", f"Not allowed to {errand.method} on {errand.path}.")
