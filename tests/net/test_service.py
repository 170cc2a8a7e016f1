import asyncio

from merrow.settings import ConnectionLimits
from tests.net.serving import MemoryConnection

SECOND = 10**9


def test_what_waits_is_flushed_once_in_a_pass():
    connection = MemoryConnection()
    flushed = []

    class Waiting:
        def __init__(self, name):
            self.name = name

        def flush(self):
            flushed.append(self.name)
            if self.name == "first":
                connection.service.flush_soon(Waiting("later"))

    connection.service.flush_soon(Waiting("first"))
    connection.service.flush_soon(Waiting("second"))

    assert len(connection.loop.due) == 1
    connection.loop.run()
    assert flushed == ["first", "second", "later"]


def test_the_time_of_the_last_sweep_is_kept():
    connection = MemoryConnection()

    connection.sweep(5 * SECOND)

    assert connection.service.now_ns == 5 * SECOND


def test_waiting_for_no_connections_ends_with_the_last():
    async def run():
        connection = MemoryConnection()
        waiting = asyncio.ensure_future(connection.service.wait_for_no_connections())
        await asyncio.sleep(0)
        assert not waiting.done()
        connection.lose()
        await waiting
        await connection.service.wait_for_no_connections()

    asyncio.run(run())


def test_a_connection_that_lingers_is_cut_off():
    connection = MemoryConnection(ConnectionLimits(receive_timeout_ns=60 * SECOND))

    connection.protocol.end(lingers=True)
    connection.protocol.end(lingers=True)
    assert connection.transport.has_sent_eof
    connection.sweep(1 * SECOND)
    assert not connection.transport.is_closing
    connection.sweep(3 * SECOND)

    assert connection.transport.is_closing


def test_a_connection_that_cannot_half_close_does_not_linger():
    connection = MemoryConnection()
    connection.transport.can_write_eof = lambda: False

    connection.protocol.end(lingers=True)

    assert connection.transport.is_closing
