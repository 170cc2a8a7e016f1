"""Protobuf's wire format, as far as it is read and written by hand.

A message is a run of fields, each a tag (number << 3 | wire type) and a content. Wire types: 0 a number, 1 eight
bytes, 2 a length and as many bytes, 5 four bytes, 3 and 4 the start and end of a group.

Source: protobuf.dev, "Encoding".
"""


def text_field(number: int, text: str) -> bytes:
    """A string field; nothing when it is empty, as proto3 has it."""
    return delimited(number, text.encode()) if text else b""


def delimited(number: int, content: bytes) -> bytes:
    return bytes((number << 3 | 2,)) + encode_varint(len(content)) + content


def encode_varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def read_varint(message: bytes | memoryview, position: int) -> tuple[int, int]:
    """A number of up to ten bytes, and where it ends.

    Raises:
        IndexError: the message ends before it does, or it is longer.
    """
    value = 0
    for shift in range(0, 70, 7):
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise IndexError


def count_fields(message: bytes | memoryview, limit: int) -> int:
    """How many fields a message has at its top level, groups' included; counting stops beyond `limit`.

    Raises:
        IndexError: the message ends inside a number.
    """
    position, end, count = 0, len(message), 0
    while position < end and count <= limit:
        tag, position = read_varint(message, position)
        wire_type = tag & 7
        if wire_type == 0:
            _, position = read_varint(message, position)
        elif wire_type == 1:
            position += 8
        elif wire_type == 2:
            length, position = read_varint(message, position)
            position += length
        elif wire_type == 5:
            position += 4
        count += 1
    return count
