"""The sending half of a connection: answers become frames in `output`, no faster than the peer's windows allow.

DATA that fits goes to `output` at once. DATA that does not, because a window is used up, the socket is full
(`hold`), or `output` holds as much as the write limit, is queued on its stream as views of the caller's buffers, and
moves when a window grows, or when the caller has taken `output` and calls `pump`. Streams take turns.

Invariants: a stream is in `streams` until it is closed; it is in `blocked` if and only if DATA is queued on it.
Frames of one stream stay in order.

Source: RFC 9113, sections 5.1, 5.2 and 6.9.
"""

import struct
from collections.abc import Iterable, Sequence
from typing import Final

from merrow.core.tensor import Buffer
from merrow.wire.http2 import frames
from merrow.wire.http2.frames import ConnectionFault, ErrorCode, Setting
from merrow.wire.http2.stream import Stream

_DATA: Final = frames.DATA
_HEADERS: Final = frames.HEADERS
_END_STREAM: Final = frames.FLAG_END_STREAM
_END_HEADERS: Final = frames.FLAG_END_HEADERS
_pack_frame_header = frames.FRAME_HEADER.pack

# Streams that this side ended early are remembered for a while, because frames for them may be on their way.
_MAX_REMEMBERED_RESETS = 1024
# DATA that one stream may send before it is the next one's turn.
_TURN_BYTE_SIZE = 64 * 1024


class ReplyTemplate:
    """The constant header blocks around a whole answer, with the frames' headers already half packed."""

    __slots__ = ("head_block", "head_frame", "pack_end", "pack_start", "trailers_block", "trailers_frame")

    def __init__(self, head_block: bytes, trailers_block: bytes) -> None:
        self.head_block = head_block
        self.trailers_block = trailers_block
        # What comes before the stream's id in a frame's header.
        self.head_frame = frames.encode_frame_header(len(head_block), _HEADERS, _END_HEADERS, 0)[:5]
        self.trailers_frame = frames.encode_frame_header(len(trailers_block), _HEADERS, _END_HEADERS | _END_STREAM, 0)[
            :5
        ]
        self.pack_start = struct.Struct(f">5sI{len(head_block)}sHBBBI").pack
        self.pack_end = struct.Struct(f">5sI{len(trailers_block)}s").pack


