"""gRPC for the load generator: prepared HTTP/2 frames out, frame headers parsed in.

The request's header block uses HPACK literals without indexing, so it is the same bytes for every request and only the
stream id changes. Of an answer, the DATA is compared with the first one's (its size alone, if it is large), and
END_STREAM says when it is complete; only the first answer's headers are decoded. SETTINGS and PING are acknowledged and
flow control is kept, both ways.
"""

import struct

import hpack

from bench.load import Connection, LoadError
from bench.workload import Workload

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 4, 5

HEADER = struct.Struct(">HBBBI")
LARGEST_WINDOW = 2**31 - 1
# Bytes received until the connection's window is opened again.
WINDOW_STEP = 2**30
LARGEST_READ = 1 << 20
SMALL_READ = 4096
PATH = "/inference.GRPCInferenceService/ModelInfer"


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    size = len(payload)
    return HEADER.pack(size >> 8, size & 255, kind, flags, stream) + payload


def header_block(port: int) -> bytes:
    """The request's headers; literals without indexing, so nothing enters the server's dynamic table."""
    indexed = b"\x83\x86"  # :method POST, :scheme http
    literals = (
        (b"\x04", PATH.encode()),  # :path
        (b"\x01", f"127.0.0.1:{port}".encode()),  # :authority
        (b"\x0f\x10", b"application/grpc"),  # content-type
    )
    block = indexed + b"".join(name + bytes([len(value)]) + value for name, value in literals)
    return block + b"\x00\x02te\x08trailers"


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _field(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def build_message(workload: Workload) -> bytes:
    """A ModelInferRequest with one raw input, after gRPC's five bytes of prefix."""
    shape = b"".join(_varint(dim) for dim in workload.shape)
    tensor = _field(1, workload.input_name.encode()) + _field(2, b"FP32") + _field(3, shape)
    message = (
        _field(1, workload.model.encode())
        + _field(5, tensor)
        + _field(6, _field(1, workload.output_name.encode()))
        + _field(7, workload.data)
    )
    return struct.pack(">BI", 0, len(message)) + message


class GrpcConnection(Connection):
    """One HTTP/2 connection with one call at a time: every END_STREAM is the end of that one."""

    def __init__(self, port: int, workload: Workload) -> None:
        super().__init__(port)
        self._message = memoryview(build_message(workload))
        self._headers = header_block(port)
        self._stream = -1
        self._buffer = bytearray()
        # A buffer of LARGEST_READ costs more to make than a small answer to read.
        self._read_size = LARGEST_READ if len(workload.data) > SMALL_READ // 2 else SMALL_READ
        self._max_frame_size = 16_384
        self._initial_window = 65_535
        self._window = 65_535  # What we may send on the connection, and on the stream.
        self._stream_window = 65_535
        self._unreported = 0
        self._position = len(self._message)  # How much of the message went out.
        self._unsent = b""
        self._data: list[bytes] = []
        self._answer_size = 0
        self._expected: bytes | None = None
        # Of a large answer, after the first one, only the size is compared: the server is what is to be busy.
        self._is_compared = True
        self._blocks: list[bytes] = []  # The first answer's header blocks.
        # A small request is patched and sent in one go: the frames with both stream ids.
        self._template = bytearray(
            frame(HEADERS, END_HEADERS, 0, self._headers)
            + frame(DATA, END_STREAM, 0, bytes(self._message) if len(self._message) <= 16_384 else b"")
        )
        self._second_id = 9 + len(self._headers) + 5
        settings = struct.pack(">HIHI", INITIAL_WINDOW_SIZE, LARGEST_WINDOW, MAX_FRAME_SIZE, 2**24 - 1)
        update = struct.pack(">I", LARGEST_WINDOW - 65_535)
        try:
            self.socket.sendall(PREFACE + frame(SETTINGS, 0, 0, settings) + frame(WINDOW_UPDATE, 0, 0, update))
            self._first_answer(workload)
        except BaseException:
            self.close()
            raise

    def send_request(self) -> bool:
        self._stream += 2
        self._stream_window = self._initial_window
        size = len(self._message)
        if size <= 16_384 and size <= self._window and size <= self._stream_window and not self._unsent:
            struct.pack_into(">I", self._template, 5, self._stream)
            struct.pack_into(">I", self._template, self._second_id, self._stream)
            self._window -= size
            sent = self.socket.send(self._template)
            if sent < len(self._template):
                self._unsent = bytes(self._template[sent:])
            return bool(self._unsent)
        self._unsent += frame(HEADERS, END_HEADERS, self._stream, self._headers)
        self._position = 0
        return self.on_writable()

    def on_writable(self) -> bool:
        """Send as much as the socket and the windows take; False when only a window can bring more."""
        while True:
            if self._unsent:
                try:
                    sent = self.socket.send(self._unsent)
                except BlockingIOError:
                    return True
                self._unsent = self._unsent[sent:]
                if self._unsent:
                    return True
            left = len(self._message) - self._position
            size = min(left, self._window, self._stream_window, self._max_frame_size)
            if size <= 0:
                return False
            self._window -= size
            self._stream_window -= size
            flags = END_STREAM if size == left else 0
            self._unsent = frame(DATA, flags, self._stream, self._message[self._position : self._position + size])
            self._position += size

    @property
    def has_unsent(self) -> bool:
        return bool(self._unsent) or self._position < len(self._message)

    def on_readable(self) -> bool:
        data = self.socket.recv(self._read_size)
        if not data:
            raise LoadError("the server closed the connection")
        buffer = self._buffer
        buffer += data
        position, end, stream_end = 0, len(buffer), 0
        while position + 9 <= end:
            high, low, kind, flags, stream = HEADER.unpack_from(buffer, position)
            following = position + 9 + (high << 8 | low)
            if following > end:
                break
            if kind == DATA:
                size = following - position - 9
                self._answer_size += size
                self._unreported += size
                if self._is_compared:
                    self._data.append(bytes(buffer[position + 9 : following]))
                stream_end |= flags & END_STREAM
            elif kind == HEADERS:
                stream_end |= flags & END_STREAM
                if self._expected is None:
                    self._blocks.append(bytes(buffer[position + 9 : following]))
            else:
                self._on_control(kind, flags, stream, bytes(buffer[position + 9 : following]))
            position = following
        del buffer[:position]
        if self._unreported > WINDOW_STEP:
            self._unsent += frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", self._unreported))
            self._unreported = 0
        if not stream_end:
            return False
        self._check_answer()
        return True

    def _on_control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == WINDOW_UPDATE:
            (increment,) = struct.unpack(">I", payload)
            if stream == 0:
                self._window += increment
            elif stream == self._stream:
                self._stream_window += increment
        elif kind == SETTINGS and not flags & ACK:
            for identifier, value in struct.iter_unpack(">HI", payload):
                if identifier == INITIAL_WINDOW_SIZE:
                    self._stream_window += value - self._initial_window
                    self._initial_window = value
                elif identifier == MAX_FRAME_SIZE:
                    self._max_frame_size = value
            self._unsent += frame(SETTINGS, ACK, 0, b"")
        elif kind == PING and not flags & ACK:
            self._unsent += frame(PING, ACK, 0, payload)
        elif kind in (GOAWAY, RST_STREAM):
            raise LoadError(f"frame of type {kind} on stream {stream}: {payload!r}")

    def _check_answer(self) -> None:
        answer = self._data[0] if len(self._data) == 1 else b"".join(self._data)
        size = self._answer_size
        self._data.clear()
        self._answer_size = 0
        if self._expected is None:
            self._expected = answer
            self._is_compared = len(answer) <= LARGEST_READ
        elif size != len(self._expected) or (self._is_compared and answer != self._expected):
            raise LoadError(f"another answer than the first one: {answer[:500]!r}")

    def _first_answer(self, workload: Workload) -> None:
        """One call, blocking; its status must be 0, and its DATA must hold the tensor."""
        is_writable = self.send_request()
        while True:
            # Reading would wait for ever for the answer to a frame that was sent in part.
            while is_writable:
                is_writable = self.on_writable()
            if self.on_readable():
                break
            is_writable = self.has_unsent
        decoder = hpack.Decoder()
        headers = [header for block in self._blocks for header in decoder.decode(block)]
        if ("grpc-status", "0") not in headers:
            raise LoadError(f"the first call failed: {headers}")
        if self._expected is None or not self._expected.endswith(workload.data):
            raise LoadError("the first answer does not hold the tensor that was sent")
