"""Calls on the loop's thread, from any other."""

import asyncio
from collections.abc import Callable


def call_on_loop(loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *arguments: object) -> None:
    """Call back soon, on the loop's thread; nothing happens if the loop is closed: the server has ended, and nobody
    waits."""
    try:
        loop.call_soon_threadsafe(callback, *arguments)
    except RuntimeError:
        pass
