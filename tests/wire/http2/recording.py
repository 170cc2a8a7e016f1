"""A connection's handler that writes down what it is told, and a client that speaks in frames."""

from hpack import Decoder, Encoder

from merrow.settings import ConnectionLimits
from merrow.wire.http2 import frames
from merrow.wire.http2.connection import ServerConnection
from merrow.wire.http2.stream import RequestHead, Stream

Frame = tuple[int, int, int, bytes]
"""(type, flags, stream id, payload)"""

POST = ((":method", "POST"), (":scheme", "http"), (":path", "/x"), (":authority", "host"))
GET = ((":method", "GET"), (":scheme", "http"), (":path", "/x"), (":authority", "host"))


class RecordingReceiver:
    """Collects one stream's body."""

    def __init__(self, handler: "RecordingHandler", stream: Stream) -> None:
        self.handler = handler
        self.stream = stream
        self.body = b""
        # Set by tests that want the body there.
        self.place: bytearray | None = None
        self.placed_byte_size = 0

    def on_data(self, data: bytes) -> None:
        assert data, "empty pieces are not handed on"
        assert not self.stream.is_closed
        self.body += data

    def body_view(self) -> memoryview | None:
        return None if self.place is None else memoryview(self.place)[self.placed_byte_size :]

    def advance_body(self, byte_size: int) -> None:
        self.placed_byte_size += byte_size

    def on_end(self) -> None:
        self.handler.events.append(("end", self.stream.id, self.body))

    def on_reset(self) -> None:
        self.handler.events.append(("reset", self.stream.id))

    def on_drained(self) -> None:
        self.handler.events.append(("drained", self.stream.id))


class RecordingHandler:
    """Serves nothing; `events` says what arrived, whole requests and pieces alike."""

    def __init__(self) -> None:
        self.events: list[tuple[object, ...]] = []
        self.streams: dict[int, Stream] = {}
        self.planned: list[RequestHead] = []

    def plan_request(self, head: RequestHead) -> "RecordingHandler":
        self.planned.append(head)
        return self

    def serve(self, stream: Stream) -> None:
        self.streams[stream.id] = stream
        stream.receiver = RecordingReceiver(self, stream)
        self.events.append(("request", stream.id, stream.head.path))

    def serve_whole(self, stream: Stream, body: object) -> None:
        self.serve(stream)
        self.events.append(("end", stream.id, bytes(body)))


class Wire:
    """A server connection with its handler, and the client's side of it as frames."""

    def __init__(self, limits: ConnectionLimits | None = None, *, has_greeted: bool = True) -> None:
        self.handler = RecordingHandler()
        self.connection = ServerConnection(self.handler, limits or ConnectionLimits(), now_ns=0)
        self.encoder = Encoder()
        self.decoder = Decoder()
        self.now_ns = 0
        if has_greeted:
            self.greet()

    def greet(self, settings: dict[int, int] | None = None) -> None:
        self.receive(frames.PREFACE + frames.encode_settings(settings or {}))
        self.sent()

    @property
    def events(self) -> list[tuple[object, ...]]:
        return self.handler.events

    def receive(self, data: bytes) -> None:
        self.connection.receive(data, self.now_ns)
        self.connection.check_invariants()

    def headers(self, stream_id: int, fields=POST, *extra, end: bool = False) -> bytes:
        return self.block_frame(stream_id, self.encoder.encode([*fields, *extra], huffman=False), end=end)

    def block_frame(self, stream_id: int, block: bytes, *, end: bool = False) -> bytes:
        flags = frames.FLAG_END_HEADERS | (frames.FLAG_END_STREAM if end else 0)
        return frames.encode_frame_header(len(block), frames.HEADERS, flags, stream_id) + block

    def sent_bytes(self) -> bytes:
        """What the server has to send."""
        sent = b"".join(self.connection.sender.take_output())
        self.connection.sender.pump()
        self.connection.check_invariants()
        return sent

    def sent(self) -> list[Frame]:
        """All that the server sends, as frames, until nothing moves any more."""
        sent: list[Frame] = []
        while data := self.sent_bytes():
            sent += split_frames(data)
        return sent

    def sent_fields(self, frame: Frame) -> list[tuple[str, str]]:
        assert frame[0] == frames.HEADERS
        return [(str(name), str(value)) for name, value in self.decoder.decode(frame[3])]

    def goaway(self) -> tuple[int, str]:
        """(code, text) of the GOAWAY that ended the connection."""
        assert self.connection.is_closed
        kind, _, _, payload = self.sent()[-1]
        assert kind == frames.GOAWAY
        return int.from_bytes(payload[4:8], "big"), payload[8:].decode()

    def reset_code(self) -> int:
        """The code of the one RST_STREAM that is all that was sent."""
        [(kind, _, _, payload)] = self.sent()
        assert kind == frames.RST_STREAM
        return int.from_bytes(payload, "big")


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    return frames.encode_frame_header(len(payload), kind, flags, stream_id) + payload


def data_frame(stream_id: int, payload: bytes, *, end: bool = False) -> bytes:
    return frame(frames.DATA, frames.FLAG_END_STREAM if end else 0, stream_id, payload)


def split_frames(data: bytes) -> list[Frame]:
    result: list[Frame] = []
    position = 0
    while position < len(data):
        high, low, kind, flags, stream_id = frames.FRAME_HEADER.unpack_from(data, position)
        end = position + 9 + (high << 8 | low)
        assert end <= len(data), "the server sends whole frames"
        result.append((kind, flags, stream_id, data[position + 9 : end]))
        position = end
    return result
