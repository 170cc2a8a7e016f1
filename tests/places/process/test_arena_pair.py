import gc
import os
import stat

import pytest

from merrow.places.process.arena import TRIM_AFTER_NS
from merrow.places.process.arena_pair import ArenaPair
from merrow.places.process.channel import (
    DROP,
    FREE,
    HEADER,
    HEADER_SIZE,
    SEGMENT,
    SEGMENT_BYTE_SIZE,
    ProtocolError,
    decode_blocks,
    frame,
    split_frames,
)
from merrow.places.process.sections import CLIENT_MEMORY, RECEIVER_ARENA, SENDER_ARENA
from merrow.places.process.system import SharedMemoryError, create_shared_memory

KIB = 1024


class End:
    """One end of a socket; the messages that it sends lie here until `deliver` gives them to the other end."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, int | None]] = []
        self.returns = 0
        self.arenas = ArenaPair(64 * KIB, self._announce, lambda message: self.sent.append((message, None)), self._tell)

    def deliver(self, other: "End") -> list[int]:
        """What was sent; returns the kinds."""
        kinds = []
        sent, self.sent = self.sent, []
        for message, descriptor in sent:
            ((kind, count, number, start, end),), _ = split_frames(message)
            kinds.append(kind)
            if kind == SEGMENT:
                other.arenas.take_segment(number, message[start:end], descriptor)
            elif kind == FREE:
                other.arenas.take_free(message, start, end, count)
            else:
                assert kind == DROP
                other.arenas.peer.drop(number)
        return kinds

    def _announce(self, message: bytes, descriptor: int) -> None:
        self.sent.append((message, os.dup(descriptor)))

    def _tell(self) -> None:
        self.returns += 1


@pytest.fixture
def ends():
    here, there = End(), End()
    yield here, there
    here.arenas.close()
    there.arenas.close()
    for _, descriptor in here.sent + there.sent:
        if descriptor is not None:
            os.close(descriptor)


def test_what_one_end_stores_the_other_sees(ends):
    here, there = ends
    location, segment, offset = here.arenas.store(b"bytes")

    assert (location, segment, offset) == (SENDER_ARENA, 0, 0)
    assert here.deliver(there) == [SEGMENT]
    assert bytes(there.arenas.lend(location, segment, offset, 5)) == b"bytes"


def test_the_bytes_of_an_announcement(ends):
    here, _ = ends
    here.arenas.store(b"x")
    ((message, descriptor),) = here.sent

    assert message == b"\x18\0\0\0" b"\x15" b"\0" b"\0\0" b"\0\0\0\0\0\0\0\0" b"\0\0\x01\0\0\0\0\0"  # fmt: skip
    assert os.fstat(descriptor).st_size == 64 * KIB


def test_a_block_is_given_back_when_it_was_let_go_and_used_again(ends):
    here, there = ends
    first = here.arenas.store(bytes(100))
    here.deliver(there)
    view = there.arenas.lend(*first, 100)
    there.arenas.release()
    assert there.sent == []

    del view
    gc.collect()
    assert there.returns == 1
    there.arenas.release()
    ((message, _),) = there.sent
    _, kind, _, count, _ = HEADER.unpack_from(message)
    assert (kind, decode_blocks(message, HEADER_SIZE, len(message), count)) == (FREE, [(0, 0)])
    assert here.arenas.store(b"x")[1:] == (0, 128)
    there.deliver(here)
    assert here.arenas.store(b"y")[1:] == (0, 0)
    # Told once.
    there.arenas.release()
    assert there.sent == []


def test_a_message_that_is_not_sent_takes_nothing(ends):
    here, _ = ends
    kept = here.arenas.store(bytes(64))
    here.arenas.stored.clear()
    here.arenas.store(bytes(64))
    here.arenas.store(bytes(64))

    here.arenas.discard()
    here.arenas.discard()
    assert here.arenas.store(bytes(64))[1:] == (0, 64)
    assert kept[1:] == (0, 0)


def test_a_segment_that_is_given_back_is_dropped(ends):
    here, there = ends
    large = here.arenas.store(bytes(500 * KIB))
    here.arenas.own.free(large[1:], now_ns=0)
    here.arenas.own.trim(now_ns=TRIM_AFTER_NS)

    assert here.deliver(there) == [SEGMENT, DROP]
    assert 0 not in there.arenas.peer


@pytest.mark.parametrize("location", [0, RECEIVER_ARENA, CLIENT_MEMORY])
def test_only_what_the_other_end_stored_is_lent(ends, location):
    here, there = ends
    _, segment, offset = here.arenas.store(b"x")
    here.deliver(there)

    with pytest.raises(ProtocolError, match=f"^a tensor in location {location}$"):
        there.arenas.lend(location, segment, offset, 1)
    with pytest.raises(SharedMemoryError):
        there.arenas.lend(SENDER_ARENA, segment, offset, 64 * KIB + 1)


@pytest.mark.parametrize("body", [b"", bytes(7), bytes(16), SEGMENT_BYTE_SIZE.pack(4096), SEGMENT_BYTE_SIZE.pack(0)])
def test_a_segment_that_is_not_as_announced_is_refused_and_its_descriptor_closed(ends, body):
    descriptor, _ = create_shared_memory(8192)
    inode = os.fstat(descriptor).st_ino

    with pytest.raises((ProtocolError, SharedMemoryError)):
        ends[0].arenas.take_segment(0, body, descriptor)
    assert not is_open(descriptor, inode)


def test_blocks_that_nobody_took_are_not_freed(ends):
    here, _ = ends
    here.arenas.store(b"x")
    for body, count in ((b"\0" * 8 + b"\x40" + b"\0" * 7, 1), (b"\x05" + b"\0" * 15, 1)):
        message = frame(FREE, 0, body, count)
        with pytest.raises(KeyError):
            here.arenas.take_free(message, HEADER_SIZE, len(message), count)


def test_closing_lets_go_of_memory_that_nobody_sees(ends):
    here, there = ends
    stored = here.arenas.store(b"bytes")
    here.deliver(there)
    view = there.arenas.lend(*stored, 5)
    here.arenas.close()
    there.arenas.close()

    assert bytes(view) == b"bytes"
    assert here.arenas.own.byte_size == 0
    assert 0 not in there.arenas.peer


def is_open(descriptor: int, inode: int) -> bool:
    try:
        status = os.fstat(descriptor)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_ino == inode
