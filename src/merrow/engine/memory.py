"""Memory that nobody uses any more goes back to the system.

glibc gives each thread that allocates a heap of its own, and the top of such a heap never goes back, whoever asks:
after some loads and unloads on different threads the server would hold the size of several models. With one heap for
all threads, `malloc_trim` returns every free page of it. The price, threads that wait for one another while they
allocate, is small here: Python's own lock keeps most of them apart, and runtimes have allocators of their own.

Elsewhere than with glibc there is nothing to say.
"""

import ctypes
from collections.abc import Callable

# Of malloc.h.
_M_ARENA_MAX = -8


def use_one_heap() -> None:
    """For a process that serves: to be called before it starts threads."""
    set_option = _find("mallopt")
    if set_option is not None:
        set_option(_M_ARENA_MAX, 1)


def return_memory() -> None:
    """Give back free pages. Blocks for some milliseconds, while other Python threads go on."""
    trim = _find("malloc_trim")
    if trim is not None:
        trim(0)


def _find(name: str) -> Callable[..., object] | None:
    """A function of the C library; None where it has no such function."""
    try:
        function: Callable[..., object] | None = getattr(ctypes.CDLL(None), name, None)
    except (OSError, TypeError):
        return None
    return function
