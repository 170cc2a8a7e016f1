"""gRPC calls whose answers are compressed: small messages at once, large ones on another thread.

Messages of a stream are compressed one after another, so that they leave in order; what waits behind one counts as not
written, and the end of the call waits with it. A message that compression makes no shorter is sent as it is.

Source: gRPC over HTTP/2 (PROTOCOL-HTTP2.md), "Compressed-Flag".
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from merrow.core.tensor import Buffer
from merrow.net.grpc_call import StreamingCall, UnaryCall
from merrow.net.grpc_compression import MAX_INLINE_BYTE_SIZE, MessageCoding
from merrow.net.grpc_message import PREFIX_BYTE_SIZE, pack_prefix
from merrow.net.grpc_status import HEAD_BLOCK, OK_BLOCK
from merrow.wire.http2.header_block import encode_fields
from merrow.wire.http2.sender import ReplyTemplate

# As those of a call without compression, by the coding.
_CODED_HEAD_BLOCKS: Final = {
    name: HEAD_BLOCK + encode_fields(((b"grpc-encoding", name),)) for name in (b"gzip", b"deflate")
}
_CODED_REPLIES: Final = {name: ReplyTemplate(block, OK_BLOCK) for name, block in _CODED_HEAD_BLOCKS.items()}

# A message as it is sent: whether it is compressed (as the prefix says it), its parts and their size.
_OutgoingMessage = tuple[int, Sequence[Buffer], int]


class CompressingUnaryCall(UnaryCall):
    """A unary call whose reply is compressed."""

    __slots__ = ()

    def reply(self, parts: Sequence[Buffer]) -> None:
        if self._stream is None:
            return
        byte_size = sum(len(part) for part in parts)
        coding = self._plan.coding
        assert coding is not None
        if byte_size <= MAX_INLINE_BYTE_SIZE:
            self._reply_with(compress_message(coding, parts, byte_size))
        else:
            compress_on_thread(self._link.service.loop, coding, parts, byte_size, self._reply_with)

    def _reply_with(self, message: _OutgoingMessage) -> None:
        stream, self._stream = self._stream, None
        if stream is None:
            return
        assert self._plan.coding is not None
        is_compressed, parts, byte_size = message
        template = _CODED_REPLIES[self._plan.coding.name]
        prefix = pack_prefix(is_compressed, byte_size)
        self._link.sender.send_reply(stream, template, prefix, parts, byte_size + PREFIX_BYTE_SIZE)
        if self._deadline is not None:
            self._deadline.cancel()
        if not self._link.is_receiving:
            self._link.write_soon()


class CompressingStreamingCall(StreamingCall):
    """A streaming call whose messages are compressed: one after another, large ones on another thread."""

    __slots__ = ("_is_compressing", "_last_words", "_uncompressed", "_uncompressed_byte_size")

    def begin(self) -> None:
        # What waits behind a message that is being compressed, and how the call ends after it, if it does.
        self._uncompressed: deque[tuple[Sequence[Buffer], int]] = deque()
        self._uncompressed_byte_size = 0
        self._is_compressing = False
        self._last_words: tuple[int, str] | None = None
        super().begin()

    @property
    def is_writable(self) -> bool:
        if self._uncompressed_byte_size > self._link.service.limits.max_write_buffer_byte_size:
            self._was_full = True
            return False
        return super().is_writable

    def send(self, parts: Sequence[Buffer]) -> None:
        if self._stream is None:
            return
        byte_size = sum(len(part) for part in parts)
        self._uncompressed.append((parts, byte_size))
        self._uncompressed_byte_size += byte_size
        if not self._is_compressing:
            self._compress_next()

    def _compress_next(self) -> None:
        coding = self._plan.coding
        assert coding is not None
        while self._uncompressed:
            parts, byte_size = self._uncompressed.popleft()
            if byte_size > MAX_INLINE_BYTE_SIZE:
                self._is_compressing = True
                compress_on_thread(self._link.service.loop, coding, parts, byte_size, self._on_compressed)
                return
            self._uncompressed_byte_size -= byte_size
            self._send_message(compress_message(coding, parts, byte_size))

    def _on_compressed(self, message: _OutgoingMessage) -> None:
        self._is_compressing = False
        if self._stream is None:
            return
        self._send_message(message)
        self._compress_next()
        self._uncompressed_byte_size = sum(byte_size for _, byte_size in self._uncompressed)
        if not self._is_compressing and self._last_words is not None:
            super().finish(*self._last_words)
        elif self._was_full and self.is_writable:
            self.on_drained()

    def _send_message(self, message: _OutgoingMessage) -> None:
        stream = self._stream
        if stream is None:
            return
        assert self._plan.coding is not None
        sender = self._link.sender
        if not self._has_sent_head:
            self._has_sent_head = True
            sender.send_headers(stream, _CODED_HEAD_BLOCKS[self._plan.coding.name])
        is_compressed, parts, byte_size = message
        prefix = pack_prefix(is_compressed, byte_size)
        sender.send_data(stream, (prefix, *parts), byte_size + PREFIX_BYTE_SIZE)
        if not self._link.is_receiving:
            self._link.write_soon()

    def finish(self, status: int = 0, message: str = "") -> None:
        if self._is_compressing and self._stream is not None:
            self._last_words = (status, message)
        else:
            super().finish(status, message)

    def cancel(self, status: int, message: str) -> None:
        self._is_compressing = False
        super().cancel(status, message)

    def end(self) -> None:
        super().end()
        self._uncompressed.clear()


def compress_message(coding: MessageCoding, parts: Sequence[Buffer], byte_size: int) -> _OutgoingMessage:
    """A message as it is sent: compressed, unless that makes it no shorter, or there is no memory for it."""
    try:
        compressed = coding.compress(parts)
    except MemoryError:
        return 0, parts, byte_size
    if len(compressed) >= byte_size:
        return 0, parts, byte_size
    return 1, (compressed,), len(compressed)


def compress_on_thread(
    loop: asyncio.AbstractEventLoop,
    coding: MessageCoding,
    parts: Sequence[Buffer],
    byte_size: int,
    on_message: Callable[[_OutgoingMessage], None],
) -> None:
    """Compress on another thread, and call back on the loop's."""
    future = loop.run_in_executor(None, compress_message, coding, parts, byte_size)
    future.add_done_callback(lambda done: on_message(done.result()))
