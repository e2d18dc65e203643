"""One JupyterLab and one browser for all tests of this folder; a notebook with a kernel of its own for each test.

    notebook     opens a notebook with the cells given; afterwards no page error and no traceback may have been seen
    kernel       the kernel at work, one of LLMLAB_KERNELS
    jupyter      the server; `jupyter.run("nbconvert", …)` runs Jupyter's other programs with the same kernels

Server and browser end with this folder, not with the session: while playwright is at work its event loop runs in the
main thread, and the other tests have loops of their own.
"""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.browser import jupyter as servers
from tests.browser.jupyter import App, Jupyter, Kernel
from tests.browser.notebook import Notebook, Open, browser, open_notebook

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext

HERE = Path(__file__).parent
KERNELS = servers.kernels() if servers.missing() is None else []
"""The kernels to be tried."""


@pytest.fixture(scope="package")
def jupyter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jupyter]:
    """A JupyterLab."""
    if (reason := servers.missing()) is not None:
        if os.environ.get("LLMLAB_BROWSER") == "required":
            pytest.fail(f"LLMLAB_BROWSER=required, but {reason}")
        pytest.skip(reason)
    with servers.jupyter(tmp_path_factory.mktemp("jupyter"), KERNELS) as server:
        yield server


@pytest.fixture(scope="package")
def chrome(jupyter: Jupyter, tmp_path_factory: pytest.TempPathFactory) -> "Iterator[BrowserContext]":  # noqa: ARG001
    """A browser; after the server, so that it is skipped with it."""
    with browser(tmp_path_factory.mktemp("profile")) as context:
        yield context


@pytest.fixture(params=KERNELS or [Kernel("no kernel", "", ())], ids=lambda kernel: kernel.name)
def kernel(request: pytest.FixtureRequest) -> Kernel:
    """The kernel at work."""
    found: Kernel = request.param
    return found


@pytest.fixture
def notebook(jupyter: Jupyter, chrome: "BrowserContext", kernel: Kernel, request: Any) -> Iterator[Open]:
    """Opens notebooks, and looks afterwards whether anything went wrong unseen."""
    opened: list[Notebook] = []

    def open_one(cells: Sequence[str], app: App = "lab") -> Notebook:
        name = re.sub(r"\W+", "_", request.node.name)[:60] + f"_{len(opened)}.ipynb"
        opened.append(open_notebook(chrome, jupyter, name, cells, kernel, app))
        return opened[-1]

    yield open_one
    seen = [trouble for each in opened for trouble in each.trouble()]
    for each in opened:
        each.close()
    assert not seen, "\n".join(seen)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One worker has all tests of this folder, when there are several: it has the server and the browser."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("browser"))
