"""What goes to a child by the data socket, and when.

Messages are sent once per pass of the loop, all together; but at once where they come one by one, and the child is
idle: then there is nothing to wait for. Where many come to an idle child, it gets the first few in the middle of the
pass, so that both sides work at the same time; it sends its answers in the same way.

What the socket does not take waits until it does, and everything behind it.
"""

import asyncio
import socket
from collections.abc import Callable, Sized

from merrow.core.tensor import Buffer
from merrow.places.process.channel import FIRST_FLUSH_COUNT

# Beyond, a slice of what was not taken costs less than another copy of it.
_VIEW_BYTE_SIZE = 65536


class Outbox:
    """On the loop's thread.

    `messages` are those not sent yet; what is appended there goes with the next that is sent. While `is_held`, nothing
    is sent: whoever holds it flushes afterwards.
    """

    def __init__(
        self,
        connection: socket.socket,
        loop: asyncio.AbstractEventLoop,
        batches: Sized,
        on_broken: Callable[[], None],
    ) -> None:
        """
        Args:
            batches: those that the child has been given or is about to be.
            on_broken: called, not at once, when the other side is gone.
        """
        self.messages: list[bytes] = []
        self.is_held = False
        self._socket = connection
        self._loop = loop
        self._batches = batches
        self._on_broken = on_broken
        self._unsent: memoryview | None = None
        self._is_flush_scheduled = False
        # Messages come several in a pass of the loop, of late.
        self._is_crowded = False
        self._has_sent_first = False
        self._is_closed = False

    def send(self, message: bytes, is_urgent: bool) -> None:
        """Send a message in its turn. `is_urgent`: the child has nothing else to do."""
        if self._is_closed:
            # While a session is being lost, a last response may bring another batch, which is reported as lost too.
            return
        messages = self.messages
        messages.append(message)
        if self.is_held:
            return
        if self._is_flush_scheduled:
            if len(messages) == FIRST_FLUSH_COUNT and len(self._batches) < 2 * FIRST_FLUSH_COUNT:
                # The child has next to nothing else to do.
                self._has_sent_first = True
                self.flush()
            return
        if is_urgent and not self._is_crowded:
            self.flush()
        else:
            self._is_flush_scheduled = True
            self._loop.call_soon(self._flush_scheduled)

    def flush(self) -> None:
        """Send what there is, at least one message, unless something is still waiting for the socket."""
        if self._unsent is not None:
            return
        messages = self.messages
        data = messages[0] if len(messages) == 1 else b"".join(messages)
        messages.clear()
        self._write(memoryview(data) if len(data) > _VIEW_BYTE_SIZE else data)

    def close(self) -> None:
        """Nothing is sent any more; before the socket is closed."""
        self._is_closed = True
        self._loop.remove_writer(self._socket.fileno())
        self._unsent = None
        self.messages.clear()

    def _flush_scheduled(self) -> None:
        self._is_flush_scheduled = False
        self._is_crowded = self._has_sent_first or len(self.messages) > 1
        self._has_sent_first = False
        if self.messages:
            self.flush()

    def _write(self, data: Buffer) -> None:
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            # Not here: the caller may be in the middle of handing out batches.
            self._loop.call_soon(self._on_broken)
            return
        if sent < len(data):
            self._unsent = memoryview(data)[sent:]
            self._loop.add_writer(self._socket.fileno(), self._on_writable)

    def _on_writable(self) -> None:
        unsent, self._unsent = self._unsent, None
        self._loop.remove_writer(self._socket.fileno())
        if unsent is not None:
            self._write(unsent)
        if self.messages and self._unsent is None:
            self.flush()
