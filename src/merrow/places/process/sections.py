"""Sections: the tensors of one request or one outcome, as part of a message's body.

A section is a layout (name, datatype, shape and size of each tensor), what else there is to say (the extras), then the
tensors' data. The data of a large tensor is not there but in a block of the sender's arena, or of the receiver's own
that the sender was lent, or in a client's shared memory; then the section says where. Layouts repeat, so both sides
remember those seen before, and a section costs one look into a dictionary.

What the extras are, and what a section's contents mean, is known to `batches` and `answers`.
"""

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from merrow.core.datatypes import ELEMENT_BYTE_SIZES
from merrow.core.region import RegionFile, RegionTensor
from merrow.core.tensor import Buffer, Tensor
from merrow.places.process.channel import HEADER_SIZE, PADDING, ProtocolError

INLINE_LIMIT = 8192
"""A tensor with more bytes travels through an arena."""

# Where a tensor's data is.
SENDER_ARENA = 1
RECEIVER_ARENA = 2
# In a client's shared memory: the segment is the number of its file.
CLIENT_MEMORY = 3

PLACED = struct.Struct("<IIQ")
"""Stands for the data of a tensor that is elsewhere: location, segment, offset."""

REPEATED_EXTRAS = 32
"""The contents whose extras repeat (the names of requested outputs): their sections are remembered whole."""

MAX_REMEMBERED = 4096
"""How many different layouts (and lists of requested outputs) are remembered."""

# Bytes of the layout, bytes of what follows it, contents.
_SECTION = struct.Struct("<IIII")
_TENSOR_COUNT = struct.Struct("<I")
# Datatype, rank, bytes of the name, where the data is, bytes of data; then the dims and the name.
_TENSOR = struct.Struct("<BBHIQ")

_DATATYPES = tuple(ELEMENT_BYTE_SIZES)
_DATATYPE_CODES = {name: code for code, name in enumerate(_DATATYPES)}

Place = Callable[[Buffer], tuple[int, int, int]]
"""Puts the data of a large tensor somewhere: (location, segment, offset)."""

ShareFile = Callable[[RegionFile], None]
"""Makes sure that the other side has the file of a client's shared memory."""

OpenBlock = Callable[[int, int, int, int], memoryview]
"""Makes received data readable: (location, segment, offset, byte size)."""

Layout = tuple[tuple[str, str, tuple[int, ...], int, int], ...]
"""Of each tensor: name, datatype, shape, bytes, and bytes with padding; -1 for data that is not in the message."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A tensor in an encoded answer whose data is, so far, in a block that the receiver lent.

    `position` is where the message says so.
    """

    position: int
    segment: int
    offset: int
    byte_size: int


