"""Shared memory for tensors that are too large to travel in a message.

Each side of a channel owns one arena, which only it allocates in, and reads the other's. An arena is a few segments,
each a descriptor-passed mapping of fixed size:

* it starts with none; the first large tensor brings the base segment, of the initial size;
* what does not fit brings a new, larger segment (a power of two, at least twice the largest);
* a segment other than the base that stayed empty for `TRIM_AFTER_NS` is given back to the system.

A block must not be reused while anyone can still see it. Blocks are therefore handed out as numpy arrays, and every
view of one (slice, memoryview, another array) keeps that array alive; `Loans` notices when the last is gone, on
whichever thread that happens. A mapping is unmapped by itself when the segment and all its arrays are gone.
"""

import mmap
import os
import weakref
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from merrow.places.process.system import SharedMemoryError, create_shared_memory

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
BlockKey = tuple[int, int]
"""Segment and offset."""

TRIM_AFTER_NS = 5_000_000_000

_ALIGNMENT = 64


class BlockAllocator:
    """Which ranges of a segment are taken: first fit, neighbours merged. Offsets are multiples of 64."""

    def __init__(self, byte_size: int) -> None:
        self._byte_size = byte_size
        self._free_sizes = {0: byte_size}
        self._free_offsets = [0]
        self._taken: dict[int, int] = {}

    @property
    def is_empty(self) -> bool:
        return not self._taken

    def allocate(self, byte_size: int) -> int | None:
        """The offset of a new block, or None when there is no room."""
        size = -(-byte_size // _ALIGNMENT) * _ALIGNMENT
        for index, offset in enumerate(self._free_offsets):
            available = self._free_sizes[offset]
            # The last block of a segment of odd size may lack its padding.
            if available < byte_size:
                continue
            size = min(size, available)
            del self._free_sizes[offset]
            if available > size:
                self._free_offsets[index] = offset + size
                self._free_sizes[offset + size] = available - size
            else:
                del self._free_offsets[index]
            self._taken[offset] = size
            return offset
        return None

    def free(self, offset: int) -> None:
        """Give a block back.

        Raises:
            KeyError: there is no such block.
        """
        size = self._taken.pop(offset)
        index = bisect_left(self._free_offsets, offset)
        if index < len(self._free_offsets) and self._free_offsets[index] == offset + size:
            size += self._free_sizes.pop(self._free_offsets.pop(index))
        if index:
            before = self._free_offsets[index - 1]
            if before + self._free_sizes[before] == offset:
                self._free_sizes[before] += size
                return
        insort(self._free_offsets, offset)
        self._free_sizes[offset] = size

    def check_invariants(self) -> None:
        """Every byte is free or taken, once, and no two free ranges touch."""
        assert self._free_offsets == sorted(self._free_sizes)
        ranges = sorted([*self._free_sizes.items(), *self._taken.items()])
        position = 0
        was_free = False
        for offset, size in ranges:
            is_free = offset in self._free_sizes
            assert offset == position
            assert size > 0
            assert not (is_free and was_free)
            position, was_free = offset + size, is_free
        assert position == self._byte_size


class Loans:
    """Blocks handed out as arrays, and those that nobody sees any more.

    `returned` gathers the keys of the latter; it may grow on any thread, after which `on_return` is called there.
    """

    def __init__(self, on_return: Callable[[], None] | None = None) -> None:
        self.returned: deque[BlockKey] = deque()
        self._on_return = on_return
        self._out: set[_Loan] = set()

    def lend(self, mapping: mmap.mmap, segment: int, offset: int, byte_size: int) -> Bytes:
        """The block as an array of bytes; nothing else may be made of the same block until it is returned."""
        array: Bytes = np.frombuffer(mapping, np.uint8, byte_size, offset)
        loan = _Loan(array, self._take_back)
        loan.key = (segment, offset)
        self._out.add(loan)
        return array

    def is_out(self, key: BlockKey) -> bool:
        """Whether someone still sees the block."""
        return any(loan.key == key and loan() is not None for loan in tuple(self._out))

    def _take_back(self, loan: "weakref.ref[Bytes]") -> None:
        assert isinstance(loan, _Loan)
        self._out.discard(loan)
        self.returned.append(loan.key)
        if self._on_return is not None:
            self._on_return()


class _Loan(weakref.ref):  # type: ignore[type-arg]  # cannot be subclassed with its parameter
    """A weak reference that knows its block, and is equal to itself only: arrays cannot be hashed."""

    __slots__ = ("key",)
    key: BlockKey
    __hash__ = object.__hash__
    __eq__ = object.__eq__


class _Segment:
    __slots__ = ("allocator", "byte_size", "emptied_ns", "mapping", "number")

    def __init__(self, number: int, byte_size: int, mapping: mmap.mmap) -> None:
        self.number = number
        self.byte_size = byte_size
        self.mapping = mapping
        self.allocator = BlockAllocator(byte_size)
        self.emptied_ns = 0


class Arena:
    """The memory that this side allocates in.

    `announce(number, descriptor, byte_size)` tells the other side of a new segment, before any of its blocks is used;
    `retire(number)` that one is gone.
    """

    def __init__(
        self,
        initial_byte_size: int,
        announce: Callable[[int, int, int], None],
        retire: Callable[[int], None],
    ) -> None:
        self._initial_byte_size = initial_byte_size
        self._announce = announce
        self._retire = retire
        # Smallest first.
        self._segments: list[_Segment] = []
        self._by_number: dict[int, _Segment] = {}
        self._next_number = 0

    @property
    def byte_size(self) -> int:
        """Of all segments; not all of it need be in memory."""
        return sum(segment.byte_size for segment in self._segments)

    @property
    def has_surplus(self) -> bool:
        """Whether `trim` may one day give something back."""
        return bool(self._segments) and self._is_surplus(self._segments[-1])

    def allocate(self, byte_size: int) -> tuple[mmap.mmap, int, int]:
        """A new block of at least one byte.

        Returns:
            The mapping, the number of the segment and the block's offset in it.

        Raises:
            OSError: the system gives no more memory or descriptors.
        """
        if byte_size <= self._initial_byte_size and (not self._segments or self._is_surplus(self._segments[0])):
            # A small tensor must not hold a large segment.
            self._add_segment(self._initial_byte_size)
        for segment in self._segments:
            offset = segment.allocator.allocate(byte_size)
            if offset is not None:
                return segment.mapping, segment.number, offset
        largest = self._segments[-1].byte_size if self._segments else 0
        segment = self._add_segment(max(1 << (byte_size - 1).bit_length(), 2 * largest, self._initial_byte_size))
        offset = segment.allocator.allocate(byte_size)
        assert offset is not None
        return segment.mapping, segment.number, offset

    def free(self, key: BlockKey, now_ns: int) -> None:
        """Give a block back.

        Raises:
            KeyError: there is no such block.
        """
        segment = self._by_number[key[0]]
        segment.allocator.free(key[1])
        if segment.allocator.is_empty:
            segment.emptied_ns = now_ns

    def trim(self, now_ns: int) -> None:
        """Give back the segments that have been empty for long."""
        for segment in list(self._segments):
            if (
                self._is_surplus(segment)
                and segment.allocator.is_empty
                and now_ns - segment.emptied_ns >= TRIM_AFTER_NS
            ):
                self._segments.remove(segment)
                del self._by_number[segment.number]
                self._retire(segment.number)

    def close(self) -> None:
        """Let go of every segment; blocks that someone still sees stay mapped until then."""
        self._segments.clear()
        self._by_number.clear()

    def _is_surplus(self, segment: _Segment) -> bool:
        return segment.byte_size > self._initial_byte_size

    def _add_segment(self, byte_size: int) -> _Segment:
        # Never used again: news of a segment and of the end of another travel by different sockets.
        number = self._next_number
        self._next_number += 1
        descriptor, mapping = create_shared_memory(byte_size)
        try:
            self._announce(number, descriptor, byte_size)
        finally:
            os.close(descriptor)
        segment = _Segment(number, byte_size, mapping)
        insort(self._segments, segment, key=lambda each: each.byte_size)
        self._by_number[number] = segment
        return segment


class PeerArena:
    """The other side's segments, as far as they were announced."""

    def __init__(self) -> None:
        self._mappings: dict[int, tuple[mmap.mmap, int]] = {}

    def __contains__(self, segment: int) -> bool:
        return segment in self._mappings

    def add(self, segment: int, mapping: mmap.mmap, byte_size: int) -> None:
        if segment in self._mappings:
            raise SharedMemoryError(f"segment {segment} was announced twice")
        self._mappings[segment] = (mapping, byte_size)

    def drop(self, segment: int) -> None:
        if self._mappings.pop(segment, None) is None:
            raise SharedMemoryError(f"there is no segment {segment} to drop")

    def close(self) -> None:
        """Let go of every segment; blocks that someone still sees stay mapped until then."""
        self._mappings.clear()

    def lend(self, loans: Loans, segment: int, offset: int, byte_size: int) -> memoryview:
        """A view of a block, which `loans` gets back when nobody sees it any more.

        Raises:
            SharedMemoryError: as `check`.
        """
        array = loans.lend(self.check(segment, offset, byte_size), segment, offset, byte_size)
        return memoryview(array)  # type: ignore[arg-type,unused-ignore]  # numpy's types for Python 3.10 have no buffers

    def check(self, segment: int, offset: int, byte_size: int) -> mmap.mmap:
        """The mapping that holds the block.

        Raises:
            SharedMemoryError: the block is not inside an announced segment.
        """
        mapping, segment_size = self._mappings.get(segment, (None, 0))
        if mapping is None or offset > segment_size or byte_size > segment_size - offset:
            raise SharedMemoryError(f"no block of {byte_size} bytes at {offset} in segment {segment}")
        return mapping
