"""gRPC calls over HTTP/2 streams: metadata, messages, deadlines, status.

What is known from a request's head alone (is there such a method, does it stream, the deadline, the compression) is
found out once per head, in a plan that the HTTP/2 connection keeps with it. A plan serves a request with the
application, or, `RefusedCallPlan`, with a status.

A unary call that arrives whole is the straight way: one call object, one call of the application, and one write of
headers, message and trailers, which are constant bytes.

A call is over when it has been finished, cancelled by its client, or has passed its deadline; `_stream` is then None
and everything else a no-op. The application of a streaming call can hold back a client that sends faster than it is
answered: `pause_reading`.

Source: gRPC over HTTP/2 (PROTOCOL-HTTP2.md); texts and statuses of faults are gRPC core's, as Triton sends them.
"""

import asyncio
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from merrow.core.tensor import Buffer
from merrow.net.exchange import GrpcCall, GrpcStream, Header
from merrow.net.grpc_compression import MAX_INLINE_BYTE_SIZE, MessageCoding, choose_coding
from merrow.net.grpc_message import (
    INTERNAL,
    PREFIX_BYTE_SIZE,
    CompressedMessage,
    Message,
    MessageFault,
    MessageReader,
    pack_prefix,
    unpack_prefix,
)
from merrow.net.service import Service
from merrow.wire.http2.connection import ServerConnection
from merrow.wire.http2.header_block import encode_fields, encode_status
from merrow.wire.http2.sender import ReplyTemplate, Sender
from merrow.wire.http2.stream import RequestHead, RequestPlan, Stream

_OK: Final = 0
_UNKNOWN: Final = 2
_DEADLINE_EXCEEDED: Final = 4
_RESOURCE_EXHAUSTED: Final = 8
_UNIMPLEMENTED: Final = 12
_UNAVAILABLE: Final = 14

_HEAD_BLOCK: Final = encode_status(200) + encode_fields(((b"content-type", b"application/grpc"),))
_OK_BLOCK: Final = encode_fields(((b"grpc-status", b"0"),))
_REPLY: Final = ReplyTemplate(_HEAD_BLOCK, _OK_BLOCK)
# The same for answers with compressed messages, by their coding.
_CODED_HEAD_BLOCKS: Final = {
    name: _HEAD_BLOCK + encode_fields(((b"grpc-encoding", name),)) for name in (b"gzip", b"deflate")
}
_CODED_REPLIES: Final = {name: ReplyTemplate(block, _OK_BLOCK) for name, block in _CODED_HEAD_BLOCKS.items()}
_ACCEPT_ENCODING: Final[Header] = (b"grpc-accept-encoding", b"identity, deflate, gzip")

_TIMEOUT_UNITS_NS: Final = {
    ord("H"): 3600 * 10**9,
    ord("M"): 60 * 10**9,
    ord("S"): 10**9,
    ord("m"): 10**6,
    ord("u"): 10**3,
    ord("n"): 1,
}
# A longer deadline is none.
_MAX_TIMEOUT_NS = 10**9 * 3600 * 24 * 365

# grpc-message: what need not be percent-encoded.
_PLAIN_MESSAGE_BYTES: Final = frozenset(range(0x20, 0x7F)) - {ord("%")}


class Http2Link(Protocol):
    """The HTTP/2 connection that a call came over."""

    @property
    def service(self) -> Service: ...
    @property
    def http2(self) -> ServerConnection: ...
    @property
    def sender(self) -> Sender: ...
    @property
    def is_receiving(self) -> bool:
        """Whether what is sent now will be written by itself, when what has been received is handled."""

    def write_soon(self) -> None:
        """Write what has been sent; to be called after sending, unless `is_receiving`."""


def is_grpc(head: RequestHead) -> bool:
    """Whether a request is a gRPC call, from its content type."""
    content_type = head.field(b"content-type") or b""
    return content_type[:16] == b"application/grpc" and content_type[16:17] in (b"", b"+", b";")


