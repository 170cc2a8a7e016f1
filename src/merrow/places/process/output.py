"""What a child prints, as lines for the server's log: bounded in length and in rate. Nothing here has effects.

A line is logged as it ends; a part of one when nothing has followed for `PARTIAL_NS`, so that a prompt without a
newline is seen. Of a line with carriage returns (a progress bar) the part after the last counts, as on a terminal. What
is more than the limits of a second allow is dropped, and its amount logged once that second is over; the last of it is
kept, so that what a model says when it crashes is not lost behind what it said before.
"""

from collections import deque

from merrow.settings import ProcessSettings

PARTIAL_NS = 200_000_000
_SECOND_NS = 1_000_000_000

# Bytes of dropped lines that are kept for the end.
_LAST_WORDS_BYTE_SIZE = 16 * 1024


class OutputLines:
    """The output of one child. Every method returns the lines to log now."""

    def __init__(self, settings: ProcessSettings) -> None:
        self._max_line_byte_size = settings.output_line_byte_size
        self._max_lines = settings.output_lines_per_second
        self._max_bytes = settings.output_bytes_per_second
        self._partial = b""
        self._partial_ns = 0
        # The second that is being counted, what was logged in it and what was dropped.
        self._second_start_ns = 0
        self._line_count = 0
        self._byte_count = 0
        self._dropped_line_count = 0
        self._dropped_byte_count = 0
        self._last_words: deque[bytes] = deque()
        self._last_words_byte_size = 0

    @property
    def due_ns(self) -> int | None:
        """When `tick` must be called next."""
        due = [self._partial_ns + PARTIAL_NS] if self._partial else []
        if self._dropped_line_count:
            due.append(self._second_start_ns + _SECOND_NS)
        return min(due, default=None)

    @property
    def is_dropping(self) -> bool:
        """Whether what is printed now goes nowhere: it need not be read at once."""
        return self._dropped_line_count > 0

    def feed(self, data: bytes, now_ns: int) -> list[str]:
        """Some output."""
        lines = self._new_second(now_ns)
        *whole, rest = (self._partial + data).split(b"\n")
        for line in whole:
            self._add(line, now_ns, lines)
        while len(rest) > self._max_line_byte_size:
            self._add(rest[: self._max_line_byte_size], now_ns, lines)
            rest = rest[self._max_line_byte_size :]
        self._partial = rest
        self._partial_ns = now_ns
        return lines

    def tick(self, now_ns: int) -> list[str]:
        """Time has passed."""
        lines = self._new_second(now_ns)
        if self._partial and now_ns - self._partial_ns >= PARTIAL_NS:
            self._add(self._partial, now_ns, lines)
            self._partial = b""
        return lines

    def end(self, now_ns: int) -> list[str]:
        """There is no more to come."""
        lines = self._new_second(now_ns)
        if self._partial:
            self._add(self._partial, now_ns, lines)
            self._partial = b""
        last_words = list(self._last_words)
        if last_words:
            self._dropped_line_count -= len(last_words)
            self._dropped_byte_count -= self._last_words_byte_size
            self._tell_dropped(lines)
            lines += [_text_of(line) for line in last_words]
        return lines

    def _add(self, line: bytes, now_ns: int, lines: list[str]) -> None:
        while len(line) > self._max_line_byte_size:
            self._add(line[: self._max_line_byte_size], now_ns, lines)
            line = line[self._max_line_byte_size :]
        line = line.rstrip(b"\r").rpartition(b"\r")[2]
        if not line.strip():
            return
        size = len(line) + 1
        if self._line_count >= self._max_lines or self._byte_count + size > self._max_bytes:
            self._drop(line)
            return
        self._line_count += 1
        self._byte_count += size
        lines.append(_text_of(line))

    def _drop(self, line: bytes) -> None:
        size = len(line) + 1
        self._dropped_line_count += 1
        self._dropped_byte_count += size
        self._last_words.append(line)
        self._last_words_byte_size += size
        while self._last_words_byte_size > _LAST_WORDS_BYTE_SIZE:
            self._last_words_byte_size -= len(self._last_words.popleft()) + 1

    def _new_second(self, now_ns: int) -> list[str]:
        lines: list[str] = []
        if now_ns - self._second_start_ns < _SECOND_NS:
            return lines
        self._tell_dropped(lines)
        self._second_start_ns = now_ns
        self._line_count = self._byte_count = 0
        self._dropped_line_count = self._dropped_byte_count = 0
        self._last_words.clear()
        self._last_words_byte_size = 0
        return lines

    def _tell_dropped(self, lines: list[str]) -> None:
        if self._dropped_line_count:
            lines.append(
                f"... {self._dropped_line_count} lines ({self._dropped_byte_count} bytes) of output were dropped: more "
                f"than {self._max_lines} lines or {self._max_bytes} bytes in a second (--backend-config=python,"
                "output-lines-per-second, output-bytes-per-second)"
            )


def _text_of(line: bytes) -> str:
    return line.decode(errors="backslashreplace").rstrip()
