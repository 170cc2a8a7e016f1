"""Every test is checked for what it leaves behind: threads, child processes, sockets, pipes, files, shared memory.

What fixtures of a wider scope hold is there before the test and does not count. Ends take a moment (a thread that was
told to stop, a socket that closes on the other side), so a test is given time before it fails. Descriptors are known on
Linux only.
"""

import gc
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SETTLE_SECONDS = 3.0

# Descriptors that libraries open once and keep: event polls, random numbers, libraries, the system's tables.
KEPT_DESCRIPTORS = ("anon_inode:", "/dev/", "/proc/", "/sys/", "/usr/", "/lib/")


def threads() -> dict[str, object]:
    return {f"thread {thread.name} ({thread.ident})": thread for thread in threading.enumerate() if thread.is_alive()}


def children() -> dict[str, object]:
    """The children of this process, finished but not waited for included."""
    found: dict[str, object] = {}
    for path in Path("/proc/self/task").glob("*/children"):
        try:
            for pid in path.read_text().split():
                found[f"process {pid}"] = pid
        except OSError:
            # The thread ended meanwhile.
            continue
    return found


def descriptors() -> dict[str, object]:
    found: dict[str, object] = {}
    for path in Path("/proc/self/fd").glob("*"):
        try:
            target = os.readlink(path)
        except OSError:
            continue
        if not target.startswith(KEPT_DESCRIPTORS):
            found[f"descriptor {path.name} -> {target}"] = target
    return found


def held() -> set[str]:
    return {*threads(), *children(), *descriptors()}


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    before = held()
    yield
    deadline = time.monotonic() + SETTLE_SECONDS
    left = held() - before
    while left and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.02)
        left = held() - before
    assert not left, f"the test left behind: {', '.join(sorted(left))}"
