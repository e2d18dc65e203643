"""The service on a socket: uvicorn, told early that the end is near, so that no open stream delays it."""

import socket
from types import FrameType
from typing import Any

import uvicorn

from llmlab.lab import Lab
from llmlab.progress import say
from llmlab.service import create_app
from llmlab.service.desk import Desk

BACKLOG = 2048


class _Server(uvicorn.Server):
    """Tells the service of a signal before connections are waited for."""

    def __init__(self, config: uvicorn.Config, desk: Desk) -> None:
        super().__init__(config)
        self._desk = desk

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  uvicorn's shape
        """Take the first signal as a wish to end, a second one as an order; neither is a failure of the program."""
        self._desk.draining.set()
        self.force_exit = self.should_exit
        self.should_exit = True


async def run_app(lab: Lab, *, host: str = "127.0.0.1", port: int = 8000, grace: float = 30.0, **settings: Any) -> None:
    """Serve a lab until SIGINT or SIGTERM; on the loop on which the lab lives.

    Args:
        lab: Answers; stays yours to close.
        host: Address to listen on; one that is not loopback needs `keys`.
        port: 0: any free one; the address is said.
        grace: Seconds that requests at work get when the service ends.
        settings: As `llmlab.service.create_app` takes them.

    Raises:
        TypeError, ValueError: a setting is not usable.
        OSError: the address is taken.
    """
    app = create_app(lab, grace=grace, **settings)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=max(1, round(grace)),
        backlog=BACKLOG,
    )
    listening = _listen(host, port)
    with listening:
        shown = f"[{host}]" if ":" in host else host
        say(f"llmlab: {lab.model} on http://{shown}:{listening.getsockname()[1]}, Ctrl-C ends it")
        await _Server(config, app.state.desk).serve([listening])


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket; made here, so that the port is known before anything is said of it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
    except OSError:
        listening.close()
        raise
    return listening
