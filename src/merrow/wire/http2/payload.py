"""The payload of the frame that is being received: of a DATA frame, or of one to skip.

DATA may be long, and is handed on in the pieces that arrive; or the socket writes it straight to where the receiver of
its stream wants it (`direct_view`). Nothing of it is kept here.

    not open    the next byte begins a frame
    open        `remaining` bytes of the body of `stream` (None: of nobody's), then `padding_remaining` of padding

A stream may be closed while its payload arrives; the rest is then nobody's.

Source: RFC 9113, section 6.1.
"""

from merrow.wire.http2.stream import Stream


class Payload:
    """See the module. One object for all frames of a connection; `ends_stream` says that the frame is the last."""

    __slots__ = ("ends_stream", "is_open", "padding_remaining", "remaining", "stream")

    def __init__(self) -> None:
        self.is_open = False
        self.stream: Stream | None = None
        self.remaining = 0
        self.padding_remaining = 0
        self.ends_stream = False

    def begin(
        self, stream: Stream | None, byte_size: int, padding_byte_size: int = 0, ends_stream: bool = False
    ) -> None:
        """A frame's header has been received; with nothing to come, `receive` ends the payload."""
        self.is_open = True
        self.stream = stream
        self.remaining = byte_size
        self.padding_remaining = padding_byte_size
        self.ends_stream = ends_stream

    def receive(self, data: bytes, position: int, end: int) -> int:
        """Hand on what `data` has of the payload from `position` on; returns the position after it."""
        stream = self.stream
        remaining = self.remaining
        if remaining:
            piece_end = min(position + remaining, end)
            self.remaining = remaining - (piece_end - position)
            if piece_end > position and stream is not None and not stream.is_closed:
                stream.receiver.on_data(data[position:piece_end])
            position = piece_end
        if self.remaining == 0:
            skipped = min(self.padding_remaining, end - position)
            self.padding_remaining -= skipped
            position += skipped
            if self.padding_remaining == 0:
                self.is_open = False
                self.stream = None
                if self.ends_stream and stream is not None and not stream.is_closed:
                    stream.is_remote_closed = True
                    stream.receiver.on_end()
        return position

    def direct_view(self, min_byte_size: int) -> memoryview | None:
        """Where the rest of the body may be written to; `ServerConnection.advance_direct` is to be called then.

        None unless at least `min_byte_size` bytes are to come, and the receiver of the stream knows their place.
        """
        stream = self.stream
        if self.remaining < min_byte_size or stream is None or stream.is_closed:
            return None
        view = stream.receiver.body_view()
        return None if view is None else view[: self.remaining]
