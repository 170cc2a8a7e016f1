"""A real `merrow serve` process for tests, on ports that the system chose.

    with RunningServer(repository.path, "--exit-on-error=false") as server:
        client = InferenceServerClient(server.http_url)

The ports are read from the start-up log, so two servers never fight for one. The process is stopped with SIGTERM and,
if it does not end in time, killed, by its process id.
"""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import merrow

_STARTED = {
    "http": re.compile(r"Started HTTPService at (\S+):(\d+)"),
    "grpc": re.compile(r"Started GRPCInferenceService at (\S+):(\d+)"),
    "metrics": re.compile(r"Started Metrics Service at (\S+):(\d+)"),
    "all": re.compile(r"Started all services at (\S+):(\d+)"),
    "sagemaker": re.compile(r"Started Sagemaker HTTPService at (\S+):(\d+)"),
    "vertex-ai": re.compile(r"Started Vertex AI HTTPService at (\S+):(\d+)"),
}
_SERVING = '] "Serving, '


class ServerStartError(Exception):
    """The process ended, or said nothing of serving in time; the text has its log."""


class RunningServer:
    """Starts on entering, and is ready then; ends on leaving.

    `http_url`, `grpc_url` and `metrics_url` are `host:port` as `tritonclient` takes them; None where the service is
    off. With `--port` all of them are that port.

    Args:
        repository: the model repository; None to name it, or not, among the arguments.
        arguments: further flags of `merrow serve`.
        environment: variables to set besides the inherited ones.
        command_prefix: what runs the command, if something does: `unshare`, `taskset`, ...
        has_input: whether `write` will be used; standard input is empty otherwise.
    """

    def __init__(
        self,
        repository: Path | None,
        *arguments: str,
        environment: dict[str, str] | None = None,
        command_prefix: Sequence[str] = (),
        has_input: bool = False,
        start_timeout_seconds: float = 60,
        stop_timeout_seconds: float = 20,
    ) -> None:
        self._arguments = [] if repository is None else [f"--model-repository={repository}"]
        self._arguments += _free_ports(arguments)
        self._arguments += arguments
        self._environment = environment or {}
        self._command_prefix = command_prefix
        self._has_input = has_input
        self._start_timeout_seconds = start_timeout_seconds
        self._stop_timeout_seconds = stop_timeout_seconds
        self._lines: list[str] = []
        # Notified of each line, and of the end.
        self._news = threading.Condition()
        self._has_ended = False
        self._addresses: dict[str, str] = {}
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    def __enter__(self) -> "RunningServer":
        self.start()
        self.wait_until_serving()
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the process, without waiting for anything."""
        source = str(Path(merrow.__file__).parents[1])
        python_path = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [*self._command_prefix, sys.executable, "-m", "merrow", "serve", *self._arguments],
            env={**os.environ, "PYTHONPATH": python_path, **self._environment},
            stdin=subprocess.PIPE if self._has_input else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self._reader = threading.Thread(target=self._read_log, name="server-log")
        self._reader.start()

    def wait_until_serving(self) -> None:
        """Wait until all ports are open.

        Raises:
            ServerStartError: the process ended first, or the time ran out; it is stopped then.
        """
        if not self._wait_for_lines(_SERVING, 1, self._start_timeout_seconds):
            self.stop()
            raise ServerStartError(f"merrow serve {' '.join(self._arguments)}\n{self.log}")

    def wait_for_log(self, text: str, line_count: int = 1, timeout_seconds: float = 30) -> None:
        """Wait until so many lines of the log, earlier ones included, hold this text.

        Raises:
            TimeoutError: it did not come, or the process ended without it.
        """
        if not self._wait_for_lines(text, line_count, timeout_seconds):
            raise TimeoutError(f"no line with {text!r} in\n{self.log}")

    def write(self, text: str) -> None:
        """Type this at the process; needs `has_input`."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(text)
        self._process.stdin.flush()

    def stop(self) -> int:
        """End the process and return its exit code; negative if a signal ended it."""
        process = self._process
        assert process is not None, "the server was never started"
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """Wait for the process to end by itself, or kill it when the time is over; returns its exit code."""
        process, reader = self._process, self._reader
        assert process is not None, "the server was never started"
        assert reader is not None
        if process.stdin is not None:
            process.stdin.close()
        try:
            process.wait(self._stop_timeout_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join(self._stop_timeout_seconds)
        return process.returncode

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server was never started"
        return self._process.pid

    @property
    def log(self) -> str:
        """What the process wrote so far."""
        return "".join(self._lines)

    @property
    def http_url(self) -> str:
        return self._address_of("http")

    @property
    def grpc_url(self) -> str:
        return self._address_of("grpc")

    @property
    def metrics_url(self) -> str:
        return self._address_of("metrics")

    @property
    def sagemaker_url(self) -> str:
        return self._address_of("sagemaker")

    @property
    def vertex_ai_url(self) -> str:
        return self._address_of("vertex-ai")

    def _address_of(self, service: str) -> str:
        return self._addresses.get(service) or self._addresses["all"]

    def _read_log(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        with self._process.stdout as log:
            for line in log:
                for service, pattern in _STARTED.items():
                    match = pattern.search(line)
                    if match is not None:
                        self._addresses[service] = f"{match[1]}:{match[2]}"
                with self._news:
                    self._lines.append(line)
                    self._news.notify_all()
        with self._news:
            self._has_ended = True
            self._news.notify_all()

    def _wait_for_lines(self, text: str, line_count: int, timeout_seconds: float) -> bool:
        def has_come() -> bool:
            return sum(text in line for line in self._lines) >= line_count

        with self._news:
            self._news.wait_for(lambda: self._has_ended or has_come(), timeout_seconds)
            return has_come()


def _free_ports(arguments: tuple[str, ...]) -> list[str]:
    """Flags that let the system choose the ports about which the arguments say nothing."""
    given = {argument.partition("=")[0] for argument in arguments}
    if "--port" in given:
        return []
    return [f"--{name}-port=0" for name in ("http", "grpc", "metrics") if f"--{name}-port" not in given]
