"""Compression of gRPC messages: with what a response is compressed, and how much of it happens on the loop.

The operator chooses a level, the client says which encodings it reads, and gRPC's rule makes one encoding of the two:
low is gzip, medium and high are deflate, or whichever of them the client has. The level also says how hard the
compressor tries.

Source: gRPC core, compression/compression_internal.cc, CompressionAlgorithmForLevel.
"""

import enum
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from merrow.core.tensor import Buffer

MAX_INLINE_BYTE_SIZE: Final = 64 * 1024
"""What is compressed, or results from decompressing, on the loop's thread; more is done on another."""

_WINDOW_BITS: Final = {b"gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}
_RANKED: Final = (b"gzip", b"deflate")


class CompressionLevel(enum.Enum):
    """`--grpc-infer-response-compression-level`, other than none; the value is how hard zlib tries."""

    LOW = 1
    MEDIUM = 6
    HIGH = 9


@dataclass(frozen=True, slots=True)
class MessageCoding:
    """How the messages of a response are compressed; `name` is the `grpc-encoding`."""

    name: bytes
    zlib_level: int

    def compress(self, parts: Sequence[Buffer]) -> bytes:
        """One message made of parts, compressed."""
        compressor = zlib.compressobj(self.zlib_level, wbits=_WINDOW_BITS[self.name])
        pieces = [compressor.compress(part) for part in parts]
        pieces.append(compressor.flush())
        return b"".join(pieces)


def choose_coding(level: CompressionLevel | None, accept_encoding: bytes | None) -> MessageCoding | None:
    """The coding for a client with this `grpc-accept-encoding`; None for no compression."""
    if level is None or not accept_encoding:
        return None
    accepted = {name.strip() for name in accept_encoding.split(b",")}
    supported = [name for name in _RANKED if name in accepted]
    if not supported:
        return None
    index = {CompressionLevel.LOW: 0, CompressionLevel.MEDIUM: len(supported) // 2, CompressionLevel.HIGH: -1}[level]
    return MessageCoding(supported[index], level.value)
