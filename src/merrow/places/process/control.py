"""The control socket: rare messages, and descriptors of shared memory."""

import os
import socket
import threading
from collections import deque
from dataclasses import dataclass

from merrow.places.process.channel import ProtocolError, frame, split_frames
from merrow.places.process.system import receive_with_descriptors, send_with_descriptors


@dataclass(frozen=True, slots=True)
class ControlMessage:
    """A message, with the descriptor that came with it; whoever takes the message closes it."""

    kind: int
    count: int
    number: int
    body: bytes
    descriptor: int | None


class ControlSocket:
    """One end. Sending is thread-safe; `kinds_with_descriptor` are the kinds that bring one descriptor each."""

    def __init__(self, connection: socket.socket, kinds_with_descriptor: frozenset[int]) -> None:
        self.connection = connection
        self._kinds_with_descriptor = kinds_with_descriptor
        self._lock = threading.Lock()
        self._received = b""
        self._descriptors: deque[int] = deque()

    def send(
        self, kind: int, number: int = 0, body: bytes = b"", descriptor: int | None = None, count: int = 0
    ) -> None:
        """Send one message, whole.

        Raises:
            OSError: the other side is gone, or does not read (on a socket that does not block); the connection is of
                no more use.
        """
        self.send_frame(frame(kind, number, body, count), descriptor)

    def send_frame(self, data: bytes, descriptor: int | None = None) -> None:
        """As `send`, of a message that is already framed."""
        with self._lock:
            sent = send_with_descriptors(self.connection, data, [] if descriptor is None else [descriptor])
            if sent < len(data):
                self.connection.sendall(data[sent:])

    def receive(self) -> list[ControlMessage] | None:
        """The messages that are there, after waiting for more bytes if the socket blocks; None at the end.

        Raises:
            BlockingIOError: there is nothing to read, on a socket that does not block.
            ProtocolError: what came makes no sense.
        """
        try:
            data, descriptors = receive_with_descriptors(self.connection, 1 << 16)
        except (ConnectionResetError, BrokenPipeError):
            return None
        self._descriptors += descriptors
        if not data:
            return None
        received = self._received + data
        frames, rest = split_frames(received)
        self._received = received[rest:]
        messages: list[ControlMessage] = []
        for kind, count, number, start, end in frames:
            descriptor: int | None = None
            if kind in self._kinds_with_descriptor:
                if not self._descriptors:
                    raise ProtocolError(f"a message of kind {kind} came without its descriptor")
                descriptor = self._descriptors.popleft()
            messages.append(ControlMessage(kind, count, number, received[start:end], descriptor))
        return messages

    def close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.popleft())
        self.connection.close()
