"""A notebook in a real browser: cells are run, outputs looked at, buttons pressed.

Nothing here sleeps: who wants to see something polls the page until it is there, or a time limit is over.
"""

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import nbformat

from tests.browser.jupyter import App, Jupyter, Kernel, chromium

if TYPE_CHECKING:  # the tests are skipped where there is no playwright, and must be importable for that
    from playwright.sync_api import BrowserContext, Locator, Page

Open: TypeAlias = "Callable[..., Notebook]"
"""Opens a notebook: `notebook([cell, cell])`, or `notebook([cell, cell], app="notebook")` in Notebook 7."""

SOON = 15.0
"""Seconds within which whatever is waited for must be there."""
_ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
_PANEL = "window.jupyterapp.shell.currentWidget"
_READY = f"""async () => {{
    const context = {_PANEL}.sessionContext;
    await context.ready;
    await context.session.kernel.info;
}}"""
_RUN = f"""(index) => {{
    const cells = {_PANEL}.content;
    cells.activeCellIndex = index;
    cells.deselectAll();
    window.atWork = (window.atWork || 0) + 1;
    window.jupyterapp.commands.execute("notebook:run-cell").finally(() => {{ window.atWork -= 1; }});
}}"""
_OUTPUTS = f"(index) => {_PANEL}.content.widgets[index].model.sharedModel.toJSON().outputs"
_LOOK = re.compile(r'"kind": ?"look"')
_TRACEBACK = re.compile(r"Traceback \(most recent call last\)|never retrieved|was never awaited")


@contextlib.contextmanager
def browser(profile: Path) -> "Iterator[BrowserContext]":
    """Start a headless Chromium with a profile of its own, and stop it in the end."""
    from playwright.sync_api import sync_playwright  # noqa: PLC0415  not there where the tests are skipped

    with sync_playwright() as play:
        context = play.chromium.launch_persistent_context(
            str(profile),
            executable_path=chromium(),
            headless=True,
            args=_ARGUMENTS,
            viewport={"width": 1200, "height": 900},
        )
        context.set_default_timeout(SOON * 1000)
        try:
            yield context
        finally:
            context.close()


def open_notebook(
    context: "BrowserContext", server: Jupyter, name: str, cells: Sequence[str], kernel: Kernel, app: App = "lab"
) -> "Notebook":
    """Write a notebook, start its kernel, and open it on a page of its own."""
    write(server.root / name, cells, kernel.name)
    server.start(name, kernel)  # it comes up while the page is loaded
    made = Notebook(context.new_page(), server, name, app)
    made.open()
    return made


def write(path: Path, cells: Sequence[str], kernel: str) -> None:
    """Write a notebook that has not been run."""
    spec = {"name": kernel, "display_name": kernel, "language": "python"}
    made = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell) for cell in cells], metadata={"kernelspec": spec}
    )
    nbformat.write(made, path)


