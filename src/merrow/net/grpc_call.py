"""One gRPC call on an HTTP/2 stream: messages in and out, its deadline, and how it ends.

A call is over when it has been finished, cancelled by its client, or has passed its deadline; `_stream` is then None
and everything else a no-op. The application of a streaming call can hold back a client that sends faster than it is
answered: `pause_reading`. Messages that take long to decompress are decompressed on another thread, and stay in order.

Source: gRPC over HTTP/2 (PROTOCOL-HTTP2.md); texts and statuses of faults are gRPC core's, as Triton sends them.
"""

import asyncio
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from merrow.core.tensor import Buffer
from merrow.net.exchange import GrpcCall, GrpcStream, Header
from merrow.net.grpc_compression import choose_coding
from merrow.net.grpc_message import (
    PREFIX_BYTE_SIZE,
    CompressedMessage,
    Message,
    MessageFault,
    MessageReader,
    pack_prefix,
)
from merrow.net.grpc_status import DEADLINE_EXCEEDED, HEAD_BLOCK, INTERNAL, OK_BLOCK, UNAVAILABLE, encode_status_fields
from merrow.net.service import Service
from merrow.wire.http2.connection import ServerConnection
from merrow.wire.http2.sender import ReplyTemplate, Sender
from merrow.wire.http2.stream import RequestHead, Stream

_REPLY: Final = ReplyTemplate(HEAD_BLOCK, OK_BLOCK)


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


class CallPlan:
    """What calls of one head have in common, found out once; how they are served is the plan of their kind."""

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
            self._link.sender.send_headers(stream, HEAD_BLOCK + encode_status_fields(status, message), ends_stream=True)
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
        self.cancel(DEADLINE_EXCEEDED, "Deadline Exceeded")

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
        self.cancel(UNAVAILABLE, "request timed out: its bytes stopped coming")

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
            sender.send_headers(stream, HEAD_BLOCK)
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
