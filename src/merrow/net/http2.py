"""HTTP/2 on one connection: drives `wire.http2` with a socket, and serves its requests.

A request with gRPC's content type is a call (`net.grpc`), any other an exchange like those of HTTP/1.1. How the
requests of one head are served is decided once and kept with the head, as a plan.

What is sent while received bytes are handled is written once, at their end; what is sent otherwise, once per pass of
the event loop. When the socket is full, answers wait in `wire.http2`, each stream in its own queue.
"""

import asyncio
import random
from collections.abc import Sequence
from typing import Final

from merrow.core.tensor import Buffer
from merrow.net.body import BodyBuffer, BudgetShare, no_memory_text
from merrow.net.exchange import Exchange, Header
from merrow.net.grpc import is_grpc, plan_call
from merrow.net.grpc_call import Http2Link, StreamingCall, UnaryCall
from merrow.net.receiver import DirectConnection, DirectReceiver
from merrow.net.service import Service
from merrow.net.status import JSON_HEADERS, error_body, has_no_body
from merrow.wire.http2.connection import ServerConnection
from merrow.wire.http2.frames import FRAME_HEADER_BYTE_SIZE, ErrorCode
from merrow.wire.http2.header_block import encode_fields, encode_status
from merrow.wire.http2.keepalive import Keepalive
from merrow.wire.http2.stream import RequestHead, RequestPlan, Stream

# Up to so much DATA is joined with its frames' headers and written at once; more is gathered.
_JOIN_BYTE_SIZE = 32 * 1024
# A frame of which so much is still to come is received into its place.
_DIRECT_BYTE_SIZE = 64 * 1024
# More than so many write limits unsent means that a client asks and does not read.
_MAX_UNSENT_LIMITS = 4
_MAX_CACHED_BLOCKS = 256
# A client that does not acknowledge the end of the connection is believed to have heard of it after this time.
_SHUTDOWN_PATIENCE_NS = 10**9
_AGE_JITTER = 0.1
_CONTINUE_BLOCK: Final = encode_status(100)
_CONNECTION_HEADERS: Final = frozenset((b"connection", b"keep-alive", b"transfer-encoding", b"upgrade"))


