"""The registry over real shared memory, and CUDA over a driver of the test's own.

Texts are Triton's: those of 2.51, asked, and those of newer releases where they changed.
"""

import asyncio
import gc
import mmap
import os
import sys
import uuid
from pathlib import Path

import pytest

from merrow.core.errors import (
    AlreadyExistsError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    ServerError,
    UnavailableError,
    UnsupportedError,
)
from merrow.engine.shared_memory import DISABLED, SharedFile, SharedMemoryRegistry
from merrow.settings import SharedMemorySettings

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="makes shared memory in /dev/shm")

ENABLED = SharedMemorySettings(allow_client_shm=True, max_regions=4, max_tensor_byte_size=1 << 20)
PAGE = 4096


@pytest.fixture
def key():
    """The key of a segment of two pages, the first byte of each page being its number plus one."""
    name = f"merrow-test-{uuid.uuid4().hex}"
    path = f"/dev/shm/{name}"
    with open(path, "wb") as file:
        file.truncate(2 * PAGE)
        os.pwrite(file.fileno(), b"\1", 0)
        os.pwrite(file.fileno(), b"\2", PAGE)
    yield f"/{name}"
    if os.path.exists(path):
        os.unlink(path)


def path_of(key):
    return f"/dev/shm{key}"


@pytest.fixture
def registry():
    return SharedMemoryRegistry(ENABLED)


def refusal(function, *arguments):
    with pytest.raises(ServerError) as raised:
        function(*arguments)
    return type(raised.value), raised.value.message


