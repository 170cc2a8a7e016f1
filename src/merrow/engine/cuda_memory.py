"""GPU memory of other processes, by way of the CUDA driver's library, which is looked for when the server starts.

Nothing here needs the CUDA toolkit or a package: the driver (`libcuda`) is called through `ctypes`. A handle that a
client made with `cudaIpcGetMemHandle` is opened in the device's primary context, and bytes are copied between the
device and this process; the context is current for the length of each call only, on whichever thread makes it.

Source: CUDA driver API, "Memory Management" and "Context Management"; Triton, http_server.cc, OpenCudaIPCRegion.
"""

import ctypes
import logging
import sys
import threading
from typing import Any

from merrow.core.errors import InternalError
from merrow.core.tensor import Buffer

_LOG = logging.getLogger("merrow.engine")

HANDLE_BYTE_SIZE = 64

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_LAZY_ENABLE_PEER_ACCESS = 1


class _IpcHandle(ctypes.Structure):
    """CUipcMemHandle, which is passed by value."""

    _fields_ = (("reserved", ctypes.c_char * HANDLE_BYTE_SIZE),)


class CudaError(Exception):
    """A call of the driver failed."""


class CudaLibrary:
    """The driver, initialised; implements `shared_memory.CudaDriver`."""

    def __init__(self, library: Any) -> None:
        """
        Args:
            library: what `ctypes.CDLL` gives for the driver.

        Raises:
            CudaError: it does not work here: no device, or no access to one.
        """
        self._library = library
        self._contexts: dict[int, ctypes.c_void_p] = {}
        # Of the table of contexts.
        self._lock = threading.Lock()
        self._call("cuInit", 0)

    def open(self, raw_handle: bytes, device_id: int, byte_size: int) -> "CudaIpcMemory | None":
        """Open exported memory; None if the handle or the device is none of this machine's.

        Raises:
            ValueError: the memory behind the handle is smaller than `byte_size`.
        """
        pointer = ctypes.c_void_p()
        try:
            context = self._context_of(device_id)
            self.push(context)
            try:
                handle = _IpcHandle.from_buffer_copy(raw_handle)
                self._call("cuIpcOpenMemHandle_v2", ctypes.byref(pointer), handle, _LAZY_ENABLE_PEER_ACCESS)
                base, size = ctypes.c_void_p(), ctypes.c_size_t()
                self._call("cuMemGetAddressRange_v2", ctypes.byref(base), ctypes.byref(size), pointer)
            finally:
                self.pop()
        except CudaError as error:
            _LOG.error("cannot open CUDA shared memory on device %d: %s", device_id, error)
            if pointer.value:
                self.close_memory(device_id, pointer)
            return None
        if byte_size > (base.value or 0) + size.value - (pointer.value or 0):
            self.close_memory(device_id, pointer)
            raise ValueError(f"{size.value} bytes of device memory, not {byte_size}")
        return CudaIpcMemory(self, device_id, pointer)

    def close(self) -> None:
        """Release the devices; all memory must be closed."""
        contexts, self._contexts = self._contexts, {}
        for device_id in contexts:
            self._library.cuDevicePrimaryCtxRelease_v2(self._device_of(device_id))

    def copy(self, function: str, device_id: int, *arguments: Any) -> None:
        """Call a copying function with the device's context current.

        Raises:
            CudaError: it failed.
        """
        self.push(self._contexts[device_id])
        try:
            self._call(function, *arguments)
        finally:
            self.pop()

    def close_memory(self, device_id: int, pointer: ctypes.c_void_p) -> None:
        """Undo `open`. What fails here is the end of the other process, or of the device."""
        try:
            self.copy("cuIpcCloseMemHandle", device_id, pointer)
        except CudaError as error:
            _LOG.warning("cannot close CUDA shared memory on device %d: %s", device_id, error)

    def push(self, context: ctypes.c_void_p) -> None:
        self._call("cuCtxPushCurrent_v2", context)

    def pop(self) -> None:
        self._call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def _context_of(self, device_id: int) -> ctypes.c_void_p:
        with self._lock:
            context = self._contexts.get(device_id)
            if context is None:
                context = ctypes.c_void_p()
                self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device_of(device_id))
                self._contexts[device_id] = context
        return context

    def _device_of(self, device_id: int) -> ctypes.c_int:
        if not 0 <= device_id < 2**31:
            raise CudaError(f"there is no device {device_id}")
        device = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(device), device_id)
        return device

    def _call(self, function: str, *arguments: Any) -> None:
        result = getattr(self._library, function)(*arguments)
        if result:
            raise CudaError(f"{function}: {self._name_of(result)}")

    def _name_of(self, result: int) -> str:
        name = ctypes.c_char_p()
        if self._library.cuGetErrorName(result, ctypes.byref(name)) or name.value is None:
            return f"error {result}"
        return name.value.decode(errors="replace")


class CudaIpcMemory:
    """One opened handle; implements `shared_memory.CudaMemory`."""

    def __init__(self, library: CudaLibrary, device_id: int, pointer: ctypes.c_void_p) -> None:
        self._library = library
        self._device_id = device_id
        self._pointer = pointer

    def read(self, offset: int, byte_size: int) -> bytes:
        """Copy from the device.

        Raises:
            InternalError: the device refuses.
        """
        content = bytearray(byte_size)
        if byte_size:
            target = (ctypes.c_char * byte_size).from_buffer(content)
            self._copy("read", "cuMemcpyDtoH_v2", target, self._address(offset), ctypes.c_size_t(byte_size))
        return bytes(content)

    def write(self, offset: int, data: Buffer) -> None:
        """Copy to the device.

        Raises:
            InternalError: the device refuses.
        """
        content = bytes(data)
        if content:
            self._copy("written", "cuMemcpyHtoD_v2", self._address(offset), content, ctypes.c_size_t(len(content)))

    def close(self) -> None:
        self._library.close_memory(self._device_id, self._pointer)

    def _address(self, offset: int) -> ctypes.c_void_p:
        return ctypes.c_void_p((self._pointer.value or 0) + offset)

    def _copy(self, verb: str, function: str, *arguments: Any) -> None:
        try:
            self._library.copy(function, self._device_id, *arguments)
        except CudaError as error:
            raise InternalError(f"CUDA shared memory could not be {verb}: {error}") from None


def find_cuda() -> CudaLibrary | None:
    """The CUDA driver of this machine; None where there is none, or no device."""
    try:
        return CudaLibrary(ctypes.CDLL(_LIBRARY))
    except OSError:
        return None
    except (CudaError, AttributeError) as error:
        _LOG.info("no CUDA shared memory: %s", error)
        return None
