"""Exchanges and calls that stand in for others. What they pass on is tested with the access log; here the rest."""

import asyncio

from merrow.net.forwarding import ForwardingCall, ForwardingExchange
from tests.frontends.fakes import FakeCall, FakeExchange


def test_an_exchange_passes_everything_on():
    async def run():
        inner = FakeExchange(b"GET", b"/x", b"body")
        exchange = ForwardingExchange(inner)
        exchange.on_disconnect = print
        assert exchange.on_disconnect is inner.on_disconnect is print
        assert exchange.trace is None
        exchange.start_stream(200, ())
        inner.writable = False
        assert not exchange.is_writable
        draining = asyncio.ensure_future(exchange.drain())
        await asyncio.sleep(0)
        assert not draining.done()
        inner.let_drain()
        await draining
        exchange.write(b"x")
        exchange.finish()
        assert inner.answer == b"x"

    asyncio.run(run())


def test_an_answer_is_passed_on():
    inner = FakeExchange()
    ForwardingExchange(inner).respond(204, ((b"A", b"b"),), (b"",))

    assert (inner.status, inner.answer_headers) == (204, ((b"A", b"b"),))


def test_a_call_passes_everything_on():
    inner = FakeCall(b"/p")
    call = ForwardingCall(inner)
    call.on_cancel = print
    assert call.on_cancel is inner.on_cancel is print
    assert call.trace is None
    call.reply((b"x",))

    assert (inner.sent, inner.status) == ([b"x"], 0)
