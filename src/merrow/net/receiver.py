"""Receiving a large body from the socket straight into its place."""

import asyncio

from merrow.net.service import ServedConnection


class DirectReceiver(asyncio.BufferedProtocol):
    """Stands in for a connection while a large body comes in.

    A connection makes it its transport's protocol, and takes the transport back when `buffer_updated` has called
    `advance_direct` for the last byte. The event loop then writes into `direct_view` what would otherwise be copied
    twice. All other events go on to the connection.
    """

    def __init__(self, connection: "DirectConnection") -> None:
        self._connection = connection

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._connection.direct_view()

    def buffer_updated(self, nbytes: int) -> None:
        self._connection.advance_direct(nbytes)

    def eof_received(self) -> bool | None:
        return self._connection.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()


class DirectConnection(ServedConnection):
    """A connection that a `DirectReceiver` may stand in for."""

    __slots__ = ()

    def direct_view(self) -> memoryview:
        """Where the next bytes belong; not empty."""
        raise NotImplementedError

    def advance_direct(self, byte_size: int) -> None:
        """So many bytes have arrived in `direct_view`."""
        raise NotImplementedError