def plan_call(link: Http2Link, head: RequestHead) -> RequestPlan:
    """How to serve the gRPC calls of this head."""
    if head.is_too_large:
        return RefusedCallPlan(link, _RESOURCE_EXHAUSTED, "received metadata size exceeds limit")
    if head.method != b"POST":
        return RefusedCallPlan(link, _UNKNOWN, "Bad method header")
    timeout_ns: int | None = None
    timeout = head.field(b"grpc-timeout")
    if timeout is not None:
        timeout_ns = parse_timeout(timeout)
        if timeout_ns is None:
            return RefusedCallPlan(link, INTERNAL, "malformed grpc-timeout")
        if timeout_ns > _MAX_TIMEOUT_NS:
            timeout_ns = None
    encoding = (head.field(b"grpc-encoding") or b"identity").decode("latin-1")
    if encoding not in ("identity", "gzip", "deflate"):
        return RefusedCallPlan(
            link, _UNIMPLEMENTED, f"Compression algorithm '{encoding}' is not supported", (_ACCEPT_ENCODING,)
        )
    is_streaming = link.service.grpc_application.is_streaming(head.path)
    if is_streaming is None:
        return RefusedCallPlan(link, _UNIMPLEMENTED, "")
    return (StreamingCallPlan if is_streaming else UnaryCallPlan)(link, head, timeout_ns, encoding)


def parse_timeout(value: bytes) -> int | None:
    """`grpc-timeout` in nanoseconds; None if it is malformed. More digits than the eight of the rules are accepted."""
    digits, unit_ns = value[:-1], _TIMEOUT_UNITS_NS.get(value[-1]) if value else None
    if unit_ns is None or not digits.isdigit() or len(digits) > 18:
        return None
    return int(digits) * unit_ns


def encode_status_fields(status: int, message: str) -> bytes:
    """The header block of a status: trailers, or the end of a response that is nothing else."""
    if not message:
        return _OK_BLOCK if status == _OK else encode_fields(((b"grpc-status", b"%d" % status),))
    return encode_fields(((b"grpc-status", b"%d" % status), (b"grpc-message", encode_message(message))))


def encode_message(message: str) -> bytes:
    """A status message in the percent-encoding of `grpc-message`."""
    encoded = message.encode("utf-8", "replace")
    if message.isprintable() and message.isascii() and "%" not in message:
        return encoded
    return b"".join(b"%c" % byte if byte in _PLAIN_MESSAGE_BYTES else b"%%%02X" % byte for byte in encoded)


class RefusedCallPlan:
    """Answers every call with one status."""

    __slots__ = ("_block", "_link")

    def __init__(self, link: Http2Link, status: int, message: str, headers: Sequence[Header] = ()) -> None:
        self._link = link
        self._block = _HEAD_BLOCK + encode_fields(headers) + encode_status_fields(status, message)

    def serve_whole(self, stream: Stream, body: Buffer) -> None:
        self._link.sender.send_headers(stream, self._block, ends_stream=True)

    def serve(self, stream: Stream) -> None:
        self._link.sender.send_headers(stream, self._block, ends_stream=True)


class CallPlan:
    """Hands calls to the application; what unary and streaming calls have in common."""

    __slots__ = (
        "application",
        "coding",
        "encoding",
        "link",
        "max_message_byte_size",
        "metadata",
        "path",
        "timeout_ns",
    )

    def __init__(self, link: Http2Link, head: RequestHead, timeout_ns: int | None, encoding: str) -> None:
        self.link = link
        self.path = head.path
        self.metadata: Sequence[Header] = head.fields
        self.application = link.service.grpc_application
        self.timeout_ns = timeout_ns
        self.encoding = encoding
        self.max_message_byte_size = link.service.limits.max_body_byte_size
        # How responses are compressed.
        self.coding = choose_coding(self.application.compression_of(head.path), head.field(b"grpc-accept-encoding"))

    def make_reader(self) -> MessageReader:
        encoding = None if self.encoding == "identity" else self.encoding
        return MessageReader(encoding, self.max_message_byte_size, self.link.service.receive_budget)


