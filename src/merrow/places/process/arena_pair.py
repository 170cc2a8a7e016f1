"""The shared memory of one socket, as one of its ends sees it: the arena that it allocates in, and the other end's.

Three messages keep the two ends in step, and mean the same on the data socket and on the services socket:

    SEGMENT  a new segment of the sender's arena, with its descriptor; sent before any of its blocks is mentioned
    DROP     the sender's arena has one segment less
    FREE     blocks of the receiver's arena that nobody sees any more at the sender

What they are sent by, and what is known of a block while it is lent, is the owner's: an end of the services socket
sends all three by that socket, an end of the data socket announces by the control socket, which takes descriptors. It
belongs to one thread, or to whoever holds its owner's lock; only `peer_loans.returned` grows on any thread.
"""

import os
import time
from collections.abc import Callable

import numpy as np

from merrow.core.tensor import Buffer
from merrow.places.process.arena import Arena, BlockKey, Loans, PeerArena
from merrow.places.process.channel import (
    DROP,
    FREE,
    SEGMENT,
    SEGMENT_BYTE_SIZE,
    ProtocolError,
    decode_blocks,
    encode_blocks,
    frame,
)
from merrow.places.process.sections import SENDER_ARENA
from merrow.places.process.system import map_shared_memory


class ArenaPair:
    """See the module."""

    def __init__(
        self,
        initial_byte_size: int,
        announce: Callable[[bytes, int], None],
        send: Callable[[bytes], None],
        on_return: Callable[[], None],
    ) -> None:
        """
        Args:
            announce: sends a message with a descriptor, which is closed when it returns.
            send: sends any other message.
            on_return: called on any thread, in the middle of anything, after a block of the other end's was let go.
        """
        self._announce = announce
        self._send = send
        self.own = Arena(initial_byte_size, self._announce_segment, self._retire_segment)
        self.peer = PeerArena()
        self.peer_loans = Loans(on_return)
        # What the message that is being encoded takes of this end's arena; whoever encodes clears it before.
        self.stored: list[BlockKey] = []

    def close(self) -> None:
        """Let go of every segment; blocks that someone still sees stay mapped until then."""
        self.own.close()
        self.peer.close()

    # What this end puts into its own arena.

    def store(self, data: Buffer) -> tuple[int, int, int]:
        """Copy the data of a large tensor into a new block; see `sections.Place`.

        Raises:
            OSError: there is no memory.
        """
        array = np.frombuffer(data, np.uint8)
        mapping, segment, offset = self.own.allocate(len(array))
        self.stored.append((segment, offset))
        np.copyto(np.frombuffer(mapping, np.uint8, len(array), offset), array)
        return SENDER_ARENA, segment, offset

    def discard(self) -> None:
        """The message cannot be sent: nobody will hear of what was stored for it."""
        now_ns = time.monotonic_ns()
        while self.stored:
            self.own.free(self.stored.pop(), now_ns)

    # What this end sees of the other's.

    def lend(self, location: int, segment: int, offset: int, byte_size: int) -> memoryview:
        """A view of a block that the other end stored; see `sections.OpenBlock`.

        Raises:
            ProtocolError: it is said to be anywhere else.
            SharedMemoryError: the block is not inside an announced segment.
        """
        if location != SENDER_ARENA:
            raise ProtocolError(f"a tensor in location {location}")
        return self.peer.lend(self.peer_loans, segment, offset, byte_size)

    def release(self) -> None:
        """Give back the blocks that were let go, all of which the other end is waiting for."""
        returned = self.peer_loans.returned
        keys = [returned.popleft() for _ in range(len(returned))]
        if keys:
            self._send(encode_blocks(FREE, 0, keys))

    # What the other end says.

    def take_segment(self, number: int, body: bytes, descriptor: int | None) -> None:
        """A SEGMENT message came; the descriptor is closed here.

        Raises:
            ProtocolError: it is cut.
            SharedMemoryError: the memory is not what it is said to be, or was announced before.
        """
        assert descriptor is not None, "the socket takes no SEGMENT without one"
        if len(body) != SEGMENT_BYTE_SIZE.size:
            os.close(descriptor)
            raise ProtocolError(f"a segment's size in {len(body)} bytes")
        (byte_size,) = SEGMENT_BYTE_SIZE.unpack(body)
        self.peer.add(number, map_shared_memory(descriptor, byte_size), byte_size)

    def take_free(self, chunk: bytes, start: int, end: int, count: int) -> None:
        """A FREE message came.

        Raises:
            KeyError: it names a block that is not taken.
        """
        now_ns = time.monotonic_ns()
        for key in decode_blocks(chunk, start, end, count):
            self.own.free(key, now_ns)

    def _announce_segment(self, number: int, descriptor: int, byte_size: int) -> None:
        self._announce(frame(SEGMENT, number, SEGMENT_BYTE_SIZE.pack(byte_size)), descriptor)

    def _retire_segment(self, number: int) -> None:
        self._send(frame(DROP, number))
