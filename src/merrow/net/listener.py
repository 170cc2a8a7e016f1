"""Listening sockets, and the life of the connections that they accept.

A listener serves one address: a host and port, or a Unix socket. All its connections share one timer. Shutting down
goes in order: no new connections (`stop_accepting`); idle ones are closed, the others when what is in flight has been
answered; what is left at the deadline is cut off.
"""

import asyncio
import errno
import os
import socket
import stat
import time
from typing import Any

from merrow.core.clock import Clock
from merrow.core.tensor import Buffer
from merrow.net.body import ReceiveBudget
from merrow.net.connection import Connection
from merrow.net.exchange import Exchange, GrpcApplication, GrpcCall, GrpcStream, HttpApplication
from merrow.net.grpc_compression import CompressionLevel
from merrow.net.loop import copies_output
from merrow.net.service import Service
from merrow.net.status import error_body
from merrow.net.tls import TlsAcceptor, TlsContexts, can_receive_directly
from merrow.settings import ConnectionLimits, KeepaliveSettings, TlsSettings

_BACKLOG = 1024
_ACCEPTING_PASSES = 4
_MAX_SWEEP_INTERVAL_SECONDS = 1.0
_MIN_SWEEP_INTERVAL_SECONDS = 0.02
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
        tls: TlsSettings | None = None,
        keepalive: KeepaliveSettings | None = None,
        receive_budget: ReceiveBudget | None = None,
        clock: Clock = time.monotonic_ns,
    ) -> None:
        """
        Args:
            http_application: None answers every HTTP request with 404.
            grpc_application: None answers every call with UNIMPLEMENTED.
            port: 0 takes a free one; see the attribute `port` after `start`.
            path: of a Unix socket, instead of address and port.
            tls: the files for TLS; None for plain text.
            receive_budget: that of all listeners, if there are several.

        Raises:
            TlsError: the files cannot be used.
        """
        self.address = address
        self.port = port
        self.path = path
        self._http_application = http_application or _NoHttp()
        self._grpc_application = grpc_application or _NoGrpc()
        self._limits = limits
        self._reuse_port = reuse_port
        self._tls = None if tls is None else TlsContexts(tls, clock)
        self._keepalive = keepalive or KeepaliveSettings()
        self._receive_budget = receive_budget
        self._clock = clock
        self._service: Service | None = None
        self._servers: list[asyncio.Server] = []
        self._acceptor: TlsAcceptor | None = None
        self._is_listening = False
        self._sweep_handle: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Open the socket and accept connections.

        Raises:
            OSError: the address is taken (in Triton's words) or cannot be bound.
        """
        assert self._service is None, "a listener is started once"
        loop = asyncio.get_running_loop()
        service = Service(
            self._http_application,
            self._grpc_application,
            self._limits,
            self._clock,
            loop,
            self._keepalive,
            self._receive_budget,
        )
        tls = self._tls
        if tls is not None:
            service.receives_directly = can_receive_directly(loop)
        service.paces_output = tls is not None or copies_output(loop)

        def make_connection() -> Connection:
            return Connection(service)

        try:
            sockets = await self._bind(loop)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            where = self.path if self.path is not None else f"{self.address}:{self.port}"
            raise OSError(f"Socket '{where}' already in use ") from error
        self._service = service
        self._is_listening = True
        if tls is not None:
            for listening in sockets:
                listening.listen(_BACKLOG)
            self._acceptor = TlsAcceptor(service, tls, make_connection, sockets)
            self._acceptor.start()
        for listening in sockets if tls is None else ():
            if self.path is None:
                server = await loop.create_server(make_connection, sock=listening, backlog=_BACKLOG)
            else:
                server = await loop.create_unix_server(make_connection, sock=listening, backlog=_BACKLOG)
            self._servers.append(server)
        self._sweep_handle = loop.call_later(self._sweep_interval_seconds(), self._sweep)

    async def _bind(self, loop: asyncio.AbstractEventLoop) -> list[socket.socket]:
        """The sockets to listen at: several where a name stands for several addresses, all with the same port.

        Raises:
            OSError: an address cannot be had.
        """
        if self.path is not None:
            _remove_stale_socket(self.path)
            return [_bind_socket(socket.AF_UNIX, self.path)]
        host = self.address.strip("[]")
        try:
            infos = socket.getaddrinfo(host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        except socket.gaierror:
            # A name, which others may have to be asked for.
            infos = await loop.getaddrinfo(host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        sockets: list[socket.socket] = []
        try:
            for family, _, _, _, address in dict.fromkeys(infos):
                bound = _bind_socket(family, (address[0], self.port, *address[2:]), self._reuse_port)
                sockets.append(bound)
                self.port = bound.getsockname()[1]
        except OSError:
            for bound in sockets:
                bound.close()
            raise
        return sockets

    def _sweep_interval_seconds(self) -> float:
        keepalive = self._keepalive
        shortest_ms = min(
            keepalive.time_ms,
            keepalive.timeout_ms,
            *(
                age_ms
                for age_ms in (keepalive.max_connection_age_ms, keepalive.max_connection_age_grace_ms)
                if age_ms is not None
            ),
        )
        shortest_ns = min(self._limits.idle_timeout_ns, self._limits.receive_timeout_ns, shortest_ms * 10**6)
        return max(_MIN_SWEEP_INTERVAL_SECONDS, min(_MAX_SWEEP_INTERVAL_SECONDS, shortest_ns / 4 / 10**9))

    def _sweep(self) -> None:
        assert self._service is not None
        self._sweep_handle = self._service.loop.call_later(self._sweep_interval_seconds(), self._sweep)
        self._service.sweep()

    @property
    def connection_count(self) -> int:
        handshake_count = 0 if self._acceptor is None else self._acceptor.handshake_count
        return 0 if self._service is None else len(self._service.connections) + handshake_count

    def stop_accepting(self) -> None:
        """Close the listening socket. Open connections go on as before."""
        if self._acceptor is not None:
            self._acceptor.stop_accepting()
        servers, self._servers = self._servers, []
        for server in servers:
            server.close()
        if self._is_listening and self.path is not None and os.path.exists(self.path):
            os.unlink(self.path)
        self._is_listening = False

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
        if self._acceptor is not None:
            await self._acceptor.close()
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


def _bind_socket(family: int, address: Any, reuse_port: bool = False) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setblocking(False)
        if os.name == "posix" and family != socket.AF_UNIX:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            if not hasattr(socket, "SO_REUSEPORT"):
                raise OSError(errno.EOPNOTSUPP, "ports cannot be shared on this system")
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            # `::` is every address, of both versions of the protocol.
            is_v6_only = address[0] != "::" or not socket.has_dualstack_ipv6()
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, is_v6_only)
        bound.bind(address)
    except BaseException:
        bound.close()
        raise
    return bound


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

    def compression_of(self, path: bytes) -> CompressionLevel | None:
        return None

    def on_unary(self, call: GrpcCall, message: Buffer) -> None:
        raise AssertionError("there is no method to be called")

    def on_stream(self, call: GrpcCall) -> GrpcStream:
        raise AssertionError("there is no method to be called")