class UnaryCallPlan(CallPlan):
    __slots__ = ("call_type",)

    def __init__(self, link: Http2Link, head: RequestHead, timeout_ns: int | None, encoding: str) -> None:
        super().__init__(link, head, timeout_ns, encoding)
        self.call_type = UnaryCall if self.coding is None else CompressingUnaryCall

    def serve_whole(self, stream: Stream, body: Buffer) -> None:
        byte_size = len(body) - PREFIX_BYTE_SIZE
        stream.receiver = call = self.call_type(stream, self)
        if 0 <= byte_size <= self.max_message_byte_size and unpack_prefix(body) == (0, byte_size):
            self.application.on_unary(call, body[PREFIX_BYTE_SIZE:])
        else:
            call.begin_receiving()
            if byte_size > -PREFIX_BYTE_SIZE:
                call.on_data(bytes(body))
            call.on_end()
        if self.timeout_ns is not None:
            call.arm_deadline(self.timeout_ns)

    def serve(self, stream: Stream) -> None:
        stream.receiver = call = self.call_type(stream, self)
        call.begin_receiving()
        if self.timeout_ns is not None:
            call.arm_deadline(self.timeout_ns)


class StreamingCallPlan(CallPlan):
    __slots__ = ()

    def serve_whole(self, stream: Stream, body: Buffer) -> None:
        self.serve(stream)
        if len(body):
            stream.receiver.on_data(bytes(body))
        stream.receiver.on_end()

    def serve(self, stream: Stream) -> None:
        call = StreamingCall(stream, self) if self.coding is None else CompressingStreamingCall(stream, self)
        stream.receiver = call
        call.begin()
        if self.timeout_ns is not None:
            call.arm_deadline(self.timeout_ns)


class Http2GrpcCall(GrpcCall):
    """What unary and streaming calls have in common."""

    __slots__ = ("_deadline", "_link", "_plan", "_reader", "_stream")

    _reader: MessageReader | None

    def __init__(self, stream: Stream, plan: CallPlan) -> None:
        self.path = plan.path
        self.metadata = plan.metadata
        self.on_cancel = None
        self.on_writable = None
        self._link = plan.link
        self._stream: Stream | None = stream
        self._plan = plan
        self._deadline: asyncio.TimerHandle | None = None

    def arm_deadline(self, timeout_ns: int) -> None:
        if self._stream is not None:
            self._deadline = self._link.service.loop.call_later(timeout_ns / 10**9, self._pass_deadline)

    def reply(self, parts: Sequence[Buffer]) -> None:
        stream = self._stream
        if stream is None:
            return
        self._stream = None
        byte_size = 0
        for part in parts:
            byte_size += len(part)
        link = self._link
        link.sender.send_reply(stream, _REPLY, pack_prefix(0, byte_size), parts, byte_size + PREFIX_BYTE_SIZE)
        if self._deadline is not None:
            self._deadline.cancel()
        if not link.is_receiving:
            link.write_soon()

    def finish(self, status: int = 0, message: str = "") -> None:
        stream = self._stream
        if stream is not None:
            self.end()
            self._link.sender.send_headers(
                stream, _HEAD_BLOCK + encode_status_fields(status, message), ends_stream=True
            )
            if not self._link.is_receiving:
                self._link.write_soon()

    def end(self) -> None:
        """The call is over."""
        self._stream = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def cancel(self, status: int, message: str) -> None:
        """End the call for a reason that the application has not given."""
        if self._stream is not None:
            self.finish(status, message)
            if self.on_cancel is not None:
                self.on_cancel()

    def _pass_deadline(self) -> None:
        self.cancel(_DEADLINE_EXCEEDED, "Deadline Exceeded")

    # The connection's side

    @abstractmethod
    def on_data(self, data: bytes) -> None:
        """Take a piece of the body; an empty one when the message has been completed in its place."""

    def body_view(self) -> memoryview | None:
        body = None if self._reader is None else self._reader.body
        return None if body is None else body.remaining_view()

    def advance_body(self, byte_size: int) -> None:
        assert self._reader is not None
        assert self._reader.body is not None
        self._reader.body.advance(byte_size)
        if self._reader.body.is_complete:
            self.on_data(b"")

    def on_stalled(self) -> None:
        """The rest of a message has not come in time."""
        self.cancel(_UNAVAILABLE, "request timed out: its bytes stopped coming")

    def on_reset(self) -> None:
        if self._stream is not None:
            self.end()
            if self.on_cancel is not None:
                self.on_cancel()


