"""What the OpenAPI page says of all routes alike: how to show one's key, and what else may come back."""

from typing import Any

from fastapi import FastAPI

WORDS = (
    "Completions with retries, limits, fallback and a fair queue. Errors are `{error: {type, message, code, "
    "request_id, retry_after_s}}`; every answer names its request in `X-Request-Id`, which a request may bring itself."
)


def describe(app: FastAPI, *, needs_key: bool) -> None:
    """Complete an app's OpenAPI description.

    Args:
        app: The service's.
        needs_key: Whether requests need a bearer key.
    """
    made = app.openapi
    app.description = WORDS

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = made()
            if needs_key:
                schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            for path, item in schema["paths"].items():
                for operation in item.values():
                    _complete(operation, needs_key=needs_key and path != "/v1/health")
        return made()

    app.openapi = openapi  # type: ignore[method-assign]


def _complete(operation: dict[str, Any], *, needs_key: bool) -> None:
    if needs_key:
        operation["security"] = [{"key": []}]
    for status, answer in operation["responses"].items():
        answer.setdefault("headers", {})["X-Request-Id"] = {"schema": {"type": "string"}}
        if status == "429":
            answer["headers"]["Retry-After"] = {"schema": {"type": "integer"}, "description": "Seconds."}
