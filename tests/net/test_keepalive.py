"""Pings and the age of connections: with a connection in memory, and with gRPC's own client."""

import grpc
import pytest

from merrow.settings import KeepaliveSettings
from merrow.wire.http2 import frames
from tests.net.http2_client import Http2Client, message
from tests.net.serving import EchoApplication, serving
from tests.net.test_peer_grpcio import channel_to, streaming, unary

MS = 10**6


class Client(Http2Client):
    """A client whose listener has keepalive settings."""

    def __init__(self, **settings):
        super().__init__()
        self.service.keepalive = KeepaliveSettings(**settings)
        # Another connection, which begins with them.
        self.reopen()
        self.receive(frames.PREFACE + frames.encode_settings({}))
        self.frames()

    def ping(self, payload=b"12345678"):
        self.receive(frames.encode_ping(payload, is_ack=False))


def goaways(sent):
    return [
        (int.from_bytes(payload[4:8], "big"), payload[8:].decode())
        for kind, _, _, payload in sent
        if kind == frames.GOAWAY
    ]


def test_a_client_that_has_gone_is_found_out():
    client = Client(time_ms=100, timeout_ms=20)
    client.receive(client.call(1, "UnaryHold", message(b"a")))
    client.sweep(50 * MS)
    assert client.frames() == []
    client.sweep(120 * MS)
    assert client.frames() == [(frames.PING, 0, 0, b"keepaliv")]
    client.sweep(130 * MS)
    assert not client.transport.is_closing
    client.sweep(141 * MS)

    assert client.transport.is_closing
    assert client.application.events == [("cancel", b"a")]


def test_a_client_that_answers_is_left_alone():
    client = Client(time_ms=100, timeout_ms=20)
    client.receive(client.call(1, "UnaryHold", message(b"a")))
    client.sweep(120 * MS)
    client.receive(frames.encode_ping(b"keepaliv", is_ack=True))
    client.sweep(160 * MS)
    client.application.held[0].reply((b"b",))

    assert not client.transport.is_closing


def test_too_many_pings_end_a_connection_with_calls_in_grpcs_words():
    client = Client()
    client.receive(client.call(1, "Unary", message(b"a")))
    client.frames()
    for _ in range(3):
        client.ping()
    assert [kind for kind, *_ in client.frames()] == [frames.PING] * 3
    client.ping()

    assert goaways(client.frames()) == [(frames.ErrorCode.ENHANCE_YOUR_CALM, "too_many_pings")]


def test_answers_forgive_pings():
    client = Client()
    for stream_id in range(1, 41, 2):
        client.receive(client.call(stream_id, "Unary", message(b"a")))
        client.ping()
        client.ping()
    assert goaways(client.frames()) == []


def test_connections_without_calls_may_ping():
    client = Client()
    client.receive(client.request(1, "/", b"a"))
    for _ in range(20):
        client.ping()
    assert goaways(client.frames()) == []


def test_an_old_connection_ends_when_its_calls_have():
    client = Client(max_connection_age_ms=1000)
    client.receive(client.call(1, "UnaryHold", message(b"a")))
    client.sweep(800 * MS)
    assert client.frames() == []
    client.sweep(1200 * MS)
    sent = client.frames()
    assert goaways(sent) == [(0, "")]
    # What the client has sent before it heard is served; then it hears the rest.
    client.receive(client.call(3, "UnaryHold", message(b"b")))
    client.receive(frames.encode_ping(sent[-1][3], is_ack=True))
    assert goaways(client.frames()) == [(0, "")]
    client.sweep(10**6 * MS)
    for held in client.application.held:
        held.reply((b"c",))
    client.loop.run()

    assert len(client.answers()) == 2
    assert client.transport.has_sent_eof or client.transport.is_closing


def test_an_old_connection_without_calls_ends():
    client = Client(max_connection_age_ms=1000)
    client.sweep(1200 * MS)
    assert goaways(client.frames()) == [(0, "")]
    client.sweep(2300 * MS)
    assert client.transport.has_sent_eof or client.transport.is_closing


def test_after_the_grace_calls_are_cut_off():
    client = Client(max_connection_age_ms=1000, max_connection_age_grace_ms=500)
    client.receive(client.call(1, "UnaryHold", message(b"a")))
    client.sweep(1200 * MS)
    client.sweep(1600 * MS)
    assert client.application.events == []
    client.sweep(1800 * MS)

    assert client.application.events == [("cancel", b"a")]
    assert goaways(client.frames())[-1] == (0, "max_age")


@pytest.mark.slow
def test_grpc_goes_on_over_a_new_connection():
    keepalive = KeepaliveSettings(max_connection_age_ms=200, max_connection_age_grace_ms=200)
    with serving(keepalive=keepalive) as server, channel_to(server) as channel:
        seen = set()
        while len(seen) < 3:
            assert unary(channel)(b"a", timeout=10) == b"a"
            seen |= server.call(lambda: {id(each) for each in server.listener._service.connections})
        stream = streaming(channel, "StreamHold")(iter([b"a"]))
        with pytest.raises(grpc.RpcError) as caught:
            next(stream)
        assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


@pytest.mark.slow
def test_grpc_clients_are_pinged_and_answer():
    keepalive = KeepaliveSettings(time_ms=100, timeout_ms=1000, max_pings_without_data=0)
    with serving(keepalive=keepalive) as server, channel_to(server) as channel:
        call = unary(channel, "UnaryHold").future(b"a")
        server.wait_for(lambda: server.application.held)
        [connection] = server.call(lambda: list(server.listener._service.connections))
        pinged = set()
        while len(pinged) < 3:
            pinged.add(server.call(lambda: connection.http2.keepalive._pinged_ns))
        server.call(lambda: server.application.held[0].reply((b"b",)))
        assert call.result(10) == b"b"
    assert isinstance(server.application, EchoApplication)
