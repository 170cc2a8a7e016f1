"""The files of clients' shared memory that a child has: which it was given, and when it is told to close one."""

import asyncio
import weakref
from collections.abc import Callable

from merrow.core.region import RegionFile
from merrow.places.loop_calls import call_on_loop
from merrow.places.process.channel import CLIENT_FILE, DROP_CLIENT_FILE, frame
from merrow.places.process.control import ControlSocket


class ClientFiles:
    """On the loop's thread. `send` sends a message by the data socket, behind whatever names a file."""

    def __init__(
        self, control: ControlSocket, loop: asyncio.AbstractEventLoop, send: Callable[[bytes, bool], None]
    ) -> None:
        self._control = control
        self._loop = loop
        self._send = send
        # By number: what tells that the file is gone.
        self._given: dict[int, weakref.finalize[..., RegionFile]] = {}

    def share(self, file: RegionFile) -> None:
        """Make sure that the child has the file before it is named.

        Raises:
            OSError: it cannot be given.
        """
        number = file.number
        if number in self._given:
            return
        self._control.send(CLIENT_FILE, number, descriptor=file.descriptor)
        # It is gone when the region was unregistered, and the last request that uses it is over.
        finalizer = weakref.finalize(file, call_on_loop, self._loop, self._drop, number)
        finalizer.atexit = False
        self._given[number] = finalizer

    def close(self) -> None:
        """The child is gone, and with it what it had."""
        for finalizer in self._given.values():
            finalizer.detach()
        self._given.clear()

    def _drop(self, number: int) -> None:
        if self._given.pop(number, None) is not None:
            self._send(frame(DROP_CLIENT_FILE, number), True)
