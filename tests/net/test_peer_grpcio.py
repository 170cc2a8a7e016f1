"""gRPC's own implementation (C core, through grpcio) as the client."""

import asyncio
import contextlib
import threading
import time

import grpc
import grpc.aio
import pytest

from merrow.settings import ConnectionLimits
from tests.net.serving import TIMEOUT_SECONDS, serving

UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
EACH_LOOP = pytest.mark.parametrize("has_uvloop", [True, False], ids=["uvloop", "asyncio"])


@contextlib.contextmanager
def channel_to(server, **options):
    # A subchannel of its own: the pool of connections is otherwise shared by the process.
    settings = [*UNLIMITED, ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"127.0.0.1:{server.port}", options=settings, **options) as channel:
        yield channel


def unary(channel, method="Unary"):
    return channel.unary_unary(f"/test.Echo/{method}")


def streaming(channel, method="Stream"):
    return channel.stream_stream(f"/test.Echo/{method}")


@EACH_LOOP
@pytest.mark.parametrize("method", ["Unary", "UnaryLater"])
def test_unary_calls(has_uvloop, method):
    with serving(has_uvloop=has_uvloop) as server, channel_to(server) as channel:
        call = unary(channel, method)
        for number in range(20):
            assert call(b"%d" % number, timeout=TIMEOUT_SECONDS) == b"%d" % number
        assert call(b"") == b""


@pytest.mark.parametrize("byte_size", [16_379, 16_380, 65_531, 1_000_000, 10_000_000])
def test_messages_larger_than_a_frame_and_a_window(byte_size):
    message = bytes(range(256)) * (byte_size // 256) + bytes(byte_size % 256)
    with serving() as server, channel_to(server) as channel:
        for _ in range(2):
            assert unary(channel)(message, timeout=TIMEOUT_SECONDS) == message


@pytest.mark.slow
def test_64_megabytes_both_ways():
    message = bytes(range(256)) * (1 << 18)
    with serving() as server, channel_to(server) as channel:
        assert unary(channel)(message, timeout=TIMEOUT_SECONDS) == message


def test_many_calls_at_once():
    with serving() as server, channel_to(server) as channel:
        calls = [unary(channel, "UnaryLater").future(b"%d" % number * 100) for number in range(300)]

        assert [call.result(TIMEOUT_SECONDS) for call in calls] == [b"%d" % number * 100 for number in range(300)]


def test_an_error_arrives_with_its_text():
    with serving() as server, channel_to(server) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            unary(channel, "UnaryError")("Request for unknown model: 'é%\n' is not found".encode())

        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert caught.value.details() == "Request for unknown model: 'é%\n' is not found"
        assert not caught.value.trailing_metadata()


@pytest.mark.parametrize("method", ["/test.Echo/Missing", "/other.Service/Unary"])
def test_an_unknown_method_is_unimplemented(method):
    with serving() as server, channel_to(server) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(method)(b"a")

        assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.UNIMPLEMENTED, "")


def test_metadata_reaches_the_application():
    seen = []
    with serving() as server, channel_to(server) as channel:
        is_streaming = server.application.is_streaming
        server.application.on_unary = lambda call, message: (seen.append(dict(call.metadata)), call.reply((message,)))
        assert is_streaming(b"/test.Echo/Unary") is False

        for number in range(3):
            unary(channel)(b"a", metadata=[("x-number", str(number)), ("x-bin", b"\x00\xff")])

    assert [metadata[b"x-number"] for metadata in seen] == [b"0", b"1", b"2"]
    assert seen[0][b"x-bin"] == b"AP8"
    assert seen[0][b"te"] == b"trailers"


@EACH_LOOP
def test_a_deadline_passes(has_uvloop):
    with serving(has_uvloop=has_uvloop) as server, channel_to(server) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            unary(channel, "UnaryHold")(b"a", timeout=0.05)

        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        server.wait_for(lambda: server.application.events == [("cancel", b"a")])


def test_calls_with_deadlines_that_do_not_pass():
    with serving() as server, channel_to(server) as channel:
        for number in range(20):
            assert unary(channel, "UnaryLater")(b"a", timeout=1 + number) == b"a"
        assert server.application.events == []


@EACH_LOOP
def test_a_cancelled_call_is_cancelled_here(has_uvloop):
    with serving(has_uvloop=has_uvloop) as server, channel_to(server) as channel:
        call = unary(channel, "UnaryHold").future(b"a")
        server.wait_for(lambda: server.application.held)
        call.cancel()

        server.wait_for(lambda: server.application.events == [("cancel", b"a")])


def test_a_channel_that_closes_cancels_its_calls():
    with serving() as server:
        with channel_to(server) as channel:
            call = unary(channel, "UnaryHold").future(b"a")
            server.wait_for(lambda: server.application.held)
        server.wait_for(lambda: server.application.events == [("cancel", b"a")])
        assert call.code() is grpc.StatusCode.CANCELLED


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
@pytest.mark.parametrize("message", [b"", b"hello" * 10, bytes(1_000_000)])
def test_compressed_requests(compression, message):
    with serving() as server, channel_to(server, compression=compression) as channel:
        assert unary(channel)(message, timeout=TIMEOUT_SECONDS) == message
        assert list(streaming(channel)(iter([message, message]))) == [message, message]


