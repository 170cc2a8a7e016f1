"""The server's side of an HTTP/2 connection, without clock or socket.

Bytes go in with `receive`; requests come out as calls on the handler, and their bodies as calls on the receivers that
the handler gives to streams. Answers go to `sender`, and the bytes to send gather in its `output`.

What a peer may do is bounded: frame and header sizes, streams at a time, resets and control frames a second. Breaking
the protocol, or a bound, ends the stream where it concerns one stream only, else the connection: then GOAWAY is the
last of the output, `is_closed` is set, every stream's receiver has been told, and nothing more is received.

The receive loop is written for one case: HEADERS whose block is known, followed in the same bytes by the only DATA
frame of the request. Such a request costs one pass of the loop and one call of its plan. Every other case goes through
the methods below it.

Source: RFC 9113.
"""

from collections.abc import Callable
from typing import Final, Protocol

from merrow.settings import ConnectionLimits
from merrow.wire.http2 import frames
from merrow.wire.http2.frames import ConnectionFault, ErrorCode, Setting
from merrow.wire.http2.keepalive import PING, Keepalive, KeepaliveAction
from merrow.wire.http2.payload import Payload
from merrow.wire.http2.rate_limit import ControlFrameLimit, RateLimit
from merrow.wire.http2.request_head import HeadDecoder
from merrow.wire.http2.sender import Sender
from merrow.wire.http2.stream import RequestHead, RequestPlan, Stream

# Copies in this module: a global is found faster than a module's attribute.
_DATA: Final = frames.DATA
_HEADERS: Final = frames.HEADERS
_END_STREAM: Final = frames.FLAG_END_STREAM
_END_HEADERS: Final = frames.FLAG_END_HEADERS
_MAX_STREAM_ID: Final = frames.MAX_STREAM_ID
_unpack_frame_header = frames.FRAME_HEADER.unpack_from

# The receive window of a connection, in windows of a stream.
_CONNECTION_WINDOWS = 4
# A WINDOW_UPDATE below this counts as a control frame; larger ones are the normal course of a large answer.
_SMALL_INCREMENT = 1024
# A HEADERS frame may have so much padding and priority besides its block.
_HEADERS_EXTRA_BYTE_SIZE = 1 + 255 + 5
# A body at least so long is viewed where it lies, instead of copied out of the bytes received.
_VIEW_BYTE_SIZE = 16 * 1024
_MAX_SETTINGS_BYTE_SIZE = 6 * 128
_SHUTDOWN_PING: Final = b"shutdown"


class ConnectionHandler(Protocol):
    """Serves the requests of a connection."""

    def plan_request(self, head: RequestHead) -> RequestPlan:
        """How to serve requests of this head; asked once for a head, which may serve many. Must not raise."""


