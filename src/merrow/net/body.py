"""Memory that a body or a message of known size is received into.

A large body is received straight into the buffer that its tensors will view. The buffer is not allocated before a
part of the body has arrived, so that a client cannot reserve much memory by only announcing a body.
"""

import mmap
import sys

from merrow.core.tensor import Buffer

# The buffer is allocated when this fraction of the body is there.
_ALLOCATION_FACTOR = 64
# From here on, the system hands out fresh memory for each buffer, and touching it costs more than receiving the body,
# unless it comes in huge pages: 64 MB took 10 ms instead of 70 where this was measured.
_HUGE_PAGES_BYTE_SIZE = 16 * 1024 * 1024


class ReceiveBudgetError(MemoryError):
    """As many bytes are being received as may be; the text is for the client."""


class ReceiveBudget:
    """Memory for bodies that are being received, over all connections: what is taken must be given back."""

    __slots__ = ("_available_byte_size", "_byte_size")

    def __init__(self, byte_size: int) -> None:
        self._byte_size = self._available_byte_size = byte_size

    @property
    def taken_byte_size(self) -> int:
        return self._byte_size - self._available_byte_size

    def take(self, byte_size: int) -> None:
        """
        Raises:
            ReceiveBudgetError: there is not so much left.
        """
        if byte_size > self._available_byte_size:
            raise ReceiveBudgetError(
                f"the requests that are being received together exceed the limit of {self._byte_size} bytes; try again"
            )
        self._available_byte_size -= byte_size

    def give_back(self, byte_size: int) -> None:
        self._available_byte_size += byte_size


class BudgetShare:
    """What one body has taken of the budget; given back by `release`, or when nobody holds the body any more."""

    __slots__ = ("_budget", "_byte_size")

    def __init__(self, budget: ReceiveBudget) -> None:
        self._budget = budget
        self._byte_size = 0

    def grow_to(self, byte_size: int) -> None:
        """
        Raises:
            ReceiveBudgetError: there is not so much left.
        """
        if byte_size > self._byte_size:
            self._budget.take(byte_size - self._byte_size)
            self._byte_size = byte_size

    def release(self) -> None:
        byte_size, self._byte_size = self._byte_size, 0
        self._budget.give_back(byte_size)

    def __del__(self) -> None:
        # A body is abandoned in many places: connections are lost, streams reset, requests refused.
        self.release()


class BodyBuffer:
    """Collects a body of `byte_size` bytes; `is_complete` once all are there.

    `budget` is where the memory for it is accounted for, from the first piece on until the body is taken.
    """

    __slots__ = ("_body", "_share", "_start", "_view", "byte_size", "received_byte_size")

    def __init__(self, byte_size: int, budget: ReceiveBudget) -> None:
        self._share = BudgetShare(budget)
        self.byte_size = byte_size
        self.received_byte_size = 0
        # What came before the buffer was allocated, and the buffer; or the whole body, if it came in one piece.
        self._start = bytearray()
        self._body: Buffer = b""
        self._view: memoryview | None = None

    @property
    def is_complete(self) -> bool:
        return self.received_byte_size == self.byte_size

    @property
    def remaining_byte_size(self) -> int:
        return self.byte_size - self.received_byte_size

    def add(self, piece: Buffer) -> None:
        """Append a piece, which must not be longer than what remains. It may be kept.

        Raises:
            MemoryError: there is no memory for a body of this size, or it would be more than the budget allows.
        """
        start = self.received_byte_size
        end = self.received_byte_size = start + len(piece)
        assert end <= self.byte_size
        if end == self.byte_size and start == 0:
            self._body = piece
            return
        if self._view is None and end * _ALLOCATION_FACTOR < self.byte_size:
            self._share.grow_to(end)
            self._start += piece
            return
        if self._view is None:
            self._share.grow_to(self.byte_size)
            self._body = allocate(self.byte_size)
            self._view = memoryview(self._body)
            self._view[:start] = self._start
            self._start.clear()
        self._view[start:end] = piece

    def remaining_view(self) -> memoryview | None:
        """Where the rest belongs, for the socket to write to; None as long as too little has arrived for that."""
        return None if self._view is None else self._view[self.received_byte_size :]

    def advance(self, byte_size: int) -> None:
        """So many bytes have been written to `remaining_view`."""
        self.received_byte_size += byte_size

    def take(self) -> Buffer:
        """The complete body."""
        assert self.is_complete
        self._view = None
        self._share.release()
        return self._body


def no_memory_text(error: MemoryError, what: str = "the request's body") -> str:
    """What a client is told whose body cannot be received."""
    return str(error) if isinstance(error, ReceiveBudgetError) else f"not enough memory for {what}"


def allocate(byte_size: int) -> bytearray | memoryview:
    """Writable memory of this size.

    Raises:
        MemoryError: there is none.
    """
    if sys.platform != "linux" or byte_size < _HUGE_PAGES_BYTE_SIZE:
        return bytearray(byte_size)
    try:
        memory = mmap.mmap(-1, byte_size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"no memory for {byte_size} bytes") from error
    try:
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:
        # A kernel without huge pages.
        pass
    # Unmapped when the last view of it is gone.
    return memoryview(memory)