def test_a_message_over_the_limit():
    with serving(ConnectionLimits(max_body_byte_size=1000)) as server, channel_to(server) as channel:
        for byte_size in (1001, 100_000, 5_000_000):
            with pytest.raises(grpc.RpcError) as caught:
                unary(channel)(bytes(byte_size), timeout=TIMEOUT_SECONDS)

            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert caught.value.details() == f"Received message larger than max ({byte_size} vs. 1000)"
        assert unary(channel)(bytes(1000)) == bytes(1000)


@EACH_LOOP
@pytest.mark.parametrize("method", ["Stream", "StreamLater"])
def test_a_stream_of_any_number_of_messages_comes_back(has_uvloop, method):
    messages = [b"%d" % number * (number * 300) for number in range(50)]
    with serving(has_uvloop=has_uvloop) as server, channel_to(server) as channel:
        assert list(streaming(channel, method)(iter(messages), timeout=TIMEOUT_SECONDS)) == messages
        assert list(streaming(channel, method)(iter([]), timeout=TIMEOUT_SECONDS)) == []


def test_a_stream_answers_while_the_client_still_sends():
    with serving() as server, channel_to(server) as channel:
        go_on = threading.Semaphore(1)

        def messages():
            for number in range(5):
                go_on.acquire(timeout=TIMEOUT_SECONDS)
                yield b"%d" % number

        received = []
        for message in streaming(channel)(messages()):
            received.append(message)
            go_on.release()

        assert received == [b"0", b"1", b"2", b"3", b"4"]


def test_a_cancelled_stream_is_cancelled_here():
    with serving() as server, channel_to(server) as channel:
        done = threading.Event()

        def messages():
            yield b"a"
            done.wait(TIMEOUT_SECONDS)

        call = streaming(channel)(messages())
        assert next(call) == b"a"
        call.cancel()
        done.set()

        server.wait_for(lambda: server.application.events[:1] == [("cancel", b"Stream")])


def test_a_slow_reader_of_a_stream_is_not_buried():
    limits = ConnectionLimits(max_write_buffer_byte_size=100_000)
    with serving(limits) as server, channel_to(server) as channel:
        call = streaming(channel, "StreamMany")(iter([bytes(100_000)]))
        next(call)
        server.wait_for(lambda: ("full",) in server.application.events)
        # The application was told to stop near the limit, and was told once it could have gone on.
        assert sum(1 for _ in call) < 500


def test_a_stream_that_is_not_read_here_holds_the_client_back():
    with serving(ConnectionLimits(stream_window_byte_size=65535)) as server, channel_to(server) as channel:
        sent = []

        def messages():
            for number in range(100):
                sent.append(number)
                yield bytes(50_000)

        call = streaming(channel, "StreamSlow")(messages())
        [stream] = server.wait_for(lambda: server.application.streams)
        server.pass_until(lambda: stream.call._stream.receive_credit == 0)
        assert len(sent) < 50
        server.call(stream.call.resume_reading)

        assert len(list(call)) == 100


def test_calls_in_flight_survive_a_shutdown_and_later_ones_do_not():
    with serving() as server, channel_to(server) as channel:
        call = unary(channel, "UnaryHold").future(b"a")
        server.wait_for(lambda: server.application.held)

        stopping = threading.Thread(
            target=lambda: server.run(server.listener.shutdown(time.monotonic_ns() + 15 * 10**9))
        )
        stopping.start()
        server.pass_until(lambda: server.listener._service.is_draining)
        server.call(lambda: server.application.held[0].reply((b"answer",)))

        assert call.result(TIMEOUT_SECONDS) == b"answer"
        stopping.join()
        with pytest.raises(grpc.RpcError) as caught:
            unary(channel)(b"a", timeout=1)
        assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def test_asynchronous_clients():
    async def run(port):
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=UNLIMITED) as channel:
            call = channel.unary_unary("/test.Echo/UnaryLater")
            answers = await asyncio.gather(*(call(b"%d" % number * 1000) for number in range(100)))
            assert answers == [b"%d" % number * 1000 for number in range(100)]

            stream = channel.stream_stream("/test.Echo/Stream")()
            for number in range(10):
                await stream.write(b"%d" % number)
                assert await stream.read() == b"%d" % number
            await stream.done_writing()
            assert await stream.read() is grpc.aio.EOF
            assert await stream.code() is grpc.StatusCode.OK

            held = channel.unary_unary("/test.Echo/UnaryHold")(b"held")
            await asyncio.to_thread(server.wait_for, lambda: server.application.held)
            held.cancel()
            await asyncio.to_thread(server.wait_for, lambda: server.application.events[-1] == ("cancel", b"held"))

    with serving() as server:
        asyncio.run(run(server.port))
