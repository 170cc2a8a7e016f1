import pytest

from merrow.settings import ConnectionLimits
from merrow.wire.http2.frames import PREFACE, encode_settings
from tests.net.serving import MemoryConnection, MemoryTransport

SECOND = 10**9


def test_anything_that_is_no_preface_is_http_1():
    connection = MemoryConnection()

    connection.receive(b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi")

    assert connection.written().startswith(b"HTTP/1.1 200 OK\r\n")


def test_the_preface_is_http_2():
    connection = MemoryConnection()

    connection.receive(PREFACE)

    assert connection.written()[:9] == bytes.fromhex("000018 04 00 00000000")


@pytest.mark.parametrize("cut", range(1, len(PREFACE)))
def test_the_preface_may_be_cut_anywhere(cut):
    connection = MemoryConnection()

    connection.receive(PREFACE[:cut])
    assert connection.written() == b""
    connection.receive(PREFACE[cut:] + encode_settings({}))

    assert connection.written()[:9] == bytes.fromhex("000018 04 00 00000000")


@pytest.mark.parametrize("start", [b"P", b"PR", b"PRI * HTTP/2.0\r\n\r\n"])
def test_what_begins_like_the_preface_may_be_something_else(start):
    connection = MemoryConnection()

    connection.receive(start)
    connection.receive(b"OST / HTTP/1.1\r\n\r\n")

    expected = b"HTTP/1.1 400" if len(start) > 2 else b"HTTP/1.1 200"
    assert connection.written().startswith(expected)


def test_connections_over_the_limit_are_closed():
    connection = MemoryConnection(ConnectionLimits(max_connections=1))
    transport = MemoryTransport()

    second = type(connection.protocol)(connection.service)
    second.connection_made(transport)

    assert transport.is_closing
    assert not connection.transport.is_closing
    second.data_received(b"GET / HTTP/1.1\r\n\r\n")
    second.connection_lost(None)
    assert len(connection.service.connections) == 1


def test_a_connection_is_counted_once_whatever_it_becomes():
    connection = MemoryConnection()
    assert len(connection.service.connections) == 1

    connection.receive(b"GET / HTTP/1.1\r\n\r\n")
    assert connection.service.connections == {connection.protocol}
    connection.lose()

    assert connection.service.connections == set()


def test_no_connection_begins_while_draining():
    connection = MemoryConnection()
    connection.service.is_draining = True
    transport = MemoryTransport()

    type(connection.protocol)(connection.service).connection_made(transport)

    assert transport.is_closing


def test_a_connection_that_shows_nothing_is_idle():
    connection = MemoryConnection(ConnectionLimits(idle_timeout_ns=10 * SECOND, receive_timeout_ns=3 * SECOND))

    connection.sweep(4 * SECOND)
    assert not connection.transport.is_closing
    connection.sweep(11 * SECOND)

    assert connection.transport.is_closing


def test_a_preface_whose_bytes_stop_coming_times_out():
    connection = MemoryConnection(ConnectionLimits(idle_timeout_ns=10 * SECOND, receive_timeout_ns=3 * SECOND))
    connection.receive(PREFACE[:3])

    connection.sweep(4 * SECOND)

    assert connection.transport.is_closing


def test_draining_closes_a_connection_that_shows_nothing():
    connection = MemoryConnection()

    connection.protocol.begin_drain()

    assert connection.transport.is_closing
