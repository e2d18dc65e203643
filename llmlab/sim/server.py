"""The simulated provider on a real socket: the same World, with real resets, early closes, unlengthed bodies.

Idle connections are kept for an hour, so that no client meets a race between its request and a closing
connection that it did not ask for.
"""

import asyncio
import contextlib
import ipaddress
import signal
import socket
import struct
from collections.abc import Callable

from aiohttp import web

from llmlab.sim.script import Body, Response
from llmlab.sim.transport import Simulator
from llmlab.sim.wire import Broken

KEEP_ALIVE = 3600.0
LARGEST, LARGEST_BATCH = 32 * 2**20, 260 * 2**20
_BATCHES = ("/files", "/batches")
GRACE = 0.01  # seconds for requests under way when the server closes; to aiohttp 0 means for ever
_LINGER_0 = struct.pack("ii", 1, 0)  # closing a socket that lingers 0 s sends RST instead of FIN


class Server:
    """A running simulated provider; made by `serve`."""

    def __init__(self, simulator: Simulator, runner: web.ServerRunner, host: str, port: int) -> None:
        self.simulator = simulator
        self.host = host
        self.port = port
        self._runner = runner

    @property
    def base_url(self) -> str:
        """The server's root: the Anthropic dialect's base URL. The OpenAI dialect's adds /v1."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    async def aclose(self) -> None:
        """Close all connections and the socket; a second call does nothing."""
        await self._runner.cleanup()


async def serve(simulator: Simulator, host: str = "127.0.0.1", port: int = 0, *, anywhere: bool = False) -> Server:
    """Serve the simulated provider on a socket, until the result's `aclose`.

    Also answers `GET /sim/stats` with the simulator's own counts.

    Args:
        simulator: The provider.
        host: Address to listen on.
        port: Port to listen on. 0: any free one, told by the result's `port`.
        anywhere: Whether `host` may be other than loopback: the simulator asks nobody for a password.

    Raises:
        ValueError: `host` is not loopback, and `anywhere` is False.
    """
    if not anywhere and not _is_loopback(host):
        raise ValueError(f"host must be a loopback address such as 127.0.0.1, not {host!r}; or say anywhere=True")
    handler = _Handler(simulator)
    server = web.Server(handler, keepalive_timeout=KEEP_ALIVE, handler_cancellation=True)
    runner = web.ServerRunner(server, shutdown_timeout=GRACE)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError:
        await runner.cleanup()
        raise
    return Server(simulator, runner, host, runner.addresses[0][1])


async def run_server(
    simulator: Simulator,
    host: str = "127.0.0.1",
    port: int = 0,
    *,
    announce: Callable[[str], None],
    anywhere: bool = False,
) -> None:
    """Serve the simulated provider until SIGINT or SIGTERM.

    Args:
        simulator: The provider.
        host: Address to listen on, loopback unless `anywhere`.
        port: Port to listen on. 0: any free one.
        announce: Is told the base URLs, one line at a time, once the server listens.
        anywhere: Whether `host` may be other than loopback.
    """
    server = await serve(simulator, host, port, anywhere=anywhere)
    try:
        announce(f"simulated provider, OpenAI dialect:    {server.base_url}/v1")
        announce(f"simulated provider, Anthropic dialect: {server.base_url}")
        await _signalled()
    finally:
        await server.aclose()


async def _signalled() -> None:
    """Wait for SIGINT or SIGTERM."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    caught = []
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):  # Windows, or not the main thread
            loop.add_signal_handler(number, stop.set)
            caught.append(number)
    try:
        await stop.wait()
    finally:
        for number in caught:
            loop.remove_signal_handler(number)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Handler:
    """Carries requests to the simulator and its answers to the socket."""

    def __init__(self, simulator: Simulator) -> None:
        self._world = simulator.world

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        most = LARGEST_BATCH if request.path.endswith(_BATCHES) else LARGEST
        body = await request.clone(client_max_size=most).read()
        try:
            response = await self._world.handle(
                request.method, request.path, request.headers, body, request.query_string
            )
        except Broken as broken:
            _break(request, broken)
            return web.Response()
        if isinstance(response.body, bytes):
            return web.Response(status=response.status, headers=response.headers, body=response.body)
        try:
            send = _send_unlengthed if response.framing == "close" else _send
            return await send(request, response, response.body)
        finally:
            await response.body.aclose()


async def _send(request: web.BaseRequest, response: Response, body: Body) -> web.StreamResponse:
    """Send a body by Content-Length or in chunks; breaking off leaves the one or the other unfulfilled."""
    answer = web.StreamResponse(status=response.status, headers=response.headers)
    await answer.prepare(request)
    try:
        async for piece in body:
            await answer.write(piece)
    except Broken as broken:
        _break(request, broken)
        return answer
    await answer.write_eof()
    return answer


async def _send_unlengthed(request: web.BaseRequest, response: Response, body: Body) -> web.StreamResponse:
    """Send a body whose only end is the connection's, which aiohttp would not do for HTTP/1.1."""
    transport = request.transport
    if transport is not None:
        lines = [f"HTTP/1.1 {response.status} OK", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in response.headers.items()]
        transport.write("\r\n".join([*lines, "", ""]).encode())
        async for piece in body:
            transport.write(piece)
        transport.close()
    return web.Response()  # goes nowhere: the connection is closed


def _break(request: web.BaseRequest, broken: Broken) -> None:
    """End the connection now: with RST, or with FIN after what has been written."""
    transport = request.transport
    if transport is None:
        return
    if broken.how == "cut":
        transport.close()
        return
    found = transport.get_extra_info("socket")
    if found is not None:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0)
    transport.abort()
