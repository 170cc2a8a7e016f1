import asyncio
import contextlib
import os
import socket
import stat
import threading
import time

import pytest

from merrow.net.listener import Listener
from merrow.settings import ConnectionLimits
from merrow.wire.http2 import frames
from tests.net.http2_client import message
from tests.net.serving import EchoApplication, read_all, read_exactly, read_until, serving
from tests.wire.http2.recording import split_frames

SECOND = 10**9
GET = b"GET / HTTP/1.1\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: 0\r\n\r\n"
EACH_LOOP = pytest.mark.parametrize("has_uvloop", [True, False], ids=["uvloop", "asyncio"])


def read_to_end(client):
    """Until the server has closed, in whichever way."""
    with contextlib.suppress(ConnectionResetError):
        return read_all(client)
    return b""


@EACH_LOOP
def test_a_free_port_is_taken_and_said(has_uvloop):
    with serving(has_uvloop=has_uvloop) as server:
        assert server.port > 0
        with server.connect() as client:
            client.sendall(GET)
            assert read_exactly(client, len(ANSWER)) == ANSWER
            assert server.listener.connection_count == 1


@EACH_LOOP
def test_a_port_in_use_is_an_error_in_tritons_words(has_uvloop):
    with serving(has_uvloop=has_uvloop) as server:
        second = Listener(None, None, ConnectionLimits(), port=server.port)

        with pytest.raises(OSError, match="Socket") as caught:
            server.run(second.start())

        assert str(caught.value) == f"Socket '127.0.0.1:{server.port}' already in use "


def test_another_error_is_left_as_it_is():
    with serving() as server, pytest.raises(OSError, match="assign requested address"):
        server.run(Listener(None, None, ConnectionLimits(), address="192.0.2.1").start())


@EACH_LOOP
def test_a_port_may_be_shared_where_that_is_asked(has_uvloop):
    with (
        serving(has_uvloop=has_uvloop, reuse_port=True) as first,
        serving(has_uvloop=has_uvloop, port=first.port, reuse_port=True) as second,
    ):
        assert first.port == second.port


@EACH_LOOP
def test_an_address_may_be_a_path(has_uvloop, tmp_path):
    path = str(tmp_path / "socket")
    with serving(has_uvloop=has_uvloop, path=path), socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        client.sendall(GET)
        assert read_exactly(client, len(ANSWER)) == ANSWER

    assert not os.path.exists(path)


@EACH_LOOP
def test_a_path_in_use_is_an_error(has_uvloop, tmp_path):
    path = str(tmp_path / "socket")
    with serving(has_uvloop=has_uvloop, path=path) as server:
        with pytest.raises(OSError, match="already in use") as caught:
            server.run(Listener(None, None, ConnectionLimits(), path=path).start())

        assert str(caught.value) == f"Socket '{path}' already in use "
        assert stat.S_ISSOCK(os.stat(path).st_mode)


@EACH_LOOP
def test_a_path_left_by_a_server_that_died_is_taken_over(has_uvloop, tmp_path):
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with serving(has_uvloop=has_uvloop, path=path), socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
        client.sendall(GET)
        assert read_exactly(client, len(ANSWER)) == ANSWER


def test_a_path_that_is_no_socket_is_left_alone(tmp_path):
    path = tmp_path / "file"
    path.write_text("precious")
    with serving() as server, pytest.raises(OSError, match="in use"):
        server.run(Listener(None, None, ConnectionLimits(), path=str(path)).start())

    assert path.read_text() == "precious"


def test_without_applications_nothing_is_found():
    with serving(applications=(None, None)) as server:
        with server.connect() as client:
            client.sendall(GET)
            assert read_until(client, b'{"error":"Not Found"}') == (
                b'HTTP/1.1 404 Not Found\r\nContent-Type: text/plain\r\nContent-Length: 21\r\n\r\n{"error":"Not Found"}'
            )
        with server.connect() as client:
            client.sendall(frames.PREFACE + frames.encode_settings({}) + grpc_request(1))
            assert b"grpc-status\x0212" in read_until(client, b"\x0212")


def grpc_request(stream_id, path=b"/test.Echo/Unary", body=b"hello"):
    content_type = b"\x0f\x10\x10application/grpc"
    block = b"\x83\x86\x04" + bytes([len(path)]) + path + content_type
    data = message(body)
    return (
        frames.encode_frame_header(len(block), frames.HEADERS, 4, stream_id)
        + block
        + frames.encode_frame_header(len(data), frames.DATA, 1, stream_id)
        + data
    )


@EACH_LOOP
def test_all_protocols_share_a_port(has_uvloop):
    with serving(has_uvloop=has_uvloop) as server, server.connect() as plain, server.connect() as grpc:
        grpc.sendall(frames.PREFACE + frames.encode_settings({}))
        plain.sendall(GET)
        assert read_exactly(plain, len(ANSWER)) == ANSWER
        grpc.sendall(grpc_request(1))
        assert b"\0\0\0\0\x05hello" in read_until(grpc, b"grpc-status\x010")
        assert server.listener.connection_count == 2


