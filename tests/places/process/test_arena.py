import gc
import os
import random

import numpy as np
import pytest

from merrow.places.process.arena import TRIM_AFTER_NS, Arena, BlockAllocator, Loans, PeerArena
from merrow.places.process.system import SharedMemoryError, create_shared_memory, map_shared_memory

KIB = 1024


class Announcements:
    """Plays the other side: keeps what was announced."""

    def __init__(self) -> None:
        self.peer = PeerArena()
        self.sizes: dict[int, int] = {}

    def announce(self, number: int, descriptor: int, byte_size: int) -> None:
        self.sizes[number] = byte_size
        self.peer.add(number, map_shared_memory(os.dup(descriptor), byte_size), byte_size)

    def retire(self, number: int) -> None:
        del self.sizes[number]
        self.peer.drop(number)


def make_arena(other_side: Announcements) -> Arena:
    return Arena(64 * KIB, other_side.announce, other_side.retire)


def test_blocks_are_taken_from_the_first_gap_that_fits_and_rounded_up_to_64_bytes():
    allocator = BlockAllocator(1024)

    assert [allocator.allocate(size) for size in (1, 64, 65)] == [0, 64, 128]
    allocator.free(64)
    assert allocator.allocate(100) == 256
    assert allocator.allocate(10) == 64


def test_neighbouring_gaps_are_merged():
    allocator = BlockAllocator(192)
    first, second, third = (allocator.allocate(64) for _ in range(3))
    assert allocator.allocate(1) is None

    for offset in (first, third, second):
        allocator.free(offset)
        allocator.check_invariants()

    assert allocator.is_empty
    assert allocator.allocate(192) == 0


def test_a_block_may_take_the_unpadded_end_of_a_segment():
    allocator = BlockAllocator(100)

    assert allocator.allocate(100) == 0
    allocator.free(0)
    allocator.check_invariants()


def test_freeing_what_is_not_taken_is_refused():
    allocator = BlockAllocator(1024)
    allocator.allocate(64)

    with pytest.raises(KeyError):
        allocator.free(64)


@pytest.mark.parametrize("seed", range(5))
def test_an_allocator_keeps_its_books_whatever_happens(seed):
    rng = random.Random(seed)
    allocator = BlockAllocator(64 * KIB)
    taken: dict[int, int] = {}
    for _ in range(300):
        if taken and rng.random() < 0.5:
            offset = rng.choice(list(taken))
            allocator.free(offset)
            del taken[offset]
        else:
            size = rng.randrange(1, 4 * KIB)
            offset = allocator.allocate(size)
            if offset is not None:
                assert all(offset + size <= other or other + taken[other] <= offset for other in taken)
                taken[offset] = size
        allocator.check_invariants()


def test_an_arena_starts_empty_and_grows_with_what_it_holds():
    other_side = Announcements()
    arena = make_arena(other_side)
    assert arena.byte_size == 0

    arena.allocate(1000)
    assert other_side.sizes == {0: 64 * KIB}
    arena.allocate(100 * KIB)
    assert other_side.sizes == {0: 64 * KIB, 1: 128 * KIB}
    arena.allocate(100 * KIB)
    assert other_side.sizes == {0: 64 * KIB, 1: 128 * KIB, 2: 256 * KIB}
    assert arena.byte_size == 448 * KIB


def test_what_is_written_on_one_side_is_read_on_the_other():
    other_side = Announcements()
    arena = make_arena(other_side)
    mapping, segment, offset = arena.allocate(5)
    mapping[offset : offset + 5] = b"bytes"

    assert other_side.peer.check(segment, offset, 5)[offset : offset + 5] == b"bytes"


def test_after_a_burst_the_memory_is_given_back():
    other_side = Announcements()
    arena = make_arena(other_side)
    small = arena.allocate(1000)[1:]
    large = arena.allocate(500 * KIB)[1:]
    assert arena.has_surplus

    arena.free(large, now_ns=1000)
    arena.trim(now_ns=999 + TRIM_AFTER_NS)
    assert arena.has_surplus
    arena.trim(now_ns=1000 + TRIM_AFTER_NS)
    assert not arena.has_surplus
    assert other_side.sizes == {0: 64 * KIB}
    arena.free(small, now_ns=2000)
    arena.trim(now_ns=10 * TRIM_AFTER_NS)
    assert other_side.sizes == {0: 64 * KIB}


def test_a_small_block_does_not_hold_a_large_segment():
    other_side = Announcements()
    arena = make_arena(other_side)
    large = arena.allocate(500 * KIB)[1:]
    arena.free(large, now_ns=0)
    arena.allocate(1000)

    arena.trim(now_ns=TRIM_AFTER_NS)
    assert other_side.sizes == {1: 64 * KIB}


def test_segment_numbers_are_never_used_again():
    other_side = Announcements()
    arena = make_arena(other_side)
    arena.allocate(1000)
    for number in range(1, 4):
        key = arena.allocate(500 * KIB)[1:]
        assert key == (number, 0)
        arena.free(key, now_ns=0)
        arena.trim(now_ns=TRIM_AFTER_NS)


@pytest.mark.parametrize(
    ("segment", "offset", "size"),
    [(0, 0, 64 * KIB + 1), (0, 64 * KIB + 1, 0), (0, 64 * KIB, 1), (1, 0, 1), (0, 2**64 - 1, 2**64 - 1)],
)
def test_a_block_outside_the_announced_segments_is_refused(segment, offset, size):
    other_side = Announcements()
    make_arena(other_side).allocate(1)

    with pytest.raises(SharedMemoryError):
        other_side.peer.check(segment, offset, size)


def test_segments_are_announced_and_dropped_once():
    other_side = Announcements()
    make_arena(other_side).allocate(1)
    descriptor, mapping = create_shared_memory(64)
    os.close(descriptor)

    with pytest.raises(SharedMemoryError):
        other_side.peer.add(0, mapping, 64)
    other_side.peer.drop(0)
    with pytest.raises(SharedMemoryError):
        other_side.peer.drop(0)


def test_a_block_comes_back_when_its_last_view_is_gone():
    other_side = Announcements()
    arena = make_arena(other_side)
    mapping, segment, offset = arena.allocate(100)
    calls: list[int] = []
    loans = Loans(lambda: calls.append(1))

    array = loans.lend(mapping, segment, offset, 100)
    view = memoryview(array)[10:20].cast("B")
    derived = np.frombuffer(view, np.uint8)[2:4]
    assert loans.is_out((segment, offset))
    del array
    del view
    gc.collect()
    assert loans.is_out((segment, offset))
    assert not loans.returned
    del derived
    assert not loans.is_out((segment, offset))
    assert list(loans.returned) == [(segment, offset)]
    assert calls == [1]


def test_a_mapping_lives_as_long_as_what_was_made_of_it():
    other_side = Announcements()
    arena = make_arena(other_side)
    large = arena.allocate(500 * KIB)
    loans = Loans()
    array = loans.lend(other_side.peer.check(*large[1:], 500 * KIB), *large[1:], 500 * KIB)
    array[:] = 7
    arena.free(large[1:], now_ns=0)
    arena.trim(now_ns=TRIM_AFTER_NS)
    del large

    assert other_side.sizes == {}
    assert int(array.sum()) == 7 * 500 * KIB
