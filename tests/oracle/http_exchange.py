"""One HTTP request as bytes, and what came back, down to the socket: nothing a client library would hide or mend."""

import socket
from dataclasses import dataclass

TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class HttpReply:
    """What a server answered.

    `headers` are lower-case names with their values, without Content-Length and Connection, which `body` and
    `is_closed` already tell. `is_closed` says that the server closed the connection after the reply. Nothing but
    `is_closed` is set when it did so without a reply.
    """

    status: int = 0
    reason: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    is_closed: bool = False


class HttpConnection:
    """A connection that is kept as long as the server keeps it."""

    def __init__(self, address: str, port: int) -> None:
        self._endpoint = (address, port)
        self._socket: socket.socket | None = None
        self._buffer = b""

    def exchange(self, request: bytes, method: str) -> HttpReply:
        """Send the bytes of one request and read the reply to it.

        Raises:
            TimeoutError: the server neither answers nor closes.
        """
        if self._socket is None:
            self._socket = socket.create_connection(self._endpoint, timeout=TIMEOUT_SECONDS)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._buffer = b""
        try:
            self._socket.sendall(request)
            reply = self._read_reply(method)
        except (ConnectionError, EOFError):
            reply = HttpReply(is_closed=True)
        except TimeoutError:
            self.close()
            raise
        if reply.is_closed:
            self.close()
        return reply

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _read_reply(self, method: str) -> HttpReply:
        while True:
            head = self._read_until(b"\r\n\r\n")
            status_line, *lines = head[:-4].split(b"\r\n")
            version, status, *reason = status_line.decode("latin-1").split(" ", 2)
            if status != "100":
                break
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
        length = headers.pop("content-length", None)
        connection = headers.pop("connection", "").lower()
        is_closed = connection == "close" or (version == "HTTP/1.0" and connection != "keep-alive")
        if method == "HEAD":
            body = self._read_to_end()
        elif headers.get("transfer-encoding", "").lower() == "chunked":
            body = self._read_chunks()
        elif length is not None:
            body = self._read_exactly(int(length))
        else:
            is_closed = True
            body = self._read_to_end()
        return HttpReply(int(status), "".join(reason), tuple(sorted(headers.items())), body, is_closed)

    def _read_chunks(self) -> bytes:
        body = b""
        while True:
            size = int(self._read_until(b"\r\n").split(b";")[0], 16)
            body += self._read_exactly(size)
            self._read_exactly(2)
            if size == 0:
                return body

    def _read_until(self, end: bytes) -> bytes:
        while (position := self._buffer.find(end)) < 0:
            self._fill()
        position += len(end)
        taken, self._buffer = self._buffer[:position], self._buffer[position:]
        return taken

    def _read_exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._fill()
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken

    def _read_to_end(self) -> bytes:
        try:
            while True:
                self._fill()
        except EOFError:
            return self._buffer

    def _fill(self) -> None:
        assert self._socket is not None
        data = self._socket.recv(262_144)
        if not data:
            raise EOFError
        self._buffer += data
