"""The event loop: uvloop where it is installed (never on Windows), asyncio's own elsewhere."""

import asyncio
import sys


def new_event_loop() -> asyncio.AbstractEventLoop:
    """A fresh loop of the best kind there is; the caller runs and closes it."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def copies_output(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether the transports of a loop copy what the socket does not take at once, however much it is.

    uvloop keeps what it is given, and so does asyncio from Python 3.12 on.
    """
    return isinstance(loop, asyncio.BaseEventLoop) and sys.version_info < (3, 12)
