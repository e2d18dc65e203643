"""Where this process shows things: what kind of display there is, as far as can be told from inside.

    widget   a notebook's kernel, and anywidget is installed
    html     a notebook's kernel without it (or Spyder's): one output, redrawn
    text     a terminal
    none     a log file, a test, a service

The environment variable LLMLAB_UI overrides it. A kernel cannot tell JupyterLab from nbclient, papermill or nbconvert,
so whatever is live must leave something still behind.
"""

import importlib.util
import os
import sys
from typing import Any, Literal, TypeAlias

Frontend: TypeAlias = Literal["widget", "html", "text", "none"]

KINDS: tuple[Frontend, ...] = ("widget", "html", "text", "none")


def frontend() -> Frontend:
    """The kind of display there is.

    Raises:
        ValueError: LLMLAB_UI is set to something else.
    """
    wanted = os.environ.get("LLMLAB_UI")
    if wanted:
        if wanted not in KINDS:
            raise ValueError(f"LLMLAB_UI must be one of {', '.join(KINDS)}, not {wanted!r}")
        return wanted
    if not in_kernel():
        return "text" if sys.stderr is not None and sys.stderr.isatty() else "none"
    if any(name.startswith("SPYDER") for name in os.environ) or importlib.util.find_spec("anywidget") is None:
        return "html"
    return "widget"


def in_kernel() -> bool:
    """Whether this process is a notebook's kernel."""
    return hasattr(_shell(), "kernel")


def cell_at_work() -> str | None:
    """Names the run of a notebook's cell below which something displayed now appears; None: nobody knows.

    It need not be the cell that runs: what a task displays belongs to the cell that made it, on ipykernel 7.
    """
    header = getattr(getattr(_shell(), "display_pub", None), "parent_header", None)
    return header.get("msg_id") if isinstance(header, dict) else None


def _shell() -> Any:
    return getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
