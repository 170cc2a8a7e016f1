"""The CUDA driver's calls, made on a library of the test's own: as strict as the driver about contexts and handles."""

import ctypes
import threading

import pytest

from merrow.core.errors import InternalError
from merrow.engine import cuda_memory
from merrow.engine.cuda_memory import CudaError, CudaLibrary, find_cuda

HANDLE = b"\0handle\xff" + bytes(56)
BASE = 0x7000_0000
SUCCESS, INVALID_VALUE, NOT_INITIALIZED, NO_DEVICE, INVALID_DEVICE, INVALID_CONTEXT = 0, 1, 3, 100, 101, 201


def target(pointer):
    """What `ctypes.byref` points to."""
    return pointer._obj


class FakeLibrary:
    """A `libcuda` with one device and one exported allocation, of which the handle shows the last 100 bytes."""

    def __init__(self, device_count=1):
        self.device_count = device_count
        self.is_initialised = False
        self.retained = []
        self.contexts = threading.local()
        self.allocation = bytearray(256)
        self.opened = 0
        self.broken = False

    def cuInit(self, flags):
        if not self.device_count:
            return NO_DEVICE
        self.is_initialised = True
        return SUCCESS

    def cuDeviceGet(self, device, ordinal):
        if not self.is_initialised:
            return NOT_INITIALIZED
        if ordinal >= self.device_count:
            return INVALID_DEVICE
        target(device).value = ordinal + 40
        return SUCCESS

    def cuDevicePrimaryCtxRetain(self, context, device):
        assert device.value == 40
        self.retained.append(device.value)
        target(context).value = 0xC0
        return SUCCESS

    def cuDevicePrimaryCtxRelease_v2(self, device):
        self.retained.remove(device.value)
        return SUCCESS

    def cuCtxPushCurrent_v2(self, context):
        assert context.value == 0xC0
        self.contexts.stack = [*getattr(self.contexts, "stack", []), context.value]
        return SUCCESS

    def cuCtxPopCurrent_v2(self, context):
        target(context).value = self.contexts.stack.pop()
        return SUCCESS

    @property
    def has_context(self):
        return bool(getattr(self.contexts, "stack", []))

    def cuIpcOpenMemHandle_v2(self, pointer, handle, flags):
        assert flags == 1
        assert ctypes.sizeof(handle) == 64
        if not self.has_context:
            return INVALID_CONTEXT
        if bytes(handle) != HANDLE:
            return INVALID_VALUE
        self.opened += 1
        target(pointer).value = BASE + 156
        return SUCCESS

    def cuMemGetAddressRange_v2(self, base, size, pointer):
        if self.broken:
            return INVALID_VALUE
        assert pointer.value == BASE + 156
        target(base).value, target(size).value = BASE, 256
        return SUCCESS

    def cuIpcCloseMemHandle(self, pointer):
        if not self.has_context:
            return INVALID_CONTEXT
        assert pointer.value == BASE + 156
        self.opened -= 1
        return INVALID_VALUE if self.broken else SUCCESS

    def cuMemcpyDtoH_v2(self, destination, source, byte_size):
        if not self.has_context or self.broken:
            return INVALID_CONTEXT
        start = source.value - BASE
        ctypes.memmove(destination, bytes(self.allocation[start : start + byte_size.value]), byte_size.value)
        return SUCCESS

    def cuMemcpyHtoD_v2(self, destination, source, byte_size):
        if not self.has_context or self.broken:
            return INVALID_CONTEXT
        start = destination.value - BASE
        self.allocation[start : start + byte_size.value] = ctypes.string_at(source, byte_size.value)
        return SUCCESS

    def cuGetErrorName(self, number, name):
        if number == INVALID_DEVICE:
            return INVALID_VALUE
        target(name).value = b"CUDA_ERROR_%d" % number
        return SUCCESS


def test_memory_of_another_process_is_copied_both_ways():
    driver = FakeLibrary()
    library = CudaLibrary(driver)
    memory = library.open(HANDLE, 0, 100)
    memory.write(10, memoryview(b"abc"))

    assert memory.read(9, 5) == b"\0abc\0"
    assert driver.allocation[156 + 10 : 156 + 13] == b"abc"
    assert memory.read(0, 0) == b""
    memory.write(0, b"")
    memory.close()
    assert driver.opened == 0
    assert not driver.has_context
    library.close()
    assert driver.retained == []


def test_any_thread_may_copy():
    memory = CudaLibrary(FakeLibrary()).open(HANDLE, 0, 100)
    memory.write(0, b"abc")
    found = []
    thread = threading.Thread(target=lambda: found.append(memory.read(0, 3)))
    thread.start()
    thread.join()

    assert found == [b"abc"]


def test_a_device_is_taken_once():
    driver = FakeLibrary()
    library = CudaLibrary(driver)
    for _ in range(3):
        library.open(HANDLE, 0, 100)

    assert driver.retained == [40]


@pytest.mark.parametrize(("handle", "device_id"), [(bytes(64), 0), (HANDLE, 1), (HANDLE, -1), (HANDLE, 2**40)])
def test_handles_and_devices_that_are_not_there(handle, device_id):
    driver = FakeLibrary()

    assert CudaLibrary(driver).open(handle, device_id, 1) is None
    assert driver.opened == 0
    assert not driver.has_context


def test_memory_that_is_smaller_than_was_said():
    driver = FakeLibrary()

    with pytest.raises(ValueError, match="256 bytes of device memory, not 101"):
        CudaLibrary(driver).open(HANDLE, 0, 101)
    assert driver.opened == 0


def test_a_handle_that_opens_and_cannot_be_looked_at():
    driver = FakeLibrary()
    driver.broken = True

    assert CudaLibrary(driver).open(HANDLE, 0, 1) is None
    assert driver.opened == 0


def test_a_device_that_fails():
    driver = FakeLibrary()
    memory = CudaLibrary(driver).open(HANDLE, 0, 100)
    driver.broken = True

    with pytest.raises(InternalError) as reading:
        memory.read(0, 1)
    with pytest.raises(InternalError) as writing:
        memory.write(0, b"a")
    assert reading.value.message == "CUDA shared memory could not be read: cuMemcpyDtoH_v2: CUDA_ERROR_201"
    assert writing.value.message == "CUDA shared memory could not be written: cuMemcpyHtoD_v2: CUDA_ERROR_201"
    assert not driver.has_context
    memory.close()


def test_errors_without_a_name():
    driver = FakeLibrary(device_count=0)

    with pytest.raises(CudaError, match=r"^cuInit: CUDA_ERROR_100$"):
        CudaLibrary(driver)
    library = CudaLibrary(FakeLibrary())
    with pytest.raises(CudaError, match=r"^cuDeviceGet: error 101$"):
        library._device_of(5)


@pytest.mark.parametrize("library", [OSError("no such file"), FakeLibrary(device_count=0), object()])
def test_a_machine_without_cuda(monkeypatch, library):
    def load(name):
        if isinstance(library, OSError):
            raise library
        return library

    monkeypatch.setattr(cuda_memory.ctypes, "CDLL", load)

    assert find_cuda() is None


def test_a_machine_with_cuda(monkeypatch):
    monkeypatch.setattr(cuda_memory.ctypes, "CDLL", lambda name: FakeLibrary())

    assert isinstance(find_cuda(), CudaLibrary)
