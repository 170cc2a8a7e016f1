"""The load generator in a process of its own, told what to do through its standard input, one line for one window.

python -m bench.load_process http 8000 16 WORKLOAD     # by LoadProcess, which talks to it
"""

import json
import pathlib
import statistics
import subprocess
import sys
from dataclasses import dataclass

from bench.grpc_load import GrpcConnection
from bench.http_load import HttpConnection
from bench.load import Connection, LoadError, run_window
from bench.workload import Workload, large_tensor, small_tensor

REPOSITORY_ROOT = pathlib.Path(__file__).resolve().parents[1]
CONNECTIONS: dict[str, type[Connection]] = {"http": HttpConnection, "grpc": GrpcConnection}


@dataclass(frozen=True, slots=True)
class LoadResult:
    """One window: requests answered, its length, percentiles of the latency, the generator's own CPU time."""

    request_count: int
    seconds: float
    mean_us: float
    p50_us: float
    p99_us: float
    cpu_seconds: float


class LoadProcess:
    """Connections to one server, ready to load it. Use as a context manager."""

    def __init__(self, protocol: str, port: int, concurrency: int, model: str, byte_size: int = 0) -> None:
        argv = [
            sys.executable,
            "-m",
            "bench.load_process",
            protocol,
            str(port),
            str(concurrency),
            model,
            str(byte_size),
        ]
        self._process = subprocess.Popen(
            argv, cwd=REPOSITORY_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._read()

    def run(self, seconds: float) -> LoadResult:
        """Load the server for this long.

        Raises:
            LoadError: it answered wrongly, or not at all.
        """
        self.start(seconds)
        return self.result()

    def start(self, seconds: float) -> None:
        """Begin to load the server; `result` waits for the end."""
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()

    def result(self) -> LoadResult:
        return LoadResult(**json.loads(self._read()))

    def __enter__(self) -> "LoadProcess":
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _read(self) -> str:
        line = self._process.stdout.readline()
        if not line:
            raise LoadError(f"the load generator ended with {self._process.wait()}")
        return line


def main() -> None:
    protocol, port, concurrency, model, byte_size = sys.argv[1:]
    workload: Workload = large_tensor(model, int(byte_size)) if int(byte_size) else small_tensor(model)
    connections = [CONNECTIONS[protocol](int(port), workload) for _ in range(int(concurrency))]
    print("ready", flush=True)
    for line in sys.stdin:
        window = run_window(connections, float(line))
        ordered = sorted(window.latencies_ns)
        print(
            json.dumps(
                {
                    "request_count": len(ordered),
                    "seconds": window.seconds,
                    "mean_us": statistics.fmean(ordered) / 1e3,
                    "p50_us": ordered[len(ordered) // 2] / 1e3,
                    "p99_us": ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)] / 1e3,
                    "cpu_seconds": window.cpu_seconds,
                }
            ),
            flush=True,
        )
    for connection in connections:
        connection.close()


if __name__ == "__main__":
    main()
