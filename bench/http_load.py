"""HTTP/1.1 for the load generator: the bytes of one request, and when its answer is complete."""

import json

from bench.load import Connection, LoadError
from bench.workload import Workload

LARGEST_READ = 1 << 20


def build_request(workload: Workload) -> bytes:
    """Binary tensors both ways, as Triton's own client asks."""
    header = json.dumps(
        {
            "inputs": [
                {
                    "name": workload.input_name,
                    "datatype": "FP32",
                    "shape": list(workload.shape),
                    "parameters": {"binary_data_size": len(workload.data)},
                }
            ],
            "outputs": [{"name": workload.output_name, "parameters": {"binary_data": True}}],
        },
        separators=(",", ":"),
    ).encode()
    head = (
        f"POST /v2/models/{workload.model}/infer HTTP/1.1\r\nHost: bench\r\n"
        f"Inference-Header-Content-Length: {len(header)}\r\nContent-Length: {len(header) + len(workload.data)}\r\n\r\n"
    )
    return head.encode() + header + workload.data


def http_answer(data: bytes) -> bytes:
    """An answer that the load generator takes for one: it ends with the tensor."""
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n" % len(data) + data


class HttpConnection(Connection):
    """The first answer is parsed and kept; each later one must be the same bytes."""

    def __init__(self, port: int, workload: Workload) -> None:
        super().__init__(port)
        self._request = build_request(workload)
        self._unsent: memoryview | None = None
        try:
            self._expected = self._first_answer(workload)
        except BaseException:
            self.close()
            raise
        self._is_small = len(self._expected) <= LARGEST_READ // 2
        self._small_read = len(self._expected)
        self._buffer = bytearray(len(self._expected))
        self._received = 0

    def send_request(self) -> bool:
        sent = self.socket.send(self._request)
        if sent == len(self._request):
            return False
        self._unsent = memoryview(self._request)[sent:]
        return True

    def on_writable(self) -> bool:
        if self._unsent is not None:
            sent = self.socket.send(self._unsent)
            self._unsent = self._unsent[sent:] if sent < len(self._unsent) else None
        return self._unsent is not None

    @property
    def has_unsent(self) -> bool:
        return self._unsent is not None

    def on_readable(self) -> bool:
        if self._is_small and not self._received:
            # No larger than an answer: a buffer of LARGEST_READ costs more to make than to fill.
            data = self.socket.recv(self._small_read)
            if data == self._expected:
                return True
            count = len(data)
            self._buffer[:count] = data
        else:
            count = self.socket.recv_into(memoryview(self._buffer)[self._received :])
        if count == 0:
            raise LoadError("the server closed the connection")
        self._received += count
        if self._received < len(self._expected):
            return False
        self._received = 0
        if len(self._buffer) != len(self._expected) or (self._is_small and self._buffer != self._expected):
            raise LoadError(f"another answer than the first one: {bytes(self._buffer[:500])!r}")
        return True

    def _first_answer(self, workload: Workload) -> bytes:
        """One request, blocking; its answer must be right."""
        self.socket.sendall(self._request)
        received = b""
        while b"\r\n\r\n" not in received:
            received += self._receive()
        head, _, _ = received.partition(b"\r\n\r\n")
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        if not head.startswith(b"HTTP/1.1 200 ") or not lengths:
            raise LoadError(f"unexpected answer: {received[:500]!r}")
        size = len(head) + 4 + int(lengths[0].split(b":")[1])
        parts = [received]
        missing = size - len(received)
        while missing > 0:
            parts.append(self._receive())
            missing -= len(parts[-1])
        answer = b"".join(parts)
        if missing or not answer.endswith(workload.data):
            raise LoadError("the first answer does not hold the tensor that was sent")
        return answer

    def _receive(self) -> bytes:
        data = self.socket.recv(LARGEST_READ)
        if not data:
            raise LoadError("the server closed the connection")
        return data
