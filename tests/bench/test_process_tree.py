"""The tree of a server's processes, those included that were handed to another parent."""

import os
import signal
import subprocess
import sys

import pytest

from bench import process_tree

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc is read, which only Linux has")

# A parent that ends at once and leaves its child behind, in the session that it was started in.
ORPHAN = "import os, time; os.fork() and os._exit(0); print(os.getpid(), flush=True); time.sleep(60)"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {ORPHAN!r}]); sys.stdin.read()"


def test_an_orphan_of_the_session_belongs_to_the_tree():
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        assert process.stdout is not None
        orphan = int(process.stdout.readline())

        found = process_tree.tree(process.pid)

        os.kill(orphan, signal.SIGKILL)
    assert {process.pid, orphan} <= set(found)


def test_processor_time_and_memory_are_those_of_the_tree():
    code = "data = bytearray(30_000_000); sum(range(3_000_000)); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()

        cpu_seconds = process_tree.cpu_seconds(process.pid)
        memory = process_tree.memory(process.pid)

    assert 0.02 < cpu_seconds < 5
    assert 30_000_000 < memory.pss <= memory.rss <= memory.peak_rss
