"""What the process place needs of the operating system, and what stands in where a system lacks it.

Shared memory is a file without a name: `memfd_create`, sealed so that the other side cannot shrink it under a mapping;
elsewhere an unlinked temporary file. Descriptors travel over Unix sockets. A process that dies leaves nothing behind.
"""

import array
import ctypes
import mmap
import os
import signal
import socket
import stat
import sys
import tempfile

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

HAS_MEMFD = hasattr(os, "memfd_create")

_PR_SET_PDEATHSIG = 1
_SEALS = 0 if fcntl is None or not HAS_MEMFD else fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_DESCRIPTOR_SIZE = array.array("i").itemsize
# The most descriptors that come with one read.
_MAX_DESCRIPTORS = 16


class SharedMemoryError(Exception):
    """Shared memory that came from the other side is not what it was said to be."""


def is_available() -> bool:
    """Whether this system can run models in processes of their own."""
    return hasattr(os, "fork") and hasattr(socket, "AF_UNIX") and hasattr(socket.socket, "sendmsg")


def create_shared_memory(byte_size: int) -> tuple[int, mmap.mmap]:
    """New zeroed memory, mapped, and the descriptor that gives it to others. Pages cost nothing until touched."""
    if HAS_MEMFD:
        descriptor = os.memfd_create("merrow", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    else:
        descriptor, path = tempfile.mkstemp(prefix="merrow-")
        os.unlink(path)
    try:
        os.ftruncate(descriptor, byte_size)
        if HAS_MEMFD:
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        return descriptor, mmap.mmap(descriptor, byte_size)
    except BaseException:
        os.close(descriptor)
        raise


def map_shared_memory(descriptor: int, byte_size: int) -> mmap.mmap:
    """Map memory that the other side created, and close the descriptor.

    Raises:
        SharedMemoryError: it has another size, or could be shrunk while mapped (which would kill this process).
    """
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size != byte_size or byte_size <= 0:
            raise SharedMemoryError(f"expected {byte_size} bytes of shared memory, got {status.st_size}")
        if HAS_MEMFD and fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            raise SharedMemoryError("shared memory is not sealed")
        return mmap.mmap(descriptor, byte_size)
    except OSError as error:
        raise SharedMemoryError(f"cannot map shared memory: {error}") from None
    finally:
        os.close(descriptor)


def send_with_descriptors(connection: socket.socket, data: bytes, descriptors: list[int]) -> int:
    """Send; the descriptors go with the first byte. Returns how many bytes were taken, at least one."""
    if not descriptors:
        return connection.send(data)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
    return connection.sendmsg([data], ancillary)


def receive_with_descriptors(connection: socket.socket, byte_size: int) -> tuple[bytes, list[int]]:
    """Receive at most `byte_size` bytes, and the descriptors that came with them; no bytes at the end.

    Raises:
        OSError: as `recv`; also when this process had no descriptors left to give.
    """
    space = socket.CMSG_SPACE(_MAX_DESCRIPTORS * _DESCRIPTOR_SIZE)
    flags = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
    data, ancillary, message_flags, _ = connection.recvmsg(byte_size, space, flags)
    descriptors: list[int] = []
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            received = array.array("i")
            received.frombytes(content[: len(content) - len(content) % _DESCRIPTOR_SIZE])
            descriptors += received
    if not flags:
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
    if message_flags & socket.MSG_CTRUNC:
        for descriptor in descriptors:
            os.close(descriptor)
        raise OSError("too many open files: a descriptor from another process was lost")
    return data, descriptors


def signal_on_parent_death(number: signal.Signals) -> None:
    """Ask for a signal when the thread that started this process is gone. Linux only; elsewhere nothing happens."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)


def kill_group(process_id: int) -> None:
    """Kill the process group that this process leads; fine if nobody is left in it."""
    try:
        os.killpg(process_id, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
