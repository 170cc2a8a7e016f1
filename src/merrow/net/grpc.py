"""gRPC calls over HTTP/2: what the head of a request says, and how calls with that head are served.

What is known from a request's head alone (is there such a method, does it stream, the deadline, the compression) is
found out once per head, in a plan that the HTTP/2 connection keeps with it. A plan serves a request with the
application, or, `RefusedCallPlan`, with a status.

A unary call that arrives whole is the straight way: one call object, one call of the application, and one write of
headers, message and trailers, which are constant bytes.

Source: gRPC over HTTP/2 (PROTOCOL-HTTP2.md); texts and statuses of faults are gRPC core's, as Triton sends them.
"""

from collections.abc import Sequence
from typing import Final

from merrow.core.tensor import Buffer
from merrow.net.exchange import Header
from merrow.net.grpc_call import CallPlan, Http2Link, StreamingCall, UnaryCall
from merrow.net.grpc_compressed_call import CompressingStreamingCall, CompressingUnaryCall
from merrow.net.grpc_message import PREFIX_BYTE_SIZE, unpack_prefix
from merrow.net.grpc_status import (
    HEAD_BLOCK,
    INTERNAL,
    RESOURCE_EXHAUSTED,
    UNIMPLEMENTED,
    UNKNOWN,
    encode_status_fields,
)
from merrow.wire.http2.header_block import encode_fields
from merrow.wire.http2.stream import RequestHead, RequestPlan, Stream

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


def is_grpc(head: RequestHead) -> bool:
    """Whether a request is a gRPC call, from its content type."""
    content_type = head.field(b"content-type") or b""
    return content_type[:16] == b"application/grpc" and content_type[16:17] in (b"", b"+", b";")


def plan_call(link: Http2Link, head: RequestHead) -> RequestPlan:
    """How to serve the gRPC calls of this head."""
    if head.is_too_large:
        return RefusedCallPlan(link, RESOURCE_EXHAUSTED, "received metadata size exceeds limit")
    if head.method != b"POST":
        return RefusedCallPlan(link, UNKNOWN, "Bad method header")
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
            link, UNIMPLEMENTED, f"Compression algorithm '{encoding}' is not supported", (_ACCEPT_ENCODING,)
        )
    is_streaming = link.service.grpc_application.is_streaming(head.path)
    if is_streaming is None:
        return RefusedCallPlan(link, UNIMPLEMENTED, "")
    return (StreamingCallPlan if is_streaming else UnaryCallPlan)(link, head, timeout_ns, encoding)


def parse_timeout(value: bytes) -> int | None:
    """`grpc-timeout` in nanoseconds; None if it is malformed. More digits than the eight of the rules are accepted."""
    digits, unit_ns = value[:-1], _TIMEOUT_UNITS_NS.get(value[-1]) if value else None
    if unit_ns is None or not digits.isdigit() or len(digits) > 18:
        return None
    return int(digits) * unit_ns


class RefusedCallPlan:
    """Answers every call with one status."""

    __slots__ = ("_block", "_link")

    def __init__(self, link: Http2Link, status: int, message: str, headers: Sequence[Header] = ()) -> None:
        self._link = link
        self._block = HEAD_BLOCK + encode_fields(headers) + encode_status_fields(status, message)

    def serve_whole(self, stream: Stream, body: Buffer) -> None:
        self._link.sender.send_headers(stream, self._block, ends_stream=True)

    def serve(self, stream: Stream) -> None:
        self._link.sender.send_headers(stream, self._block, ends_stream=True)


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