class UnaryCall(Http2GrpcCall):
    """One message in, one message out."""

    __slots__ = ("_message",)

    # The application's side

    @property
    def is_writable(self) -> bool:
        return True

    def pause_reading(self) -> None:
        """There is nothing more to read."""

    def resume_reading(self) -> None:
        """There is nothing more to read."""

    def send(self, parts: Sequence[Buffer]) -> None:
        """The one message of a unary call ends it."""
        self.reply(parts)

    # The connection's side

    def begin_receiving(self) -> None:
        """Set what only a call has whose message is put together from pieces."""
        self._reader = self._plan.make_reader()
        self._message: Message | None = None

    @property
    def is_receiving_message(self) -> bool:
        """Whether the client owes the rest of its message; asked only while the request is incomplete."""
        return self._stream is not None

    def on_data(self, data: bytes) -> None:
        # What follows the first message is ignored, as gRPC core does.
        if self._reader is not None and self._message is None:
            try:
                messages = self._reader.feed(data)
            except MessageFault as fault:
                self.cancel(fault.status, fault.text)
                return
            if messages:
                self._message = messages[0]

    def on_end(self) -> None:
        message, self._message, self._reader = self._message, None, None
        if message is None:
            self.cancel(INTERNAL, "Unable to parse request")
        elif self._stream is None:
            return
        elif isinstance(message, CompressedMessage):
            decompress_on_thread(self, message, self._link.service.loop, self._on_decompressed)
        else:
            self._plan.application.on_unary(self, message)

    def _on_decompressed(self, message: Buffer) -> None:
        if self._stream is not None:
            self._plan.application.on_unary(self, message)

    def on_drained(self) -> None:
        """Nobody waits for that."""


