"""A server as a child process: the real Triton or merrow, on ports of its own, until it is stopped.

Both are started in a session of their own, so that whatever they leave behind can be found and ended with them.
"""

import contextlib
import http.client
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tests.oracle import real_triton

ADDRESS = "127.0.0.1"
REPOSITORY_ROOT = pathlib.Path(__file__).resolve().parents[2]


class ServerStartError(Exception):
    """The server ended, or was not there in time; the text has the end of its log."""


@dataclass(frozen=True, slots=True)
class Ports:
    http: int
    grpc: int
    metrics: int


class ServerProcess:
    """One running server. `stop` must be called; as a context manager it is by itself.

    `start_seconds` is the time from the start of the process until it was live.
    """

    def __init__(self, name: str, argv: Sequence[str], environment: dict[str, str], ports: Ports, log: pathlib.Path):
        self.name = name
        self.ports = ports
        self.log = log
        self.start_seconds = 0.0
        self._started = time.monotonic()
        with open(log, "wb") as output:
            self.process = subprocess.Popen(
                argv, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_until_live(self, timeout_seconds: float = 120, path: str = "/v2/health/live") -> None:
        """Wait until `path` is answered with 200.

        Raises:
            ServerStartError: the process ended, or the time is over; it has been stopped.
        """
        while True:
            if self.process.poll() is not None:
                raise ServerStartError(f"{self.name} ended with {self.process.returncode}\n{self.log_tail()}")
            if self._status(path) == 200:
                self.start_seconds = time.monotonic() - self._started
                return
            if time.monotonic() - self._started > timeout_seconds:
                self.stop()
                raise ServerStartError(f"{self.name} not live after {timeout_seconds} s\n{self.log_tail()}")
            time.sleep(0.005)

    def wait_until_models_ready(self, names: Iterable[str], timeout_seconds: float = 120) -> None:
        """Wait until each of these models is ready."""
        deadline = time.monotonic() + timeout_seconds
        for name in names:
            while self._status(f"/v2/models/{name}/ready") != 200:
                if time.monotonic() > deadline:
                    raise ServerStartError(f"{self.name}: model {name} does not become ready\n{self.log_tail()}")
                time.sleep(0.02)

    def stop(self, timeout_seconds: float = 20) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(timeout_seconds)
            except subprocess.TimeoutExpired:
                pass
        # Whatever is left of its session, the process itself included.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def log_tail(self, line_count: int = 40) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-line_count:])

    def __enter__(self) -> "ServerProcess":
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _status(self, path: str) -> int | None:
        connection = http.client.HTTPConnection(ADDRESS, self.ports.http, timeout=5)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()


def free_ports() -> Ports:
    """Three ports that nobody listened on a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
        for one in sockets:
            one.bind((ADDRESS, 0))
        return Ports(*(one.getsockname()[1] for one in sockets))


def port_options(ports: Ports) -> list[str]:
    return [
        f"--http-address={ADDRESS}",
        f"--http-port={ports.http}",
        f"--grpc-address={ADDRESS}",
        f"--grpc-port={ports.grpc}",
        f"--metrics-address={ADDRESS}",
        f"--metrics-port={ports.metrics}",
    ]


def start_real_triton(repository: pathlib.Path, log: pathlib.Path, *options: str) -> ServerProcess:
    """Start the real server on the repository.

    Raises:
        RealTritonUnavailableError: it cannot run on this machine.
    """
    ports = free_ports()
    argv, environment = real_triton.command(f"--model-repository={repository}", *port_options(ports), *options)
    return ServerProcess("triton", argv, environment, ports, log)


def start_merrow(repository: pathlib.Path, log: pathlib.Path, *options: str) -> ServerProcess:
    """Start merrow, as this interpreter imports it, on the repository."""
    ports = free_ports()
    argv = [sys.executable, "-m", "merrow", "serve", f"--model-repository={repository}", *port_options(ports), *options]
    source = str(REPOSITORY_ROOT / "src")
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH")))))
    return ServerProcess("merrow", argv, environment, ports, log)
