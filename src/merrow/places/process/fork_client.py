"""The server's side of a fork server: starts it, asks for children, hears of their end and of what they print.

A small thread waits for what the fork server says, and reads what children print, so that children can be forked and
watched with or without a loop. If the fork server dies, so do its children; the next `fork` starts another.

A fork server runs with the server's own interpreter, or with another one, of an execution environment. That one finds
its packages for itself, and of the server's nothing but `merrow`, whose part in a child needs only numpy.
"""

import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from concurrent.futures import Future
from pathlib import Path

from merrow.places.process.environment import ExecutionEnvironment
from merrow.places.process.fork_server import EXITED, FORK, KILL, MESSAGE, STARTED, UNKNOWN_STATUS
from merrow.places.process.output_pipes import OutputPipe, OutputPipes
from merrow.places.process.system import send_with_descriptors
from merrow.settings import ProcessSettings

_LOG = logging.getLogger("merrow.places")

# The child must find what the server finds, whatever was done to the server's path.
_CODE = (
    "import sys; sys.path[:] = sys.argv[3:]; "
    "from merrow.places.process.fork_server import main; "
    "descriptor, factory = int(sys.argv[1]), sys.argv[2]; sys.argv[:] = ['']; main(descriptor, factory)"
)
# In another interpreter: `merrow` from here, and nothing else that lies beside it.
_FOREIGN_CODE = (
    "import sys, importlib.util as util; sys.path[:] = filter(None, sys.path); "
    "spec = util.spec_from_file_location('merrow', sys.argv[3] + '/__init__.py', "
    "submodule_search_locations=[sys.argv[3]]); "
    "sys.modules['merrow'] = util.module_from_spec(spec); spec.loader.exec_module(sys.modules['merrow']); "
    "from merrow.places.process.fork_server import main; "
    "descriptor, factory = int(sys.argv[1]), sys.argv[2]; sys.argv[:] = ['']; main(descriptor, factory)"
)
_PACKAGE_DIRECTORY = str(Path(__file__).parents[2])


class ChildProcess:
    """A forked child. `exited` gets its wait status, on the thread of the fork client.

    What it printed is in the log by then.
    """

    def __init__(self, number: int, connection: "_Connection", output: OutputPipe) -> None:
        self.number = number
        self.process_id: int | None = None
        self.exited: Future[int] = Future()
        self.output = output
        self._connection = connection

    def kill(self) -> None:
        """Kill the child and its process group; nothing happens if it is dead. `exited` follows."""
        self._connection.send(KILL, self.number)


class ForkClient:
    """Owns a fork server's process. Every method may be called on any thread."""

    def __init__(
        self, backend_factory: str, settings: ProcessSettings, environment: ExecutionEnvironment | None = None
    ) -> None:
        """
        Args:
            environment: where the fork server runs; None for the server's own interpreter.
        """
        self._backend_factory = backend_factory
        self._settings = settings
        self._environment = environment
        self._lock = threading.Lock()
        self._numbers = 0
        self._is_closed = False
        self._connection: _Connection | None = _Connection(backend_factory, environment)
        # When the last child was asked for, in monotonic nanoseconds.
        self.used_ns = time.monotonic_ns()

    @property
    def has_children(self) -> bool:
        connection = self._connection
        return connection is not None and connection.has_children

    def fork(self, origin: str) -> tuple[ChildProcess, socket.socket, socket.socket]:
        """A new child, and this side of its data and control sockets, which block.

        A child that cannot be forked reads as one that died at once: its sockets end.

        Args:
            origin: what the child is of, for the log of what it prints.

        Raises:
            OSError: the fork server cannot be started or has been closed, or there are no descriptors left.
        """
        data, child_data = socket.socketpair()
        control, child_control = socket.socketpair()
        with child_data, child_control, self._lock:
            self.used_ns = time.monotonic_ns()
            if self._is_closed:
                # A load that was under way when the server began to stop: nobody would end its child.
                data.close()
                control.close()
                raise OSError("the server is stopping")
            if self._connection is None or self._connection.is_lost:
                self._connection = _Connection(self._backend_factory, self._environment)
            self._numbers += 1
            output, child_output = os.pipe()
            try:
                child = ChildProcess(self._numbers, self._connection, OutputPipe(output, origin, self._settings))
                self._connection.fork(child, [child_data.fileno(), child_control.fileno(), child_output])
            finally:
                os.close(child_output)
        return child, data, control

    def close(self) -> None:
        """End the fork server, which kills what children are left; returns when it is gone."""
        with self._lock:
            self._is_closed = True
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

    def __init__(self, backend_factory: str, environment: ExecutionEnvironment | None) -> None:
        self.is_lost = False
        self._is_closing = False
        self._children: dict[int, ChildProcess] = {}
        self._lock = threading.Lock()
        self._burying = threading.Lock()
        self._socket, remote = socket.socketpair()
        with remote:
            if environment is None:
                command = [sys.executable, "-c", _CODE, str(remote.fileno()), backend_factory, *sys.path]
                variables = None
            else:
                command = [environment.interpreter, "-c", _FOREIGN_CODE, str(remote.fileno()), backend_factory]
                command.append(_PACKAGE_DIRECTORY)
                variables = dict(environment.variables)
            # A session of its own: the terminal's interrupt goes to the server alone, which closes its children.
            self._process = subprocess.Popen(
                command,
                env=variables,
                stdin=subprocess.DEVNULL,
                pass_fds=(remote.fileno(),),
                start_new_session=True,
            )
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._outputs = OutputPipes(self._poll)
        # Of children asked for; the thread takes them up when the fork server has answered.
        self._new_outputs: deque[OutputPipe] = deque()
        self._thread = threading.Thread(target=self._listen, name="fork server", daemon=True)
        self._thread.start()

    @property
    def has_children(self) -> bool:
        return bool(self._children)

    def fork(self, child: ChildProcess, descriptors: list[int]) -> None:
        self._children[child.number] = child
        self._new_outputs.append(child.output)
        self.send(FORK, child.number, descriptors)

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
        listening = self._socket.fileno()
        received = b""
        is_alive = True
        while is_alive:
            timeout = self._outputs.tick(time.monotonic_ns())
            for descriptor, _ in self._poll.poll(timeout):
                if descriptor != listening:
                    if descriptor in self._outputs:
                        self._outputs.read(descriptor, time.monotonic_ns())
                    continue
                try:
                    data = self._socket.recv(4096)
                except OSError:
                    data = b""
                is_alive = bool(data)
                received += data
                whole = len(received) - len(received) % MESSAGE.size
                self._take_messages(received[:whole])
                received = received[whole:]
        self.is_lost = True
        status = self._process.wait()
        if not self._is_closing:
            _LOG.error("a fork server died (status %d), and with it every process of its models", status)
        for number in list(self._children):
            self._bury(number, UNKNOWN_STATUS)
        with self._lock:
            self._socket.close()

    def _take_messages(self, messages: bytes) -> None:
        while self._new_outputs:
            self._outputs.add(self._new_outputs.popleft())
        for kind, value, number in MESSAGE.iter_unpack(messages):
            if kind == STARTED:
                child = self._children[number]
                child.process_id = child.output.process_id = value
            elif kind == EXITED:
                self._bury(number, value)

    def _bury(self, number: int, status: int) -> None:
        """On the thread that listens; also, once that has ended, on one that asks for a child."""
        with self._burying:
            while self._new_outputs:
                self._outputs.add(self._new_outputs.popleft())
            child = self._children.pop(number, None)
            if child is not None:
                self._outputs.remove(child.output, time.monotonic_ns())
        if child is not None:
            child.exited.set_result(status)