class StreamingCall(Http2GrpcCall):
    """Any number of messages both ways."""

    __slots__ = (
        "_application_stream",
        "_has_ended",
        "_has_sent_head",
        "_is_decompressing",
        "_is_paused",
        "_reader",
        "_waiting",
        "_was_full",
    )

    def begin(self) -> None:
        self._has_sent_head = False
        # The application has been told that the call takes no more, and wants to know when it does.
        self._was_full = False
        self._is_paused = False
        # The client has sent everything, and the application does not know yet.
        self._has_ended = False
        # Messages that came while the application was not reading, or behind one that is being decompressed.
        self._waiting: deque[Message] = deque()
        self._is_decompressing = False
        self._reader = self._plan.make_reader()
        self._application_stream: GrpcStream = self._plan.application.on_stream(self)

    # The application's side

    @property
    def is_writable(self) -> bool:
        stream = self._stream
        if stream is None or self._link.sender.is_writable(stream):
            return True
        self._was_full = True
        return False

    def send(self, parts: Sequence[Buffer]) -> None:
        stream = self._stream
        if stream is None:
            return
        sender = self._link.sender
        if not self._has_sent_head:
            self._has_sent_head = True
            sender.send_headers(stream, _HEAD_BLOCK)
        byte_size = 0
        for part in parts:
            byte_size += len(part)
        sender.send_data(stream, (pack_prefix(0, byte_size), *parts), byte_size + PREFIX_BYTE_SIZE)
        if not self._link.is_receiving:
            self._link.write_soon()

    def finish(self, status: int = 0, message: str = "") -> None:
        stream = self._stream
        if stream is None or not self._has_sent_head:
            super().finish(status, message)
            return
        self.end()
        self._link.sender.send_end(stream, encode_status_fields(status, message))
        if not self._link.is_receiving:
            self._link.write_soon()

    def pause_reading(self) -> None:
        self._is_paused = True
        if self._stream is not None:
            self._link.http2.pause_receiving(self._stream)

    def resume_reading(self) -> None:
        if self._is_paused and self._stream is not None:
            self._is_paused = False
            if not self._is_decompressing:
                self._link.http2.resume_receiving(self._stream)
            # Later, because the application may be in the middle of something.
            self._link.service.loop.call_soon(self._deliver)
            if not self._link.is_receiving:
                self._link.write_soon()

    def _deliver(self) -> None:
        """Hand on what waits, as long as the application reads."""
        while self._waiting and not self._is_paused and not self._is_decompressing and self._stream is not None:
            self._hand_on(self._waiting.popleft())
        if (
            self._has_ended
            and not self._waiting
            and not self._is_paused
            and not self._is_decompressing
            and self._stream is not None
        ):
            self._has_ended = False
            self._application_stream.on_half_close()

    def _hand_on(self, message: Message) -> None:
        if not isinstance(message, CompressedMessage):
            self._application_stream.on_message(message)
            return
        assert self._stream is not None
        self._is_decompressing = True
        self._link.http2.pause_receiving(self._stream)
        decompress_on_thread(self, message, self._link.service.loop, self._on_decompressed)

    def _on_decompressed(self, message: Buffer) -> None:
        self._is_decompressing = False
        if self._stream is None:
            return
        self._waiting.appendleft(message)
        self._deliver()
        if not self._is_paused and not self._is_decompressing and self._stream is not None:
            self._link.http2.resume_receiving(self._stream)
            self._link.write_soon()

    # The connection's side

    @property
    def is_receiving_message(self) -> bool:
        """Whether the client owes the rest of a message; asked only while the request is incomplete."""
        return self._reader is not None and self._reader.is_in_message

    def on_data(self, data: bytes) -> None:
        if self._reader is None:
            return
        try:
            messages = self._reader.feed(data)
        except MessageFault as fault:
            self.cancel(fault.status, fault.text)
            return
        for message in messages:
            if self._is_paused or self._waiting or self._is_decompressing:
                self._waiting.append(message)
            elif self._stream is not None:
                self._hand_on(message)

    def on_end(self) -> None:
        if self._stream is None:
            return
        if self.is_receiving_message:
            self.cancel(INTERNAL, "Unable to parse request")
            return
        self._reader = None
        self._has_ended = True
        self._deliver()

    def on_drained(self) -> None:
        if self._was_full and self._stream is not None:
            self._was_full = False
            if self.on_writable is not None:
                self.on_writable()

    def end(self) -> None:
        super().end()
        self._reader = None
        self._waiting.clear()


class CompressingUnaryCall(UnaryCall):
    """A unary call whose reply is compressed."""

    __slots__ = ()

    def reply(self, parts: Sequence[Buffer]) -> None:
        if self._stream is None:
            return
        byte_size = sum(len(part) for part in parts)
        coding = self._plan.coding
        assert coding is not None
        if byte_size <= MAX_INLINE_BYTE_SIZE:
            self._reply_with(compress_message(coding, parts, byte_size))
        else:
            compress_on_thread(self._link.service.loop, coding, parts, byte_size, self._reply_with)

    def _reply_with(self, message: "_OutgoingMessage") -> None:
        stream, self._stream = self._stream, None
        if stream is None:
            return
        assert self._plan.coding is not None
        is_compressed, parts, byte_size = message
        template = _CODED_REPLIES[self._plan.coding.name]
        prefix = pack_prefix(is_compressed, byte_size)
        self._link.sender.send_reply(stream, template, prefix, parts, byte_size + PREFIX_BYTE_SIZE)
        if self._deadline is not None:
            self._deadline.cancel()
        if not self._link.is_receiving:
            self._link.write_soon()