class TestRegistering:
    def test_a_region_is_shown_as_it_was_registered(self, registry, key):
        registry.register_system("b", key, PAGE, PAGE)
        registry.register_system("a", key.lstrip("/"), 0, 10)

        assert [(each.name, each.key, each.offset, each.byte_size) for each in registry.system_regions()] == [
            ("a", key.lstrip("/"), 0, 10),
            ("b", key, PAGE, PAGE),
        ]
        assert [each.name for each in registry.system_regions("b")] == ["b"]
        assert registry.cuda_regions() == []

    def test_a_name_is_taken_once(self, registry, key):
        registry.register_system("a", key, 0, 10)

        assert refusal(registry.register_system, "a", "/missing", 0, 10) == (
            AlreadyExistsError,
            "shared memory region 'a' already in manager",
        )

    @pytest.mark.parametrize(
        "missing", ["/merrow-missing", "merrow-missing", "a/b", "../shm/x", "..", ".", "a\0b", "\ud800"]
    )
    def test_a_key_that_leads_nowhere(self, registry, missing):
        assert refusal(registry.register_system, "a", missing, 0, 10) == (
            InternalError,
            f"Unable to open shared memory region: '{missing}'",
        )

    def test_a_key_does_not_lead_out_of_the_directory(self, registry, key, tmp_path):
        outside = tmp_path / "outside"
        outside.write_bytes(bytes(PAGE))
        link = f"{path_of(key)}-link"
        os.symlink(outside, link)
        try:
            for escape in (f"{key}-link", f"/../..{outside}", f"..{outside}"):
                assert refusal(registry.register_system, "a", escape, 0, 10)[0] is InternalError
        finally:
            os.unlink(link)

    def test_what_is_no_memory_is_not_opened(self, registry, key):
        pipe = f"{path_of(key)}-pipe"
        os.mkfifo(pipe)
        try:
            assert refusal(registry.register_system, "a", f"{key}-pipe", 0, 10) == (
                InternalError,
                f"Unable to open shared memory region: '{key}-pipe'",
            )
        finally:
            os.unlink(pipe)

    @pytest.mark.parametrize("slashes", ["", "/", "///"])
    def test_the_python_backends_own_memory_is_not_for_clients(self, registry, slashes):
        reserved = slashes + "triton_python_backend_shm_region_1"

        assert refusal(registry.register_system, "a", reserved, 0, 10) == (
            InvalidArgumentError,
            f"cannot register shared memory region 'a' with key '{reserved}' as the key contains the reserved prefix "
            "'triton_python_backend_shm_region_'",
        )

    @pytest.mark.parametrize("empty", ["", "/", "//"])
    def test_a_key_must_say_something(self, registry, empty):
        assert refusal(registry.register_system, "a", empty, 0, 10) == (
            InvalidArgumentError,
            f"cannot register shared memory region 'a' - invalid shm key '{empty}'",
        )

    @pytest.mark.parametrize(("offset", "byte_size"), [(0, 2 * PAGE + 1), (PAGE, PAGE + 1), (2**64 - 1, 2 * PAGE + 2)])
    def test_a_region_lies_inside_its_segment(self, registry, key, offset, byte_size):
        assert refusal(registry.register_system, "a", key, offset, byte_size) == (
            InvalidArgumentError,
            "failed to register shared memory region 'a': invalid args",
        )

    @pytest.mark.parametrize(
        ("offset", "byte_size", "reason"),
        [
            (0, 0, "Invalid argument"),
            (10, 10, "Invalid argument"),
            (2**64 - PAGE, PAGE, "Value too large for defined data type"),
        ],
    )
    def test_what_could_not_be_mapped(self, registry, key, offset, byte_size, reason):
        assert refusal(registry.register_system, "a", key, offset, byte_size) == (
            InvalidArgumentError,
            f"failed to register shared memory region 'a': unable to process address space{reason}",
        )

    def test_a_failure_leaves_no_descriptor_behind(self, registry, key):
        with pytest.raises(InvalidArgumentError) as raised:
            registry.register_system("a", key, 1, 1)

        targets = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if os.path.islink(path)]
        assert path_of(key) not in targets
        assert raised.value.message

    def test_there_are_only_so_many(self, registry, key):
        for name in "abcd":
            registry.register_system(name, key, 0, 1)

        assert refusal(registry.register_system, "e", key, 0, 1) == (
            UnavailableError,
            "cannot register shared memory region 'e': 4 regions are registered, and --max-shared-memory-regions is 4",
        )
        registry.unregister_system("a")
        registry.register_system("e", key, 0, 1)

    def test_a_server_that_does_not_allow_it(self, key):
        registry = SharedMemoryRegistry(SharedMemorySettings())

        assert refusal(registry.register_system, "a", key, 0, 10) == (UnsupportedError, DISABLED)
        assert refusal(register_cuda, registry) == (UnsupportedError, DISABLED)
        assert registry.system_regions() == []
        assert refusal(registry.find, "a", 0, 1) == (NotFoundError, "Unable to find shared memory region: 'a'")


class TestUnregistering:
    def test_one_or_all(self, registry, key):
        for name in "abc":
            registry.register_system(name, key, 0, 1)

        registry.unregister_system("b")
        assert [each.name for each in registry.system_regions()] == ["a", "c"]
        registry.unregister_system()
        assert registry.system_regions() == []

    def test_unknown_names_and_the_other_kind_are_passed_over(self, registry, key):
        registry.register_system("a", key, 0, 1)

        registry.unregister_system("b")
        registry.unregister_cuda("a")
        registry.unregister_cuda()

        assert [each.name for each in registry.system_regions()] == ["a"]

    def test_unknown_names_have_no_status(self, registry, key):
        registry.register_system("a", key, 0, 1)

        assert refusal(registry.system_regions, "b") == (
            NotFoundError,
            "Unable to find system shared memory region: 'b'",
        )
        assert refusal(registry.cuda_regions, "b") == (NotFoundError, "Unable to find cuda shared memory region: 'b'")
        assert refusal(registry.cuda_regions, "a") == (
            NotFoundError,
            "The region named 'a' is registered as system shared memory, not CUDA shared memory",
        )

    def test_a_request_keeps_what_it_found(self, registry, key):
        registry.register_system("a", key, PAGE, PAGE)
        found = registry.find("a", 0, 4)
        registry.unregister_system("a")
        gc.collect()

        assert found.read() == b"\2\0\0\0"


