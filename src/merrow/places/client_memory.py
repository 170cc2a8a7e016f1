"""Copying from and to the file behind a client's shared memory, wherever that file ends just then.

The client may shorten it at any time. It is therefore never mapped, and what it no longer has reads as zeros.
"""

import errno
import os

import numpy as np

from merrow.core.tensor import Buffer

# Linux copies no more than that at a time.
_MAX_COPY_BYTE_SIZE = 0x7FFF_F000


def read_file(descriptor: int, offset: int, byte_size: int) -> memoryview:
    """A copy that belongs to the caller.

    Raises:
        OSError: it cannot be read.
    """
    content = np.empty(byte_size, np.uint8)
    view = memoryview(content)  # type: ignore[arg-type,unused-ignore]  # numpy's types for Python 3.10 have no buffers
    position = 0
    while position < byte_size:
        count = os.preadv(descriptor, [view[position : position + _MAX_COPY_BYTE_SIZE]], offset + position)
        if not count:
            content[position:] = 0
            break
        position += count
    return view


def write_file(descriptor: int, offset: int, data: Buffer) -> None:
    """Copy into a file, which must reach so far.

    Raises:
        OSError: it does not, or the system has no memory left for it.
    """
    view = memoryview(data)
    if os.fstat(descriptor).st_size < offset + len(view):
        # Writing would make it longer.
        raise OSError(errno.EFBIG, "the client has made it smaller")
    while len(view):
        written = os.pwrite(descriptor, view[:_MAX_COPY_BYTE_SIZE], offset)
        view = view[written:]
        offset += written
