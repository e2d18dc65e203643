"""Reads what is uploaded for OpenAI's Batch API: the form, and the input file's lines."""

from email.message import Message

import orjson

from llmlab.sim.batches import Row
from llmlab.sim.wire import Refusal
from llmlab.types import JSON

ENDPOINT = "/v1/chat/completions"
"""The one kind of request that batches are for here."""


def read_form(kind: str, body: bytes) -> dict[str, tuple[str, bytes]]:
    """Read a form: field -> (file name, content); raises Refusal if it is none."""
    header = Message()
    header["content-type"] = kind
    boundary = header.get_param("boundary")
    if header.get_content_type() != "multipart/form-data" or not isinstance(boundary, str):
        raise Refusal("bad_request", "Invalid Content-Type: the file is to be sent as multipart/form-data.")
    parts = {}
    for piece in body.split(b"--" + boundary.encode())[1:-1]:
        head, _, content = piece.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        said = Message()
        said["content-disposition"] = _disposition(head)
        name = said.get_param("name", header="content-disposition")
        parts[str(name)] = (said.get_filename() or "", content.removesuffix(b"\r\n"))
    return parts


def _disposition(head: bytes) -> str:
    lines = head.decode(errors="replace").split("\r\n")
    found = (line.partition(":")[2].strip() for line in lines if line.lower().startswith("content-disposition:"))
    return next(found, "form-data")


def read_lines(data: bytes, most: int) -> tuple[list[Row], list[JSON], str | None]:
    """Read an input file: its rows, what is wrong with it, and its model."""
    rows, flaws, seen, models = [], [], set(), []
    for number, line in enumerate(filter(None, data.split(b"\n")), 1):
        try:
            row, model = _row(line)
        except _Flaw as flaw:
            flaws.append({"code": flaw.code, "line": number, "message": str(flaw), "param": flaw.param})
            continue
        if row.custom_id in seen:
            text = f"The custom_id '{row.custom_id}' for this request is a duplicate of another request."
            flaws.append({"code": "duplicate_custom_id", "line": number, "message": text, "param": "custom_id"})
        seen.add(row.custom_id)
        rows.append(row)
        models.append(model)
        if model != models[0]:
            text = "All requests of a batch must be for the same model."
            flaws.append({"code": "model_mismatch", "line": number, "message": text, "param": "body.model"})
    if not rows and not flaws:
        flaws.append({"code": "empty_file", "line": None, "message": "The input file is empty.", "param": None})
    if len(rows) > most:
        text = f"The batch input file has {len(rows)} requests, more than {most}."
        flaws = [{"code": "too_many_tasks", "line": None, "message": text, "param": None}]
    return rows, flaws, models[0] if models else None


class _Flaw(Exception):
    """A line of an input file is no request."""

    def __init__(self, code: str, text: str, param: str | None = None) -> None:
        super().__init__(text)
        self.code, self.param = code, param


def _row(line: bytes) -> tuple[Row, str]:
    try:
        data = orjson.loads(line)
    except orjson.JSONDecodeError:
        data = None
    if not isinstance(data, dict):
        raise _Flaw("invalid_json_line", "This line is not parseable as valid JSON.")
    for name in ("custom_id", "method", "url", "body"):
        if not data.get(name):
            raise _Flaw("missing_required_parameter", f"Missing required parameter: '{name}'.", name)
    if data["method"] != "POST":
        raise _Flaw("invalid_method", f"Invalid method: '{data['method']}'. Only POST is supported.", "method")
    if data["url"] != ENDPOINT:
        raise _Flaw("url_mismatch", f"The URL '{data['url']}' is not the batch's endpoint '{ENDPOINT}'.", "url")
    if not isinstance(data["body"], dict) or not isinstance(data["custom_id"], str):
        raise _Flaw("invalid_type", "A request's body is an object, its custom_id a string.")
    return Row(data["custom_id"], orjson.dumps(data["body"])), str(data["body"].get("model"))
