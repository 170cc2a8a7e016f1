"""Shared memory for the suite: segments of each server's own, under one name in the cases.

Both servers run on this machine, and what one wrote must not hide what the other did. So a case names
`PLACEHOLDER`, which becomes the key of the peer's own segment on the way, and back in the reply. Both have the same
length, because messages are already encoded.
"""

import os
import struct
from pathlib import Path

PLACEHOLDER = b"SHM-KEY-PLACEHOLDER"
BYTE_SIZE = 64 * 1024
COUNT = 4

# What the segments hold: floats from the start, strings from here on, and nothing where outputs go.
TEXT_OFFSET = 8192
OUTPUT_OFFSET = 16384
TEXTS = (b"a text in shared memory", b"", b"\xc3\xbc")

_DIRECTORY = Path("/dev/shm")


class Segments:
    """The segments of one peer, as long as it is entered."""

    def __init__(self, letter: str) -> None:
        self.key = f"{letter}-oracle-{os.getpid():010d}".encode()
        assert len(self.key) == len(PLACEHOLDER)

    def __enter__(self) -> "Segments":
        for number in range(COUNT):
            with open(self._path(number), "wb") as file:
                file.write(struct.pack("<1024f", *range(1024)))
                file.seek(TEXT_OFFSET)
                file.write(encoded_texts())
                file.truncate(BYTE_SIZE)
        return self

    def __exit__(self, *exception: object) -> None:
        for number in range(COUNT):
            self._path(number).unlink(missing_ok=True)

    def _path(self, number: int) -> Path:
        return _DIRECTORY / f"{self.key.decode()}{number}"


def encoded_texts() -> bytes:
    return b"".join(struct.pack("<I", len(text)) + text for text in TEXTS)
