"""The fork server: a small process that has everything imported and forks a child for each model instance.

Importing numpy takes a hundred times longer than forking a process that has it. The server starts this process once,
early, and talks to it over one socket in messages of fixed size:

    FORK number, three descriptors  ->  STARTED number pid, and when the child is gone EXITED number status
    KILL number                     ->  (EXITED follows)

It has one thread and does nothing else, so that forking is safe and a dead child is noticed at once. Each child leads a
process group, which is killed when the child is gone, so that what a model started does not outlive it. When the server
is gone (end of file, or the parent is another process) every child is killed; when the fork server itself is killed,
the system kills the children.
"""

import gc
import os
import select
import signal
import socket
import struct
from dataclasses import dataclass

from merrow.places.process.child import preload, run_child
from merrow.places.process.system import ignore_signal, kill_group, receive_with_descriptors, signal_on_parent_death

MESSAGE = struct.Struct("<IiQ")
"""Kind, pid or status, number of the child."""

FORK = 1
KILL = 2
STARTED = 3
EXITED = 4

# The status of a child that could not be forked, or whose end nobody saw.
UNKNOWN_STATUS = -1


@dataclass(frozen=True, slots=True)
class ChildSockets:
    """What a new child is given."""

    data: socket.socket
    control: socket.socket


def main(descriptor: int, backend_factory: str) -> None:
    """Run until the server is gone. Returns in a child as well, once its model is closed."""
    parent = os.getppid()
    connection = socket.socket(fileno=descriptor)
    server = ForkServer(connection, parent)
    preload(backend_factory)
    # What was imported is shared with every child, and stays shared if no collection writes to it.
    gc.collect()
    gc.freeze()
    sockets = server.serve()
    if sockets is not None:
        run_child(sockets.data, sockets.control, backend_factory)


class ForkServer:
    """See the module."""

    def __init__(self, connection: socket.socket, parent: int) -> None:
        self._connection = connection
        self._parent = parent
        self._process_id = os.getpid()
        self._received = b""
        self._descriptors: list[int] = []
        # Number -> pid, of the children that live.
        self._children: dict[int, int] = {}
        # A signal writes to the pipe and so ends the wait; what came is looked up afterwards.
        self._wake_reader, self._wake_writer = os.pipe()
        os.set_blocking(self._wake_reader, False)
        os.set_blocking(self._wake_writer, False)
        signal.set_wakeup_fd(self._wake_writer, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, ignore_signal)
        # SIGTERM, not SIGKILL: the children must be killed first. A service manager that stops the server sends
        # SIGTERM to everyone, and then it is the server that says when to end.
        signal_on_parent_death(signal.SIGTERM)

    def serve(self) -> ChildSockets | None:
        """Returns the sockets in a new child, and None here, when the server is gone."""
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        poll.register(self._wake_reader, select.POLLIN)
        while os.getppid() == self._parent:
            for descriptor, _ in poll.poll():
                if descriptor == self._wake_reader:
                    _drain(self._wake_reader)
                    self._reap()
                    continue
                messages = self._receive()
                if messages is None:
                    self._kill_all()
                    return None
                for kind, number in messages:
                    if kind == KILL:
                        self._kill(number)
                        continue
                    sockets = self._fork(number)
                    if sockets is not None:
                        return sockets
        self._kill_all()
        return None

    def _receive(self) -> list[tuple[int, int]] | None:
        """Kind and number of each whole message; None when the server is gone."""
        try:
            data, descriptors = receive_with_descriptors(self._connection, 4096)
        except OSError:
            return None
        if not data:
            return None
        self._descriptors += descriptors
        self._received += data
        whole = len(self._received) - len(self._received) % MESSAGE.size
        messages = [(kind, number) for kind, _, number in MESSAGE.iter_unpack(self._received[:whole])]
        self._received = self._received[whole:]
        return messages

    def _fork(self, number: int) -> ChildSockets | None:
        """Returns in the child with its sockets, here with None."""
        data = socket.socket(fileno=self._descriptors.pop(0))
        control = socket.socket(fileno=self._descriptors.pop(0))
        output = self._descriptors.pop(0)
        try:
            process_id = os.fork()
        except OSError:
            self._send(EXITED, UNKNOWN_STATUS, number)
            process_id = -1
        if process_id == 0:
            self._become_child(output)
            return ChildSockets(data, control)
        data.close()
        control.close()
        os.close(output)
        if process_id > 0:
            try:
                # Here and in the child, so that neither sees a moment without it.
                os.setpgid(process_id, process_id)
            except OSError:
                pass
            self._children[number] = process_id
            self._send(STARTED, process_id, number)
        return None

    def _become_child(self, output: int) -> None:
        os.setpgid(0, 0)
        # Whatever writes to them, in C or in another process, writes to the pipe.
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        signal_on_parent_death(signal.SIGKILL)
        if os.getppid() != self._process_id:
            os._exit(1)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(self._wake_reader)
        os.close(self._wake_writer)
        self._connection.close()
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._children.clear()

    def _reap(self) -> None:
        for number, process_id in list(self._children.items()):
            status = _bury(process_id)
            if status is not None:
                del self._children[number]
                self._send(EXITED, status, number)

    def _kill(self, number: int) -> None:
        process_id = self._children.get(number)
        if process_id is not None:
            kill_group(process_id)

    def _kill_all(self) -> None:
        for process_id in self._children.values():
            kill_group(process_id)

    def _send(self, kind: int, value: int, number: int) -> None:
        try:
            self._connection.sendall(MESSAGE.pack(kind, value, number))
        except OSError:
            # The server is gone; the next read says so.
            pass


def _bury(process_id: int) -> int | None:
    """If the child is dead: kill its process group, forget the child, return its status."""
    if hasattr(os, "waitid"):
        if os.waitid(os.P_PID, process_id, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return None
        # While the dead child still holds the number, no other group can have it.
        kill_group(process_id)
        return os.waitpid(process_id, 0)[1]
    dead, status = os.waitpid(process_id, os.WNOHANG)
    if not dead:
        return None
    kill_group(process_id)
    return status


def _drain(descriptor: int) -> None:
    try:
        while os.read(descriptor, 4096):
            pass
    except BlockingIOError:
        pass
