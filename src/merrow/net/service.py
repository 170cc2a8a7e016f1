"""What the connections of one listener share: the applications, the limits, and one timer for all of them.

A connection is a `ServedConnection` from its first byte to its last, though the object changes when the protocol is
known. The listener keeps them in `Service.connections`, sweeps them for what has stopped moving, and tells them to
drain. Bytes that a connection wants to send outside of its own `data_received` are written once per pass of the loop.
"""

import asyncio
from abc import abstractmethod
from typing import cast

from merrow.core.clock import Clock
from merrow.net.body import ReceiveBudget
from merrow.net.exchange import GrpcApplication, Header, HttpApplication
from merrow.net.http1_head import HeadCache
from merrow.settings import ConnectionLimits, KeepaliveSettings

LINGER_NS = 2 * 10**9


ResponseCache = dict[tuple[int, int], tuple[tuple[Header, ...], bytes]]


class ServedConnection(asyncio.Protocol):
    """One connection of a listener, as the listener sees it.

    `is_ended`: nothing more is sent, and what is received is thrown away. A subclass that overrides a method which
    is implemented here calls it too.
    """

    __slots__ = (
        "_linger_until_ns",
        "_stalled_byte_size",
        "_stalled_since_ns",
        "is_ended",
        "is_write_paused",
        "service",
        "transport",
    )

    transport: asyncio.Transport

    def __init__(self, service: "Service") -> None:
        self.service = service
        self.is_ended = False
        self.is_write_paused = False
        # What waited for the socket when that was last seen to change.
        self._stalled_byte_size = 0
        self._stalled_since_ns = 0
        self._linger_until_ns: int | None = None

    def attach(self, transport: asyncio.Transport) -> None:
        """Take over a transport, new or from the connection that has told the protocol."""
        self.transport = transport
        self.service.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_ended = True
        # A transport for TLS wants to hear it, also where the client closed.
        self.transport.close()
        self.service.remove(self)

    def pause_writing(self) -> None:
        self.is_write_paused = True

    def resume_writing(self) -> None:
        self.is_write_paused = False

    def end(self, lingers: bool) -> None:
        """Close, when what has been written is sent.

        Args:
            lingers: the client may still be sending. Closing with bytes unread would make the system throw away what
                the client has not read, so only the sending side is closed, and the rest when the client does, or soon.
        """
        if self.is_ended:
            return
        self.is_ended = True
        if not lingers or not self.transport.can_write_eof():
            self.transport.close()
            return
        try:
            self.transport.write_eof()
        except OSError:
            # The client has gone, and the loop does not know yet.
            self.transport.abort()
            return
        self.transport.resume_reading()
        self._linger_until_ns = self.service.clock() + LINGER_NS

    def sweep(self, now_ns: int) -> None:
        """Called about once a second: give up on a client that takes no bytes, or does not leave."""
        byte_size = self.transport.get_write_buffer_size()
        if byte_size == 0 or byte_size != self._stalled_byte_size:
            self._stalled_byte_size = byte_size
            self._stalled_since_ns = now_ns
        elif now_ns - self._stalled_since_ns > self.service.limits.receive_timeout_ns:
            self.transport.abort()
        if self._linger_until_ns is not None and now_ns > self._linger_until_ns:
            self.transport.abort()

    @abstractmethod
    def begin_drain(self) -> None:
        """Close as soon as what is in flight has been answered; at once if nothing is."""

    @abstractmethod
    def flush(self) -> None:
        """Write what waits; called after `Service.flush_soon`."""


class Service:
    """One listener's shared state; used on the loop's thread only."""

    __slots__ = (
        "_drained",
        "_to_flush",
        "clock",
        "connections",
        "grpc_application",
        "head_cache",
        "http_application",
        "is_draining",
        "keepalive",
        "limits",
        "loop",
        "now_ns",
        "paces_output",
        "receive_budget",
        "receives_directly",
        "response_blocks",
        "response_heads",
    )

    def __init__(
        self,
        http_application: HttpApplication,
        grpc_application: GrpcApplication,
        limits: ConnectionLimits,
        clock: Clock,
        loop: asyncio.AbstractEventLoop,
        keepalive: KeepaliveSettings | None = None,
        receive_budget: ReceiveBudget | None = None,
    ) -> None:
        self.http_application = http_application
        self.grpc_application = grpc_application
        self.limits = limits
        self.clock = clock
        self.loop = loop
        # The time of the last sweep: good enough for what is measured in seconds, and cheaper than the clock.
        self.now_ns = clock()
        self.connections: set[ServedConnection] = set()
        self.is_draining = False
        self.keepalive = keepalive or KeepaliveSettings()
        self.receive_budget = receive_budget or ReceiveBudget(limits.max_receiving_byte_size)
        # Whether the transports can be written to in one go (they do not copy what they are given), and a body be
        # received into its place; the listener knows.
        self.paces_output = False
        self.receives_directly = True
        self.head_cache = HeadCache(limits.max_header_count, limits.max_body_byte_size)
        # Encoded response heads of HTTP/1.1 and HTTP/2, by status and the identity of the headers, which the entry
        # keeps alive.
        self.response_heads: ResponseCache = {}
        self.response_blocks: ResponseCache = {}
        self._to_flush: list[ServedConnection] = []
        self._drained: asyncio.Event | None = None

    def remove(self, connection: ServedConnection) -> None:
        """A connection is gone."""
        self.connections.discard(connection)
        if not self.connections and self._drained is not None:
            self._drained.set()

    async def wait_for_no_connections(self) -> None:
        if self.connections:
            self._drained = asyncio.Event()
            await self._drained.wait()

    def flush_soon(self, connection: ServedConnection) -> None:
        """Call `connection.flush()` when the callbacks that are due now have run. Ask once before it is called."""
        if not self._to_flush:
            self.loop.call_soon(self._flush)
        self._to_flush.append(connection)

    def _flush(self) -> None:
        connections = self._to_flush
        self._to_flush = []
        for connection in connections:
            connection.flush()

    def sweep(self) -> None:
        """Look after every connection; see `ServedConnection.sweep`."""
        self.now_ns = self.clock()
        for connection in list(self.connections):
            connection.sweep(self.now_ns)


def as_transport(transport: asyncio.BaseTransport) -> asyncio.Transport:
    """The type that a stream protocol's transport has."""
    # uvloop's transports are no subclass of asyncio's, so this cannot be an isinstance.
    return cast(asyncio.Transport, transport)
