"""What a front door sees of the network: one HTTP exchange, or one gRPC call, whatever carried it.

`net` parses bytes into these and writes their answers; it knows no route and no model. A front door implements
`HttpApplication` and `GrpcApplication`. Everything here is called on the loop's thread, and no call blocks.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol

from merrow.core.tensor import Buffer
from merrow.net.grpc_compression import CompressionLevel
from merrow.observe.trace import Trace

Header = tuple[bytes, bytes]


class Exchange(ABC):
    """One HTTP request (HTTP/1.1 or HTTP/2) and the means to answer it, exactly once.

    `target` is the request target as sent, undecoded, query included. `headers` are in the order and the case sent.
    `body` is complete when the application is called, and may be kept.
    `on_disconnect`, when set, is called at most once, if the client leaves before the answer was written.
    """

    __slots__ = ("body", "headers", "method", "on_disconnect", "target")

    # That of an exchange whose request is traced; front doors put one on by wrapping it.
    trace: Trace | None = None

    method: bytes
    target: bytes
    headers: list[Header]
    body: Buffer
    on_disconnect: Callable[[], None] | None

    def header(self, name: bytes) -> bytes | None:
        """The value of the first header of this name (given in lower case); None without one."""
        for header_name, value in self.headers:
            if len(header_name) == len(name) and header_name.lower() == name:
                return value
        return None

    @abstractmethod
    def respond(self, status: int, headers: Sequence[Header], parts: Sequence[Buffer]) -> None:
        """Answer whole. `Content-Length` and what the protocol version needs are added. A no-op if the client left.

        `headers` should be a constant tuple where it can be: encodings of it may be cached by identity.
        """

    @abstractmethod
    def start_stream(self, status: int, headers: Sequence[Header]) -> None:
        """Begin a streamed answer (chunked over HTTP/1.1)."""

    @abstractmethod
    def write(self, data: Buffer) -> None:
        """Add to a streamed answer; sent at once."""

    @property
    @abstractmethod
    def is_writable(self) -> bool:
        """False while more of a streamed answer than the write limit waits for a slow client; true once it has left."""

    @abstractmethod
    async def drain(self) -> None:
        """Wait until the client has taken enough of a streamed answer for more to be written."""

    @abstractmethod
    def finish(self) -> None:
        """End a streamed answer."""


class HttpApplication(Protocol):
    """Answers HTTP requests."""

    def on_exchange(self, exchange: Exchange) -> None:
        """A request arrived whole; answer it now or later. Must not raise."""


class GrpcCall(ABC):
    """One gRPC call: its path, its metadata, and the means to answer.

    `path` is `/package.Service/Method`. `metadata` are the request headers other than pseudo-headers, as sent.
    `on_cancel`, when set, is called at most once: the client reset the stream or left, or the deadline
    (`grpc-timeout`) passed, before the call was finished.
    """

    __slots__ = ("metadata", "on_cancel", "on_writable", "path")

    # As in `Exchange`.
    trace: Trace | None = None

    path: bytes
    metadata: Sequence[Header]
    on_cancel: Callable[[], None] | None
    # Set by a stream's application: called when `is_writable` turns true again.
    on_writable: Callable[[], None] | None

    def header(self, name: bytes) -> bytes | None:
        """The first metadata value of this (lower-case) name; None without one."""
        for header_name, value in self.metadata:
            if header_name == name:
                return value
        return None

    @property
    @abstractmethod
    def is_writable(self) -> bool:
        """False while more than the write limit waits for a slow client."""

    @abstractmethod
    def pause_reading(self) -> None:
        """Stream: deliver no more messages (nor the half-close) until `resume_reading`.

        What the client sends meanwhile stays within the stream's flow-control window, which is not opened further.
        """

    @abstractmethod
    def resume_reading(self) -> None:
        """Stream: deliver what was held back, later and not from within this call, and open the window again."""

    @abstractmethod
    def reply(self, parts: Sequence[Buffer]) -> None:
        """Unary success: headers, one message made of `parts`, trailers with status 0, in one write."""

    @abstractmethod
    def send(self, parts: Sequence[Buffer]) -> None:
        """Stream: send one message made of `parts` (headers go first by themselves)."""

    @abstractmethod
    def finish(self, status: int = 0, message: str = "") -> None:
        """End the call with this gRPC status; `message` is percent-encoded as gRPC asks. A no-op once it has ended."""


class GrpcStream(Protocol):
    """The application's side of one streaming call."""

    def on_message(self, message: Buffer) -> None: ...

    def on_half_close(self) -> None:
        """The client will send no more messages."""


class GrpcApplication(Protocol):
    """Answers gRPC calls."""

    def is_streaming(self, path: bytes) -> bool | None:
        """Whether the method streams; None when there is no such method (answered UNIMPLEMENTED by `net`)."""

    def compression_of(self, path: bytes) -> CompressionLevel | None:
        """How the responses of a method are compressed, for clients that read that; None for not at all."""

    def on_unary(self, call: GrpcCall, message: Buffer) -> None:
        """A unary request arrived whole; call `reply` or `finish` now or later. Must not raise."""

    def on_stream(self, call: GrpcCall) -> GrpcStream:
        """A streaming call began. Must not raise."""
