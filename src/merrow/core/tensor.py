"""A tensor as it travels: name, datatype, shape and its encoded bytes.

The data stays encoded as the protocol sends it (little-endian, row-major; BYTES as length-prefixed elements) until a
model asks for an array, so that a tensor which only passes through is never decoded or copied.
"""

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from merrow.core.datatypes import BYTES, NUMPY_DTYPES, datatype_of_numpy

Buffer = bytes | bytearray | memoryview
"""C-contiguous bytes; a memoryview is always of format "B", so `len` is its size in bytes."""

_LENGTH = struct.Struct("<I")


class Tensor:
    """One named tensor.

    `shape` includes the batch dimension. `data` holds `byte_size` bytes, is not copied, and is never written to.
    """

    __slots__ = ("data", "datatype", "name", "shape")

    def __init__(self, name: str, datatype: str, shape: Sequence[int], data: Buffer) -> None:
        self.name = name
        self.datatype = datatype
        self.shape = shape
        self.data = data

    @property
    def byte_size(self) -> int:
        return len(self.data)

    def as_numpy(self) -> "np.ndarray[Any, np.dtype[Any]]":
        """The tensor as an array of `shape`.

        Returns:
            A view of `data` (read-only if `data` is), except for BYTES: a new object array of `bytes`.

        Raises:
            ValueError: `data` does not hold what `datatype` and `shape` promise, or the datatype is BF16.
        """
        if self.datatype == BYTES:
            return decode_bytes_elements(self.data, self.shape)
        if self.datatype not in NUMPY_DTYPES:
            raise ValueError(f"tensor '{self.name}': datatype {self.datatype} has no numpy dtype")
        return np.frombuffer(self.data, NUMPY_DTYPES[self.datatype]).reshape(self.shape)

    def __repr__(self) -> str:
        return f"Tensor({self.name!r}, {self.datatype}, {list(self.shape)}, {self.byte_size} bytes)"

    @classmethod
    def from_numpy(cls, name: str, array: "np.ndarray[Any, np.dtype[Any]]") -> "Tensor":
        """A tensor over an array; a view where the array is contiguous and little-endian, else a copy.

        Raises:
            ValueError: the protocol has no datatype for the array's dtype.
        """
        dtype = array.dtype
        if dtype.byteorder == ">":
            array = array.astype(dtype.newbyteorder("<"))
            dtype = array.dtype
        datatype = datatype_of_numpy(dtype)
        if datatype is None:
            raise ValueError(f"tensor '{name}': numpy dtype {dtype} has no datatype in the protocol")
        if datatype == BYTES:
            return cls(name, BYTES, array.shape, encode_bytes_elements(array))
        if not array.flags.c_contiguous:
            array = np.ascontiguousarray(array)
        # reshape(-1) first: a memoryview of a zero-dimensional or empty array cannot be cast.
        return cls(name, datatype, array.shape, array.reshape(-1).view(np.uint8).data)


def element_count(shape: Sequence[int]) -> int:
    """Number of elements; 1 for a scalar's empty shape."""
    count = 1
    for dim in shape:
        count *= dim
    return count


def encode_bytes_elements(array: "np.ndarray[Any, np.dtype[Any]]") -> bytes:
    """Encode an object or `S` array as BYTES: for each element, row-major, a uint32 LE length and its bytes.

    Elements that are not `bytes` are encoded as `str(element)` in UTF-8, as Triton's Python backend does.
    """
    pieces: list[bytes] = []
    for element in array.reshape(-1).tolist():
        encoded = element if isinstance(element, bytes) else str(element).encode()
        pieces.append(_LENGTH.pack(len(encoded)))
        pieces.append(encoded)
    return b"".join(pieces)


def split_bytes_elements(data: Buffer) -> list[bytes]:
    """The elements of an encoded BYTES tensor, in order.

    Raises:
        ValueError: the data ends inside a length or an element.
    """
    elements: list[bytes] = []
    position, end = 0, len(data)
    while position < end:
        if end - position < 4:
            raise ValueError(f"incomplete string length indicator, expecting 4 bytes but only {end - position}")
        (length,) = _LENGTH.unpack_from(data, position)
        position += 4
        if length > end - position:
            raise ValueError(
                f"incomplete string data, expecting string of length {length} but only {end - position} bytes available"
            )
        elements.append(bytes(data[position : position + length]))
        position += length
    return elements


def decode_bytes_elements(data: Buffer, shape: Sequence[int]) -> "np.ndarray[Any, np.dtype[Any]]":
    """Decode an encoded BYTES tensor into an object array of `bytes` of the given shape.

    Raises:
        ValueError: the data is cut, or holds another number of elements.
    """
    elements = split_bytes_elements(data)
    array = np.empty(len(elements), dtype=np.object_)
    array[:] = elements
    return array.reshape(shape)
