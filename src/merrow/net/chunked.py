"""A request body in `Transfer-Encoding: chunked`, decoded as it arrives.

Decoded here and not by the head's parser, because that one does not say where a message ends, which pipelining must
know. Strict: CRLF line ends, sizes in plain hexadecimal. Extensions and trailers are read and dropped.

Source: RFC 9112, section 7.1; the number of chunks is Triton's limit (2.69 and later).
"""

import enum

from merrow.net.body import BudgetShare, ReceiveBudget
from merrow.net.status import RequestFault

_MAX_CHUNK_COUNT = 65536
# A size line, with whatever extensions.
_MAX_LINE_BYTE_SIZE = 4096
_MAX_SIZE_DIGITS = 15
_HEX_DIGITS = b"0123456789abcdefABCDEF"


class _State(enum.Enum):
    SIZE = enum.auto()
    DATA = enum.auto()
    DATA_END = enum.auto()
    TRAILERS = enum.auto()
    COMPLETE = enum.auto()


class ChunkedBody:
    """Decodes one body; `body` is whole when `is_complete`."""

    __slots__ = (
        "_chunk_count",
        "_line",
        "_max_byte_size",
        "_remaining",
        "_share",
        "_state",
        "_trailer_budget",
        "body",
    )

    def __init__(self, max_byte_size: int, max_trailer_byte_size: int, budget: ReceiveBudget) -> None:
        self._share = BudgetShare(budget)
        self._max_byte_size = max_byte_size
        self._trailer_budget = max_trailer_byte_size
        self._state = _State.SIZE
        self._line = b""
        self._remaining = 0
        self._chunk_count = 0
        self.body = bytearray()

    @property
    def is_complete(self) -> bool:
        return self._state is _State.COMPLETE

    def feed(self, data: bytes, position: int) -> int:
        """Decode from `position` on; returns the position after the last byte that belongs to the body.

        Raises:
            RequestFault: the encoding is broken, or the body too large.
            ReceiveBudgetError: all bodies together are.
        """
        position = self._feed(data, position)
        self._share.grow_to(len(self.body))
        return position

    def _feed(self, data: bytes, position: int) -> int:
        end = len(data)
        while position < end and self._state is not _State.COMPLETE:
            if self._state is _State.SIZE and not self._line:
                position = self._feed_whole_chunks(data, position)
            if self._state is _State.DATA:
                piece_end = min(position + self._remaining, end)
                self.body += memoryview(data)[position:piece_end]
                self._remaining -= piece_end - position
                position = piece_end
                if self._remaining == 0:
                    self._state = _State.DATA_END
                continue
            line_end = data.find(b"\n", position)
            piece = data[position:] if line_end < 0 else data[position : line_end + 1]
            position += len(piece)
            self._line += piece
            if len(self._line) > self._line_limit():
                raise RequestFault(400, "chunked request body: line too long")
            if line_end >= 0:
                line, self._line = self._line, b""
                if not line.endswith(b"\r\n") or b"\r" in line[:-2]:
                    raise RequestFault(400, "chunked request body: invalid line end")
                self._end_line(line[:-2])
        return position

    def _feed_whole_chunks(self, data: bytes, position: int) -> int:
        """The same for chunks that are there as a whole, and have no extension: there may be many small ones."""
        while True:
            line_end = data.find(b"\r\n", position, position + _MAX_SIZE_DIGITS + 2)
            digits = data[position:line_end]
            if line_end < 0 or not digits or digits.translate(None, _HEX_DIGITS):
                return position
            start = line_end + 2
            chunk_end = start + int(digits, 16)
            if chunk_end == start or data[chunk_end : chunk_end + 2] != b"\r\n":
                return position
            self._count_chunk(chunk_end - start)
            self.body += data[start:chunk_end]
            position = chunk_end + 2

    def _line_limit(self) -> int:
        if self._state is _State.DATA_END:
            return 2
        return self._trailer_budget if self._state is _State.TRAILERS else _MAX_LINE_BYTE_SIZE

    def _end_line(self, line: bytes) -> None:
        if self._state is _State.SIZE:
            self._begin_chunk(line)
        elif self._state is _State.DATA_END:
            self._state = _State.SIZE
        elif line:
            self._trailer_budget -= len(line)
        else:
            self._state = _State.COMPLETE

    def _begin_chunk(self, line: bytes) -> None:
        digits = line.partition(b";")[0].rstrip(b" \t")
        if not digits or len(digits) > _MAX_SIZE_DIGITS or digits.translate(None, _HEX_DIGITS):
            raise RequestFault(400, "chunked request body: invalid chunk size")
        self._remaining = int(digits, 16)
        if self._remaining == 0:
            self._state = _State.TRAILERS
            return
        self._state = _State.DATA
        self._count_chunk(self._remaining)

    def _count_chunk(self, byte_size: int) -> None:
        self._chunk_count += 1
        if self._chunk_count > _MAX_CHUNK_COUNT:
            raise RequestFault(
                400,
                f"Chunked request body exceeds maximum of {_MAX_CHUNK_COUNT} non-empty chunks. "
                "Send fewer or larger HTTP chunks.",
            )
        if len(self.body) + byte_size > self._max_byte_size:
            raise RequestFault(413, f"request body exceeds the limit of {self._max_byte_size} bytes")
