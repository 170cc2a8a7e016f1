"""Copies of large tensors into this side's arena, for which the loop does not stand still.

What is encoded first only takes its place in the arena; the data is copied before the message is sent. Megabytes are
copied on a thread of their own.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence

import numpy as np

from merrow.core.tensor import Buffer
from merrow.places.loop_calls import call_on_loop
from merrow.places.process.arena import Bytes

# Copying this much takes longer than the loop should stand still.
COPY_ON_THREAD_BYTE_SIZE = 1 << 20

Copy = tuple[Bytes, Buffer]
"""To, and from; of one size."""


def copy_all(copies: Sequence[Copy]) -> None:
    """Here and now."""
    for array, data in copies:
        # Releases the GIL where the tensor is large.
        np.copyto(array, np.frombuffer(data, np.uint8))


def take_long(copies: Sequence[Copy]) -> bool:
    """Whether they are for `copy_on_thread`."""
    return sum([len(array) for array, _ in copies]) >= COPY_ON_THREAD_BYTE_SIZE


def copy_on_thread(
    copies: Sequence[Copy], loop: asyncio.AbstractEventLoop, on_copied: Callable[..., object], *arguments: object
) -> None:
    """Returns at once; `on_copied` is called on the loop's thread when all is copied."""

    def run() -> None:
        copy_all(copies)
        call_on_loop(loop, on_copied, *arguments)

    # A thread for each is cheap beside copying megabytes, and there are never many.
    threading.Thread(target=run, daemon=True).start()