class TestUsing:
    def test_offsets_count_from_the_region(self, registry, key):
        registry.register_system("a", key, PAGE, PAGE)

        assert registry.find("a", 0, 2).read() == b"\2\0"
        registry.find("a", 1, 3).write(b"\7")
        assert registry.find("a", 0, 3).read() == b"\2\7\0"
        with open(path_of(key), "rb") as file:
            assert file.read()[PAGE : PAGE + 3] == b"\2\7\0"

    @pytest.mark.parametrize(
        ("offset", "byte_size", "text"),
        [
            (10, 1, "Invalid offset for shared memory region: 'a'"),
            (2**64 - 1, 1, "Invalid offset for shared memory region: 'a'"),
            (0, 11, "Invalid offset + byte size for shared memory region: 'a'"),
            (9, 2, "Invalid offset + byte size for shared memory region: 'a'"),
            (0, 0, "Invalid offset + byte size for shared memory region: 'a'"),
        ],
    )
    def test_a_request_stays_inside(self, registry, key, offset, byte_size, text):
        registry.register_system("a", key, 0, 10)

        assert refusal(registry.find, "a", offset, byte_size) == (InvalidArgumentError, text)

    def test_sizes_do_not_overflow(self, key):
        registry = SharedMemoryRegistry(SharedMemorySettings(True, max_tensor_byte_size=2**64))
        registry.register_system("a", key, 0, 10)

        assert refusal(registry.find, "a", 1, 2**64 - 1) == (
            InvalidArgumentError,
            "Integer overflow detected: byte_size (18446744073709551615) + offset (1) exceeds maximum value "
            "(18446744073709551615) for region 'a'",
        )

    def test_a_tensor_has_a_limit(self, registry, key):
        os.truncate(path_of(key), (1 << 20) + 1)
        registry.register_system("a", key, 0, (1 << 20) + 1)

        assert refusal(registry.find, "a", 0, (1 << 20) + 1) == (
            InvalidArgumentError,
            "1048577 bytes of shared memory region 'a' exceed the maximum allowed for one tensor of 1048576 bytes. Use "
            "--max-shared-memory-tensor-byte-size to increase the limit.",
        )

    def test_a_segment_that_is_unlinked_and_made_anew_is_still_the_old_one(self, registry, key):
        registry.register_system("a", key, 0, 2)
        os.unlink(path_of(key))
        with open(path_of(key), "wb") as file:
            file.write(b"of another process")

        assert registry.find("a", 0, 2).read() == b"\1\0"
        registry.find("a", 0, 2).write(b"\7\7")
        with open(path_of(key), "rb") as file:
            assert file.read() == b"of another process"

    def test_a_segment_that_has_shrunk_is_refused(self, registry, key):
        registry.register_system("a", key, 0, 2 * PAGE)
        os.truncate(path_of(key), PAGE)

        assert registry.find("a", 0, PAGE).read()[:1] == b"\1"
        assert refusal(registry.find, "a", PAGE, 1) == (
            InvalidArgumentError,
            "shared memory region 'a' has shrunk since it was registered: 4097 bytes of its memory are used and 4096 "
            "are left",
        )
        os.truncate(path_of(key), 2 * PAGE)
        assert registry.find("a", PAGE, 1).read() == b"\0"

    def test_a_segment_that_shrinks_while_it_is_used(self, registry, key):
        registry.register_system("a", key, 0, 2 * PAGE)
        found = registry.find("a", 0, 2 * PAGE)
        os.truncate(path_of(key), 2)

        assert found.read() == b"\1" + bytes(2 * PAGE - 1)
        assert refusal(found.write, b"abc") == (
            InternalError,
            "failed to write to shared memory region 'a': the client has made it smaller",
        )
        assert os.path.getsize(path_of(key)) == 2

    def test_close_forgets_everything(self, registry, key):
        registry.register_system("a", key, 0, 10)
        registry.close()

        assert registry.system_regions() == []


