"""The fork server as a process, of which a test plays the server; see also `test_fork_client`."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from merrow.places.process.fork_server import EXITED, FORK, KILL, MESSAGE, STARTED
from merrow.places.process.system import is_available, send_with_descriptors
from tests.places.process.place_harness import FAKE_BACKENDS, is_alive, wait_until

pytestmark = [pytest.mark.skipif(not is_available(), reason="needs fork and Unix sockets"), pytest.mark.slow]

CODE = "import sys; from merrow.places.process.fork_server import main; main(int(sys.argv[1]), sys.argv[2])"


class Process:
    """A fork server, and the server's end of its socket."""

    def __init__(self) -> None:
        self.connection, remote = socket.socketpair()
        self.connection.settimeout(10)
        self.kept: list[socket.socket] = []
        self.outputs: list[int] = []
        with remote:
            self.process = subprocess.Popen(
                [sys.executable, "-c", CODE, str(remote.fileno()), FAKE_BACKENDS],
                pass_fds=(remote.fileno(),),
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )
        self.received = b""

    def ask(self, kind: int, number: int) -> bytes:
        return MESSAGE.pack(kind, 0, number)

    def sockets(self) -> list[int]:
        """Of a new child: its ends of two sockets and of a pipe, to be sent and then closed."""
        descriptors = []
        for _ in range(2):
            ours, theirs = socket.socketpair()
            self.kept.append(ours)
            descriptors.append(theirs.detach())
        output, child_output = os.pipe()
        self.outputs.append(output)
        return [*descriptors, child_output]

    def fork(self, *numbers: int) -> None:
        """Ask for children, in one message for all."""
        descriptors = [descriptor for _ in numbers for descriptor in self.sockets()]
        send_with_descriptors(self.connection, b"".join(self.ask(FORK, number) for number in numbers), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)

    def hear(self) -> tuple[int, int, int]:
        """Kind, pid or status, and number."""
        while len(self.received) < MESSAGE.size:
            chunk = self.connection.recv(4096)
            assert chunk, "the fork server is gone"
            self.received += chunk
        message, self.received = self.received[: MESSAGE.size], self.received[MESSAGE.size :]
        return MESSAGE.unpack(message)

    def close(self) -> None:
        self.connection.close()
        for each in self.kept:
            each.close()
        for output in self.outputs:
            os.close(output)
        self.process.wait(10)


@pytest.fixture
def server():
    server = Process()
    yield server
    server.close()


def catches(process_id: int, number: signal.Signals) -> bool:
    """Whether the process has a handler for a signal."""
    status = Path(f"/proc/{process_id}/status").read_text()
    (mask,) = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith("SigCgt:")]
    return bool(mask >> (number - 1) & 1)


def test_children_are_forked_as_asked_and_lead_groups_of_their_own(server):
    server.fork(3, 9)
    heard = [server.hear(), server.hear()]

    assert [(kind, number) for kind, _, number in heard] == [(STARTED, 3), (STARTED, 9)]
    for _, process_id, _ in heard:
        assert is_alive(process_id)
        assert os.getpgid(process_id) == process_id
        assert os.getsid(process_id) == server.process.pid


def test_a_child_whose_sockets_end_exits_by_itself(server):
    server.fork(1)
    server.hear()
    for ours in server.kept:
        ours.close()

    assert server.hear() == (EXITED, 0, 1)


def test_a_child_is_killed_by_its_number(server):
    server.fork(1, 2)
    first, second = server.hear()[1], server.hear()[1]
    # One that there never was, and one that there is, cut in the middle of the message.
    server.connection.sendall(server.ask(KILL, 7) + server.ask(KILL, 1)[:5])
    server.connection.sendall(server.ask(KILL, 1)[5:])

    assert server.hear() == (EXITED, signal.SIGKILL, 1)
    assert not is_alive(first)
    assert is_alive(second)
    # Once dead, its number means nothing.
    server.connection.sendall(server.ask(KILL, 1) + server.ask(KILL, 2))
    assert server.hear() == (EXITED, signal.SIGKILL, 2)


def test_a_child_that_dies_otherwise_is_noticed_and_its_group_killed(server):
    server.fork(1)
    _, process_id, _ = server.hear()
    os.kill(process_id, signal.SIGSEGV)
    kind, status, number = server.hear()

    assert (kind, number) == (EXITED, 1)
    assert os.WTERMSIG(status) == signal.SIGSEGV


def test_what_a_child_prints_goes_to_its_pipe(server):
    server.fork(1)
    _, process_id, _ = server.hear()
    wait_until(lambda: catches(process_id, signal.SIGABRT))
    os.kill(process_id, signal.SIGABRT)
    server.hear()
    # From `faulthandler`, in C: where the process was.
    assert b"Fatal Python error: Aborted" in os.read(server.outputs[0], 1 << 16)


def test_when_the_server_is_gone_so_is_everybody(server):
    server.fork(1, 2)
    pids = [server.hear()[1], server.hear()[1]]
    server.connection.close()

    assert server.process.wait(10) == 0
    wait_until(lambda: not any(map(is_alive, pids)))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_to_all_are_left_to_the_server(server, number):
    server.fork(1)
    _, process_id, _ = server.hear()
    for each in (server.process.pid, process_id):
        os.kill(each, number)
    server.fork(2)

    kind, _, child = server.hear()
    assert (kind, child) == (STARTED, 2)
    assert is_alive(process_id)


def test_a_killed_fork_server_takes_its_children_along(server):
    server.fork(1)
    _, process_id, _ = server.hear()
    server.process.kill()
    server.process.wait(10)

    wait_until(lambda: not is_alive(process_id))