class Sender:
    """Sends for one connection; see the module. Every method that names a stream is a no-op once that is closed."""

    __slots__ = (
        "_is_held",
        "_is_pumping",
        "_write_limit",
        "blocked",
        "data_count",
        "max_frame_byte_size",
        "output",
        "output_byte_size",
        "peer_stream_window",
        "reset_streams",
        "streams",
        "window",
    )

    def __init__(self, write_limit: int) -> None:
        """
        Args:
            write_limit: bytes of DATA that `output`, and a writable stream's queue, hold at most (one turn more).
        """
        self._write_limit = write_limit
        # What there is to send, in order, and how much of it is DATA.
        self.output: list[Buffer] = []
        self.output_byte_size = 0
        # Runs of DATA that were sent apart from whole answers, and turns of queued ones.
        self.data_count = 0
        self.streams: dict[int, Stream] = {}
        self.reset_streams: dict[int, None] = {}
        # The peer's settings and the connection's window.
        self.window = frames.DEFAULT_WINDOW_BYTE_SIZE
        self.peer_stream_window = frames.DEFAULT_WINDOW_BYTE_SIZE
        self.max_frame_byte_size = frames.DEFAULT_MAX_FRAME_BYTE_SIZE
        self._is_held = False
        self._is_pumping = False
        # Streams on which DATA waits, in the order of their turns. Some of it may move when `output` has been taken
        # and `pump` is called.
        self.blocked: dict[int, Stream] = {}

    def send_reply(
        self, stream: Stream, template: "ReplyTemplate", prefix: bytes, parts: Sequence[Buffer], byte_size: int
    ) -> None:
        """A whole answer: HEADERS, DATA made of `prefix` and `parts`, and trailers.

        Args:
            byte_size: of `prefix` and `parts` together.
        """
        if stream.is_closed:
            return
        if (
            byte_size <= stream.send_window
            and byte_size <= self.window
            and byte_size <= self.max_frame_byte_size
            and stream.queue is None
            and self.output_byte_size + byte_size <= self._write_limit
            and not self._is_held
        ):
            stream_id = stream.id
            self.window -= byte_size
            self.output_byte_size += byte_size
            output = self.output
            output.append(
                template.pack_start(
                    template.head_frame,
                    stream_id,
                    template.head_block,
                    byte_size >> 8,
                    byte_size & 0xFF,
                    _DATA,
                    0,
                    stream_id,
                )
            )
            output.append(prefix)
            output += parts
            output.append(template.pack_end(template.trailers_frame, stream_id, template.trailers_block))
            if stream.is_remote_closed:
                # As `_end_stream`.
                stream.is_closed = True
                del self.streams[stream_id]
            else:
                self._end_stream(stream)
        else:
            self.send_headers(stream, template.head_block)
            self.send_data(stream, (prefix, *parts), byte_size)
            self.send_end(stream, template.trailers_block)

    def send_headers(self, stream: Stream, block: bytes, ends_stream: bool = False) -> None:
        """A header block: an interim one, the response's, or with `ends_stream` one that is the whole answer."""
        if stream.is_closed:
            return
        self.output.append(frames.encode_header_frames(stream.id, block, ends_stream, self.max_frame_byte_size))
        if ends_stream:
            self._end_stream(stream)

    def send_data(self, stream: Stream, parts: Sequence[Buffer], byte_size: int, ends_stream: bool = False) -> None:
        """A run of DATA: sent as far as windows allow, the rest (views of `parts`) queued."""
        if stream.is_closed:
            return
        self.data_count += 1
        if (
            byte_size <= stream.send_window
            and byte_size <= self.window
            and byte_size <= self.max_frame_byte_size
            and self.output_byte_size + byte_size <= self._write_limit
            and not self._is_held
            and not stream.queue
        ):
            if byte_size or ends_stream:
                stream.send_window -= byte_size
                self.window -= byte_size
                self.output_byte_size += byte_size
                flags = _END_STREAM if ends_stream else 0
                self.output.append(_pack_frame_header(byte_size >> 8, byte_size & 0xFF, _DATA, flags, stream.id))
                self.output += parts
                if ends_stream:
                    self._end_stream(stream)
        elif byte_size:
            if stream.queue is None:
                stream.begin_queueing()
            assert stream.queue is not None
            stream.queue.extend(part for part in parts if len(part))
            stream.queued_byte_size += byte_size
            if ends_stream:
                stream.end_block = b""
            self.blocked[stream.id] = stream
            self.pump()
        elif ends_stream:
            self.send_end(stream)

    def send_end(self, stream: Stream, trailers_block: bytes = b"") -> None:
        """End the answer, with trailers unless the block is empty, once what is queued has been sent."""
        if stream.is_closed:
            return
        if stream.queue:
            stream.end_block = trailers_block
        elif trailers_block:
            self.send_headers(stream, trailers_block, ends_stream=True)
        else:
            self.output.append(_pack_frame_header(0, 0, _DATA, _END_STREAM, stream.id))
            self._end_stream(stream)

    def reset_stream(self, stream: Stream, code: ErrorCode) -> None:
        """End a stream at once. Its receiver is not told."""
        if not stream.is_closed:
            self.close_stream(stream)
            self.refuse(stream.id, code)

    def refuse(self, stream_id: int, code: ErrorCode) -> None:
        """Tell the peer that a stream is over, one that may never have been opened."""
        self.output.append(frames.encode_rst_stream(stream_id, code))
        remembered = self.reset_streams
        if len(remembered) >= _MAX_REMEMBERED_RESETS:
            del remembered[next(iter(remembered))]
        remembered[stream_id] = None

    def close_stream(self, stream: Stream) -> None:
        """Forget a stream that has ended, and what waits on it."""
        stream.is_closed = True
        self.streams.pop(stream.id, None)
        if stream.queue is not None:
            self.blocked.pop(stream.id, None)
            stream.queue = None

    def _end_stream(self, stream: Stream) -> None:
        """This side has sent its last frame. A client that still sends is told that nobody listens."""
        if not stream.is_remote_closed:
            self.refuse(stream.id, ErrorCode.NO_ERROR)
        self.close_stream(stream)

    # What waits

    def is_writable(self, stream: Stream) -> bool:
        """Whether less than the write limit waits on this stream, and the socket takes more."""
        return not self._is_held and (stream.queue is None or stream.queued_byte_size < self._write_limit)

    def take_output(self) -> list[Buffer]:
        """What there is to send, in order; empty if nothing."""
        output = self.output
        self.output = []
        self.output_byte_size = 0
        return output

    def hold(self) -> None:
        """The socket takes no more: no DATA goes to `output` until `release`."""
        self._is_held = True

    def release(self) -> None:
        """The socket takes more again: the receivers of streams that are writable are told."""
        if self._is_held:
            self._is_held = False
            self.pump()
            for stream in list(self.streams.values()):
                if not stream.is_closed and self.is_writable(stream):
                    stream.receiver.on_drained()

    def pump(self) -> None:
        """Move queued DATA to `output`, in turns, as far as the windows and the write limit allow."""
        if self._is_pumping:
            return
        self._is_pumping = True
        drained: list[Stream] = []
        has_moved = True
        while has_moved:
            has_moved = False
            for stream in list(self.blocked.values()):
                if self.window <= 0 or self.output_byte_size >= self._write_limit or self._is_held:
                    has_moved = False
                    break
                if stream.send_window > 0:
                    has_moved = True
                    was_writable = self.is_writable(stream)
                    self._send_turn(stream)
                    if not was_writable and self.is_writable(stream):
                        drained.append(stream)
        self._is_pumping = False
        for stream in drained:
            if not stream.is_closed:
                stream.receiver.on_drained()

    def _send_turn(self, stream: Stream) -> None:
        queue = stream.queue
        assert queue, "a blocked stream has queued data"
        turn = min(_TURN_BYTE_SIZE, stream.send_window, self.window, stream.queued_byte_size)
        self.data_count += 1
        stream.send_window -= turn
        self.window -= turn
        stream.queued_byte_size -= turn
        self.output_byte_size += turn
        while turn:
            byte_size = min(turn, self.max_frame_byte_size)
            turn -= byte_size
            is_last = stream.end_block == b"" and turn == 0 and stream.queued_byte_size == 0
            flags = _END_STREAM if is_last else 0
            self.output.append(_pack_frame_header(byte_size >> 8, byte_size & 0xFF, _DATA, flags, stream.id))
            while byte_size:
                part = queue[0]
                if len(part) <= byte_size:
                    byte_size -= len(part)
                    self.output.append(queue.popleft())
                else:
                    view = memoryview(part)
                    self.output.append(view[:byte_size])
                    queue[0] = view[byte_size:]
                    byte_size = 0
        # Last in the order of turns, if at all.
        del self.blocked[stream.id]
        if queue:
            self.blocked[stream.id] = stream
        elif stream.end_block == b"":
            self._end_stream(stream)
        elif stream.end_block is not None:
            self.send_headers(stream, stream.end_block, ends_stream=True)

    # What the peer wants

    def obey_settings(self, settings: Iterable[tuple[int, int]]) -> None:
        """Take over what the peer's SETTINGS say about how it is sent to; `pump` is to be called then.

        Raises:
            ConnectionFault: a value is not allowed, or overflows the window of a stream.
        """
        for setting, value in settings:
            if setting == Setting.INITIAL_WINDOW_SIZE:
                self._change_peer_stream_window(value)
            elif setting == Setting.MAX_FRAME_SIZE:
                if not frames.DEFAULT_MAX_FRAME_BYTE_SIZE <= value <= frames.MAX_MAX_FRAME_BYTE_SIZE:
                    raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"SETTINGS_MAX_FRAME_SIZE of {value}")
                self.max_frame_byte_size = value
            elif setting == Setting.ENABLE_PUSH and value > 1:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"SETTINGS_ENABLE_PUSH of {value}")

    def _change_peer_stream_window(self, value: int) -> None:
        if value > frames.MAX_WINDOW_BYTE_SIZE:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, f"SETTINGS_INITIAL_WINDOW_SIZE of {value}")
        change = value - self.peer_stream_window
        self.peer_stream_window = value
        for stream in self.streams.values():
            stream.send_window += change
            if stream.send_window > frames.MAX_WINDOW_BYTE_SIZE:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "window of a stream over 2^31-1")

    def check_invariants(self) -> None:
        """For tests: what is said at the top of this module."""
        for stream_id, stream in self.streams.items():
            assert stream.id == stream_id
            assert not stream.is_closed
            assert (stream_id in self.blocked) == bool(stream.queue)
            if stream.queue is not None:
                assert stream.queued_byte_size == sum(len(part) for part in stream.queue)
                assert stream.queue or stream.end_block is None
        assert set(self.blocked) <= set(self.streams)
        assert len(self.reset_streams) <= _MAX_REMEMBERED_RESETS
