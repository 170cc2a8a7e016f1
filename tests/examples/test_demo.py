"""The demo as a process: what `make demo` runs."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tritonclient.http

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "examples.demo", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_once_asks_every_model_over_both_protocols_and_ends_well():
    with start("--once") as demo:
        output, _ = demo.communicate(timeout=100)

    assert demo.returncode == 0, output
    assert "not the expected answer" not in output
    for expected in (
        r"HTTP  \[0\.0, 1\.0, 2\.0, 3\.0\] \+ \[1\.0, 1\.0, 1\.0, 1\.0\] = \[1\.0, 2\.0, 3\.0, 4\.0\]",
        r"gRPC  \[0\.0, 1\.0, 2\.0, 3\.0\] \+ \[1\.0, 1\.0, 1\.0, 1\.0\] = \[1\.0, 2\.0, 3\.0, 4\.0\]",
        r"HTTP  zero +one +two +three +four +five +six +seven +eight +nine",
        r"gRPC  zero +one +two +three +four +five +six +seven +eight +nine",
        r"HTTP  README\.md +markdown",
        r"gRPC  examples/demo\.py +python",
        r"Serving on http://127\.0\.0\.1:\d+",
    ):
        assert re.search(expected, output), f"{expected}\n{output}"


def test_without_once_the_server_stays_until_the_demo_is_ended():
    with start("--port=0") as demo:
        lines = []
        port = None
        assert demo.stdout is not None
        for line in demo.stdout:
            lines.append(line)
            match = re.search(r"Serving on http://127\.0\.0\.1:(\d+) \(HTTP", line)
            if match:
                port = match[1]
                break
        assert port is not None, "".join(lines)
        with tritonclient.http.InferenceServerClient(f"127.0.0.1:{port}") as client:
            assert client.is_model_ready("digits")

        demo.send_signal(signal.SIGINT)
        demo.communicate(timeout=60)

    assert demo.returncode == 0
