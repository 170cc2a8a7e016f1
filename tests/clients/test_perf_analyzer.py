"""NVIDIA's perf_analyzer, unmodified, out of its wheel."""

import re
import subprocess

import pytest

from tests.clients.conftest import Endpoints
from tests.oracle import perf_analyzer
from tests.oracle.availability import install_or_skip

pytestmark = pytest.mark.slow


@pytest.fixture(name="command", scope="module")
def perf_analyzer_command() -> tuple[list[str], dict[str, str]]:
    return install_or_skip(perf_analyzer.command)


@pytest.mark.parametrize(
    ("protocol", "options"),
    [
        ("http", ()),
        ("http", ("--async",)),
        ("grpc", ()),
        ("grpc", ("--streaming", "--async")),
        ("grpc", ("--async", "-b", "4")),
    ],
    ids=str,
)
def test_a_short_run(
    server: Endpoints, command: tuple[list[str], dict[str, str]], protocol: str, options: tuple[str, ...]
):
    argv, environment = command
    url = server.http if protocol == "http" else server.grpc
    argv = [*argv, "-m", "ident", "-u", url, "-i", protocol, "--concurrency-range", "4", *options]

    # Two windows whose figures may differ as much as they like: this asks whether it runs, not how fast.
    run = subprocess.run(
        [*argv, "-p", "300", "-r", "3", "-s", "999"], env=environment, capture_output=True, text=True, timeout=60
    )

    assert run.returncode == 0, run.stdout + run.stderr
    throughput = re.search(r"Throughput: ([\d.]+) infer/sec", run.stdout)
    assert throughput, run.stdout
    assert float(throughput[1]) > 0
