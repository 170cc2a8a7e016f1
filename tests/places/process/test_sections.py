import struct

import pytest

from merrow.core.region import RegionTensor
from merrow.core.tensor import Tensor
from merrow.places.process.batches import RemoteSlice
from merrow.places.process.channel import HEADER_SIZE, MALFORMED, ProtocolError
from merrow.places.process.sections import (
    CLIENT_MEMORY,
    INLINE_LIMIT,
    MAX_REMEMBERED,
    PLACED,
    RECEIVER_ARENA,
    REPEATED_EXTRAS,
    SENDER_ARENA,
    Reference,
    Sections,
    relocate,
)
from tests.places.process.codec_values import EMPTY, LARGE, ODD, SMALL, place_at, place_nowhere

SECTION_OF_SMALL = (
    # a layout of 40 bytes, no extras, contents 0, padding
    b"\x28\0\0\0" b"\0\0\0\0" b"\0\0\0\0" b"\0\0\0\0"
    # one tensor: datatype 10 (FP32), rank 2, name of 2 letters, in the message, 8 bytes; shape; name, padding
    b"\x01\0\0\0" b"\x0a" b"\x02" b"\x02\0" b"\0\0\0\0" b"\x08\0\0\0\0\0\0\0"
    b"\x01\0\0\0\0\0\0\0" b"\x02\0\0\0\0\0\0\0" b"IN\0\0"
    # data
    b"\0\0\xc0\x3f\0\0\0\xc0"
)  # fmt: skip


def write(sections, *tensors, contents=0, extras=b"", place=place_nowhere):
    """The section, and its references, as if it were the first of a message."""
    parts, references = [], []
    sections.write(parts, tensors, contents, extras, place, references)
    return b"".join(parts), references


def test_the_bytes_of_a_section():
    sections = Sections()

    assert write(sections, SMALL) == (SECTION_OF_SMALL, [])
    # Remembered, it is the same.
    assert write(sections, SMALL) == (SECTION_OF_SMALL, [])


def test_a_section_is_read_as_it_was_written():
    section, _ = write(Sections(), SMALL, ODD, EMPTY, contents=5, extras=b"12345678")
    layout, contents, extras, data = Sections().read(section, 0, len(section))

    assert layout == (
        ("IN", "FP32", (1, 2), 8, 8),
        ("ODD", "BYTES", (1,), 9, 16),
        ("EMPTY", "INT64", (0, 3), 0, 0),
    )
    assert contents == 5
    assert section[extras:data] == b"12345678"
    assert section[data:] == bytes(SMALL.data) + bytes(ODD.data) + bytes(7)


def test_a_large_tensor_is_said_to_be_where_it_was_placed():
    section, references = write(Sections(), ODD, LARGE, SMALL, place=place_at(SENDER_ARENA, 3, 640))
    layout, _, _, data = Sections().read(section, 0, len(section))

    assert references == []
    assert layout[1] == ("LARGE", "UINT8", (INLINE_LIMIT + 1,), INLINE_LIMIT + 1, -1)
    assert PLACED.unpack_from(section, data + 16) == (SENDER_ARENA, 3, 640)
    assert section[data + 32 :] == bytes(SMALL.data)


def test_a_large_tensor_in_a_clients_memory_is_said_to_be_there():
    shared = []
    sections = Sections()
    sections.share_file = lambda file: shared.append(file.number)
    tensor = RegionTensor("X", "FP32", (5000,), RemoteSlice(7, 4096, 20_000))
    section, _ = write(sections, tensor)
    layout, _, _, data = Sections().read(section, 0, len(section))

    assert shared == [7]
    assert layout == (("X", "FP32", (5000,), 20_000, -1),)
    assert PLACED.unpack_from(section, data) == (CLIENT_MEMORY, 7, 4096)


def test_a_tensor_of_the_limit_travels_in_the_message():
    section, _ = write(Sections(), Tensor("X", "UINT8", (INLINE_LIMIT,), bytes(INLINE_LIMIT)))

    assert len(section) == 48 + INLINE_LIMIT


def test_a_reference_says_where_in_the_message_it_stands_and_can_be_changed():
    section, references = write(Sections(), ODD, LARGE, place=place_at(RECEIVER_ARENA, 2, 128))
    message = bytearray(bytes(HEADER_SIZE) + section)

    (reference,) = references
    assert reference == Reference(len(message) - PLACED.size, 2, 128, INLINE_LIMIT + 1)
    relocate(message, reference, SENDER_ARENA, 5, 256)
    assert PLACED.unpack_from(message, reference.position) == (SENDER_ARENA, 5, 256)


@pytest.mark.parametrize("contents", [1, REPEATED_EXTRAS])
def test_extras_of_equal_layouts_are_not_mixed_up(contents):
    sections, reader = Sections(), Sections()
    for extras in (b"first---", b"second--", b"first---", b""):
        section, _ = write(sections, SMALL, contents=contents, extras=extras)
        _, read_contents, start, end = reader.read(section, 0, len(section))
        assert (read_contents, section[start:end]) == (contents, extras)


def test_repeated_extras_belong_to_one_kind_of_contents():
    sections, reader = Sections(), Sections()
    for contents in (REPEATED_EXTRAS, 16, REPEATED_EXTRAS):
        section, _ = write(sections, SMALL, contents=contents, extras=b"same----")
        assert reader.read(section, 0, len(section))[1] == contents


def test_more_layouts_than_are_remembered_are_still_right():
    sections, reader = Sections(), Sections()
    for count in [*range(MAX_REMEMBERED + 2), 0, 1]:
        tensor = Tensor("X", "UINT8", (count, 0), b"")
        section, _ = write(sections, tensor, contents=REPEATED_EXTRAS, extras=struct.pack("<Q", count))
        layout, _, extras, data = reader.read(section, 0, len(section))
        assert layout == (("X", "UINT8", (count, 0), 0, 0),)
        assert section[extras:data] == struct.pack("<Q", count)


def test_a_section_cut_anywhere_before_its_data_is_refused():
    section, _ = write(Sections(), SMALL, ODD, extras=b"12345678", contents=1)
    data = len(section) - 24
    for size in range(data):
        with pytest.raises(MALFORMED):
            Sections().read(section[:size], 0, size)


@pytest.mark.parametrize(
    ("position", "value"),
    # More tensors than there are; no such datatype; a longer name; a higher rank.
    [(16, 3), (20, 200), (22, 60), (21, 9)],
)
def test_a_layout_that_says_more_than_it_holds_is_refused(position, value):
    spoiled = bytearray(SECTION_OF_SMALL)
    spoiled[position] = value

    with pytest.raises(MALFORMED):
        Sections().read(bytes(spoiled), 0, len(spoiled))


def test_a_section_beyond_the_end_of_its_message_is_refused():
    with pytest.raises(ProtocolError, match="a section is cut"):
        Sections().read(SECTION_OF_SMALL, 0, len(SECTION_OF_SMALL) - 9)
