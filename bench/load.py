"""The load generator: prepared bytes, a closed loop, one process, as little work per request as Python allows.

`run_window` keeps every connection busy with one request at a time for some seconds. A connection knows how its
protocol says that an answer is complete; an answer is checked against the first one, byte by byte where it is small.
"""

import select
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

ADDRESS = "127.0.0.1"
# One answer may take this long; a server that needs more is broken.
TIMEOUT_SECONDS = 60.0


class LoadError(Exception):
    """A server answered wrongly, or not at all."""


class Connection(ABC):
    """One connection with one request in flight. Reading and writing never block."""

    started_ns: int

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection((ADDRESS, port), timeout=TIMEOUT_SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def begin(self) -> bool:
        """Send the next request; True while some of it could not be sent yet."""
        self.started_ns = time.perf_counter_ns()
        return self.send_request()

    @abstractmethod
    def send_request(self) -> bool: ...

    @abstractmethod
    def on_writable(self) -> bool:
        """Send more; True while something is left."""

    @abstractmethod
    def on_readable(self) -> bool:
        """Read what came; True when it completed the answer."""

    @property
    @abstractmethod
    def has_unsent(self) -> bool: ...

    def close(self) -> None:
        self.socket.close()


@dataclass(frozen=True, slots=True)
class Window:
    """What one window measured; `cpu_seconds` is the generator's own."""

    seconds: float
    latencies_ns: list[int]
    cpu_seconds: float


def run_window(connections: Sequence[Connection], seconds: float) -> Window:
    """Keep all connections busy for this long, then wait for what is in flight."""
    reading, both = select.EPOLLIN, select.EPOLLIN | select.EPOLLOUT
    by_descriptor = {connection.socket.fileno(): connection for connection in connections}
    latencies: list[int] = []
    clock = time.perf_counter_ns
    cpu_start = time.process_time()
    with select.epoll() as poller:
        for descriptor, connection in by_descriptor.items():
            connection.socket.setblocking(False)
            poller.register(descriptor, reading)
        poll = poller.poll
        start = clock()
        end = start + int(seconds * 1e9)
        for descriptor, connection in by_descriptor.items():
            if connection.begin():
                poller.modify(descriptor, both)
        in_flight = len(connections)
        while in_flight:
            events = poll(TIMEOUT_SECONDS)
            if not events:
                raise LoadError(f"no answer in {TIMEOUT_SECONDS} s")
            for descriptor, event in events:
                connection = by_descriptor[descriptor]
                if event & select.EPOLLOUT and not connection.on_writable():
                    poller.modify(descriptor, reading)
                if event & ~select.EPOLLOUT:
                    if connection.on_readable():
                        now = clock()
                        latencies.append(now - connection.started_ns)
                        if now >= end:
                            in_flight -= 1
                            continue
                        if connection.begin():
                            poller.modify(descriptor, both)
                    elif connection.has_unsent:
                        # Reading can open a closed window.
                        poller.modify(descriptor, both)
        return Window((clock() - start) / 1e9, latencies, time.process_time() - cpu_start)
