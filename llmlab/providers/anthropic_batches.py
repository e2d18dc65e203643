"""Anthropic's Message Batches: the rows go along with the request that makes the batch.

The API keeps nothing of the client's with a batch, so one whose answer was lost is looked for among those that have
come up since, by its number of rows; that it is the right one shows in the names of its results.
"""

from dataclasses import dataclass

import orjson

from llmlab.errors import BadPayload, BatchExpired
from llmlab.providers.base import count, unpack
from llmlab.providers.batches import LISTED, MB, Line, Parcel, Send, Sent, Status, entries, joined, moment, page, table
from llmlab.providers.taxonomy import classify
from llmlab.types import JSON

PATH = "/v1/messages/batches"
_HEAD, _TAIL = b'{"requests":[', b"]}"


@dataclass
class AnthropicBatches:
    """`/v1/messages/batches`."""

    most_rows: int = 100_000
    """Rows of a batch at most."""
    most_bytes: int = 256 * MB - len(_HEAD + _TAIL)
    """Bytes of a batch at most."""
    one_model: bool = False
    """Whether all rows of a batch must ask the same model."""
    discount: float = 0.5
    """What a token costs here, as a share of its usual price; the prompt cache's likewise."""

    def line(self, custom_id: str, body: bytes) -> bytes:
        """One row as it stands in the list, with the comma behind it."""
        return joined(custom_id, b',"params":', body) + b","

    async def prepare(self, send: Send, parcel: Parcel) -> None:
        """Note which batches there are already."""
        listed = await send("GET", f"{PATH}?limit={LISTED}", page)
        parcel.known |= {_status(each).id for each in entries(listed)}

    async def create(self, send: Send, parcel: Parcel) -> Status:
        """Make the batch."""
        body = b"".join((_HEAD, *parcel.lines)).removesuffix(b",") + _TAIL
        return await send("POST", PATH, _read_status, body, again=False)

    async def find(self, send: Send, parcel: Parcel) -> list[Status]:
        """The batches that are new since the parcel was prepared and have as many rows."""
        listed = await send("GET", f"{PATH}?limit={LISTED}", page)
        found = [_status(each) for each in entries(listed)]
        return [each for each in found if each.id not in parcel.known and each.total == len(parcel.lines)]

    async def look(self, send: Send, batch: str) -> Status:
        """How a batch stands."""
        return await send("GET", f"{PATH}/{batch}", _read_status)

    async def cancel(self, send: Send, batch: str) -> Status:
        """Ask the provider to begin none of its rows any more."""
        return await send("POST", f"{PATH}/{batch}/cancel", _read_status)

    def read(self, line: bytes) -> Line:
        """Read one line of the results."""
        found = unpack(line)
        name = found.get("custom_id") if isinstance(found, dict) else None
        result = found.get("result") if isinstance(found, dict) else None
        if not isinstance(name, str) or not isinstance(result, dict):
            raise BadPayload(f"a line of the results is none: {line[:200].decode(errors='replace')}")
        kind = result.get("type")
        if kind == "succeeded":
            return Line(name, orjson.dumps(result.get("message")))
        if kind == "canceled":
            return Line(name)
        if kind == "expired":
            return Line(name, error=BatchExpired("the batch's time was over before the row's turn came"))
        return Line(name, error=classify(200, {}, orjson.dumps(result.get("error")), request_id_header="request-id"))

    def read_sent(self, line: bytes) -> Sent:
        """There is nothing of the kind."""
        raise BadPayload(f"Anthropic gives no row back as it was sent: {line[:80].decode(errors='replace')}")


def _read_status(body: bytes) -> Status:
    return _status(table(body))


def _status(found: JSON) -> Status:
    name, state = found.get("id"), found.get("processing_status")
    if not isinstance(name, str) or not isinstance(state, str):
        raise BadPayload("an answer of the Batch API describes no batch")
    counts = found.get("request_counts")
    tally = {key: count(value) for key, value in counts.items()} if isinstance(counts, dict) else {}
    total, left = sum(tally.values()), tally.get("processing", 0)
    ended = state == "ended"
    return Status(
        id=name,
        state=state,
        ended=ended,
        total=total,
        done=total - left,
        failed=tally.get("errored", 0) + tally.get("expired", 0),
        answered=total - left,
        made=moment(found.get("created_at")),
        over=moment(found.get("ended_at")),
        # Not results_url: the key goes along, and it is for the user's own base URL only.
        results=(f"{PATH}/{name}/results",) if ended else (),
        cancelled=found.get("cancel_initiated_at") is not None,
    )