class Sections:
    """Both ways, and the layouts seen before. See the module."""

    def __init__(self) -> None:
        # None where the other side has all files that it needs.
        self.share_file: ShareFile | None = None
        # Name, datatype, shape and bytes of each tensor, all in one tuple -> the layout, encoded, behind the head of a
        # section that has nothing else to say.
        self._encoded: dict[tuple[Any, ...], bytes] = {}
        # The same for requests that only name outputs besides: by that head and their extras.
        self._encoded_with_outputs: dict[tuple[bytes, bytes], bytes] = {}
        self._decoded: dict[bytes, Layout] = {}

    def write(
        self,
        parts: list[Buffer],
        tensors: Iterable[Tensor],
        contents: int,
        extras: bytes,
        place: Place,
        references: list[Reference],
    ) -> None:
        """Append a section to the parts of a message's body."""
        key: list[Any] = []
        content: list[Buffer] = []
        placed: list[tuple[int, int, int, int]] = []
        for tensor in tensors:
            if type(tensor) is RegionTensor and tensor.byte_size > INLINE_LIMIT and not tensor.is_copied:
                content.append(self._refer_to_region(tensor, key))
                continue
            data = tensor.data
            size = len(data)
            shape = tensor.shape
            key += (tensor.name, tensor.datatype, shape if type(shape) is tuple else tuple(shape), size)
            if size <= INLINE_LIMIT:
                content.append(data)
                if size & 7:
                    content.append(PADDING[size & 7])
            else:
                location, segment, offset = place(data)
                if location == RECEIVER_ARENA:
                    placed.append((sum(map(len, content)), segment, offset, size))
                content.append(PLACED.pack(location, segment, offset))
        head = self._encoded.get(tuple(key))
        if head is None:
            head = self._encode_layout(key)
        if contents or extras:
            whole = self._encoded_with_outputs.get((head, extras)) if contents == REPEATED_EXTRAS else None
            head = self._add_extras(head, contents, extras) if whole is None else whole
        parts.append(head)
        if placed:
            start = HEADER_SIZE + sum(map(len, parts))
            references += [Reference(start + position, *block) for position, *block in placed]
        parts += content

    def _refer_to_region(self, tensor: RegionTensor, key: list[Any]) -> bytes:
        """Where a tensor is in a client's shared memory; its part of the layout is appended to the key."""
        key += (tensor.name, tensor.datatype, tuple(tensor.shape), tensor.byte_size)
        source = tensor.source
        file = source.file
        assert file is not None
        if self.share_file is not None:
            self.share_file(file)
        return PLACED.pack(CLIENT_MEMORY, file.number, source.file_offset)

    def read(self, chunk: bytes, position: int, end: int) -> tuple[Layout, int, int, int]:
        """A section's layout, its contents, and where its extras and its data begin."""
        layout_size, extras_size, contents, _ = _SECTION.unpack_from(chunk, position)
        position += _SECTION.size
        extras = position + layout_size
        data = extras + extras_size
        if data > end:
            raise ProtocolError("a section is cut")
        encoded = chunk[position:extras]
        layout = self._decoded.get(encoded)
        if layout is None:
            layout = self._decode_layout(encoded)
        return layout, contents, extras, data

    def _add_extras(self, head: bytes, contents: int, extras: bytes) -> bytes:
        layout = head[_SECTION.size :]
        whole = _SECTION.pack(len(layout), len(extras), contents, 0) + layout + extras
        if contents == REPEATED_EXTRAS:
            if len(self._encoded_with_outputs) >= MAX_REMEMBERED:
                self._encoded_with_outputs.clear()
            self._encoded_with_outputs[(head, extras)] = whole
        return whole

    def _encode_layout(self, key: list[Any]) -> bytes:
        pieces = [_TENSOR_COUNT.pack(len(key) // 4)]
        for name, datatype, shape, size in zip(key[::4], key[1::4], key[2::4], key[3::4], strict=True):
            encoded_name = name.encode()
            numbers = (_DATATYPE_CODES[datatype], len(shape), len(encoded_name), size > INLINE_LIMIT, size)
            pieces += [_TENSOR.pack(*numbers), struct.pack(f"<{len(shape)}Q", *shape), encoded_name]
        layout = b"".join(pieces)
        layout += PADDING[len(layout) & 7]
        head = _SECTION.pack(len(layout), 0, 0, 0) + layout
        if len(self._encoded) >= MAX_REMEMBERED:
            self._encoded.clear()
        self._encoded[tuple(key)] = head
        return head

    def _decode_layout(self, encoded: bytes) -> Layout:
        (count,) = _TENSOR_COUNT.unpack_from(encoded)
        position = _TENSOR_COUNT.size
        layout = []
        for _ in range(count):
            code, rank, name_size, is_placed, size = _TENSOR.unpack_from(encoded, position)
            position += _TENSOR.size
            shape = struct.unpack_from(f"<{rank}Q", encoded, position)
            position += 8 * rank
            name = encoded[position : position + name_size].decode()
            position += name_size
            if position > len(encoded) or code >= len(_DATATYPES):
                raise ProtocolError("a layout is cut")
            layout.append((name, _DATATYPES[code], shape, size, -1 if is_placed else size + (-size & 7)))
        if len(self._decoded) >= MAX_REMEMBERED:
            self._decoded.clear()
        self._decoded[encoded] = tuple(layout)
        return self._decoded[encoded]


def relocate(message: bytearray, reference: Reference, location: int, segment: int, offset: int) -> None:
    """Say in an encoded answer that a tensor's data is elsewhere after all."""
    PLACED.pack_into(message, reference.position, location, segment, offset)
