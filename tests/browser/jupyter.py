"""A JupyterLab of the tests' own: nobody's settings, loopback only, the kernels that are to be tried.

LLMLAB_KERNELS names the interpreters of the kernels, joined as in PATH; each needs ipykernel, anywidget, jinja2 and
llmlab. Without it there is one: the running Python's.
"""

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeAlias

KEY = "sk-env-3kd9fj20dkq0"
"""A key in every kernel's environment, made up: no saved notebook may hold it."""
PATIENCE = 60.0
"""Seconds that the server may take to come up."""
_SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "notebook-extension/tracker": {"windowingMode": "none"},  # cells out of sight are on the page, too
}


App: TypeAlias = Literal["lab", "notebook"]
"""JupyterLab or Notebook 7, which the same server serves."""


@dataclass(frozen=True)
class Kernel:
    """A kernel that notebooks may be opened with."""

    name: str
    """Its kernelspec's name."""
    python: str
    """Its interpreter."""
    version: tuple[int, ...]
    """Version of its ipykernel."""

    @property
    def hears_while_awaiting(self) -> bool:
        """Whether it handles widget messages while a cell awaits; ipykernel 6 leaves them until the cell is over."""
        return self.version >= (7,)

    @property
    def hears_while_computing(self) -> bool:
        """Whether it handles them even while a cell computes: in JupyterLab, on a subshell's thread."""
        return (7,) <= self.version < (7, 4)


@dataclass(frozen=True)
class Jupyter:
    """A running server."""

    url: str
    """Where it answers."""
    root: Path
    """The folder of its notebooks, and of the kernels."""
    log: Path
    """What it and its kernels wrote."""
    env: dict[str, str]
    """The environment that it runs in; other Jupyter programs find the same kernels with it."""

    def page(self, name: str, app: App = "lab") -> str:
        """Where a browser opens a notebook alone, in JupyterLab or in Notebook 7."""
        path = {"lab": "doc/tree", "notebook": "notebooks"}[app]
        return f"{self.url}/{path}/{name}?token={self.env['JUPYTER_TOKEN']}"

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """Ask the server's own API: what it answers."""
        request = urllib.request.Request(  # noqa: S310  loopback
            f"{self.url}/api/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"token {self.env['JUPYTER_TOKEN']}"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310
            return json.loads(answer.read() or "null")

    def start(self, name: str, kernel: Kernel) -> None:
        """Start a notebook's kernel, so that it comes up while the page is loaded."""
        self.ask("POST", "sessions", {"path": name, "name": name, "type": "notebook", "kernel": {"name": kernel.name}})

    def run(self, program: str, *arguments: str) -> str:
        """Run one of Jupyter's programs, as nbconvert, in the server's folder: its output.

        Raises:
            AssertionError: it failed.
        """
        done = subprocess.run(  # noqa: S603  our own interpreter
            [sys.executable, "-m", program, *arguments],
            env=self.env,
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr


def missing() -> str | None:
    """What the browser tests lack here, in words; None: nothing."""
    lacking = [
        name for name in ("jupyterlab", "notebook", "playwright", "anywidget", "papermill") if find_spec(name) is None
    ]
    if chromium() is None:
        lacking.append("chromium")
    return f"there is no {', no '.join(lacking)}" if lacking else None


def chromium() -> str | None:
    """The browser's program, if there is one."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def kernels() -> list[Kernel]:
    """The kernels to be tried."""
    wanted = os.environ.get("LLMLAB_KERNELS")
    pythons = [sys.executable] if not wanted else wanted.split(os.pathsep)
    return [_kernel(number, python) for number, python in enumerate(pythons)]


def _kernel(number: int, python: str) -> Kernel:
    code = "from importlib.metadata import version; print(version('ipykernel'))"
    said = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    version = tuple(int(part) for part in said.stdout.strip().split(".")[:2])
    return Kernel(f"k{number}-{'-'.join(map(str, version))}", python, version)


@contextlib.contextmanager
def jupyter(folder: Path, wanted: list[Kernel]) -> Iterator[Jupyter]:
    """Start a JupyterLab that keeps all it writes in `folder`, and stop it in the end."""
    home, root, log = folder / "home", folder / "notebooks", folder / "server.log"
    root.mkdir(parents=True)
    _settle(home, wanted)
    port, env = _free_port(), _environment(home)
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={root}",
        "--LabApp.expose_app_in_browser=True", "--JupyterNotebookApp.expose_app_in_browser=True",
    ]  # fmt: skip
    with log.open("wb") as out, subprocess.Popen(command, env=env, stdout=out, stderr=subprocess.STDOUT) as server:  # noqa: S603
        try:
            started = Jupyter(f"http://127.0.0.1:{port}", root, log, env)
            _wait_until_up(started, server)
            yield started
        finally:
            server.terminate()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()


def _settle(home: Path, wanted: list[Kernel]) -> None:
    """Write down settings and kernelspecs."""
    for name, values in _SETTINGS.items():
        settings = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        settings.parent.mkdir(parents=True)
        settings.write_text(json.dumps(values))
    for kernel in wanted:
        spec = home / "data" / "kernels" / kernel.name
        spec.mkdir(parents=True)
        argv = [kernel.python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        (spec / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": kernel.name, "language": "python"}))


def _environment(home: Path) -> dict[str, str]:
    dropped = ("LLMLAB_", "SPYDER", "PYTEST", "JUPYTER", "IPYTHON")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    places = {
        "JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "run",
        "JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces", "IPYTHONDIR": "ipython",
    }  # fmt: skip
    paths = {name: str(home / place) for name, place in places.items()}
    return {**kept, **paths, "OPENAI_API_KEY": KEY, "JUPYTER_TOKEN": secrets.token_hex()}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_up(started: Jupyter, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and server.poll() is None:
        try:
            started.ask("GET", "status")
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"JupyterLab did not come up:\n{started.log.read_text()[-3000:]}")