class Http2Connection(DirectConnection):
    """One connection; see the module."""

    __slots__ = (
        "_active_ns",
        "_age_limit_ns",
        "_frame_header",
        "_is_view_direct",
        "_is_write_asked",
        "_payload",
        "_shutdown_ns",
        "http2",
        "is_receiving",
        "sender",
    )

    def __init__(self, service: Service) -> None:
        super().__init__(service)
        self.http2 = ServerConnection(self, service.limits, service.now_ns)
        self.sender = self.http2.sender
        self._payload = self.http2.payload
        self.is_receiving = False
        self._is_write_asked = False
        # While a `DirectReceiver` stands in: what the event loop was given last, a body's place or this.
        self._frame_header = bytearray(FRAME_HEADER_BYTE_SIZE)
        self._is_view_direct = False
        # When there last was a request; when the client was told that the connection will end.
        self._active_ns = service.now_ns
        self._shutdown_ns: int | None = None
        # When the connection is too old for new requests, and, from then on, too old for any.
        self._age_limit_ns = _age_limit_ns(service)

    # Receiving

    def data_received(self, data: bytes) -> None:
        self.is_receiving = True
        self.http2.receive(data, self.service.now_ns)
        self.is_receiving = False
        self.flush()
        if (
            self._payload.is_open
            and self.service.receives_directly
            and self._payload.direct_view(_DIRECT_BYTE_SIZE) is not None
        ):
            self.transport.set_protocol(DirectReceiver(self))

    def direct_view(self) -> memoryview:
        view = self._payload.direct_view(1)
        self._is_view_direct = view is not None
        # Between two frames, the next one's header alone: its payload may have a place.
        return memoryview(self._frame_header) if view is None else view

    def advance_direct(self, byte_size: int) -> None:
        http2, payload = self.http2, self._payload
        stream = payload.stream
        self.is_receiving = True
        if self._is_view_direct:
            http2.advance_direct(byte_size, self.service.now_ns)
        else:
            http2.receive(bytes(self._frame_header[:byte_size]), self.service.now_ns)
        self.is_receiving = False
        self.flush()
        if payload.is_open:
            is_direct = payload.direct_view(1 if self._is_view_direct else _DIRECT_BYTE_SIZE) is not None
        else:
            # The message may go on in the next frame.
            is_direct = stream is not None and not stream.is_closed and stream.receiver.body_view() is not None
        if not is_direct or not (payload.is_open or http2.is_between_frames):
            self.transport.set_protocol(self)

    def plan_request(self, head: RequestHead) -> RequestPlan:
        if not is_grpc(head):
            return ExchangePlan(self, head)
        if self.http2.keepalive is None:
            self.http2.keepalive = Keepalive(self.service.keepalive)
        return plan_call(self, head)

    # Sending

    def write_soon(self) -> None:
        if not self._is_write_asked:
            self._is_write_asked = True
            self.service.flush_soon(self)

    def flush(self) -> None:
        """Write what there is to send, and what follows as long as the socket takes it."""
        self._is_write_asked = False
        sender = self.sender
        while sender.output and not self.is_ended:
            if sender.output_byte_size <= _JOIN_BYTE_SIZE:
                self.transport.write(b"".join(sender.take_output()))
            else:
                self.transport.writelines(sender.take_output())
            if sender.blocked:
                sender.pump()
        if self.is_write_paused:
            limit = self.service.limits.max_write_buffer_byte_size * _MAX_UNSENT_LIMITS
            if self.transport.get_write_buffer_size() > limit:
                self.transport.abort()
        if self.http2.is_ending:
            self._end_if_over()

    def _end_if_over(self) -> None:
        """Close when the connection has broken, or has drained."""
        http2 = self.http2
        if http2.is_closed or not http2.streams:
            http2.abandon()
            # A server that ends waits for nobody; there is mostly nothing that its last words could be lost by.
            self.end(lingers=not self.service.is_draining)

    # Events

    def attach(self, transport: asyncio.Transport) -> None:
        super().attach(transport)
        self.flush()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.sender.hold()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.sender.release()
        if self.sender.output:
            self.write_soon()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.http2.abandon()

    def sweep(self, now_ns: int) -> None:
        super().sweep(now_ns)
        if self.is_ended:
            return
        http2 = self.http2
        timeout_ns = self.service.limits.receive_timeout_ns
        if http2.streams:
            self._active_ns = now_ns
        for stream in list(http2.streams.values()):
            receiver = stream.receiver
            if stream.is_remote_closed:
                continue
            if stream.is_receive_paused:
                # It is we who do not let the client go on.
                stream.received_ns = now_ns
            elif (
                now_ns - stream.received_ns > timeout_ns
                and isinstance(receiver, UnaryCall | StreamingCall | Http2Exchange)
                and receiver.is_receiving_message
            ):
                receiver.on_stalled()
        if http2.is_in_frame and now_ns - http2.last_received_ns > timeout_ns:
            http2.close(ErrorCode.PROTOCOL_ERROR, "timed out inside a frame")
        elif now_ns - max(self._active_ns, http2.last_received_ns) > self.service.limits.idle_timeout_ns:
            http2.close(ErrorCode.NO_ERROR, "idle")
        elif self._shutdown_ns is not None and now_ns - self._shutdown_ns > _SHUTDOWN_PATIENCE_NS:
            http2.finish_shutdown()
        if not http2.check_keepalive(now_ns):
            # Gone without a word: nobody is there to be told.
            http2.abandon()
            self.transport.abort()
        elif self._age_limit_ns is not None and now_ns > self._age_limit_ns:
            self._end_for_age(now_ns)
        self.flush()

    def _end_for_age(self, now_ns: int) -> None:
        """Take no more requests; the second time, end those that are left."""
        grace_ms = self.service.keepalive.max_connection_age_grace_ms
        if self._shutdown_ns is None:
            self._shutdown_ns = now_ns
            self._age_limit_ns = None if grace_ms is None else now_ns + grace_ms * 10**6
            self.http2.begin_shutdown()
        else:
            self.http2.close(ErrorCode.NO_ERROR, "max_age")

    def begin_drain(self) -> None:
        if self.http2.streams:
            self._shutdown_ns = self.service.clock()
            self.http2.begin_shutdown()
        else:
            self.http2.close(ErrorCode.NO_ERROR)
        self.flush()


