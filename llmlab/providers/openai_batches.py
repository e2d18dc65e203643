"""OpenAI's Batch API, and the servers that imitate it: a file of rows is uploaded, a batch is made of it.

Making a batch twice would be paid twice. Each is made of a file of its own, so that one whose answer was lost is found
by its file's id.
"""

import secrets
from dataclasses import dataclass

import orjson

from llmlab.errors import BadPayload, BadRequest, BatchExpired, LLMError, RateLimited
from llmlab.providers.base import count, unpack
from llmlab.providers.batches import LISTED, MB, Line, Parcel, Send, Sent, Status, entries, joined, moment, page, table
from llmlab.providers.taxonomy import classify
from llmlab.types import JSON

URL = "/v1/chat/completions"
ENDED = frozenset({"completed", "failed", "expired", "cancelled"})
PAGES = 20
"""Pages of batches that are looked through for a lost one."""


@dataclass
class OpenAIBatches:
    """`/files` and `/batches`."""

    most_rows: int = 50_000
    """Rows of a batch at most."""
    most_bytes: int = 200 * MB
    """Bytes of a batch at most."""
    one_model: bool = True
    """Whether all rows of a batch must ask the same model."""
    discount: float = 0.5
    """What a token costs here, as a share of its usual price."""

    def line(self, custom_id: str, body: bytes) -> bytes:
        """One row as it stands in the input file."""
        return joined(custom_id, b',"method":"POST","url":"' + URL.encode() + b'","body":', body) + b"\n"

    async def prepare(self, send: Send, parcel: Parcel) -> None:
        """Upload the rows. A file uploaded twice costs nothing, and the provider forgets it after a month."""
        kind, form = _form(b"".join(parcel.lines))
        parcel.origin = await send("POST", "/files", _file_id, form, kind)

    async def create(self, send: Send, parcel: Parcel) -> Status:
        """Make a batch of the uploaded rows."""
        asked = {
            "input_file_id": parcel.origin,
            "endpoint": URL,
            "completion_window": "24h",
            "metadata": dict(parcel.label),
        }
        return await send("POST", "/batches", _read_status, orjson.dumps(asked), again=False)

    async def find(self, send: Send, parcel: Parcel) -> list[Status]:
        """The batch made of the parcel's file."""
        after = ""
        for _ in range(PAGES):
            listed = await send("GET", f"/batches?limit={LISTED}{after}", page)
            found = [_status(each) for each in entries(listed)]
            if mine := [each for each in found if each.origin == parcel.origin]:
                return mine[:1]
            if not found or not listed.get("has_more"):
                break
            after = f"&after={found[-1].id}"
        return []

    async def look(self, send: Send, batch: str) -> Status:
        """How a batch stands."""
        return await send("GET", f"/batches/{batch}", _read_status)

    async def cancel(self, send: Send, batch: str) -> Status:
        """Ask the provider to begin none of its rows any more; it may take ten minutes."""
        return await send("POST", f"/batches/{batch}/cancel", _read_status)

    def read(self, line: bytes) -> Line:
        """Read one line of an output or error file."""
        found = _named(line)
        answer, error = found.get("response"), found.get("error")
        if not isinstance(answer, dict):
            return Line(found["custom_id"], error=_without_answer(error))
        body, status = orjson.dumps(answer.get("body")), answer.get("status_code")
        request_id = answer.get("request_id")
        request_id = request_id if isinstance(request_id, str) else None
        if status == 200:  # noqa: PLR2004
            return Line(found["custom_id"], body, request_id=request_id)
        status = status if type(status) is int else 500
        headers = {} if request_id is None else {"x-request-id": request_id}
        return Line(found["custom_id"], error=classify(status, headers, body), request_id=request_id)

    def read_sent(self, line: bytes) -> Sent:
        """Read one line of an input file."""
        found = _named(line)
        return Sent(found["custom_id"], orjson.dumps(found.get("body")))


def _named(line: bytes) -> JSON:
    found = unpack(line)
    if not isinstance(found, dict) or not isinstance(found.get("custom_id"), str):
        raise BadPayload(f"a line of a batch file has no custom_id: {line[:200].decode(errors='replace')}")
    return found


def _without_answer(error: object) -> LLMError:
    if isinstance(error, dict) and error.get("code") == "batch_expired":
        return BatchExpired(str(error.get("message") or "the batch's time was over"), code="batch_expired")
    return classify(500, {}, orjson.dumps({"error": error}))


def _file_id(body: bytes) -> str:
    found = table(body).get("id")
    if not isinstance(found, str):
        raise BadPayload("the provider took a file and told no id of it")
    return found


def _read_status(body: bytes) -> Status:
    return _status(table(body))


def _status(found: JSON) -> Status:
    name, state = found.get("id"), found.get("status")
    if not isinstance(name, str) or not isinstance(state, str):
        raise BadPayload("an answer of the Batch API describes no batch")
    counts = found.get("request_counts")
    counts = counts if isinstance(counts, dict) else {}
    completed, failed = count(counts.get("completed")), count(counts.get("failed"))
    source, files = found.get("input_file_id"), (found.get("output_file_id"), found.get("error_file_id"))
    ended = state in ENDED
    return Status(
        id=name,
        state=state,
        ended=ended,
        total=count(counts.get("total")),
        done=completed + failed,
        failed=failed,
        answered=completed,
        made=moment(found.get("created_at")),
        over=next((at for word in ENDED if (at := moment(found.get(f"{word}_at"))) is not None), None),
        results=tuple(f"/files/{each}/content" for each in files if isinstance(each, str)) if ended else (),
        source=f"/files/{source}/content" if isinstance(source, str) else None,
        origin=source if isinstance(source, str) else None,
        flaws=_flaws(found) if state == "failed" else (),
        cancelled=state in ("cancelling", "cancelled"),
    )


def _flaws(found: JSON) -> tuple[tuple[int | None, LLMError], ...]:
    errors = found.get("errors")
    listed = entries(errors) if isinstance(errors, dict) else []
    return tuple((_line_number(each), _flaw(each)) for each in listed) or ((None, BadRequest("the batch has failed")),)


def _line_number(flaw: JSON) -> int | None:
    number = flaw.get("line")
    return number if type(number) is int else None


def _flaw(flaw: JSON) -> LLMError:
    code, text = str(flaw.get("code") or ""), str(flaw.get("message") or "the batch was refused")
    if code == "token_limit_exceeded":  # so many tokens may wait in batches at once; later it may be taken
        return RateLimited(text, code=code)
    return BadRequest(text, code=code or None)


def _form(data: bytes) -> tuple[str, bytes]:
    """The rows as a form with a file: its content type, and its bytes."""
    edge = f"llmlab-{secrets.token_hex(16)}"
    head = (
        f'--{edge}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        f'--{edge}\r\nContent-Disposition: form-data; name="file"; filename="llmlab.jsonl"\r\n'
        "Content-Type: application/jsonl\r\n\r\n"
    )
    return f"multipart/form-data; boundary={edge}", b"".join((head.encode(), data, f"\r\n--{edge}--\r\n".encode()))