# Shutting down


def in_background(function):
    thread = threading.Thread(target=function)
    thread.start()
    return thread


@EACH_LOOP
def test_no_connection_is_accepted_any_more_but_open_ones_go_on(has_uvloop):
    with serving(has_uvloop=has_uvloop) as server, server.connect() as client:
        client.sendall(GET)
        read_exactly(client, len(ANSWER))
        server.call(server.listener.stop_accepting)
        server.call(server.listener.stop_accepting)

        with pytest.raises(ConnectionRefusedError):
            server.connect().__enter__()
        client.sendall(GET)
        assert read_exactly(client, len(ANSWER)) == ANSWER


@EACH_LOOP
def test_idle_connections_are_closed_at_once(has_uvloop):
    with serving(has_uvloop=has_uvloop) as server, server.connect() as idle, server.connect() as grpc:
        idle.sendall(GET)
        read_exactly(idle, len(ANSWER))
        grpc.sendall(frames.PREFACE + frames.encode_settings({}))
        read_exactly(grpc, 9 + 24 + 13 + 9)

        begin = time.monotonic()
        shutting_down = in_background(lambda: server.run(server.listener.shutdown(time.monotonic_ns() + 15 * SECOND)))
        assert read_all(idle) == b""
        [(kind, _, _, payload)] = split_frames(read_all(grpc))
        grpc.close()
        shutting_down.join()

        assert (kind, payload) == (frames.GOAWAY, bytes(8))
        assert time.monotonic() - begin < 5


@EACH_LOOP
def test_requests_in_flight_are_answered(has_uvloop):
    with serving(has_uvloop=has_uvloop) as server, server.connect() as client, server.connect() as grpc:
        client.sendall(b"GET /hold HTTP/1.1\r\n\r\n")
        grpc.sendall(frames.PREFACE + frames.encode_settings({}) + grpc_request(1, b"/test.Echo/UnaryHold"))
        server.wait_for(lambda: len(server.application.held) == 2)

        shutting_down = in_background(lambda: server.run(server.listener.shutdown(time.monotonic_ns() + 15 * SECOND)))
        read_until(grpc, b"shutdown")
        grpc.sendall(frames.encode_ping(b"shutdown", is_ack=True))
        for held in list(server.application.held):
            server.call(
                lambda held=held: held.respond(200, (), (b"x",)) if hasattr(held, "respond") else held.reply((b"y",))
            )
        assert read_all(client) == b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx"
        assert b"\0\0\0\0\x01y" in read_all(grpc)
        grpc.close()
        shutting_down.join()

        assert server.application.events == []


@EACH_LOOP
def test_what_is_left_at_the_deadline_is_cut_off(has_uvloop):
    with serving(has_uvloop=has_uvloop) as server, server.connect() as client, server.connect() as grpc:
        client.sendall(b"POST /hold HTTP/1.1\r\nContent-Length: 1\r\n\r\n1")
        grpc.sendall(frames.PREFACE + frames.encode_settings({}) + grpc_request(1, b"/test.Echo/UnaryHold"))
        server.wait_for(lambda: len(server.application.held) == 2)

        server.run(server.listener.shutdown(time.monotonic_ns() + SECOND // 20))

        assert sorted(server.application.events) == [("cancel", b"hello"), ("disconnect", b"1")]
        assert read_to_end(client) == b""
        assert server.listener.connection_count == 0


def test_a_listener_may_be_shut_down_before_it_starts():
    asyncio.run(Listener(None, None, ConnectionLimits()).shutdown(0))


def test_a_listener_is_a_context():
    async def run():
        async with Listener(None, None, ConnectionLimits()) as listener:
            reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
            writer.write(GET)
            assert (await reader.readline()) == b"HTTP/1.1 404 Not Found\r\n"
        writer.close()
        await writer.wait_closed()

    asyncio.run(run())


# Time and limits, once for real


@EACH_LOOP
def test_the_sweep_is_armed(has_uvloop):
    limits = ConnectionLimits(receive_timeout_ns=SECOND // 20, idle_timeout_ns=SECOND // 20)
    with serving(limits, has_uvloop=has_uvloop) as server, server.connect() as slow, server.connect() as idle:
        slow.sendall(b"GET / HT")
        idle.sendall(GET)

        assert read_all(slow).startswith(b"HTTP/1.1 408 Request Timeout\r\n")
        assert read_all(idle) == ANSWER


def test_connections_over_the_limit_are_closed():
    with serving(ConnectionLimits(max_connections=1)) as server, server.connect() as first:
        first.sendall(GET)
        read_exactly(first, len(ANSWER))
        with server.connect() as second:
            assert read_to_end(second) == b""
        first.sendall(GET)
        assert read_exactly(first, len(ANSWER)) == ANSWER


def test_an_application_may_answer_for_itself():
    # The echo application is one object for both protocols; each may also be missing.
    application = EchoApplication()
    with serving(applications=(application, None)) as server, server.connect() as client:
        client.sendall(GET)
        assert read_exactly(client, len(ANSWER)) == ANSWER
