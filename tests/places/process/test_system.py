import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from merrow.places.process import system
from merrow.places.process.system import (
    SharedMemoryError,
    create_shared_memory,
    map_shared_memory,
    receive_with_descriptors,
    send_with_descriptors,
)


def test_shared_memory_is_shared_by_descriptor():
    descriptor, mapping = create_shared_memory(4096)
    other = map_shared_memory(descriptor, 4096)
    mapping[:5] = b"hello"

    assert other[:5] == b"hello"


def test_without_memfd_a_temporary_file_without_a_name_does(monkeypatch, tmp_path):
    monkeypatch.setattr(system, "has_memfd", lambda: False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    descriptor, mapping = create_shared_memory(4096)
    other = map_shared_memory(descriptor, 4096)
    mapping[:5] = b"hello"

    assert other[:5] == b"hello"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not system.has_memfd(), reason="needs memfd_create")
def test_an_interpreter_built_for_an_old_system_asks_the_system_itself(monkeypatch):
    monkeypatch.delattr(os, "memfd_create", raising=False)
    descriptor, mapping = create_shared_memory(4096)
    other = map_shared_memory(descriptor, 4096)
    mapping[:5] = b"hello"

    assert other[:5] == b"hello"


def test_a_sandbox_that_forbids_memfd_is_noticed(monkeypatch):
    def refuse(name, flags):
        raise PermissionError("seccomp")

    monkeypatch.setattr(os, "memfd_create", refuse)
    assert not system.has_memfd.__wrapped__()


def test_a_full_disk_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(system, "has_memfd", lambda: False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(OSError, match=r"No space left|too large"):
        create_shared_memory(1 << 50)


@pytest.mark.skipif(not system.has_memfd(), reason="needs memfd_create")
def test_shared_memory_cannot_be_shrunk_under_a_mapping():
    descriptor, _ = create_shared_memory(4096)

    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, 0)
    os.close(descriptor)


@pytest.mark.skipif(not system.has_memfd(), reason="needs memfd_create")
def test_memory_that_could_be_shrunk_is_not_mapped():
    descriptor = os.memfd_create("x")
    os.ftruncate(descriptor, 4096)

    with pytest.raises(SharedMemoryError, match="not sealed"):
        map_shared_memory(descriptor, 4096)


def test_memory_of_another_size_is_not_mapped():
    descriptor, _ = create_shared_memory(4096)

    with pytest.raises(SharedMemoryError, match="expected 8192 bytes of shared memory, got 4096"):
        map_shared_memory(descriptor, 8192)


def test_what_is_no_file_is_not_mapped():
    reader, writer = os.pipe()
    os.close(writer)

    with pytest.raises(SharedMemoryError):
        map_shared_memory(reader, 4096)


def test_descriptors_travel_with_bytes():
    left, right = socket.socketpair()
    reader, writer = os.pipe()
    with left, right:
        assert send_with_descriptors(left, b"here", [writer]) == 4
        data, descriptors = receive_with_descriptors(right, 100)
        assert data == b"here"
        os.write(descriptors[0], b"through")
        assert os.read(reader, 100) == b"through"
        assert not os.get_inheritable(descriptors[0])
        left.close()
        assert receive_with_descriptors(right, 100) == (b"", [])
    for descriptor in (reader, writer, *descriptors):
        os.close(descriptor)


def run(code):
    """What this prints in a process of its own."""
    code = f"import sys; sys.path[:] = {sys.path!r}\nfrom merrow.places.process.system import *\n" + textwrap.dedent(
        code
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_memory_beyond_the_limit_is_an_error_and_shared_memory_does_not_count():
    code = """
        import numpy as np
        limit_memory(0)
        before = bytearray(200 << 20)
        del before
        limit_memory(64 << 20)
        descriptor, mapping = create_shared_memory(256 << 20)
        np.frombuffer(mapping, np.uint8)[:] = 1
        small = np.ones(16 << 20, np.uint8)
        try:
            np.ones(100 << 20, np.uint8)
        except MemoryError:
            print("no more")
        """

    assert run(code) == "no more\n"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_a_process_volunteers_for_the_system_s_killer():
    before = int(Path("/proc/self/oom_score_adj").read_text())

    assert int(run('volunteer_for_oom(); print(open("/proc/self/oom_score_adj").read())')) == min(1000, before + 300)


@pytest.mark.slow
def test_c_code_writes_each_line_as_it_ends():
    code = """
        import ctypes, os
        buffer_c_output_by_line()
        ctypes.CDLL(None).puts(b"said")
        os._exit(0)
        """

    assert run(code) == "said\n"


def test_kills_for_want_of_memory_are_counted():
    assert system.count_oom_kills() >= 0
