"""One HTTP/2 stream: a request of the client's, and the answer to it.

The states of RFC 9113, section 5.1, as far as a server that pushes nothing sees them:

    open                 the request is coming in
    half-closed (remote) `is_remote_closed`: the request is complete
    closed               `is_closed`: the answer is complete, or the stream was reset by either side

A server ends its side last, or resets the stream, so "half-closed (local)" does not exist here.
"""

from collections import deque
from collections.abc import Sequence
from typing import Protocol

from merrow.core.tensor import Buffer
from merrow.wire.http2.header_block import Field


class StreamReceiver(Protocol):
    """Takes what arrives on one stream. Called while the connection receives, or pumps; must not raise."""

    def on_data(self, data: bytes) -> None:
        """A piece of the body, never empty; cut anywhere."""

    def body_view(self) -> memoryview | None:
        """Where the next bytes of the body belong, for the socket to write to; None if they are to be handed over."""

    def advance_body(self, byte_size: int) -> None:
        """So many bytes have been written to `body_view`."""

    def on_end(self) -> None:
        """The body is complete, and has the length that was announced, if one was."""

    def on_reset(self) -> None:
        """The stream has ended before its answer did: the client reset it, broke the protocol, or left."""

    def on_drained(self) -> None:
        """What waited to be sent has fallen below the write limit again."""


class RequestPlan(Protocol):
    """How the requests of one head are served, found out once. Must not raise. May send, within the call or later."""

    def serve_whole(self, stream: "Stream", body: Buffer) -> None:
        """A request has arrived whole; sets `stream.receiver`."""

    def serve(self, stream: "Stream") -> None:
        """A request's head has arrived, its body follows; sets `stream.receiver`."""


class RequestHead:
    """What one request's header block says.

    `fields` are the fields other than pseudo-headers, in order. `content_length` is -1 where none is given.
    `fault` says what makes the request malformed, None if nothing does; the other attributes are then meaningless.
    `is_too_large` is set when the header list is over its limit: such a request is not to be served. `plan` is
    how the connection's handler serves requests of this head; it is set before a stream with the head is opened.
    """

    __slots__ = (
        "authority",
        "content_length",
        "fault",
        "fields",
        "is_too_large",
        "method",
        "path",
        "plan",
    )

    def __init__(self) -> None:
        self.method = b""
        self.path = b""
        self.authority = b""
        self.fields: Sequence[Field] = ()
        self.content_length = -1
        self.fault: str | None = None
        self.is_too_large = False
        self.plan: RequestPlan | None = None

    def field(self, name: bytes) -> bytes | None:
        """The value of the first field of this (lower-case) name."""
        for field_name, value in self.fields:
            if field_name == name:
                return value
        return None


class Stream:
    """State of one stream; changed by its connection only, but for `receiver`."""

    __slots__ = (
        "body_remaining",
        "end_block",
        "head",
        "id",
        "is_closed",
        "is_receive_paused",
        "is_remote_closed",
        "queue",
        "queued_byte_size",
        "receive_credit",
        "received_ns",
        "receiver",
        "send_window",
    )

    receiver: StreamReceiver

    def __init__(self, id: int, head: RequestHead, send_window: int) -> None:
        self.id = id
        self.head = head
        self.send_window = send_window
        self.is_remote_closed = False
        self.is_closed = False
        # DATA that waits for the peer's window, or for the socket, in order; None as long as nothing ever had to.
        self.queue: deque[Buffer] | None = None

    def begin_receiving(self, receive_credit: int, now_ns: int) -> None:
        """Set what only a stream has whose body follows its head."""
        # Bytes the client may still send before the next WINDOW_UPDATE, which is withheld while reading is paused.
        self.receive_credit = receive_credit
        self.is_receive_paused = False
        # Bytes of the announced content-length still to come; -1 if none was announced.
        self.body_remaining = self.head.content_length
        # When something last arrived.
        self.received_ns = now_ns

    def begin_queueing(self) -> None:
        """Set what only a stream has that had to wait."""
        self.queue = deque()
        self.queued_byte_size = 0
        # How the answer ends once the queue is empty: None not yet, b"" with END_STREAM on DATA, else with trailers.
        self.end_block: bytes | None = None
