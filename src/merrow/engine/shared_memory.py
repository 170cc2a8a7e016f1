"""The shared memory that clients have registered: system regions (POSIX shared memory) and CUDA regions.

A client names memory of its own; requests then name parts of it instead of carrying data. System memory is kept as an
open file and only ever copied from and to, with `pread` and `pwrite`: never mapped, so that a client that shortens its
file while it is used costs its own request, not the server its life (SIGBUS). An open file stays the same file when
its name is unlinked and taken by someone else, so that no request reaches another process's memory.

Unregistering takes a region out of the table; requests that have found it finish with it, and its file is closed with
the last of them. Everything but those ends happens on the loop's thread.

Source: Triton, shared_memory_manager.cc and the extension "shared memory".
"""

import asyncio
import ctypes
import errno
import mmap
import os
import stat
import sys
from collections.abc import Iterator
from typing import Protocol

from merrow.core.errors import (
    AlreadyExistsError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
    UnsupportedError,
)
from merrow.core.region import RegionFile, RegionSlice
from merrow.core.tensor import Buffer
from merrow.places.client_memory import read_file, write_file
from merrow.settings import SharedMemorySettings

RESERVED_KEY_PREFIX = "triton_python_backend_shm_region_"
DISABLED = "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable."
CUDA_HANDLE_BYTE_SIZE = 64

_DIRECTORY = "/dev/shm"
_MUST_MAP = sys.platform == "darwin"
_MAX_UINT64 = 2**64 - 1


class CudaMemory(Protocol):
    """A GPU's memory that a client has exported."""

    def read(self, offset: int, byte_size: int) -> bytes: ...
    def write(self, offset: int, data: Buffer) -> None: ...
    def close(self) -> None: ...


class CudaDriver(Protocol):
    """What opens such memory."""

    def open(self, raw_handle: bytes, device_id: int, byte_size: int) -> CudaMemory | None:
        """None if the handle cannot be opened here. Blocks; called on any thread.

        Raises:
            ValueError: the memory behind it is smaller.
        """


class SystemRegion:
    """A registered region of system memory; `key` is as the client wrote it."""

    def __init__(self, name: str, key: str, offset: int, byte_size: int, file: "SharedFile") -> None:
        self.name = name
        self.key = key
        self.offset = offset
        self.byte_size = byte_size
        self._file = file

    def slice(self, offset: int, byte_size: int) -> RegionSlice:
        """Raises InvalidArgumentError if the client has made the memory shorter than that."""
        end = self.offset + offset + byte_size
        size = self._file.byte_size()
        if end > size:
            raise InvalidArgumentError(
                f"shared memory region '{self.name}' has shrunk since it was registered: {end} bytes of its memory are "
                f"used and {size} are left"
            )
        return _SystemSlice(self, self._file, self.offset + offset, byte_size)


class CudaRegion:
    """A registered region of a GPU's memory."""

    def __init__(self, name: str, device_id: int, byte_size: int, memory: CudaMemory) -> None:
        self.name = name
        self.device_id = device_id
        self.byte_size = byte_size
        self._memory = memory

    def slice(self, offset: int, byte_size: int) -> RegionSlice:
        return _CudaSlice(self, self._memory, offset, byte_size)

    def __del__(self) -> None:
        # With the last request that uses it.
        self._memory.close()


