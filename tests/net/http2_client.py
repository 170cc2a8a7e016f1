"""A client of HTTP/2 and gRPC that speaks in frames with a connection in memory."""

import struct
from typing import Any

from hpack import Decoder, Encoder

from merrow.settings import ConnectionLimits
from merrow.wire.http2 import frames
from tests.net.serving import MemoryConnection
from tests.wire.http2.recording import Frame, data_frame, frame, split_frames

__all__ = ["Http2Client", "data_frame", "frame", "message"]

GRPC_HEAD = [(":status", "200"), ("content-type", "application/grpc")]


def message(body: bytes, flags: int = 0) -> bytes:
    """A length-prefixed message."""
    return struct.pack(">BI", flags, len(body)) + body


class Http2Client(MemoryConnection):
    """A connection that has greeted and been greeted."""

    def __init__(
        self,
        limits: ConnectionLimits | None = None,
        application: Any = None,
        settings: dict[int, int] | None = None,
    ) -> None:
        super().__init__(limits, application)
        self.encoder = Encoder()
        self.decoder = Decoder()
        self.receive(frames.PREFACE + frames.encode_settings(settings or {}))
        assert [sent[0] for sent in self.frames()] == [frames.SETTINGS, frames.WINDOW_UPDATE, frames.SETTINGS]

    def headers(self, stream_id: int, fields: list[tuple[str, str]], *, end: bool = False) -> bytes:
        block = self.encoder.encode(fields)
        flags = frames.FLAG_END_HEADERS | (frames.FLAG_END_STREAM if end else 0)
        return frames.encode_frame_header(len(block), frames.HEADERS, flags, stream_id) + block

    def call_head(self, stream_id: int, method: str, *fields: tuple[str, str], end: bool = False) -> bytes:
        """HEADERS of a gRPC call."""
        pseudo = [(":method", "POST"), (":scheme", "http"), (":path", f"/test.Echo/{method}"), (":authority", "h")]
        return self.headers(
            stream_id, [*pseudo, ("te", "trailers"), ("content-type", "application/grpc"), *fields], end=end
        )

    def call(self, stream_id: int, method: str, body: bytes, *fields: tuple[str, str]) -> bytes:
        """A whole gRPC request whose DATA is `body`."""
        return self.call_head(stream_id, method, *fields) + data_frame(stream_id, body, end=True)

    def request_head(
        self, stream_id: int, path: str, *fields: tuple[str, str], method: str = "POST", end: bool = False
    ) -> bytes:
        """HEADERS of a request that is no call."""
        pseudo = [(":method", method), (":scheme", "http"), (":path", path), (":authority", "h")]
        return self.headers(stream_id, [*pseudo, *fields], end=end)

    def request(self, stream_id: int, path: str, body: bytes, *fields: tuple[str, str]) -> bytes:
        return self.request_head(stream_id, path, *fields) + data_frame(stream_id, body, end=True)

    def frames(self) -> list[Frame]:
        """What the server has sent."""
        return split_frames(self.written())

    def answers(self) -> dict[int, list[Any]]:
        """What the server has sent on each stream: lists of fields, joined DATA, "end", and ("reset", code)."""
        answers: dict[int, list[Any]] = {}
        for kind, flags, stream_id, payload in self.frames():
            if kind not in (frames.DATA, frames.HEADERS, frames.RST_STREAM):
                continue
            answer = answers.setdefault(stream_id, [])
            if kind == frames.HEADERS:
                answer.append([(str(name), str(value)) for name, value in self.decoder.decode(payload)])
            elif kind == frames.RST_STREAM:
                answer.append(("reset", int.from_bytes(payload, "big")))
                continue
            elif answer and isinstance(answer[-1], bytes):
                answer[-1] += payload
            else:
                answer.append(payload)
            if flags & frames.FLAG_END_STREAM:
                answer.append("end")
        return answers

    def answer(self) -> list[Any]:
        """What the server has sent on the one stream that it sent on."""
        [answer] = self.answers().values()
        return answer


def ok(*messages: bytes) -> list[Any]:
    """The answer to a call that succeeded."""
    body = b"".join(map(message, messages))
    return [GRPC_HEAD, *([body] if body else []), [("grpc-status", "0")], "end"]


def failed(status: int, text: str = "") -> list[Any]:
    """The answer to a call that failed before it had sent a message."""
    fields = [("grpc-status", str(status))]
    if text:
        fields.append(("grpc-message", text))
    return [[*GRPC_HEAD, *fields], "end"]
