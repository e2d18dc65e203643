"""The service's live page in Chromium: its figures move, what comes over the wire stays text, nobody else is asked."""

import asyncio
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest

import llmlab
from llmlab.service import state
from llmlab.service.faults import Fault
from llmlab.service.server import serving
from llmlab.sim import Faults, Physics, Simulator

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

HOSTILE = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
KEY = "key-of-the-page"
Serve = Callable[..., Any]


@contextmanager
def served(*, faults: str = "", **settings: Any) -> Iterator[str]:
    """A service in a thread: while playwright is at work its event loop runs in the main one."""
    found: list[Any] = []
    ready = threading.Event()

    async def main() -> None:
        simulator = Simulator(
            physics=Physics(ttft=0.05, itl=0.0, jitter=0.3), faults=Faults.parse(faults), say=lambda _: "a short answer"
        )
        lab = llmlab.Lab("openai:m", api_key="k", transport=simulator, progress=False)
        async with lab, serving(lab, grace=0.5, **settings) as running:
            over = asyncio.Event()
            found.extend([running.url, asyncio.get_running_loop(), over])
            ready.set()
            await over.wait()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    assert ready.wait(30)
    try:
        yield found[0]
    finally:
        found[1].call_soon_threadsafe(found[2].set)
        thread.join()


@pytest.fixture
def page(chrome: "BrowserContext", monkeypatch: pytest.MonkeyPatch) -> "Iterator[Page]":
    """A page that may ask its own host only, and may not break its own rules."""
    monkeypatch.setattr(state, "EVERY", 0.1)
    page = chrome.new_page()
    asked: list[str] = []
    trouble: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: trouble.append(str(error)))
    page.on("console", lambda said: trouble.append(said.text) if "Content Security Policy" in said.text else None)
    page.add_init_script(
        "window.broken = []; addEventListener('securitypolicyviolation', (e) => broken.push(e.violatedDirective))"
    )
    yield page
    assert page.evaluate("broken") == []
    page.close()
    assert trouble == []
    assert {httpx.URL(url).host for url in asked if not url.startswith("data:")} == {"127.0.0.1"}


def until(page: "Page", selector: str, text: str, *, name: str = "") -> None:
    """Wait until an element has a text; by locators, as the page evaluates nothing."""
    inside = page.locator(".tiles > div", has=page.get_by_text(name, exact=True)) if name else page
    inside.locator(selector, has_text=re.compile(f"^{text}$")).wait_for()


def test_figures_move_while_prompts_are_answered(page: "Page") -> None:
    with served() as url:
        page.goto(url)
        until(page, "#state", "serving")
        until(page, "b", "0", name="answered")
        for more, then in ((30, "30"), (12, "42")):
            httpx.post(f"{url}/v1/completions/batch", json={"prompts": ["hello"] * more}, timeout=30)
            until(page, "b", then, name="answered")
        until(page, "#latency-now", r"p50 \d+ · p95 \d+ · p99 \d+")
        assert page.locator("#targets .closed").inner_text() == "breaker closed"
        assert page.locator("#errors").inner_text() == "none"
        assert page.locator("#rows polyline").get_attribute("points")


def test_a_hostile_error_stays_text(page: "Page", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmlab.service.desk.fault_of", lambda _: Fault(400, "bad_request", HOSTILE))
    with served(faults="bad_request:1") as url:
        page.goto(url)
        until(page, "#state", "serving")
        httpx.post(f"{url}/v1/completions", json={"prompt": "hello"}, timeout=30)
        error = page.locator("#errors li")
        error.get_by_text("BadRequest").wait_for()
        assert HOSTILE in error.inner_text()
        assert page.locator("#errors img, #errors script").count() == 0
        assert page.title() == "llmlab"


def test_a_key_is_asked_for_and_kept_out_of_the_address(page: "Page") -> None:
    with served(keys=[KEY]) as url:
        page.goto(url)
        page.get_by_text("needs a key").first.wait_for()
        page.fill("#key", "not-the-right-one")
        page.click("button")
        page.get_by_text("that key is not valid").wait_for()
        page.fill("#key", KEY)
        page.click("button")
        until(page, "#state", "serving")
        assert page.locator("#ask").is_hidden()
        assert KEY not in page.url
        assert page.evaluate("localStorage.length + sessionStorage.length") == 0
        assert KEY not in page.evaluate("document.cookie"), "which has those of other servers on this host, too"


def test_a_service_that_is_gone_is_told_and_found_again(page: "Page") -> None:
    with served() as url:
        page.goto(url)
        until(page, "#state", "serving")
    page.get_by_text("no connection, trying again").wait_for()
    assert page.locator("#figures").is_visible(), "the last figures stay"
