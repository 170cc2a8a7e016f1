import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from merrow.places.process.fork_client import ForkClient, describe_exit
from merrow.places.process.fork_server import UNKNOWN_STATUS
from merrow.places.process.system import is_available
from merrow.settings import ProcessSettings
from tests.places.process.place_harness import FAKE_BACKENDS, is_alive, wait_until

pytestmark = [pytest.mark.skipif(not is_available(), reason="needs fork and Unix sockets"), pytest.mark.slow]


@pytest.fixture
def client():
    client = ForkClient(FAKE_BACKENDS, ProcessSettings())
    yield client
    client.close()


def test_a_child_lives_until_its_sockets_end(client):
    child, data, control = client.fork("m_0")
    wait_until(lambda: child.process_id is not None)
    assert is_alive(child.process_id)
    data.close()
    control.close()

    assert child.exited.result(10) == 0
    assert not is_alive(child.process_id)


def test_a_child_is_killed_on_request_and_the_status_says_so(client):
    child, data, control = client.fork("m_0")
    with data, control:
        child.kill()
        status = child.exited.result(10)

        assert os.WIFSIGNALED(status)
        assert control.recv(1) == b""
        child.kill()


def test_children_have_numbers_of_their_own(client):
    children = [client.fork("m_0") for _ in range(3)]
    wait_until(lambda: all(child.process_id is not None for child, _, _ in children))

    assert len({child.process_id for child, _, _ in children}) == 3
    children[1][0].kill()
    children[1][0].exited.result(10)
    assert is_alive(children[0][0].process_id)
    for _, data, control in children:
        data.close()
        control.close()


def test_closing_kills_what_is_left():
    client = ForkClient(FAKE_BACKENDS, ProcessSettings())
    child, data, control = client.fork("m_0")
    wait_until(lambda: child.process_id is not None)
    with data, control:
        client.close()

        assert not is_alive(child.process_id)
        assert child.exited.result(0) == UNKNOWN_STATUS
    client.close()


def test_signals_of_a_service_manager_are_left_to_the_server(client):
    child, data, control = client.fork("m_0")
    wait_until(lambda: child.process_id is not None)
    with data, control:
        fork_server = int(Path(f"/proc/{child.process_id}/stat").read_text().rsplit(")", 1)[1].split()[1])
        for process_id in (fork_server, child.process_id):
            os.kill(process_id, signal.SIGTERM)
            os.kill(process_id, signal.SIGINT)
        other, other_data, other_control = client.fork("m_0")
        wait_until(lambda: other.process_id is not None)
        assert is_alive(child.process_id)
        other_data.close()
        other_control.close()


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (0, "with exit code 0"),
        (3 << 8, "with exit code 3"),
        (9, "of signal 9 (SIGKILL)"),
        (11 | 0x80, "of signal 11 (SIGSEGV)"),
        (60, "of signal 60"),
        (UNKNOWN_STATUS, "for an unknown reason"),
    ],
)
def test_a_status_is_told_in_words(status, text):
    assert describe_exit(status) == text


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_outlives_a_server_that_is_killed(number):
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.places.process.server_that_dies"],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with server:
        assert server.stdout is not None
        pids = [int(word) for word in server.stdout.readline().split()]
        assert len(pids) == 5
        assert all(map(is_alive, pids))
        os.kill(server.pid, number)
    wait_until(lambda: not any(map(is_alive, pids)))


def test_the_fork_server_does_not_outlive_a_server_whose_socket_does():
    # A process that inherited the server's end of the socket keeps it open after the server's death.
    code = (
        "import os, time\n"
        "from merrow.places.process.fork_client import ForkClient\n"
        "from merrow.settings import ProcessSettings\n"
        f"client = ForkClient({FAKE_BACKENDS!r}, ProcessSettings())\n"
        "child, data, control = client.fork('m_0')\n"
        "while child.process_id is None: time.sleep(0.005)\n"
        "heir = os.fork()\n"
        "if heir == 0: time.sleep(60); os._exit(0)\n"
        "print(heir, child.process_id, flush=True)\n"
        "time.sleep(60)\n"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert server.stdout is not None
    heir, child = map(int, server.stdout.readline().split())
    fork_server = int(Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[1])
    server.kill()
    server.wait()
    try:
        wait_until(lambda: not is_alive(child) and not is_alive(fork_server))
    finally:
        os.kill(heir, signal.SIGKILL)
        server.stdout.close()