def _age_limit_ns(service: Service) -> int | None:
    age_ms = service.keepalive.max_connection_age_ms
    if age_ms is None:
        return None
    # Not all connections of a client that came at the same time at the same time, as gRPC has it.
    return service.now_ns + int(age_ms * 10**6 * random.uniform(1 - _AGE_JITTER, 1 + _AGE_JITTER))


class ExchangePlan:
    """Hands requests that are no gRPC calls to the HTTP application."""

    __slots__ = ("content_length", "expects_continue", "headers", "is_too_large", "link", "method", "target")

    def __init__(self, link: Http2Link, head: RequestHead) -> None:
        self.link = link
        self.method = head.method
        self.target = head.path
        self.headers: list[Header] = list(head.fields)
        if head.authority and head.field(b"host") is None:
            self.headers.insert(0, (b"host", head.authority))
        self.content_length = head.content_length
        self.expects_continue = (head.field(b"expect") or b"").lower() == b"100-continue"
        self.is_too_large = head.is_too_large

    def serve_whole(self, stream: Stream, body: Buffer) -> None:
        stream.receiver = exchange = Http2Exchange(stream, self)
        if self.is_too_large:
            exchange.fail(431, "request header list is too large")
        elif len(body) > self.link.service.limits.max_body_byte_size:
            exchange.fail_too_large()
        else:
            exchange.body = body
            self.link.service.http_application.on_exchange(exchange)

    def serve(self, stream: Stream) -> None:
        stream.receiver = exchange = Http2Exchange(stream, self)
        exchange.begin_receiving(self.content_length)
        if self.is_too_large:
            exchange.fail(431, "request header list is too large")
        elif self.content_length > self.link.service.limits.max_body_byte_size:
            exchange.fail_too_large()
        elif self.expects_continue:
            self.link.sender.send_headers(stream, _CONTINUE_BLOCK)