class CompressingStreamingCall(StreamingCall):
    """A streaming call whose messages are compressed: one after another, large ones on another thread."""

    __slots__ = ("_is_compressing", "_last_words", "_uncompressed", "_uncompressed_byte_size")

    def begin(self) -> None:
        # What waits behind a message that is being compressed, and how the call ends after it, if it does.
        self._uncompressed: deque[tuple[Sequence[Buffer], int]] = deque()
        self._uncompressed_byte_size = 0
        self._is_compressing = False
        self._last_words: tuple[int, str] | None = None
        super().begin()

    @property
    def is_writable(self) -> bool:
        if self._uncompressed_byte_size > self._link.service.limits.max_write_buffer_byte_size:
            self._was_full = True
            return False
        return super().is_writable

    def send(self, parts: Sequence[Buffer]) -> None:
        if self._stream is None:
            return
        byte_size = sum(len(part) for part in parts)
        self._uncompressed.append((parts, byte_size))
        self._uncompressed_byte_size += byte_size
        if not self._is_compressing:
            self._compress_next()

    def _compress_next(self) -> None:
        coding = self._plan.coding
        assert coding is not None
        while self._uncompressed:
            parts, byte_size = self._uncompressed.popleft()
            if byte_size > MAX_INLINE_BYTE_SIZE:
                self._is_compressing = True
                compress_on_thread(self._link.service.loop, coding, parts, byte_size, self._on_compressed)
                return
            self._uncompressed_byte_size -= byte_size
            self._send_message(compress_message(coding, parts, byte_size))

    def _on_compressed(self, message: "_OutgoingMessage") -> None:
        self._is_compressing = False
        if self._stream is None:
            return
        self._send_message(message)
        self._compress_next()
        self._uncompressed_byte_size = sum(byte_size for _, byte_size in self._uncompressed)
        if not self._is_compressing and self._last_words is not None:
            super().finish(*self._last_words)
        elif self._was_full and self.is_writable:
            self.on_drained()

    def _send_message(self, message: "_OutgoingMessage") -> None:
        stream = self._stream
        if stream is None:
            return
        assert self._plan.coding is not None
        sender = self._link.sender
        if not self._has_sent_head:
            self._has_sent_head = True
            sender.send_headers(stream, _CODED_HEAD_BLOCKS[self._plan.coding.name])
        is_compressed, parts, byte_size = message
        prefix = pack_prefix(is_compressed, byte_size)
        sender.send_data(stream, (prefix, *parts), byte_size + PREFIX_BYTE_SIZE)
        if not self._link.is_receiving:
            self._link.write_soon()

    def finish(self, status: int = 0, message: str = "") -> None:
        if self._is_compressing and self._stream is not None:
            self._last_words = (status, message)
        else:
            super().finish(status, message)

    def cancel(self, status: int, message: str) -> None:
        self._is_compressing = False
        super().cancel(status, message)

    def end(self) -> None:
        super().end()
        self._uncompressed.clear()


# Whether it is compressed (as the prefix says it), its parts and their size.
_OutgoingMessage = tuple[int, Sequence[Buffer], int]


def compress_message(coding: MessageCoding, parts: Sequence[Buffer], byte_size: int) -> _OutgoingMessage:
    """A message as it is sent: compressed, unless that makes it no shorter, or there is no memory for it."""
    try:
        compressed = coding.compress(parts)
    except MemoryError:
        return 0, parts, byte_size
    if len(compressed) >= byte_size:
        return 0, parts, byte_size
    return 1, (compressed,), len(compressed)


def compress_on_thread(
    loop: asyncio.AbstractEventLoop,
    coding: MessageCoding,
    parts: Sequence[Buffer],
    byte_size: int,
    on_message: Callable[[_OutgoingMessage], None],
) -> None:
    """Compress on another thread, and call back on the loop's."""
    future = loop.run_in_executor(None, compress_message, coding, parts, byte_size)
    future.add_done_callback(lambda done: on_message(done.result()))


def decompress_on_thread(
    call: Http2GrpcCall,
    message: CompressedMessage,
    loop: asyncio.AbstractEventLoop,
    on_message: Callable[[Buffer], None],
) -> None:
    """Decompress on another thread, and call back on the loop's; a fault ends the call."""

    def on_done(done: "asyncio.Future[bytes]") -> None:
        try:
            decompressed = done.result()
        except MessageFault as fault:
            call.cancel(fault.status, fault.text)
        else:
            on_message(decompressed)

    loop.run_in_executor(None, message.decompress).add_done_callback(on_done)
