"""Back-pressure: how much of a stream of responses may be on its way before the model that makes them waits.

Whoever sends reserves; whoever knows that it has left the server releases. What is sent is never cut: a send waits
until less than the limit is on its way, so that the limit can be exceeded by one response.
"""

import threading


class StreamWindow:
    """The bytes of one stream that are on their way. Thread-safe."""

    def __init__(self, byte_size: int) -> None:
        self._limit = byte_size
        self._outstanding = 0
        self._is_open = False
        self._condition = threading.Condition()

    def reserve(self, byte_size: int) -> None:
        """Wait for room, and take it."""
        with self._condition:
            while self._outstanding >= self._limit and not self._is_open:
                self._condition.wait()
            self._outstanding += byte_size

    def release(self, byte_size: int) -> None:
        """So much is not on its way any more."""
        with self._condition:
            self._outstanding -= byte_size
            self._condition.notify_all()

    def open(self) -> None:
        """Let everything through from now on: nobody will release."""
        with self._condition:
            self._is_open = True
            self._condition.notify_all()
