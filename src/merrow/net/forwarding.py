"""Exchanges and calls that stand in for others, for whoever wants to see an answer leave.

A subclass overrides what it watches. `headers` and `metadata` are the very objects of the original, since applications
remember them by identity.
"""

from collections.abc import Callable, Sequence

from merrow.core.tensor import Buffer
from merrow.net.exchange import Exchange, GrpcCall, Header


class ForwardingExchange(Exchange):
    """Passes everything on to another exchange."""

    __slots__ = ("_inner",)

    def __init__(self, inner: Exchange) -> None:
        self._inner = inner
        self.method = inner.method
        self.target = inner.target
        self.headers = inner.headers
        self.body = inner.body

    @property
    def on_disconnect(self) -> Callable[[], None] | None:
        return self._inner.on_disconnect

    @on_disconnect.setter
    def on_disconnect(self, callback: Callable[[], None] | None) -> None:
        self._inner.on_disconnect = callback

    def header(self, name: bytes) -> bytes | None:
        return self._inner.header(name)

    def respond(self, status: int, headers: Sequence[Header], parts: Sequence[Buffer]) -> None:
        self._inner.respond(status, headers, parts)

    def start_stream(self, status: int, headers: Sequence[Header]) -> None:
        self._inner.start_stream(status, headers)

    def write(self, data: Buffer) -> None:
        self._inner.write(data)

    @property
    def is_writable(self) -> bool:
        return self._inner.is_writable

    async def drain(self) -> None:
        await self._inner.drain()

    def finish(self) -> None:
        self._inner.finish()


class ForwardingCall(GrpcCall):
    """Passes everything on to another call."""

    __slots__ = ("_inner",)

    def __init__(self, inner: GrpcCall) -> None:
        self._inner = inner
        self.path = inner.path
        self.metadata = inner.metadata

    @property
    def on_cancel(self) -> Callable[[], None] | None:
        return self._inner.on_cancel

    @on_cancel.setter
    def on_cancel(self, callback: Callable[[], None] | None) -> None:
        self._inner.on_cancel = callback

    @property
    def on_writable(self) -> Callable[[], None] | None:
        return self._inner.on_writable

    @on_writable.setter
    def on_writable(self, callback: Callable[[], None] | None) -> None:
        self._inner.on_writable = callback

    def header(self, name: bytes) -> bytes | None:
        return self._inner.header(name)

    @property
    def is_writable(self) -> bool:
        return self._inner.is_writable

    def pause_reading(self) -> None:
        self._inner.pause_reading()

    def resume_reading(self) -> None:
        self._inner.resume_reading()

    def reply(self, parts: Sequence[Buffer]) -> None:
        self._inner.reply(parts)

    def send(self, parts: Sequence[Buffer]) -> None:
        self._inner.send(parts)

    def finish(self, status: int = 0, message: str = "") -> None:
        self._inner.finish(status, message)
