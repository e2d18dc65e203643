"""`GET /`: a live page of the service's numbers, from its metrics' stream. Text nodes only; no build step."""

from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import Response

router = APIRouter(include_in_schema=False)

_KINDS = {"page.html": "text/html", "page.js": "text/javascript", "page.css": "text/css"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def _file(name: str) -> Response:
    text = (files("llmlab") / "static" / name).read_text(encoding="utf-8")
    headers = {
        "Content-Security-Policy": _POLICY,
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",
        "Referrer-Policy": "no-referrer",
    }
    return Response(text, media_type=_KINDS[name], headers=headers)


@router.get("/")
async def page() -> Response:
    """The page."""
    return _file("page.html")


@router.get("/page.js")
async def script() -> Response:
    """Its script."""
    return _file("page.js")


@router.get("/page.css")
async def style() -> Response:
    """Its looks."""
    return _file("page.css")
