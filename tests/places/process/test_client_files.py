import asyncio
import gc
import os
import socket
from contextlib import contextmanager

import pytest

from merrow.places.process.channel import CLIENT_FILE, DROP_CLIENT_FILE, frame
from merrow.places.process.client_files import ClientFiles
from merrow.places.process.control import ControlSocket


class File:
    """The file of a region, as the server has it open."""

    def __init__(self, path, number: int) -> None:
        self.number = number
        self.descriptor = os.open(path, os.O_RDWR)

    def __del__(self) -> None:
        os.close(self.descriptor)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "memory"
    path.write_bytes(b"content")
    return path


@contextmanager
def sharing():
    """The files that a child has, the child's end of its control socket, and what is sent by the data socket."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    sent: list[tuple[bytes, bool]] = []
    with ours, theirs:
        files = ClientFiles(
            ControlSocket(ours, frozenset()), asyncio.get_running_loop(), lambda *message: sent.append(message)
        )
        yield files, ControlSocket(theirs, frozenset((CLIENT_FILE,))), sent


async def let_go_of_what_is_gone() -> None:
    gc.collect()
    await asyncio.sleep(0)


def test_a_file_is_given_once_and_dropped_when_nobody_has_it(path):
    async def main():
        with sharing() as (files, child, sent):
            file = File(path, 7)
            files.share(file)
            files.share(file)
            (message,) = child.receive()
            assert (message.kind, message.number) == (CLIENT_FILE, 7)
            assert os.pread(message.descriptor, 7, 0) == b"content"
            os.close(message.descriptor)

            await let_go_of_what_is_gone()
            assert sent == []
            del file
            await let_go_of_what_is_gone()
            assert sent == [(frame(DROP_CLIENT_FILE, 7), True)]

    asyncio.run(main())


def test_a_child_that_is_gone_is_told_nothing(path):
    async def main():
        with sharing() as (files, child, sent):
            file = File(path, 7)
            files.share(file)
            (message,) = child.receive()
            os.close(message.descriptor)
            files.close()
            del file
            await let_go_of_what_is_gone()
            assert sent == []

    asyncio.run(main())


def test_what_is_told_when_the_loop_is_closed_is_told_to_nobody(path):
    async def main():
        with sharing() as (files, child, sent):
            file = File(path, 7)
            files.share(file)
            (message,) = child.receive()
            os.close(message.descriptor)
            return file, sent

    file, sent = asyncio.run(main())
    del file
    gc.collect()
    assert sent == []