class ServerConnection:
    """One connection; see the module.

    `is_closed`: nothing is received any more. `is_draining`: the peer knows that no more streams are accepted.
    `is_ending`: one of the two. `payload`: of the DATA frame, or the one to skip, that has begun and not ended.
    """

    __slots__ = (
        "_block_byte_size",
        "_block_ends_stream",
        "_block_pieces",
        "_block_stream_id",
        "_control_frames",
        "_credit",
        "_data_count",
        "_decoder",
        "_handler",
        "_has_settings",
        "_heads",
        "_last_stream_id",
        "_max_frame_byte_size",
        "_max_header_byte_size",
        "_max_streams",
        "_opened",
        "_preface_remaining",
        "_resets",
        "_rest",
        "_stream_window",
        "_window",
        "is_closed",
        "is_draining",
        "is_ending",
        "keepalive",
        "last_received_ns",
        "payload",
        "sender",
        "streams",
    )

    def __init__(self, handler: ConnectionHandler, limits: ConnectionLimits, now_ns: int) -> None:
        self.sender = Sender(limits.max_write_buffer_byte_size)
        self.streams: dict[int, Stream] = self.sender.streams
        self.is_closed = False
        self.is_draining = False
        self.is_ending = False
        self.last_received_ns = now_ns
        # Set when the connection turns out to carry gRPC calls, whose rules for pings then hold.
        self.keepalive: Keepalive | None = None

        self._handler = handler
        self._decoder = HeadDecoder(limits.max_header_byte_size, limits.max_header_count)
        self._heads = self._decoder.heads
        self._resets = RateLimit(limits.max_resets_per_second, now_ns)
        self._control_frames = ControlFrameLimit(limits.max_control_frames_per_second, now_ns)
        # Frames of DATA that a body came in, other than those that brought it whole.
        self._data_count = 0
        self._max_header_byte_size = limits.max_header_byte_size
        self._max_streams = limits.max_concurrent_streams
        self._max_frame_byte_size = max(limits.max_frame_byte_size, frames.DEFAULT_MAX_FRAME_BYTE_SIZE)
        # A smaller window could be overrun by what the client sends before it knows our settings.
        self._stream_window = max(limits.stream_window_byte_size, frames.DEFAULT_WINDOW_BYTE_SIZE)
        self._window = min(self._stream_window * _CONNECTION_WINDOWS, frames.MAX_WINDOW_BYTE_SIZE)

        # `_rest` is an incomplete frame, other than DATA, or the beginning of a frame's header.
        self._rest = b""
        self._preface_remaining = frames.PREFACE
        self._has_settings = False
        self._last_stream_id = 0
        # A stream just opened, for the receive loop to serve.
        self._opened: Stream | None = None
        # DATA that the peer may still send before the next WINDOW_UPDATE.
        self._credit = self._window
        self.payload = Payload()
        # Inside a header block: whose (0: outside), and the pieces so far.
        self._block_stream_id = 0
        self._block_ends_stream = False
        self._block_pieces: list[bytes] = []
        self._block_byte_size = 0

        self._send(
            frames.encode_settings(
                {
                    Setting.MAX_CONCURRENT_STREAMS: limits.max_concurrent_streams,
                    Setting.INITIAL_WINDOW_SIZE: self._stream_window,
                    Setting.MAX_FRAME_SIZE: self._max_frame_byte_size,
                    Setting.MAX_HEADER_LIST_SIZE: limits.max_header_byte_size,
                }
            )
            + frames.encode_window_update(0, self._window - frames.DEFAULT_WINDOW_BYTE_SIZE)
        )

    @property
    def is_between_frames(self) -> bool:
        """Whether nothing of the next frame has been received."""
        return not self._rest and not self.payload.is_open

    @property
    def is_in_frame(self) -> bool:
        """Whether the preface, a frame or a header block has begun and not ended."""
        return bool(self._rest or self.payload.is_open or self._block_stream_id or not self._has_settings)

    def receive(self, data: bytes, now_ns: int) -> None:
        """Take bytes from the peer, cut anywhere. A no-op once the connection is closed."""
        self.last_received_ns = now_ns
        if self._rest:
            data = self._rest + data
            self._rest = b""
        try:
            position = self._receive_frames(data)
        except ConnectionFault as fault:
            self.close(fault.code, fault.text)
        else:
            if position < len(data) and not self.is_closed:
                self._rest = data[position:]

    def _receive_frames(self, data: bytes) -> int:
        """Handle what is complete; returns the position of what is not."""
        position, end = 0, len(data)
        open_payload = self.payload
        if self._preface_remaining:
            position = self._receive_preface(data)
        while not self.is_closed:
            if open_payload.is_open:
                position = open_payload.receive(data, position, end)
                if open_payload.is_open:
                    break
                continue
            payload = position + 9
            if payload > end:
                break
            high, low, kind, flags, stream_id = _unpack_frame_header(data, position)
            length = high << 8 | low
            payload_end = payload + length
            head = None
            if kind == _HEADERS and flags == _END_HEADERS and payload_end <= end and not self._block_stream_id:
                head = self._heads.get(data[payload:payload_end])
            if (
                head is not None
                and self._last_stream_id < stream_id <= _MAX_STREAM_ID
                and stream_id & 1
                and len(self.streams) < self._max_streams
                and not self.is_draining
            ):
                # The straight way; `_receive_block` finds out what is wrong where this is not the one.
                position = payload_end
                self._last_stream_id = stream_id
                self.streams[stream_id] = stream = Stream(stream_id, head, self.sender.peer_stream_window)
            else:
                if length > self._max_frame_byte_size:
                    raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"frame of {length} bytes")
                if self._block_stream_id and (kind != frames.CONTINUATION or stream_id != self._block_stream_id):
                    raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "frame inside a header block")
                if not self._has_settings and kind != frames.SETTINGS:
                    raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")
                stream_id &= frames.MAX_STREAM_ID
                if kind == _DATA:
                    padding = 0
                    if flags & frames.FLAG_PADDED:
                        if length and payload == end:
                            break
                        padding = 1 + data[payload] if length else 1
                        if padding > length:
                            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "padding longer than its frame")
                        payload += 1
                    position = payload
                    self._begin_data(flags, stream_id, length, padding)
                    continue
                if kind not in _FRAMES:
                    position = payload
                    self._count_control_frame()
                    open_payload.begin(None, length)
                    continue
                min_byte_size, max_byte_size, receive_frame = _FRAMES[kind]
                if not min_byte_size <= length <= max_byte_size:
                    raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"frame of type {kind} with {length} bytes")
                if kind == _HEADERS and length > self._max_header_byte_size + _HEADERS_EXTRA_BYTE_SIZE:
                    raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "header block too large")
                if payload_end > end:
                    break
                position = payload_end
                receive_frame(self, flags, stream_id, data[payload:payload_end])
                if self._opened is None:
                    continue
                stream, self._opened = self._opened, None
                head = stream.head
            # A stream has been opened. Mostly, the next frame completes its request.
            assert head.plan is not None
            payload = position + 9
            if payload <= end:
                high, low, kind, flags, data_stream_id = _unpack_frame_header(data, position)
                length = high << 8 | low
                payload_end = payload + length
                if (
                    kind == _DATA
                    and flags == _END_STREAM
                    and data_stream_id == stream_id
                    and payload_end <= end
                    and length <= self._max_frame_byte_size
                    and (head.content_length == -1 or head.content_length == length)
                    and length <= self._credit
                ):
                    position = payload_end
                    self._credit -= length
                    if self._credit << 1 < self._window:
                        self._restore_credit()
                    stream.is_remote_closed = True
                    if length < _VIEW_BYTE_SIZE:
                        head.plan.serve_whole(stream, data[payload:payload_end])
                    else:
                        head.plan.serve_whole(stream, memoryview(data)[payload:payload_end])
                    continue
            stream.begin_receiving(self._stream_window, self.last_received_ns)
            head.plan.serve(stream)
        return position

    def _receive_preface(self, data: bytes) -> int:
        expected = self._preface_remaining
        received = data[: len(expected)]
        if not expected.startswith(received):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "invalid connection preface")
        self._preface_remaining = expected[len(received) :]
        return len(received)

    def _send(self, frame: bytes) -> None:
        self.sender.output.append(frame)

    # DATA

    def _begin_data(self, flags: int, stream_id: int, length: int, padding: int) -> None:
        """The header of a DATA frame: `length` bytes, of which `padding`, its length's byte included, are padding."""
        ends_stream = bool(flags & _END_STREAM)
        byte_size = length - padding
        if byte_size:
            self._data_count += 1
        elif not ends_stream:
            self._count_control_frame()
        # The whole frame counts as received: at worst the peer may send what it announced here.
        self._credit -= length
        if self._credit < 0:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "DATA beyond the connection's window")
        if self._credit << 1 < self._window:
            self._restore_credit()
        stream = self.streams.get(stream_id)
        if stream is None:
            self._check_was_reset(stream_id, "DATA")
        else:
            code = self._data_error(stream, ends_stream, length, byte_size)
            if code is not None:
                self._fail_stream(stream, code)
                stream = None
            elif not ends_stream and stream.receive_credit << 1 < self._stream_window:
                self._restore_stream_credit(stream)
        # As `Payload.begin`; a call less for each frame.
        payload = self.payload
        payload.is_open = True
        payload.stream = stream
        payload.remaining = byte_size
        payload.padding_remaining = max(padding - 1, 0)
        payload.ends_stream = ends_stream

    def _data_error(self, stream: Stream, ends_stream: bool, length: int, byte_size: int) -> ErrorCode | None:
        """Account for a DATA frame on an open stream; returns what is wrong with it."""
        if stream.is_remote_closed:
            return ErrorCode.STREAM_CLOSED
        stream.received_ns = self.last_received_ns
        stream.receive_credit -= length
        if stream.receive_credit < 0:
            return ErrorCode.FLOW_CONTROL_ERROR
        if stream.body_remaining >= 0:
            stream.body_remaining -= byte_size
            if stream.body_remaining < 0 or (ends_stream and stream.body_remaining):
                return ErrorCode.PROTOCOL_ERROR
        return None

    def advance_direct(self, byte_size: int, now_ns: int) -> None:
        """So many bytes have been written to the `direct_view` of the payload, instead of being given to `receive`."""
        payload = self.payload
        stream = payload.stream
        assert stream is not None
        self.last_received_ns = stream.received_ns = now_ns
        payload.remaining -= byte_size
        stream.receiver.advance_body(byte_size)
        if payload.remaining == 0:
            payload.receive(b"", 0, 0)

    def _restore_credit(self) -> None:
        self._send(frames.encode_window_update(0, self._window - self._credit))
        self._credit = self._window

    def _restore_stream_credit(self, stream: Stream) -> None:
        if not stream.is_receive_paused and stream.receive_credit < self._stream_window:
            self._send(frames.encode_window_update(stream.id, self._stream_window - stream.receive_credit))
            stream.receive_credit = self._stream_window

    def pause_receiving(self, stream: Stream) -> None:
        """Let the client send no more on this stream than its window still allows."""
        stream.is_receive_paused = True

    def resume_receiving(self, stream: Stream) -> None:
        """Let the client send on again."""
        stream.is_receive_paused = False
        if not stream.is_remote_closed and not stream.is_closed:
            self._restore_stream_credit(stream)

    # Header blocks

    def _receive_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        start, end = 0, len(payload)
        if flags & frames.FLAG_PADDED:
            if not payload:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "HEADERS without the length of its padding")
            start, end = 1, end - payload[0]
        if flags & frames.FLAG_PRIORITY:
            start += 5
        if start > end:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "padding longer than its frame")
        if stream_id & 1 == 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"HEADERS on stream {stream_id}")
        ends_stream = bool(flags & _END_STREAM)
        if flags & _END_HEADERS:
            self._receive_block(stream_id, ends_stream, payload[start:end])
        else:
            self._block_stream_id = stream_id
            self._block_ends_stream = ends_stream
            self._block_byte_size = 0
            self._add_block_piece(payload[start:end])

    def _receive_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        if not self._block_stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION outside of a header block")
        self._count_control_frame()
        self._add_block_piece(payload)
        if flags & _END_HEADERS:
            block = b"".join(self._block_pieces)
            self._block_stream_id = 0
            self._block_pieces = []
            self._receive_block(stream_id, self._block_ends_stream, block)

    def _add_block_piece(self, piece: bytes) -> None:
        self._block_pieces.append(piece)
        self._block_byte_size += len(piece)
        if self._block_byte_size > self._max_header_byte_size:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "header block too large")

    def _receive_block(self, stream_id: int, ends_stream: bool, block: bytes) -> None:
        """A complete header block: decoded whatever becomes of it, because it may change the decoder's table."""
        if stream_id <= self._last_stream_id:
            self._receive_trailers(stream_id, ends_stream, block)
            return
        self._last_stream_id = stream_id
        head = self._decoder.decode_head(block)
        if head.plan is None and head.fault is None:
            head.plan = self._handler.plan_request(head)
        if self.is_draining or len(self.streams) >= self._max_streams:
            self._count_control_frame()
            self.sender.refuse(stream_id, ErrorCode.REFUSED_STREAM)
        elif head.fault or (ends_stream and head.content_length > 0):
            self._count_reset()
            self.sender.refuse(stream_id, ErrorCode.PROTOCOL_ERROR)
        else:
            self._open_stream(stream_id, ends_stream, head)

    def _open_stream(self, stream_id: int, ends_stream: bool, head: RequestHead) -> None:
        self.streams[stream_id] = stream = Stream(stream_id, head, self.sender.peer_stream_window)
        if ends_stream:
            assert head.plan is not None
            stream.is_remote_closed = True
            head.plan.serve_whole(stream, b"")
        else:
            self._opened = stream

    def _receive_trailers(self, stream_id: int, ends_stream: bool, block: bytes) -> None:
        fault = self._decoder.decode_trailers(block)
        stream = self.streams.get(stream_id)
        if stream is None:
            self._check_was_reset(stream_id, "HEADERS")
        elif stream.is_remote_closed:
            raise ConnectionFault(ErrorCode.STREAM_CLOSED, f"HEADERS after the end of stream {stream_id}")
        elif fault or not ends_stream or stream.body_remaining > 0:
            self._fail_stream(stream, ErrorCode.PROTOCOL_ERROR)
        else:
            stream.is_remote_closed = True
            stream.receiver.on_end()

    # Other frames

    def _receive_rst_stream(self, flags: int, stream_id: int, payload: bytes) -> None:
        self._check_is_not_idle(stream_id, "RST_STREAM")
        stream = self.streams.get(stream_id)
        if stream is None:
            self._count_control_frame()
        else:
            self._count_reset()
            self._drop_stream(stream)

    def _receive_window_update(self, flags: int, stream_id: int, payload: bytes) -> None:
        increment = frames.decode_uint32(payload) & frames.MAX_WINDOW_BYTE_SIZE
        if increment < _SMALL_INCREMENT:
            self._count_control_frame()
        if stream_id == 0:
            if increment == 0:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE by 0")
            self.sender.window += increment
            if self.sender.window > frames.MAX_WINDOW_BYTE_SIZE:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "window of the connection over 2^31-1")
        else:
            self._check_is_not_idle(stream_id, "WINDOW_UPDATE")
            stream = self.streams.get(stream_id)
            if stream is None:
                return
            stream.send_window += increment
            if increment == 0:
                self._fail_stream(stream, ErrorCode.PROTOCOL_ERROR)
            elif stream.send_window > frames.MAX_WINDOW_BYTE_SIZE:
                self._fail_stream(stream, ErrorCode.FLOW_CONTROL_ERROR)
        if self.sender.blocked:
            self.sender.pump()

    def _receive_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS on a stream")
        if flags & frames.FLAG_ACK and not self._has_settings:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")
        self._count_control_frame()
        if flags & frames.FLAG_ACK:
            if payload:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS acknowledgement with a payload")
            return
        self._has_settings = True
        self.sender.obey_settings(frames.decode_settings(payload))
        self._send(frames.SETTINGS_ACK)
        self.sender.pump()

    def _receive_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PING on a stream")
        self._count_control_frame()
        if not flags & frames.FLAG_ACK:
            if self.keepalive is not None and not self.keepalive.receive_ping(
                self.last_received_ns, bool(self.streams), self._sent_marker()
            ):
                raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too_many_pings")
            self._send(frames.encode_ping(payload, is_ack=True))
        elif payload == _SHUTDOWN_PING:
            # The peer has seen the first GOAWAY: what it sent before that is here.
            self.finish_shutdown()

    def _receive_goaway(self, flags: int, stream_id: int, payload: bytes) -> None:
        # The peer opens no more streams. It still wants its answers, and closes when it has them.
        if stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "GOAWAY on a stream")
        self._count_control_frame()

    def _receive_priority(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id == 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PRIORITY without a stream")
        self._count_control_frame()

    def _receive_push_promise(self, flags: int, stream_id: int, payload: bytes) -> None:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE from a client")

    # Faults and bounds

    def _check_is_not_idle(self, stream_id: int, frame: str) -> None:
        if stream_id & 1 == 0 or stream_id > self._last_stream_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"{frame} on idle stream {stream_id}")

    def _check_was_reset(self, stream_id: int, frame: str) -> None:
        """DATA or HEADERS for a stream that is not open: fine only if it may have been sent before our reset."""
        self._check_is_not_idle(stream_id, frame)
        if stream_id not in self.sender.reset_streams:
            raise ConnectionFault(ErrorCode.STREAM_CLOSED, f"{frame} on closed stream {stream_id}")

    def _count_control_frame(self) -> None:
        # Stream ids are odd: two for each request.
        request_count = (self._last_stream_id + 1) >> 1
        data_count = self._data_count + self.sender.data_count
        if not self._control_frames.take(self.last_received_ns, request_count, data_count):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many control frames")

    def _count_reset(self) -> None:
        if not self._resets.take(self.last_received_ns):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many stream resets")

    def _fail_stream(self, stream: Stream, code: ErrorCode) -> None:
        """The peer broke the protocol on this stream: a reset it caused counts like one it sent."""
        self._count_reset()
        self.sender.reset_stream(stream, code)
        stream.receiver.on_reset()

    def _drop_stream(self, stream: Stream) -> None:
        self.sender.close_stream(stream)
        stream.receiver.on_reset()

    # Pings

    def _sent_marker(self) -> object:
        """A value that changes with every answer and every piece of one."""
        return self._last_stream_id, len(self.streams), self.sender.data_count

    def check_keepalive(self, now_ns: int) -> bool:
        """Send a ping if one is due; False if the client has not answered the last one in time."""
        if self.keepalive is None or self.is_closed:
            return True
        action = self.keepalive.check(now_ns, self.last_received_ns, bool(self.streams), self._sent_marker())
        if action is KeepaliveAction.PING:
            self._send(frames.encode_ping(PING, is_ack=False))
        return action is not KeepaliveAction.GIVE_UP

    # Ending

    def begin_shutdown(self) -> None:
        """Announce the end of the connection: what the peer has sent by the time it hears this is still served.

        `is_draining` turns true when the peer has heard it; the connection is over when `streams` is then empty.
        """
        if not self.is_closed and not self.is_draining:
            self._send(frames.encode_goaway(frames.MAX_STREAM_ID, ErrorCode.NO_ERROR))
            self._send(frames.encode_ping(_SHUTDOWN_PING, is_ack=False))

    def finish_shutdown(self) -> None:
        """Accept no more streams, because the peer has heard of the end, or has had the time to."""
        if not self.is_closed and not self.is_draining:
            self.is_draining = self.is_ending = True
            self._send(frames.encode_goaway(self._last_stream_id, ErrorCode.NO_ERROR))

    def close(self, code: ErrorCode, text: str = "") -> None:
        """End the connection now: GOAWAY is the last to send, and every stream's receiver is told."""
        if not self.is_closed:
            self._send(frames.encode_goaway(self._last_stream_id, code, text))
            self.abandon()

    def abandon(self) -> None:
        """The connection is gone: every stream's receiver is told, and nothing is received any more."""
        if not self.is_closed:
            self.is_closed = self.is_ending = True
            self._rest = b""
            for stream in list(self.streams.values()):
                if not stream.is_closed:
                    self._drop_stream(stream)

    def check_invariants(self) -> None:
        """For tests."""
        self.sender.check_invariants()
        assert len(self.streams) <= self._max_streams
        assert 0 <= self._credit <= self._window
        assert not self._rest or not self.payload.is_open
        for stream in self.streams.values():
            assert stream.is_remote_closed or stream.receive_credit >= 0


_FrameReceiver = Callable[[ServerConnection, int, int, bytes], None]

# Every known type but DATA: the least and the greatest payload, and what takes it.
_FRAMES: Final[dict[int, tuple[int, int, _FrameReceiver]]] = {
    frames.HEADERS: (0, frames.MAX_MAX_FRAME_BYTE_SIZE, ServerConnection._receive_headers),
    frames.PRIORITY: (5, 5, ServerConnection._receive_priority),
    frames.RST_STREAM: (4, 4, ServerConnection._receive_rst_stream),
    frames.SETTINGS: (0, _MAX_SETTINGS_BYTE_SIZE, ServerConnection._receive_settings),
    frames.PUSH_PROMISE: (0, frames.MAX_MAX_FRAME_BYTE_SIZE, ServerConnection._receive_push_promise),
    frames.PING: (8, 8, ServerConnection._receive_ping),
    frames.GOAWAY: (8, frames.MAX_MAX_FRAME_BYTE_SIZE, ServerConnection._receive_goaway),
    frames.WINDOW_UPDATE: (4, 4, ServerConnection._receive_window_update),
    frames.CONTINUATION: (0, frames.MAX_MAX_FRAME_BYTE_SIZE, ServerConnection._receive_continuation),
}
