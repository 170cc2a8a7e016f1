import os
import sys

import pytest

from merrow.places.client_memory import read_file, write_file

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs files that are read and written at a place")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "memory"
    path.write_bytes(b"0123456789")
    descriptor = os.open(path, os.O_RDWR)
    yield descriptor, path
    os.close(descriptor)


def test_a_copy_is_ones_own(file):
    descriptor, path = file
    copy = read_file(descriptor, 2, 4)
    copy[0] = ord("x")

    assert bytes(copy) == b"x345"
    assert path.read_bytes() == b"0123456789"


def test_what_is_not_there_any_more_is_zeros(file):
    descriptor, _ = file

    assert bytes(read_file(descriptor, 8, 4)) == b"89\0\0"
    assert bytes(read_file(descriptor, 20, 2)) == b"\0\0"
    assert bytes(read_file(descriptor, 0, 0)) == b""


def test_what_is_written_lies_where_it_was_asked_for(file):
    descriptor, path = file
    write_file(descriptor, 8, memoryview(b"ab"))
    write_file(descriptor, 0, b"")

    assert path.read_bytes() == b"01234567ab"


def test_writing_never_makes_it_longer(file):
    descriptor, path = file

    with pytest.raises(OSError, match="the client has made it smaller"):
        write_file(descriptor, 9, b"ab")
    assert path.read_bytes() == b"0123456789"


def test_what_the_system_refuses_is_an_error():
    descriptor = os.open("/dev/null", os.O_WRONLY)
    try:
        with pytest.raises(OSError, match=r".+"):
            read_file(descriptor, 0, 1)
    finally:
        os.close(descriptor)
