"""Which CPU cores the calling thread may use, and whether it may push others aside, where the platform can do it.

A thread passes both on to the threads that it starts, so what holds for the thread on which an instance is created
holds for all of its work.
"""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from merrow.core.errors import InvalidArgumentError, UnsupportedError

NODES_DIRECTORY = Path("/sys/devices/system/node")


def bind_to_cores(cores: Sequence[int]) -> None:
    """Bind the calling thread, and those it will start; a no-op without cores.

    Raises:
        UnsupportedError: the platform cannot.
        InvalidArgumentError: there are no such cores, or this process may not use them.
    """
    if not cores:
        return
    if not hasattr(os, "sched_setaffinity"):
        raise UnsupportedError("this platform cannot bind threads to CPU cores, as --host-policy asks")
    try:
        os.sched_setaffinity(0, cores)
    except OSError as error:
        raise InvalidArgumentError(f"cannot bind to the CPU cores {list(cores)}: {error.strerror}") from None


def compute_in_the_background() -> None:
    """Let the calling thread, and those it will start, wait for a core instead of taking the loop's when they wake.

    They get their share of the cores all the same. A batch that pushed the loop's thread aside at once would wait for
    the GIL, which that thread still holds.
    """
    if hasattr(os, "SCHED_BATCH"):
        # A sandbox may forbid it; then things are as they were.
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def cores_of_node(node: int, directory: Path = NODES_DIRECTORY) -> tuple[int, ...]:
    """The cores of a NUMA node.

    Raises:
        InvalidArgumentError: there is no such node.
    """
    try:
        text = (directory / f"node{node}" / "cpulist").read_text()
    except OSError:
        raise InvalidArgumentError(f"there is no NUMA node {node} on this machine") from None
    cores: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        cores += range(int(first), int(last or first) + 1)
    return tuple(cores)
