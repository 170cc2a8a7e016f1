"""The first bytes of a connection: which protocol it speaks.

An HTTP/2 connection, on any listener, begins with a fixed preface (with prior knowledge, and over TLS after ALPN
alike); anything else is HTTP/1.1. As soon as the bytes differ from the preface, or complete it, the transport is given
to the connection class of that protocol, which gets the bytes first.
"""

import asyncio

from merrow.net.http1 import Http1Connection
from merrow.net.http2 import Http2Connection
from merrow.net.service import ServedConnection, Service, as_transport
from merrow.wire.http2.frames import PREFACE


class Connection(ServedConnection):
    """A connection that has not yet shown its protocol."""

    __slots__ = ("_opened_ns", "_received")

    def __init__(self, service: Service) -> None:
        super().__init__(service)
        self._received = b""
        self._opened_ns = service.now_ns

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.attach(as_transport(transport))
        limits = self.service.limits
        if self.service.is_draining or len(self.service.connections) > limits.max_connections:
            self.end(lingers=False)
            return
        self.transport.set_write_buffer_limits(high=limits.max_write_buffer_byte_size)

    def data_received(self, data: bytes) -> None:
        if self.is_ended:
            return
        data = self._received + data
        if data[: len(PREFACE)] == PREFACE:
            self._become(Http2Connection(self.service), data)
        elif PREFACE.startswith(data):
            self._received = data
        else:
            self._become(Http1Connection(self.service), data)

    def _become(self, connection: ServedConnection, data: bytes) -> None:
        self._received = b""
        self.service.connections.discard(self)
        self.transport.set_protocol(connection)
        connection.attach(self.transport)
        connection.data_received(data)

    def sweep(self, now_ns: int) -> None:
        super().sweep(now_ns)
        limits = self.service.limits
        timeout_ns = limits.receive_timeout_ns if self._received else limits.idle_timeout_ns
        if now_ns - self._opened_ns > timeout_ns:
            self.end(lingers=False)

    def begin_drain(self) -> None:
        self.end(lingers=False)

    def flush(self) -> None:
        """Nothing is written before the protocol is known."""