class SharedMemoryRegistry:
    """See the module. Implements `wire.regions.SharedMemoryRegions`."""

    def __init__(self, settings: SharedMemorySettings, cuda: CudaDriver | None = None) -> None:
        """
        Args:
            cuda: None where there is no CUDA.
        """
        self._settings = settings
        self._cuda = cuda
        self._regions: dict[str, SystemRegion | CudaRegion] = {}
        self._next_number = 1

    def check_enabled(self) -> None:
        """Raises UnsupportedError unless clients may register memory (`--allow-client-shm`)."""
        if not self._settings.allow_client_shm:
            raise UnsupportedError(DISABLED)

    def register_system(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Register POSIX shared memory under a name.

        Raises:
            ServerError: it is not allowed, not there, too small, or the name is taken.
        """
        self.check_enabled()
        plain_key = key.lstrip("/")
        if plain_key.startswith(RESERVED_KEY_PREFIX):
            raise InvalidArgumentError(
                f"cannot register shared memory region '{name}' with key '{key}' as the key contains the reserved "
                f"prefix '{RESERVED_KEY_PREFIX}'"
            )
        if not plain_key:
            raise InvalidArgumentError(f"cannot register shared memory region '{name}' - invalid shm key '{key}'")
        self._check_new(name)
        try:
            descriptor = _open_shared_memory(plain_key)
        except OSError:
            raise InternalError(f"Unable to open shared memory region: '{key}'") from None
        try:
            _check_extent(name, offset, byte_size, os.fstat(descriptor).st_size)
            mapping = mmap.mmap(descriptor, byte_size, offset=offset) if _MUST_MAP else None
        except BaseException:
            os.close(descriptor)
            raise
        file = SharedFile(self._next_number, descriptor, mapping, offset)
        self._next_number += 1
        self._regions[name] = SystemRegion(name, key, offset, byte_size, file)

    async def register_cuda(self, name: str, raw_handle: bytes, device_id: int, byte_size: int) -> None:
        """Register a GPU's memory under a name. The first use of a device takes a moment.

        Raises:
            ServerError: it is not allowed, there is no CUDA, the handle leads nowhere, or the name is taken.
        """
        self.check_enabled()
        if len(raw_handle) != CUDA_HANDLE_BYTE_SIZE:
            raise InvalidArgumentError("'raw_handle' must be a valid base64 encoded cudaIpcMemHandle_t")
        if self._cuda is None:
            raise InvalidArgumentError(f"failed to register CUDA shared memory region: '{name}', GPUs not supported")
        self._check_new(name)
        try:
            memory = await asyncio.to_thread(self._cuda.open, raw_handle, device_id, byte_size)
        except ValueError:
            raise InvalidArgumentError(f"failed to register shared memory region '{name}': invalid args") from None
        if memory is None:
            raise InvalidArgumentError("failed to register shared memory region: invalid args")
        region = CudaRegion(name, device_id, byte_size, memory)
        # Another request may have been faster.
        self._check_new(name)
        self._regions[name] = region

    def unregister_system(self, name: str = "") -> None:
        """Forget a system region, or all without a name. Unknown names are fine, and CUDA regions stay."""
        self._unregister(name, SystemRegion)

    def unregister_cuda(self, name: str = "") -> None:
        """Forget a CUDA region, or all without a name. Unknown names are fine, and system regions stay."""
        self._unregister(name, CudaRegion)

    def system_regions(self, name: str = "") -> list[SystemRegion]:
        """The system regions by name, or one of them.

        Raises:
            NotFoundError: there is none of that name, or it is the other kind.
        """
        region = self._region_of(name, "system")
        if region is None:
            return [each for each in self._sorted() if isinstance(each, SystemRegion)]
        if not isinstance(region, SystemRegion):
            raise NotFoundError(
                f"The region named '{name}' is registered as CUDA shared memory, not system shared memory"
            )
        return [region]

    def cuda_regions(self, name: str = "") -> list[CudaRegion]:
        """The CUDA regions by name, or one of them.

        Raises:
            NotFoundError: there is none of that name, or it is the other kind.
        """
        region = self._region_of(name, "cuda")
        if region is None:
            return [each for each in self._sorted() if isinstance(each, CudaRegion)]
        if not isinstance(region, CudaRegion):
            raise NotFoundError(
                f"The region named '{name}' is registered as system shared memory, not CUDA shared memory"
            )
        return [region]

    def find(self, name: str, offset: int, byte_size: int) -> RegionSlice:
        """Part of a region, for one request.

        Raises:
            ServerError: there is no such region, or it does not reach so far.
        """
        region = self._regions.get(name)
        if region is None:
            raise NotFoundError(f"Unable to find shared memory region: '{name}'")
        if offset >= region.byte_size:
            raise InvalidArgumentError(f"Invalid offset for shared memory region: '{name}'")
        if offset + byte_size > _MAX_UINT64:
            raise InvalidArgumentError(
                f"Integer overflow detected: byte_size ({byte_size}) + offset ({offset}) exceeds maximum value "
                f"({_MAX_UINT64}) for region '{name}'"
            )
        # Triton counts to the last byte, so that nothing at the very start has no last byte.
        if (offset + byte_size - 1) % 2**64 > region.byte_size - 1:
            raise InvalidArgumentError(f"Invalid offset + byte size for shared memory region: '{name}'")
        if byte_size > self._settings.max_tensor_byte_size:
            raise InvalidArgumentError(
                f"{byte_size} bytes of shared memory region '{name}' exceed the maximum allowed for one tensor of "
                f"{self._settings.max_tensor_byte_size} bytes. Use --max-shared-memory-tensor-byte-size to increase "
                "the limit."
            )
        return region.slice(offset, byte_size)

    def close(self) -> None:
        """Forget all regions."""
        self._regions.clear()

    def _check_new(self, name: str) -> None:
        if name in self._regions:
            raise AlreadyExistsError(f"shared memory region '{name}' already in manager")
        if len(self._regions) >= self._settings.max_regions:
            raise UnavailableError(
                f"cannot register shared memory region '{name}': {len(self._regions)} regions are registered, and "
                f"--max-shared-memory-regions is {self._settings.max_regions}"
            )

    def _unregister(self, name: str, kind: type[SystemRegion] | type[CudaRegion]) -> None:
        names = [name] if name else list(self._regions)
        for each in names:
            if isinstance(self._regions.get(each), kind):
                del self._regions[each]

    def _region_of(self, name: str, kind: str) -> SystemRegion | CudaRegion | None:
        """The region of a name; None without a name."""
        if not name:
            return None
        region = self._regions.get(name)
        if region is None:
            raise NotFoundError(f"Unable to find {kind} shared memory region: '{name}'")
        return region

    def _sorted(self) -> Iterator[SystemRegion | CudaRegion]:
        return (self._regions[name] for name in sorted(self._regions))


class SharedFile:
    """The file behind a system region: bytes are copied out of it and into it, wherever it ends just then.

    Where the system's shared memory can only be mapped (macOS, which does not let it shrink either), it is mapped.
    The descriptor is closed when nobody uses this any more.
    """

    def __init__(self, number: int, descriptor: int, mapping: mmap.mmap | None = None, mapping_offset: int = 0) -> None:
        self.number = number
        self.descriptor = descriptor
        self._mapping = mapping
        self._mapping_offset = mapping_offset

    def __del__(self) -> None:
        os.close(self.descriptor)

    @property
    def is_file(self) -> bool:
        """Whether another process can copy from the descriptor."""
        return self._mapping is None

    def byte_size(self) -> int:
        """As of now."""
        return os.fstat(self.descriptor).st_size

    def read(self, offset: int, byte_size: int) -> Buffer:
        """A copy; where the file has become shorter, the rest is zeros."""
        if self._mapping is not None:
            start = offset - self._mapping_offset
            return self._mapping[start : start + byte_size]
        return read_file(self.descriptor, offset, byte_size)

    def write(self, offset: int, data: Buffer) -> None:
        """Copy into the file, which must reach so far.

        Raises:
            OSError: it does not, or the system has no memory left for it.
        """
        if self._mapping is not None:
            start = offset - self._mapping_offset
            self._mapping[start : start + len(data)] = bytes(data)
            return
        write_file(self.descriptor, offset, data)


class _SystemSlice:
    """Part of a system region; a `RegionSlice`."""

    __slots__ = ("_file", "_region", "byte_size", "file_offset")

    def __init__(self, region: SystemRegion, file: SharedFile, file_offset: int, byte_size: int) -> None:
        self._region = region
        self._file = file
        self.file_offset = file_offset
        self.byte_size = byte_size

    @property
    def file(self) -> RegionFile | None:
        return self._file if self._file.is_file else None

    def read(self) -> Buffer:
        return self._file.read(self.file_offset, self.byte_size)

    def write(self, data: Buffer) -> None:
        try:
            self._file.write(self.file_offset, data)
        except OSError as error:
            reason = error.strerror or "it cannot be written to"
            raise InternalError(f"failed to write to shared memory region '{self._region.name}': {reason}") from None


class _CudaSlice:
    """Part of a CUDA region; a `RegionSlice`."""

    __slots__ = ("_memory", "_region", "byte_size", "file_offset")

    file: RegionFile | None = None

    def __init__(self, region: CudaRegion, memory: CudaMemory, offset: int, byte_size: int) -> None:
        # The region lives, and with it its memory, as long as this.
        self._region = region
        self._memory = memory
        self.file_offset = offset
        self.byte_size = byte_size

    def read(self) -> Buffer:
        return self._memory.read(self.file_offset, self.byte_size)

    def write(self, data: Buffer) -> None:
        self._memory.write(self.file_offset, data)


def _check_extent(name: str, offset: int, byte_size: int, available: int) -> None:
    """Refuse what Triton could not map."""
    # Triton adds in 64 bits.
    if (offset + byte_size) % 2**64 > available:
        raise InvalidArgumentError(f"failed to register shared memory region '{name}': invalid args")
    if byte_size == 0 or offset % mmap.ALLOCATIONGRANULARITY:
        code = errno.EINVAL
    elif offset + byte_size > available:
        code = errno.EOVERFLOW
    else:
        return
    raise InvalidArgumentError(
        f"failed to register shared memory region '{name}': unable to process address space{os.strerror(code)}"
    )


def _open_shared_memory(key: str) -> int:
    """The descriptor of POSIX shared memory, as `shm_open` gives it.

    Raises:
        OSError: there is none of that name that this process may read and write.
    """
    if "/" in key or "\0" in key or key in (".", ".."):
        # As the C library has it: no name of shared memory leads out of its directory.
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    try:
        encoded = key.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT)) from None
    if sys.platform == "linux":
        # A pipe that someone put there must not hold up the loop.
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        descriptor = os.open(os.path.join(_DIRECTORY.encode(), encoded), flags)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        # A pipe or a device: reading may block, or do anything.
        os.close(descriptor)
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return _shm_open(b"/" + encoded)


def _shm_open(name: bytes) -> int:
    """`shm_open` of the C library, where shared memory is not a directory of files."""
    if not hasattr(os, "O_NOFOLLOW"):
        raise OSError(errno.ENOENT, "this system has no POSIX shared memory")
    descriptor: int = ctypes.CDLL(None, use_errno=True).shm_open(name, os.O_RDWR, 0)
    if descriptor < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    os.set_inheritable(descriptor, False)
    return descriptor
