"""What the process place needs of the operating system, and what stands in where a system lacks it.

Shared memory is a file without a name: `memfd_create`, sealed so that the other side cannot shrink it under a mapping;
where the system has none, an unlinked temporary file, all of which is reserved on the disk. /dev/shm is never used.
Descriptors travel over Unix sockets. A process that dies leaves nothing behind.
"""

import array
import ctypes
import errno
import functools
import mmap
import os
import signal
import socket
import stat
import sys
import tempfile

try:
    import fcntl
    import resource
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
    resource = None  # type: ignore[assignment]

_PR_SET_PDEATHSIG = 1
# Of <sys/mman.h> and <fcntl.h>; an interpreter built on an old system does not know them.
_MFD_CLOEXEC_AND_ALLOW_SEALING = 1 | 2
_F_ADD_SEALS = 1033
_F_GET_SEALS = 1034
# F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW.
_SEALS = 1 | 2 | 4
_DESCRIPTOR_SIZE = array.array("i").itemsize
# The most descriptors that come with one read.
_MAX_DESCRIPTORS = 16


class SharedMemoryError(Exception):
    """Shared memory that came from the other side is not what it was said to be."""


def is_available() -> bool:
    """Whether this system can run models in processes of their own."""
    return hasattr(os, "fork") and hasattr(socket, "AF_UNIX") and hasattr(socket.socket, "sendmsg")


@functools.cache
def has_memfd() -> bool:
    """Whether the system gives memory by descriptor. Linux does, unless it is old or a sandbox forbids it."""
    if sys.platform != "linux":
        return False
    try:
        os.close(_create_memfd())
    except (OSError, AttributeError):
        return False
    return True


def create_shared_memory(byte_size: int) -> tuple[int, mmap.mmap]:
    """New zeroed memory, mapped, and the descriptor that gives it to others. Pages cost nothing until touched."""
    has_seals = has_memfd()
    descriptor = _create_memfd() if has_seals else _create_temporary_file()
    try:
        os.ftruncate(descriptor, byte_size)
        if has_seals:
            fcntl.fcntl(descriptor, _F_ADD_SEALS, _SEALS)
        elif hasattr(os, "posix_fallocate"):
            # A full disk is an error here, not a signal when the memory is written to.
            os.posix_fallocate(descriptor, 0, byte_size)
        return descriptor, mmap.mmap(descriptor, byte_size)
    except BaseException:
        os.close(descriptor)
        raise


def _create_memfd() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("merrow", _MFD_CLOEXEC_AND_ALLOW_SEALING)
    # An interpreter that was built for systems older than this one.
    descriptor: int = ctypes.CDLL(None, use_errno=True).memfd_create(b"merrow", _MFD_CLOEXEC_AND_ALLOW_SEALING)
    if descriptor < 0:
        number = ctypes.get_errno() or errno.ENOSYS
        raise OSError(number, os.strerror(number))
    return descriptor


def _create_temporary_file() -> int:
    descriptor, path = tempfile.mkstemp(prefix="merrow-")
    os.unlink(path)
    return descriptor


def map_shared_memory(descriptor: int, byte_size: int) -> mmap.mmap:
    """Map memory that the other side created, and close the descriptor.

    Raises:
        SharedMemoryError: it has another size, or could be shrunk while mapped (which would kill this process).
    """
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size != byte_size or byte_size <= 0:
            raise SharedMemoryError(f"expected {byte_size} bytes of shared memory, got {status.st_size}")
        if has_memfd() and fcntl.fcntl(descriptor, _F_GET_SEALS) & _SEALS != _SEALS:
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


def ignore_signal(_number: int, _frame: object) -> None:
    """A handler. A signal with SIG_IGN would stay ignored in what a model starts, and would not wake a poll."""


def kill_group(process_id: int) -> None:
    """Kill the process group that this process leads; fine if nobody is left in it."""
    try:
        os.killpg(process_id, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


def limit_memory(byte_size: int) -> None:
    """Limit what this process may allocate beyond what it has now; 0 does nothing.

    What goes beyond fails there, in Python as a MemoryError, and harms nobody else. Shared memory does not count, and
    on Linux neither do mapped files: code of large libraries is not the model's doing.
    """
    if not byte_size:
        return
    if sys.platform == "linux":
        kind, taken = resource.RLIMIT_DATA, _data_byte_size()
    else:
        kind, taken = resource.RLIMIT_AS, 0
    hard = resource.getrlimit(kind)[1]
    limit = taken + byte_size
    resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def count_oom_kills() -> int:
    """How many processes this system has killed for want of memory, ever; 0 where it does not say."""
    try:
        with open("/proc/vmstat") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("oom_kill ")), 0)
    except (OSError, ValueError):
        return 0


def volunteer_for_oom() -> None:
    """Where the system must kill something for want of memory, let it be this process before the server. Linux only."""
    try:
        with open("/proc/self/oom_score_adj", "r+") as file:
            score = int(file.read())
            file.seek(0)
            file.write(str(min(1000, score + 300)))
    except (OSError, ValueError):
        pass


def buffer_c_output_by_line() -> None:
    """Make C code in this process write each line to standard output as it ends, as on a terminal.

    Into a pipe it would write when some kilobytes have gathered, and never if the process dies.
    """
    try:
        library = ctypes.CDLL(None)
        stream = ctypes.c_void_p.in_dll(library, "stdout" if sys.platform == "linux" else "__stdoutp")
        library.setvbuf(stream, None, 1, ctypes.c_size_t(0))
    except (OSError, ValueError, AttributeError):
        pass


def _data_byte_size() -> int:
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    return 0