class Http2Exchange(Exchange):
    """One request that is no gRPC call. `_stream` is None once answered, or when the client has left."""

    __slots__ = ("_buffer", "_has_body", "_link", "_pieces", "_share", "_stream", "_waiters")

    def __init__(self, stream: Stream, plan: ExchangePlan) -> None:
        self.method = plan.method
        self.target = plan.target
        self.headers = plan.headers
        self.body = b""
        self.on_disconnect = None
        self._link = plan.link
        self._stream: Stream | None = stream
        # Where the body is put together: in a buffer if its length is known, else in a growing array.
        self._buffer: BodyBuffer | None = None
        self._pieces: bytearray | None = None
        self._waiters: list[asyncio.Future[None]] = []

    # The connection's side

    def begin_receiving(self, content_length: int) -> None:
        """The body follows."""
        if content_length > 0:
            self._buffer = BodyBuffer(content_length, self._link.service.receive_budget)
        else:
            self._pieces = bytearray()
            self._share = BudgetShare(self._link.service.receive_budget)

    @property
    def is_receiving_message(self) -> bool:
        """Whether the client owes the rest of the body."""
        return self._buffer is not None or self._pieces is not None

    def on_data(self, data: bytes) -> None:
        try:
            if self._buffer is not None:
                self._buffer.add(data)
            elif self._pieces is not None:
                byte_size = len(self._pieces) + len(data)
                if byte_size > self._link.service.limits.max_body_byte_size:
                    self.fail_too_large()
                    return
                self._share.grow_to(byte_size)
                self._pieces += data
        except MemoryError as error:
            self.fail(503, no_memory_text(error))

    def body_view(self) -> memoryview | None:
        return None if self._buffer is None else self._buffer.remaining_view()

    def advance_body(self, byte_size: int) -> None:
        assert self._buffer is not None
        self._buffer.advance(byte_size)

    def on_end(self) -> None:
        if self._stream is not None and self.is_receiving_message:
            if self._buffer is not None:
                self.body = self._buffer.take()
            elif self._pieces is not None:
                self.body = self._pieces
                self._share.release()
            self._buffer = self._pieces = None
            self._link.service.http_application.on_exchange(self)

    def on_stalled(self) -> None:
        """The rest of the body has not come in time."""
        self.fail(408, "request timed out: its bytes stopped coming")

    def fail(self, status: int, text: str) -> None:
        """Answer a request that the application has not seen."""
        self._buffer = self._pieces = None
        self.respond(status, JSON_HEADERS, (error_body(text),))

    def fail_too_large(self) -> None:
        self.fail(413, f"request body exceeds the limit of {self._link.service.limits.max_body_byte_size} bytes")

    def on_reset(self) -> None:
        was_open = self._stream is not None
        was_served = not self.is_receiving_message
        self._stream = self._buffer = self._pieces = None
        self.on_drained()
        if was_open and was_served and self.on_disconnect is not None:
            self.on_disconnect()

    def on_drained(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    # The application's side

    def respond(self, status: int, headers: Sequence[Header], parts: Sequence[Buffer]) -> None:
        stream, self._stream = self._stream, None
        if stream is None:
            return
        byte_size = 0
        for part in parts:
            byte_size += len(part)
        block = self._response_block(status, headers)
        if not has_no_body(status):
            block += encode_fields(((b"content-length", b"%d" % byte_size),))
        if byte_size == 0 or self.method == b"HEAD" or has_no_body(status):
            self._link.sender.send_headers(stream, block, ends_stream=True)
        else:
            self._link.sender.send_headers(stream, block)
            self._link.sender.send_data(stream, parts, byte_size, ends_stream=True)
        self._write_soon()

    def start_stream(self, status: int, headers: Sequence[Header]) -> None:
        if self._stream is not None:
            self._has_body = self.method != b"HEAD" and not has_no_body(status)
            self._link.sender.send_headers(self._stream, self._response_block(status, headers))
            self._write_soon()

    def write(self, data: Buffer) -> None:
        if self._stream is not None and self._has_body:
            self._link.sender.send_data(self._stream, (data,), len(data))
            self._write_soon()

    @property
    def is_writable(self) -> bool:
        return self._stream is None or self._link.sender.is_writable(self._stream)

    async def drain(self) -> None:
        if not self.is_writable:
            waiter = self._link.service.loop.create_future()
            self._waiters.append(waiter)
            await waiter

    def finish(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            self._link.sender.send_end(stream)
            self._write_soon()

    def _write_soon(self) -> None:
        if not self._link.is_receiving:
            self._link.write_soon()

    def _response_block(self, status: int, headers: Sequence[Header]) -> bytes:
        cache = self._link.service.response_blocks
        entry = cache.get((status, id(headers)))
        if entry is not None and entry[0] is headers:
            return entry[1]
        fields = [(name.lower(), value) for name, value in headers]
        block = encode_status(status) + encode_fields(field for field in fields if field[0] not in _CONNECTION_HEADERS)
        if isinstance(headers, tuple):
            if len(cache) >= _MAX_CACHED_BLOCKS:
                cache.clear()
            cache[status, id(headers)] = (headers, block)
        return block
