"""The server's side of the fork server: starts it, asks for children, hears of their end.

A small thread waits for what the fork server says, so that children can be forked and watched with or without a loop.
If the fork server dies, so do its children; the next `fork` starts another.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import Future

from merrow.places.process.fork_server import EXITED, FORK, KILL, MESSAGE, STARTED, UNKNOWN_STATUS
from merrow.places.process.system import send_with_descriptors

_LOG = logging.getLogger("merrow.places")

# The child must find what the server finds, whatever was done to the server's path.
_CODE = (
    "import sys; sys.path[:] = sys.argv[3:]; "
    "from merrow.places.process.fork_server import main; "
    "descriptor, factory = int(sys.argv[1]), sys.argv[2]; sys.argv[:] = ['']; main(descriptor, factory)"
)


class ChildProcess:
    """A forked child. `exited` gets its wait status, on the thread of the fork client."""

    def __init__(self, number: int, connection: "_Connection") -> None:
        self.number = number
        self.process_id: int | None = None
        self.exited: Future[int] = Future()
        self._connection = connection

    def kill(self) -> None:
        """Kill the child and its process group; nothing happens if it is dead. `exited` follows."""
        self._connection.send(KILL, self.number)


class ForkClient:
    """Owns the fork server's process. Every method may be called on any thread."""

    def __init__(self, backend_factory: str) -> None:
        self._backend_factory = backend_factory
        self._lock = threading.Lock()
        self._numbers = 0
        self._connection: _Connection | None = _Connection(backend_factory)

    def fork(self) -> tuple[ChildProcess, socket.socket, socket.socket]:
        """A new child, and this side of its data and control sockets, which block.

        A child that cannot be forked reads as one that died at once: its sockets end.

        Raises:
            OSError: the fork server cannot be started, or there are no descriptors left.
        """
        data, child_data = socket.socketpair()
        control, child_control = socket.socketpair()
        with child_data, child_control, self._lock:
            if self._connection is None or self._connection.is_lost:
                self._connection = _Connection(self._backend_factory)
            self._numbers += 1
            child = ChildProcess(self._numbers, self._connection)
            self._connection.fork(child, child_data, child_control)
        return child, data, control

    def close(self) -> None:
        """End the fork server, which kills what children are left; returns when it is gone."""
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def describe_exit(status: int) -> str:
    """A wait status in words."""
    if status == UNKNOWN_STATUS:
        return "for an unknown reason"
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            return f"of signal {number} ({signal.Signals(number).name})"
        except ValueError:
            return f"of signal {number}"
    return f"with exit code {os.WEXITSTATUS(status)}"


class _Connection:
    """One fork server, from its start to its end."""

    def __init__(self, backend_factory: str) -> None:
        self.is_lost = False
        self._is_closing = False
        self._children: dict[int, ChildProcess] = {}
        self._lock = threading.Lock()
        self._socket, remote = socket.socketpair()
        with remote:
            # A session of its own: the terminal's interrupt goes to the server alone, which closes its children.
            self._process = subprocess.Popen(
                [sys.executable, "-c", _CODE, str(remote.fileno()), backend_factory, *sys.path],
                stdin=subprocess.DEVNULL,
                pass_fds=(remote.fileno(),),
                start_new_session=True,
            )
        self._thread = threading.Thread(target=self._listen, name="fork server", daemon=True)
        self._thread.start()

    def fork(self, child: ChildProcess, data: socket.socket, control: socket.socket) -> None:
        self._children[child.number] = child
        self.send(FORK, child.number, [data.fileno(), control.fileno()])

    def send(self, kind: int, number: int, descriptors: "list[int] | None" = None) -> None:
        message = MESSAGE.pack(kind, 0, number)
        with self._lock:
            try:
                sent = send_with_descriptors(self._socket, message, descriptors or [])
                if sent < len(message):
                    self._socket.sendall(message[sent:])
            except OSError:
                # The fork server is gone; `_listen` hears of it too.
                pass
        if self.is_lost:
            self._bury(number, UNKNOWN_STATUS)

    def close(self) -> None:
        self._is_closing = True
        self._socket.shutdown(socket.SHUT_WR)
        self._thread.join()

    def _listen(self) -> None:
        received = b""
        while True:
            try:
                data = self._socket.recv(4096)
            except OSError:
                data = b""
            if not data:
                break
            received += data
            whole = len(received) - len(received) % MESSAGE.size
            for kind, value, number in MESSAGE.iter_unpack(received[:whole]):
                if kind == STARTED:
                    self._children[number].process_id = value
                elif kind == EXITED:
                    self._bury(number, value)
            received = received[whole:]
        self.is_lost = True
        status = self._process.wait()
        if not self._is_closing:
            _LOG.error("the fork server died (status %d), and with it every model process", status)
        for number in list(self._children):
            self._bury(number, UNKNOWN_STATUS)
        with self._lock:
            self._socket.close()

    def _bury(self, number: int, status: int) -> None:
        child = self._children.pop(number, None)
        if child is not None:
            child.exited.set_result(status)
