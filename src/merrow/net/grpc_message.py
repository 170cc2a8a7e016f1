"""gRPC messages in the body of a request: five bytes of prefix (compressed or not, length), then the message.

Source: gRPC over HTTP/2 (PROTOCOL-HTTP2.md), "Length-Prefixed-Message"; texts of faults are gRPC core's, as Triton
sends them.
"""

import struct
import zlib
from typing import Final

from merrow.core.tensor import Buffer
from merrow.net.body import BodyBuffer, ReceiveBudget, no_memory_text
from merrow.net.grpc_compression import MAX_INLINE_BYTE_SIZE
from merrow.net.grpc_status import INTERNAL, RESOURCE_EXHAUSTED

PREFIX_BYTE_SIZE: Final = 5
_PREFIX = struct.Struct(">BI")
unpack_prefix = _PREFIX.unpack_from
pack_prefix = _PREFIX.pack

# zlib's window sizes, which also say what is around the compressed data.
_WINDOW_BITS: Final = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
# Decompressed at a time: what one step may make of a small input.
_STEP_BYTE_SIZE = 1024 * 1024


class MessageFault(Exception):
    """A message that ends its call with this gRPC status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class CompressedMessage:
    """A message whose decompression takes long; `decompress` may be called on any thread."""

    __slots__ = ("_encoding", "_max_byte_size", "_message")

    def __init__(self, message: Buffer, encoding: str, max_byte_size: int) -> None:
        self._message = message
        self._encoding = encoding
        self._max_byte_size = max_byte_size

    def decompress(self) -> bytes:
        """The message.

        Raises:
            MessageFault: it is too large, or cannot be decompressed.
        """
        message = self.decompress_up_to(self._max_byte_size)
        if message is None:
            raise MessageFault(
                RESOURCE_EXHAUSTED,
                f"Received message larger than max ({self._max_byte_size + 1} vs. {self._max_byte_size})",
            )
        return message

    def decompress_up_to(self, max_byte_size: int) -> bytes | None:
        """The message, or None if it has more than so many bytes.

        Raises:
            MessageFault: it cannot be decompressed.
        """
        decompressor = zlib.decompressobj(_WINDOW_BITS[self._encoding])
        pieces: list[bytes] = []
        byte_size = 0
        rest = self._message
        try:
            while not decompressor.eof:
                # One byte more tells "exactly so many" from "more to come".
                piece = decompressor.decompress(rest, min(max_byte_size + 1 - byte_size, _STEP_BYTE_SIZE))
                rest = decompressor.unconsumed_tail
                if not piece and not rest:
                    break
                pieces.append(piece)
                byte_size += len(piece)
                if byte_size > max_byte_size:
                    return None
        except zlib.error:
            raise self._fault() from None
        except MemoryError as error:
            raise MessageFault(RESOURCE_EXHAUSTED, no_memory_text(error, "the message")) from None
        if not decompressor.eof or decompressor.unused_data:
            raise self._fault()
        return b"".join(pieces)

    def _fault(self) -> MessageFault:
        return MessageFault(INTERNAL, f"Unexpected error decompressing data for algorithm {self._encoding}")


Message = Buffer | CompressedMessage


class MessageReader:
    """Cuts messages out of a body that arrives in pieces.

    `encoding` is the request's `grpc-encoding`, None without one. Every message, compressed or not, may have up to
    `max_byte_size` bytes.
    """

    __slots__ = ("_body", "_budget", "_encoding", "_is_compressed", "_max_byte_size", "_prefix")

    def __init__(self, encoding: str | None, max_byte_size: int, budget: ReceiveBudget) -> None:
        self._encoding = encoding
        self._budget = budget
        self._max_byte_size = max_byte_size
        self._prefix = b""
        self._is_compressed = False
        self._body: BodyBuffer | None = None

    @property
    def is_in_message(self) -> bool:
        """Whether a message has begun and not ended."""
        return self._body is not None or bool(self._prefix)

    @property
    def body(self) -> BodyBuffer | None:
        """The message that is coming in, once its prefix is there."""
        return self._body

    def feed(self, data: bytes) -> list[Message]:
        """The messages that these bytes complete, decompressed if they are small; one completed in its place, too.

        Raises:
            MessageFault: a message is too large, or cannot be decompressed.
        """
        try:
            return self._feed(data)
        except MemoryError as error:
            raise MessageFault(RESOURCE_EXHAUSTED, no_memory_text(error, "the message")) from None

    def _feed(self, data: bytes) -> list[Message]:
        end = len(data)
        if self._body is None and not self._prefix and end >= PREFIX_BYTE_SIZE:
            flags, byte_size = unpack_prefix(data)
            if not flags and byte_size == end - PREFIX_BYTE_SIZE and byte_size <= self._max_byte_size:
                # The usual case: exactly one message.
                return [data[PREFIX_BYTE_SIZE:]]
        messages: list[Message] = []
        if self._body is not None and self._body.is_complete:
            messages.append(self._take())
        position = 0
        while position < end:
            if self._body is None:
                prefix = self._prefix + data[position : position + PREFIX_BYTE_SIZE - len(self._prefix)]
                position += len(prefix) - len(self._prefix)
                self._prefix = prefix
                if len(prefix) < PREFIX_BYTE_SIZE:
                    break
                self._begin(*unpack_prefix(prefix))
            assert self._body is not None
            piece_end = min(position + self._body.remaining_byte_size, end)
            if piece_end > position:
                self._body.add(data[position:piece_end] if position or piece_end < end else data)
                position = piece_end
            if self._body.is_complete:
                messages.append(self._take())
        return messages

    def _take(self) -> Message:
        """The complete message, decompressed if it is small.

        Raises:
            MessageFault: it cannot be decompressed.
        """
        assert self._body is not None
        message = self._body.take()
        self._body = None
        return self._decompress(message) if self._is_compressed else message

    def _begin(self, flags: int, byte_size: int) -> None:
        if byte_size > self._max_byte_size:
            raise MessageFault(
                RESOURCE_EXHAUSTED, f"Received message larger than max ({byte_size} vs. {self._max_byte_size})"
            )
        self._is_compressed = bool(flags & 1)
        self._prefix = b""
        self._body = BodyBuffer(byte_size, self._budget)

    def _decompress(self, message: Buffer) -> Message:
        """A message whose prefix said that it is compressed."""
        if self._encoding not in _WINDOW_BITS:
            raise MessageFault(INTERNAL, "Received a compressed message without a grpc-encoding")
        compressed = CompressedMessage(message, self._encoding, self._max_byte_size)
        decompressed = compressed.decompress_up_to(min(MAX_INLINE_BYTE_SIZE, self._max_byte_size))
        return compressed if decompressed is None else decompressed
