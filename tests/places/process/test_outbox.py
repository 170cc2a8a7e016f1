import asyncio
import socket

import pytest

from merrow.places.process.channel import FIRST_FLUSH_COUNT
from merrow.places.process.outbox import Outbox


class Sending:
    """An outbox, and the child's end of its socket."""

    def __init__(self) -> None:
        self.connection, self.child = socket.socketpair()
        self.connection.setblocking(False)
        self.child.setblocking(False)
        self.batches: list[None] = [None]
        self.broken = 0
        self.outbox = Outbox(self.connection, asyncio.get_running_loop(), self.batches, self._break)

    def received(self) -> bytes:
        """What has come so far; a read is one write, and shows what went together."""
        try:
            return self.child.recv(1 << 24)
        except BlockingIOError:
            return b""

    def _break(self) -> None:
        self.broken += 1


@pytest.fixture
def run():
    """Runs a test's coroutine function with what sends."""

    def run(test) -> None:
        async def main() -> None:
            sending = Sending()
            try:
                await test(sending)
            finally:
                sending.outbox.close()
                sending.connection.close()
                sending.child.close()

        asyncio.run(main())

    return run


def test_an_urgent_message_is_sent_at_once(run):
    async def test(sending):
        sending.outbox.send(b"a", True)
        assert sending.received() == b"a"
        sending.outbox.send(b"b", True)
        assert sending.received() == b"b"

    run(test)


def test_others_are_sent_together_at_the_end_of_the_pass(run):
    async def test(sending):
        sending.outbox.send(b"a", False)
        sending.outbox.send(b"b", False)
        assert sending.received() == b""
        await asyncio.sleep(0)
        assert sending.received() == b"ab"

    run(test)


def test_after_a_crowded_pass_an_urgent_message_waits_for_others(run):
    async def test(sending):
        for message in (b"a", b"b"):
            sending.outbox.send(message, False)
        await asyncio.sleep(0)
        assert sending.received() == b"ab"

        sending.outbox.send(b"c", True)
        assert sending.received() == b""
        await asyncio.sleep(0)
        assert sending.received() == b"c"
        # That pass had one.
        sending.outbox.send(b"d", True)
        assert sending.received() == b"d"

    run(test)


def test_an_idle_child_gets_the_first_few_in_the_middle_of_the_pass(run):
    async def test(sending):
        for _ in range(FIRST_FLUSH_COUNT - 1):
            sending.outbox.send(b"a", False)
        assert sending.received() == b""
        sending.outbox.send(b"a", False)
        assert sending.received() == b"a" * FIRST_FLUSH_COUNT
        await asyncio.sleep(0)
        assert sending.received() == b""
        # Those, too, were a crowd.
        sending.outbox.send(b"b", True)
        assert sending.received() == b""

    run(test)


def test_a_child_with_enough_to_do_gets_all_at_the_end_of_the_pass(run):
    async def test(sending):
        sending.batches += [None] * (2 * FIRST_FLUSH_COUNT)
        for _ in range(FIRST_FLUSH_COUNT + 1):
            sending.outbox.send(b"a", False)
        assert sending.received() == b""
        await asyncio.sleep(0)
        assert sending.received() == b"a" * (FIRST_FLUSH_COUNT + 1)

    run(test)


def test_what_comes_while_it_is_held_waits_for_the_holder(run):
    async def test(sending):
        sending.outbox.is_held = True
        sending.outbox.send(b"a", True)
        sending.outbox.messages.append(b"b")
        await asyncio.sleep(0)
        assert sending.received() == b""
        sending.outbox.is_held = False
        sending.outbox.flush()
        assert sending.received() == b"ab"

    run(test)


@pytest.mark.parametrize("size", [100, 200_000])
def test_what_the_socket_does_not_take_keeps_its_order(run, size):
    async def test(sending):
        messages = [bytes([index]) * size for index in range(40)]
        filler = b""
        # Nobody reads yet.
        while sending.outbox._unsent is None:
            filler += b"x" * 100_000
            sending.outbox.send(b"x" * 100_000, True)
        for message in messages:
            sending.outbox.send(message, True)
        expected = filler + b"".join(messages)
        received = bytearray()
        while len(received) < len(expected):
            received += sending.received()
            await asyncio.sleep(0)
        assert received == expected
        sending.outbox.send(b"last", True)
        await asyncio.sleep(0)
        assert sending.received() == b"last"

    run(test)


def test_a_child_that_is_gone_is_told_of_later(run):
    async def test(sending):
        sending.child.close()
        sending.outbox.send(b"a", True)
        assert sending.broken == 0
        await asyncio.sleep(0)
        assert sending.broken == 1

    run(test)


def test_nothing_is_sent_once_it_is_closed(run):
    async def test(sending):
        sending.outbox.send(b"a", False)
        sending.outbox.close()
        sending.outbox.send(b"b", True)
        await asyncio.sleep(0)
        assert sending.received() == b""
        assert sending.broken == 0

    run(test)
