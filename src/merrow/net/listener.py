"""Listening sockets, and the life of the connections that they accept.

A listener serves one address: a host and port, or a Unix socket. All its connections share one timer. Shutting down
goes in order: no new connections (`stop_accepting`); idle ones are closed, the others when what is in flight has been
answered; what is left at the deadline is cut off.
"""

import asyncio
import errno
import os
import socket
import ssl
import stat
import time

from merrow.core.clock import Clock
from merrow.core.tensor import Buffer
from merrow.net.connection import Connection
from merrow.net.exchange import Exchange, GrpcApplication, GrpcCall, GrpcStream, HttpApplication
from merrow.net.service import Service
from merrow.net.status import error_body
from merrow.settings import ConnectionLimits

_BACKLOG = 1024
_ACCEPTING_PASSES = 4
_MAX_SWEEP_INTERVAL_SECONDS = 1.0
_TEXT_HEADERS = ((b"Content-Type", b"text/plain"),)


class Listener:
    """Serves applications at one address.

    Made closed; `await start()` opens it, `await shutdown(...)` closes it. Use as `async with` does both, with no time
    for requests in flight.
    """

    def __init__(
        self,
        http_application: HttpApplication | None,
        grpc_application: GrpcApplication | None,
        limits: ConnectionLimits,
        *,
        address: str = "127.0.0.1",
        port: int = 0,
        path: str | None = None,
        reuse_port: bool = False,
        ssl_context: ssl.SSLContext | None = None,
        clock: Clock = time.monotonic_ns,
    ) -> None:
        """
        Args:
            http_application: None answers every HTTP request with 404.
            grpc_application: None answers every call with UNIMPLEMENTED.
            port: 0 takes a free one; see the attribute `port` after `start`.
            path: of a Unix socket, instead of address and port.
            ssl_context: for TLS; with ALPN "h2" in it for HTTP/2.
        """
        self.address = address
        self.port = port
        self.path = path
        self._http_application = http_application or _NoHttp()
        self._grpc_application = grpc_application or _NoGrpc()
        self._limits = limits
        self._reuse_port = reuse_port
        self._ssl_context = ssl_context
        self._clock = clock
        self._service: Service | None = None
        self._server: asyncio.Server | None = None
        self._sweep_handle: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Open the socket and accept connections.

        Raises:
            OSError: the address is taken (in Triton's words) or cannot be bound.
        """
        assert self._service is None, "a listener is started once"
        loop = asyncio.get_running_loop()
        service = Service(self._http_application, self._grpc_application, self._limits, self._clock, loop)

        def make_connection() -> Connection:
            return Connection(service)

        try:
            if self.path is not None:
                _remove_stale_socket(self.path)
                self._server = await loop.create_unix_server(
                    make_connection, self.path, ssl=self._ssl_context, backlog=_BACKLOG
                )
            else:
                self._server = await loop.create_server(
                    make_connection,
                    self.address,
                    self.port,
                    ssl=self._ssl_context,
                    backlog=_BACKLOG,
                    reuse_port=self._reuse_port or None,
                )
                self.port = self._server.sockets[0].getsockname()[1]
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            where = self.path if self.path is not None else f"{self.address}:{self.port}"
            raise OSError(f"Socket '{where}' already in use ") from error
        self._service = service
        self._sweep_handle = loop.call_later(self._sweep_interval_seconds(), self._sweep)

    def _sweep_interval_seconds(self) -> float:
        shortest_ns = min(self._limits.idle_timeout_ns, self._limits.receive_timeout_ns)
        return min(_MAX_SWEEP_INTERVAL_SECONDS, shortest_ns / 4 / 10**9)

    def _sweep(self) -> None:
        assert self._service is not None
        self._sweep_handle = self._service.loop.call_later(self._sweep_interval_seconds(), self._sweep)
        self._service.sweep()

    @property
    def connection_count(self) -> int:
        return 0 if self._service is None else len(self._service.connections)

    def stop_accepting(self) -> None:
        """Close the listening socket. Open connections go on as before."""
        if self._server is not None:
            self._server.close()
            self._server = None
            if self.path is not None and os.path.exists(self.path):
                os.unlink(self.path)

    async def shutdown(self, deadline_ns: int) -> None:
        """Close everything.

        Args:
            deadline_ns: until when, by the listener's clock, requests in flight may be answered.
        """
        self.stop_accepting()
        service = self._service
        if service is None:
            return
        service.is_draining = True
        # Connections that are being accepted at this moment show up within a few passes of the loop.
        for _ in range(_ACCEPTING_PASSES):
            await asyncio.sleep(0)
        for connection in list(service.connections):
            connection.begin_drain()
        # Closed connections report their end on the next pass of the loop, so that there is always a moment to wait.
        seconds = max((deadline_ns - self._clock()) / 10**9, 0.001)
        try:
            await asyncio.wait_for(service.wait_for_no_connections(), seconds)
        except asyncio.TimeoutError:
            for connection in list(service.connections):
                connection.transport.abort()
            await service.wait_for_no_connections()
        if self._sweep_handle is not None:
            self._sweep_handle.cancel()
            self._sweep_handle = None

    async def __aenter__(self) -> "Listener":
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.shutdown(self._clock())


def _remove_stale_socket(path: str) -> None:
    """Remove the file that a server which did not end well has left at `path`.

    Raises:
        OSError: a server still listens there.
    """
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(1)
        try:
            client.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise OSError(errno.EADDRINUSE, "in use")


class _NoHttp:
    """The application of a listener without one."""

    def on_exchange(self, exchange: Exchange) -> None:
        exchange.respond(404, _TEXT_HEADERS, (error_body("Not Found"),))


class _NoGrpc:
    """The application of a listener without one: it has no method."""

    def is_streaming(self, path: bytes) -> bool | None:
        return None

    def on_unary(self, call: GrpcCall, message: Buffer) -> None:
        raise AssertionError("there is no method to be called")

    def on_stream(self, call: GrpcCall) -> GrpcStream:
        raise AssertionError("there is no method to be called")
