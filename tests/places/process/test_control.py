import os
import socket

import pytest

from merrow.places.process.channel import LOG, SEGMENT, ProtocolError
from merrow.places.process.control import ControlSocket


@pytest.fixture
def ends():
    left, right = socket.socketpair()
    yield ControlSocket(left, frozenset()), ControlSocket(right, frozenset((SEGMENT,)))
    left.close()
    right.close()


def receive(control, count):
    messages = []
    while len(messages) < count:
        messages += control.receive()
    return messages


def test_messages_arrive_whole_and_in_order(ends):
    left, right = ends
    left.send(LOG, 7, b"abc")
    left.send(LOG, 8, b"x" * 100_000)

    first, second = receive(right, 2)
    assert (first.kind, first.number, first.body, first.descriptor) == (LOG, 7, b"abc\0\0\0\0\0", None)
    assert (second.number, len(second.body)) == (8, 100_000)


def test_each_descriptor_comes_with_its_message(ends):
    left, right = ends
    pipes = [os.pipe() for _ in range(3)]
    for number, (_, writer) in enumerate(pipes):
        left.send(LOG, number)
        left.send(SEGMENT, number, descriptor=writer)
        os.close(writer)

    for message in receive(right, 6):
        if message.kind == LOG:
            assert message.descriptor is None
            continue
        os.write(message.descriptor, bytes([message.number]))
        os.close(message.descriptor)
    for number, (reader, _) in enumerate(pipes):
        assert os.read(reader, 10) == bytes([number])
        os.close(reader)


def test_a_message_without_its_descriptor_is_refused(ends):
    left, right = ends
    left.send(SEGMENT)

    with pytest.raises(ProtocolError):
        right.receive()


def test_descriptors_that_nobody_took_are_closed(ends):
    left, right = ends
    reader, writer = os.pipe()
    left.send(LOG, descriptor=writer)
    os.close(writer)
    right.receive()
    right.close()

    assert os.read(reader, 1) == b""
    os.close(reader)


def test_the_end_is_told(ends):
    left, right = ends
    left.close()

    assert right.receive() is None
    with pytest.raises(OSError, match="Broken pipe"):
        right.send(LOG)


def test_a_socket_that_does_not_block_says_that_there_is_nothing(ends):
    _, right = ends
    right.connection.setblocking(False)

    with pytest.raises(BlockingIOError):
        right.receive()
