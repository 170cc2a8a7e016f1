"""Lines of the access log."""

import logging
import re

import pytest

from merrow.net.access_log import MAX_TARGET_LENGTH, LoggedGrpc, LoggedHttp
from merrow.testing.manual_clock import ManualClock
from tests.frontends.fakes import FakeCall, FakeExchange

CLOCK = ManualClock()


@pytest.fixture(autouse=True)
def all_lines(caplog):
    caplog.set_level(logging.INFO, "merrow.net.access")


class Application:
    """Keeps what it is handed."""

    def __init__(self):
        self.exchange = self.call = self.message = None

    def on_exchange(self, exchange):
        self.exchange = exchange

    def is_streaming(self, path):
        return path == b"/s/Stream"

    def compression_of(self, path):
        return None

    def on_unary(self, call, message):
        self.call, self.message = call, message

    def on_stream(self, call):
        self.call = call
        return "stream"


def http(exchange):
    application = Application()
    LoggedHttp(application, CLOCK).on_exchange(exchange)
    CLOCK.advance(1_500_000)
    return application.exchange


def grpc(call, message=b"abc"):
    application = Application()
    logged = LoggedGrpc(application, CLOCK)
    if logged.is_streaming(call.path):
        assert logged.on_stream(call) == "stream"
    else:
        assert logged.compression_of(call.path) is None
        logged.on_unary(call, message)
        assert application.message == message
    CLOCK.advance(1_500_000)
    return application.call


def test_an_answer_is_a_line(caplog):
    inner = FakeExchange(b"POST", b"/v2/x?y", b"body", [(b"A", b"b")])
    exchange = http(inner)
    assert (exchange.method, exchange.target, exchange.body) == (b"POST", b"/v2/x?y", b"body")
    assert exchange.headers is inner.headers
    assert exchange.header(b"a") == b"b"
    exchange.respond(404, (), (b"12", b"3"))

    assert (inner.status, inner.answer) == (404, b"123")
    assert caplog.messages == ["POST /v2/x?y 404, 4 bytes in, 3 out, 1500 us"]


def test_a_streamed_answer_is_a_line_at_its_end(caplog):
    inner = FakeExchange()
    exchange = http(inner)
    exchange.start_stream(200, ())
    exchange.write(b"abc")
    assert exchange.is_writable
    exchange.write(b"d")
    assert caplog.messages == []
    exchange.finish()

    assert inner.answer == b"abcd"
    assert caplog.messages == ["GET /v2 200, 0 bytes in, 4 out, 1500 us"]


def test_a_client_that_leaves_is_a_line(caplog):
    inner = FakeExchange()
    exchange = http(inner)
    left = []
    exchange.on_disconnect = lambda: left.append(True)
    assert exchange.on_disconnect is inner.on_disconnect
    inner.on_disconnect()
    exchange.respond(400, (), ())

    assert left == [True]
    assert caplog.messages == ["GET /v2 client left, 0 bytes in, 0 out, 1500 us"]
    exchange.on_disconnect = None
    assert inner.on_disconnect is None


def test_a_target_is_cut_and_cannot_break_a_line(caplog):
    http(FakeExchange(b"GET", b"/\xff" + b"x" * 1000)).respond(200, (), ())

    (line,) = caplog.messages
    assert re.match(r"GET /\\xffx+ 200", line)
    assert len(line) < MAX_TARGET_LENGTH + 60


def test_a_unary_call_is_a_line(caplog):
    inner = FakeCall(b"/s/M", [(b"a", b"b")])
    call = grpc(inner)
    assert call.path == b"/s/M"
    assert call.metadata is inner.metadata
    assert call.header(b"a") == b"b"
    call.reply((b"12", b"3"))

    assert inner.sent == [b"123"]
    assert caplog.messages == ["/s/M 0, 3 bytes in, 3 out, 1500 us"]


def test_a_failed_call_is_a_line(caplog):
    inner = FakeCall(b"/s/M")
    grpc(inner).finish(5, "why")

    assert (inner.status, inner.message) == (5, "why")
    assert caplog.messages == ["/s/M 5, 3 bytes in, 0 out, 1500 us"]


def test_a_stream_is_one_line(caplog):
    inner = FakeCall(b"/s/Stream")
    call = grpc(inner)
    call.on_writable = print
    assert inner.on_writable is call.on_writable is print
    assert call.is_writable
    call.pause_reading()
    assert inner.is_paused
    call.resume_reading()
    call.send((b"12",))
    call.send((b"3",))
    call.finish()

    assert inner.sent == [b"12", b"3"]
    assert caplog.messages == ["/s/Stream 0, 2 messages out, 3 bytes out, 1500 us"]


def test_a_cancelled_call_is_a_line(caplog):
    inner = FakeCall(b"/s/Stream")
    call = grpc(inner)
    left = []
    call.on_cancel = lambda: left.append(True)
    assert call.on_cancel is inner.on_cancel
    inner.on_cancel()
    call.finish(1)

    assert left == [True]
    assert caplog.messages == ["/s/Stream client left, 0 messages out, 0 bytes out, 1500 us"]
    call.on_cancel = None
    assert inner.on_cancel is None