class Notebook:
    """A notebook on a page.

    Args:
        page: A new page.
        server: The server that has it.
        name: Its file in the server's folder.
        app: What shows it.
    """

    def __init__(self, page: "Page", server: Jupyter, name: str, app: App = "lab") -> None:
        self.page = page
        self.path = server.root / name
        self.url = server.page(name, app)
        self.errors: list[str] = []
        """What went wrong in the page's own scripts."""
        self.looks: list[str] = []
        """The messages with looks that came, as they came."""
        self._failing: set[int] = set()
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("websocket", lambda socket: socket.on("framereceived", self._received))

    def _received(self, frame: str | bytes) -> None:
        text = frame if isinstance(frame, str) else frame.decode("utf-8", "replace")
        if '"comm_msg"' in text and _LOOK.search(text):
            self.looks.append(text)

    def open(self) -> None:
        """Load the page, and wait for the kernel."""
        self.page.goto(self.url)
        self.until("() => !!window.jupyterapp?.shell?.currentWidget?.sessionContext", limit=60)
        self.page.evaluate(_READY)
        self.until(f"() => {_PANEL}.sessionContext.session.kernel.status === 'idle'", limit=60)
        self.errors.clear()  # Notebook 7.6 has one of its own while it loads; nothing of ours has run yet

    def reopen_without_kernel(self) -> None:
        """End the kernel, let the file ask for one that is not there, load the page anew, and choose none."""
        self.close_kernel()
        saved = json.loads(self.path.read_text())
        saved["metadata"]["kernelspec"] = {"name": "gone", "display_name": "gone", "language": "python"}
        self.path.write_text(json.dumps(saved))
        self.page.goto("about:blank")
        self.page.goto(self.url)
        self.page.locator(".jp-Dialog button", has_text="No Kernel").click()

    def close_kernel(self) -> None:
        """End the kernel."""
        self.page.evaluate(f"async () => {{ await {_PANEL}.sessionContext.shutdown(); }}")

    def close(self) -> None:
        """End the kernel, and close the page."""
        try:
            self.close_kernel()
        finally:
            self.page.close()

    # -- cells --------------------------------------------------------------------------------------------

    def start(self, index: int) -> None:
        """Run a cell, without waiting for its end."""
        self.page.evaluate(_RUN, index)

    def wait(self, limit: float = SOON) -> None:
        """Wait until all cells that were started are over; `limit` in seconds."""
        self.until("() => window.atWork === 0", limit=limit)

    def run(self, *indexes: int, limit: float = 30.0) -> None:
        """Run cells and wait for their end."""
        for index in indexes:
            self.start(index)
        self.wait(limit)

    @property
    def busy(self) -> bool:
        """Whether a cell that was started is not over."""
        return bool(self.page.evaluate("() => window.atWork > 0"))

    def outputs(self, index: int) -> list[dict[str, Any]]:
        """A cell's outputs, as they would be saved."""
        found: list[dict[str, Any]] = self.page.evaluate(_OUTPUTS, index)
        return found

    def text(self, index: int) -> str:
        """A cell's outputs as plain text."""
        return "\n".join(_text(output) for output in self.outputs(index)).strip()

    def value(self, index: int) -> str:
        """What a cell's last expression showed, as plain text."""
        results = [output for output in self.outputs(index) if output["output_type"] == "execute_result"]
        return _text(results[-1]) if results else ""

    def interrupt(self) -> None:
        """Press the notebook's Stop."""
        self.page.locator('[data-command="notebook:interrupt-kernel"]').first.click()

    def switch_theme(self, name: str) -> None:
        """Change JupyterLab's theme: "JupyterLab Light", "JupyterLab Dark"."""
        self.page.evaluate("(theme) => window.jupyterapp.commands.execute('apputils:change-theme', {theme})", name)
        painted = "document.body.dataset.jpThemeName === theme && !document.querySelector('#jupyterlab-splash')"
        self.until(f"(theme) => {painted}", name)

    def save(self) -> str:
        """Save the notebook: the file's text."""
        self.page.evaluate("async () => { await window.jupyterapp.commands.execute('docmanager:save'); }")
        return self.path.read_text()

    def may_fail(self, index: int) -> None:
        """Let a cell's traceback be no trouble."""
        self._failing.add(index)

    def trouble(self) -> list[str]:
        """Errors of the page, and tracebacks in any cell but those that may have some."""
        count: int = self.page.evaluate(f"() => {_PANEL}.content.widgets.length")
        texts = {index: self.text(index) for index in range(count) if index not in self._failing}
        failed = [index for index, text in texts.items() if _failed(self.outputs(index)) or _TRACEBACK.search(text)]
        return self.errors + [f"cell {index}: {texts[index]}" for index in failed]

    # -- the page -----------------------------------------------------------------------------------------

    def until(self, condition: str, argument: Any = None, *, limit: float = SOON) -> Any:
        """Wait until a JavaScript function of `argument` gives something true, and return it; `limit` in seconds."""
        return self.page.wait_for_function(condition, arg=argument, timeout=limit * 1000).json_value()

    def until_looks(self, count: int) -> None:
        """Wait until so many more looks have come."""
        wanted, frames = len(self.looks) + count, 0
        while len(self.looks) < wanted and frames < SOON * 60:
            self.page.evaluate("() => new Promise(requestAnimationFrame)")  # lets the frames in
            frames += 1
        assert len(self.looks) >= wanted, "no further looks come"

    def cell(self, index: int) -> "Locator":
        """A cell, with its output."""
        return self.page.locator(".jp-Notebook .jp-Cell").nth(index)


def _text(output: dict[str, Any]) -> str:
    if output["output_type"] == "stream":
        return "".join(output["text"])
    if output["output_type"] == "error":
        return "\n".join([f"{output['ename']}: {output['evalue']}", *output["traceback"]])
    return "".join(output["data"].get("text/plain", json.dumps(output["data"])))


def _failed(outputs: list[dict[str, Any]]) -> bool:
    return any(output["output_type"] == "error" for output in outputs)
