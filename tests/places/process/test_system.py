import os
import socket

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
    monkeypatch.setattr(system, "HAS_MEMFD", False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    descriptor, mapping = create_shared_memory(4096)
    other = map_shared_memory(descriptor, 4096)
    mapping[:5] = b"hello"

    assert other[:5] == b"hello"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not system.HAS_MEMFD, reason="needs memfd_create")
def test_shared_memory_cannot_be_shrunk_under_a_mapping():
    descriptor, _ = create_shared_memory(4096)

    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, 0)
    os.close(descriptor)


@pytest.mark.skipif(not system.HAS_MEMFD, reason="needs memfd_create")
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
