"""The load generator counts what a server really answered, and notices wrong answers."""

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb

from bench.grpc_load import GrpcConnection
from bench.http_load import HttpConnection, http_answer
from bench.load import LoadError, run_window
from bench.workload import large_tensor, small_tensor

SECONDS = 0.05


@contextlib.contextmanager
def http_server(answer: Callable[[bytes], bytes], piece_size: int = 1 << 16) -> Iterator[int]:
    """Answers one connection's requests, in small pieces if asked; yields its port."""

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(ConnectionError), listener.accept()[0] as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            buffer = b""
            while data := connection.recv(1 << 20):
                buffer += data
                head, separator, body = buffer.partition(b"\r\n\r\n")
                if not separator or len(body) < int(head.split(b"\r\nContent-Length: ")[1].split(b"\r\n")[0]):
                    continue
                buffer = b""
                reply = answer(body)
                for start in range(0, len(reply), piece_size):
                    connection.sendall(reply[start : start + piece_size])

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        yield listener.getsockname()[1]
        thread.join()


@pytest.mark.parametrize("piece_size", [1 << 16, 50])
def test_http_answers_are_counted(piece_size: int):
    workload = small_tensor("model")
    count = 0

    def answer(body: bytes) -> bytes:
        nonlocal count
        count += 1
        return http_answer(body[-64:])

    with http_server(answer, piece_size) as port, contextlib.closing(HttpConnection(port, workload)) as connection:
        window = run_window([connection], SECONDS)

    assert len(window.latencies_ns) == count - 1  # The first request, before the window.
    assert window.seconds >= SECONDS


def test_a_large_http_tensor_goes_both_ways():
    workload = large_tensor("model", 3_000_000)

    def answer(body: bytes) -> bytes:
        return http_answer(body[-3_000_000:])

    with http_server(answer) as port, contextlib.closing(HttpConnection(port, workload)) as connection:
        assert run_window([connection], SECONDS).latencies_ns


def test_an_http_answer_that_changes_is_an_error():
    replies = [http_answer(small_tensor("model").data), http_answer(bytes(64))]

    with (
        http_server(lambda body: replies.pop(0)) as port,
        contextlib.closing(HttpConnection(port, small_tensor("model"))) as connection,
        pytest.raises(LoadError, match="another answer than the first one"),
    ):
        run_window([connection], SECONDS)


def test_an_http_error_is_an_error():
    reply = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"

    with http_server(lambda body: reply) as port, pytest.raises(LoadError, match="400 Bad Request"):
        HttpConnection(port, small_tensor("model"))


class Infer(grpc.GenericRpcHandler):
    """`ModelInfer` that gives the input back; `fail_after` calls it fails."""

    def __init__(self, fail_after: int = 1 << 30) -> None:
        self.count = 0
        self.fail_after = fail_after

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        return grpc.unary_unary_rpc_method_handler(
            self.infer, pb.ModelInferRequest.FromString, pb.ModelInferResponse.SerializeToString
        )

    def infer(self, request: pb.ModelInferRequest, context: grpc.ServicerContext) -> pb.ModelInferResponse:
        self.count += 1
        if self.count > self.fail_after:
            context.abort(grpc.StatusCode.INTERNAL, "as asked")
        assert request.inputs[0].datatype == "FP32"
        assert struct.calcsize("f") * list(request.inputs[0].shape)[-1] == len(request.raw_input_contents[0])
        return pb.ModelInferResponse(model_name=request.model_name, raw_output_contents=request.raw_input_contents)


@contextlib.contextmanager
def grpc_server(handler: Infer) -> Iterator[int]:
    """grpcio's server with its small default windows; yields its port."""
    with ThreadPoolExecutor(1) as executor:
        server = grpc.server(executor, [handler], options=[("grpc.max_receive_message_length", -1)])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield port
        server.stop(None).wait()


@pytest.mark.parametrize("byte_size", [64, 3_000_000])
def test_grpc_answers_are_counted(byte_size: int):
    handler = Infer()
    workload = small_tensor("model") if byte_size == 64 else large_tensor("model", byte_size)

    with grpc_server(handler) as port, contextlib.closing(GrpcConnection(port, workload)) as connection:
        window = run_window([connection], SECONDS)

    assert len(window.latencies_ns) == handler.count - 1


def test_a_grpc_call_that_fails_is_an_error():
    with (
        grpc_server(Infer(fail_after=3)) as port,
        contextlib.closing(GrpcConnection(port, small_tensor("model"))) as connection,
        pytest.raises(LoadError, match="another answer than the first one: b''"),
    ):
        run_window([connection], SECONDS)


def test_a_first_grpc_call_that_fails_is_an_error():
    with grpc_server(Infer(fail_after=0)) as port, pytest.raises(LoadError, match="grpc-status"):
        GrpcConnection(port, small_tensor("model"))