class TestMappedMemory:
    """Where shared memory cannot be read as a file: on macOS."""

    def test_reading_and_writing(self, key):
        descriptor = os.open(path_of(key), os.O_RDWR)
        file = SharedFile(1, descriptor, mmap.mmap(descriptor, PAGE, offset=PAGE), PAGE)

        assert not file.is_file
        assert file.read(PAGE, 2) == b"\2\0"
        file.write(PAGE + 1, b"\7")
        assert file.read(PAGE, 3) == b"\2\7\0"


class FakeCuda:
    """A driver with one exported allocation of ten bytes on device 0."""

    HANDLE = bytes(range(64))

    def __init__(self):
        self.memory = bytearray(10)
        self.open_count = 0

    def open(self, raw_handle, device_id, byte_size):
        if raw_handle != self.HANDLE or device_id != 0:
            return None
        if byte_size > len(self.memory):
            raise ValueError("smaller")
        self.open_count += 1
        return self

    def read(self, offset, byte_size):
        return bytes(self.memory[offset : offset + byte_size])

    def write(self, offset, data):
        self.memory[offset : offset + len(data)] = data

    def close(self):
        self.open_count -= 1


def register_cuda(registry, name="c", raw_handle=FakeCuda.HANDLE, device_id=0, byte_size=10):
    asyncio.run(registry.register_cuda(name, raw_handle, device_id, byte_size))


class TestCuda:
    def test_a_region_is_used_and_let_go(self):
        cuda = FakeCuda()
        registry = SharedMemoryRegistry(ENABLED, cuda)
        register_cuda(registry, byte_size=8)
        found = registry.find("c", 2, 4)
        found.write(b"ab")

        assert found.file is None
        assert found.read() == b"ab\0\0"
        assert [(each.name, each.device_id, each.byte_size) for each in registry.cuda_regions()] == [("c", 0, 8)]
        assert refusal(registry.system_regions, "c") == (
            NotFoundError,
            "The region named 'c' is registered as CUDA shared memory, not system shared memory",
        )
        registry.unregister_cuda("c")
        gc.collect()
        assert cuda.open_count == 1
        del found
        gc.collect()
        assert cuda.open_count == 0

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            ({"raw_handle": b"short"}, "'raw_handle' must be a valid base64 encoded cudaIpcMemHandle_t"),
            ({"raw_handle": bytes(64)}, "failed to register shared memory region: invalid args"),
            ({"device_id": 1}, "failed to register shared memory region: invalid args"),
            ({"byte_size": 11}, "failed to register shared memory region 'c': invalid args"),
        ],
    )
    def test_a_registration_that_cannot_be_is_refused(self, arguments, text):
        registry = SharedMemoryRegistry(ENABLED, FakeCuda())

        assert refusal(lambda: register_cuda(registry, **arguments)) == (InvalidArgumentError, text)

    def test_a_name_is_taken_once(self, key):
        registry = SharedMemoryRegistry(ENABLED, FakeCuda())
        registry.register_system("c", key, 0, 1)

        assert refusal(register_cuda, registry) == (AlreadyExistsError, "shared memory region 'c' already in manager")

    def test_of_two_at_once_one_has_the_name(self):
        cuda = FakeCuda()
        registry = SharedMemoryRegistry(ENABLED, cuda)

        async def register_twice():
            both = [registry.register_cuda("c", FakeCuda.HANDLE, 0, 10) for _ in range(2)]
            return await asyncio.gather(*both, return_exceptions=True)

        results = asyncio.run(register_twice())
        assert [type(each) for each in results] in ([type(None), AlreadyExistsError], [AlreadyExistsError, type(None)])
        del results
        gc.collect()
        assert cuda.open_count == 1

    def test_a_machine_without_cuda(self, registry):
        assert refusal(register_cuda, registry) == (
            InvalidArgumentError,
            "failed to register CUDA shared memory region: 'c', GPUs not supported",
        )
