"""A small application behind real listeners and behind a transport in memory, and clients for both."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from merrow.core.tensor import Buffer
from merrow.net.connection import Connection
from merrow.net.exchange import Exchange, GrpcCall
from merrow.net.grpc_compression import CompressionLevel
from merrow.net.listener import Listener
from merrow.net.loop import new_event_loop
from merrow.net.service import Service
from merrow.settings import ConnectionLimits

HEADERS = ((b"Content-Type", b"application/octet-stream"),)
TIMEOUT_SECONDS = 20


class EchoApplication:
    """Answers a request with its body, in the manner that its path asks for.

    HTTP: `/later` on the next pass of the loop; `/hold` when the test says so; `/stream` in pieces; `/drain` in pieces
    of 100 kB, waiting for the client each time; `/describe` with what was asked; `/empty` with 204; `/many` with the
    body a thousand times; anything else at once.
    gRPC, below `/test.Echo/`: `Unary`, `UnaryLater`, `UnaryHold`, `UnaryError`, and `Stream`, `StreamLater`,
    `StreamHold`, `StreamMany` (answers every message with a thousand), `StreamSlow` (reads only when it is told to).
    """

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        # What the application holds, and what it has been told.
        self.held: list[Any] = []
        self.events: list[tuple[object, ...]] = []
        self.request_count = 0
        self.streams: list[EchoStream] = []
        self.tasks: set[asyncio.Task[None]] = set()
        # Of all responses of gRPC.
        self.compression: CompressionLevel | None = None
        self._change: asyncio.Event | None = None

    def tell(self, *event: object) -> None:
        self.events.append(event)
        self._changed()

    def hold(self, held: object) -> None:
        self.held.append(held)
        self._changed()

    def _changed(self) -> None:
        if self._change is not None:
            self._change.set()

    async def wait_for(self, condition: Callable[[], Any]) -> Any:
        """Wait until the application has been told, or holds, what the condition asks for."""
        while not (result := condition()):
            self._change = asyncio.Event()
            await asyncio.wait_for(self._change.wait(), TIMEOUT_SECONDS)
        return result

    # HTTP

    def on_exchange(self, exchange: Exchange) -> None:
        self.request_count += 1
        path = exchange.target.partition(b"?")[0]
        if path == b"/later":
            assert self.loop is not None
            self.loop.call_soon(exchange.respond, 200, HEADERS, (exchange.body,))
        elif path == b"/hold":
            exchange.on_disconnect = lambda: self.tell("disconnect", bytes(exchange.body))
            self.hold(exchange)
        elif path == b"/stream":
            exchange.start_stream(200, HEADERS)
            for position in range(0, len(exchange.body), 3):
                exchange.write(exchange.body[position : position + 3])
            exchange.finish()
        elif path == b"/drain":
            assert self.loop is not None
            task = self.loop.create_task(self._drain(exchange))
            self.tasks.add(task)
            task.add_done_callback(self._end_task)
        elif path == b"/describe":
            described = (exchange.method, exchange.target, sorted(exchange.headers), bytes(exchange.body))
            exchange.respond(200, list(HEADERS), (repr(described).encode(),))
        elif path == b"/empty":
            exchange.respond(204, (), ())
        elif path == b"/many":
            exchange.respond(200, HEADERS, [exchange.body] * 1000)
        else:
            exchange.respond(200, HEADERS, (exchange.body,))

    def _end_task(self, task: "asyncio.Task[None]") -> None:
        self.tasks.discard(task)
        self._changed()

    async def _drain(self, exchange: Exchange) -> None:
        exchange.on_disconnect = lambda: self.tell("disconnect", b"drain")
        exchange.start_stream(200, HEADERS)
        for _ in range(int(bytes(exchange.body) or b"1")):
            exchange.write(bytes(100_000))
            await exchange.drain()
            self.tell("drained")
        exchange.finish()

    # gRPC

    def is_streaming(self, path: bytes) -> bool | None:
        service, _, method = path[1:].partition(b"/")
        if service != b"test.Echo":
            return None
        return True if method.startswith(b"Stream") else False if method.startswith(b"Unary") else None

    def compression_of(self, path: bytes) -> CompressionLevel | None:
        return self.compression

    def on_unary(self, call: GrpcCall, message: Buffer) -> None:
        self.request_count += 1
        method = call.path.rpartition(b"/")[2]
        call.on_cancel = lambda: self.tell("cancel", bytes(message[:20]))
        if method == b"UnaryLater":
            assert self.loop is not None
            self.loop.call_soon(call.reply, (message,))
        elif method == b"UnaryHold":
            self.hold(call)
        elif method == b"UnaryError":
            call.finish(5, bytes(message).decode())
        else:
            call.reply((message[:1], message[1:]) if len(message) else ())

    def on_stream(self, call: GrpcCall) -> "EchoStream":
        stream = EchoStream(self, call)
        self.streams.append(stream)
        self._changed()
        return stream


class EchoStream:
    def __init__(self, application: EchoApplication, call: GrpcCall) -> None:
        self.application = application
        self.call = call
        self.method = call.path.rpartition(b"/")[2]
        self.messages: list[bytes] = []
        call.on_cancel = lambda: application.tell("cancel", self.method)
        call.on_writable = lambda: application.tell("writable")
        if self.method == b"StreamSlow":
            call.pause_reading()

    def on_message(self, message: Buffer) -> None:
        self.messages.append(bytes(message))
        if self.method == b"StreamLater":
            assert self.application.loop is not None
            self.application.loop.call_soon(self.call.send, (message,))
        elif self.method == b"StreamMany":
            for _ in range(1000):
                self.call.send((message,))
                if not self.call.is_writable:
                    self.application.tell("full")
                    break
        elif self.method != b"StreamHold":
            self.call.send((message,))

    def on_half_close(self) -> None:
        self.application.tell("half-close")
        if self.method == b"StreamLater":
            assert self.application.loop is not None
            self.application.loop.call_soon(self.call.finish)
        elif self.method != b"StreamHold":
            self.call.finish()


class ServerThread:
    """A listener with an echo application, on a thread of its own, for clients that block."""

    def __init__(self, limits: ConnectionLimits, loop: asyncio.AbstractEventLoop, **options: Any) -> None:
        self.application = EchoApplication()
        self.application.loop = self.loop = loop
        applications = options.pop("applications", (self.application, self.application))
        self.listener = Listener(*applications, limits, **options)
        self._thread = threading.Thread(target=self._run, name="server", daemon=True)
        self.failures: list[dict[str, Any]] = []

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.set_exception_handler(lambda _, context: self.failures.append(context))
        self.loop.run_forever()
        asyncio.set_event_loop(None)

    def start(self) -> None:
        self._thread.start()
        self.run(self.listener.start())

    def run(self, coroutine: Any) -> Any:
        """Run a coroutine on the server's loop and wait for it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(TIMEOUT_SECONDS)

    def call(self, function: Callable[[], Any]) -> Any:
        """Call a function on the server's loop and wait for its result."""

        async def call() -> Any:
            return function()

        return self.run(call())

    def wait_for(self, condition: Callable[[], Any]) -> Any:
        """Wait until the application has been told, or holds, what the condition asks for."""
        return self.run(self.application.wait_for(condition))

    def pass_until(self, condition: Callable[[], Any]) -> None:
        """Wait for something that nobody tells, pass after pass of the loop."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not self.call(condition):
            assert time.monotonic() < deadline, "it has not happened"

    def stop(self, grace_seconds: float = 0.0) -> None:
        self.run(self.listener.shutdown(time.monotonic_ns() + int(grace_seconds * 10**9)))
        assert self.listener.connection_count == 0
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(TIMEOUT_SECONDS)
        self.loop.close()
        assert self.failures == []

    @property
    def port(self) -> int:
        return self.listener.port

    @contextlib.contextmanager
    def connect(self) -> Iterator[socket.socket]:
        with socket.create_connection(("127.0.0.1", self.port), TIMEOUT_SECONDS) as client:
            yield client


@contextlib.contextmanager
def serving(limits: ConnectionLimits | None = None, has_uvloop: bool = True, **options: Any) -> Iterator[ServerThread]:
    """A running server; everything it holds is closed at the end, and it must not have failed."""
    loop = new_event_loop() if has_uvloop else asyncio.new_event_loop()
    server = ServerThread(limits or ConnectionLimits(), loop, **options)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def read_all(client: socket.socket) -> bytes:
    """Until the server closes."""
    pieces = []
    while piece := client.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


def read_exactly(client: socket.socket, byte_size: int) -> bytes:
    received = b""
    while len(received) < byte_size:
        piece = client.recv(byte_size - len(received))
        assert piece, f"closed after {received!r}"
        received += piece
    return received


def read_until(client: socket.socket, end: bytes) -> bytes:
    received = b""
    while not received.endswith(end):
        piece = client.recv(1)
        assert piece, f"closed after {received!r}"
        received += piece
    return received


class MemoryTransport:
    """A transport whose other side is the test. It fails on what a real one would not forgive."""

    def __init__(self) -> None:
        self.protocol: Any = None
        self.written = bytearray()
        self.write_count = 0
        self.is_closing = False
        self.is_reading = True
        self.has_sent_eof = False
        self.buffered_byte_size = 0

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def set_write_buffer_limits(self, high: int) -> None:
        self.high = high

    def get_write_buffer_size(self) -> int:
        return self.buffered_byte_size

    def write(self, data: Buffer) -> None:
        assert not self.has_sent_eof
        assert not self.is_closing
        assert len(data), "an empty write is a waste"
        self.written += data
        self.write_count += 1

    def writelines(self, parts: list[Buffer]) -> None:
        self.write(b"".join(parts))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        assert not self.has_sent_eof
        self.has_sent_eof = True

    def pause_reading(self) -> None:
        assert self.is_reading
        self.is_reading = False

    def resume_reading(self) -> None:
        self.is_reading = True

    def close(self) -> None:
        self.is_closing = True

    abort = close


class MemoryConnection:
    """A connection of an echo application, fed by the test."""

    def __init__(self, limits: ConnectionLimits | None = None, application: Any = None) -> None:
        self.now_ns = 0
        self.application = application or EchoApplication()
        self.loop = self.application.loop = MemoryLoop()
        self.service = Service(
            self.application, self.application, limits or ConnectionLimits(), lambda: self.now_ns, self.loop
        )
        self.reopen()

    def reopen(self) -> None:
        """Begin another connection of the same listener."""
        self.transport = MemoryTransport()
        self.transport.protocol = Connection(self.service)
        self.transport.protocol.connection_made(self.transport)

    @property
    def protocol(self) -> Any:
        return self.transport.protocol

    def receive(self, data: bytes) -> None:
        """Bytes from the client, as an event loop would deliver them."""
        while data and not self.transport.is_closing:
            assert self.transport.is_reading, "the connection does not read"
            if isinstance(self.protocol, asyncio.BufferedProtocol):
                view = self.protocol.get_buffer(-1)
                assert len(view) > 0
                size = min(len(view), len(data))
                view[:size] = data[:size]
                view.release()
                self.protocol.buffer_updated(size)
                data = data[size:]
            else:
                self.protocol.data_received(data)
                return

    def written(self) -> bytes:
        written = bytes(self.transport.written)
        self.transport.written.clear()
        return written

    def lose(self) -> None:
        self.protocol.connection_lost(None)

    def sweep(self, now_ns: int) -> None:
        self.now_ns = now_ns
        self.service.sweep()


class MemoryLoop:
    """The part of an event loop that connections use; `run` does what is due."""

    def __init__(self) -> None:
        self.due: list[tuple[Any, tuple[Any, ...]]] = []

    def call_soon(self, function: Any, *arguments: Any) -> None:
        self.due.append((function, arguments))

    def run(self) -> None:
        while self.due:
            due, self.due = self.due, []
            for function, arguments in due:
                function(*arguments)
