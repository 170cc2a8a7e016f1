"""Bad input on every endpoint and every method of a running server.

What each says exactly is compared with the real server in `tests/oracle`. Here it is what holds for all of them: an
answer, in the API's own form, that tells nothing of ours; a server that goes on; and memory that does not grow.
"""

import json
import random
import socket
from pathlib import Path

import grpc
import pytest

from merrow.frontends.http.routes import CHANGEABLE, METHODS, Endpoint
from merrow.testing.repository_builder import RepositoryBuilder
from merrow.testing.running_server import RunningServer
from tests.e2e.endpoints import GRPC_PATHS, INFER_BODY, TARGETS, ask

pytestmark = pytest.mark.slow

MAX_INPUT_BYTE_SIZE = 100_000
SECRETS = (b"Traceback", b"site-packages", b".py", b"/tmp", b"/home", b"object at 0x", b"unexpected error", b"Error(")
FP32_INPUT = b'{"inputs":[{"name":"INPUT0","datatype":"FP32",'
BODIES = {
    "empty": b"",
    "cut": b'{"inputs":[{"name":"INPUT0"',
    "no JSON": b"\x80\x81\x00\xff",
    "array": b"[]",
    "text": b'"x"',
    "number": b"1e400",
    "null": b"null",
    "deep": b"[" * 50_000,
    "deep object": b'{"a":' * 10_000,
    "deep data": b'{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1,2],"data":'
    + b"[" * 300
    + b"]" * 300
    + b"}]}",
    "too large": b'{"x":"' + b"y" * (MAX_INPUT_BYTE_SIZE + 1) + b'"}',
    "wrong types": b'{"inputs":1,"outputs":{},"parameters":[],"id":2,"name":{},"key":[],"byte_size":"x"}',
    "wrong types inside": b'{"inputs":[1,"x",null,{"name":1}],"outputs":["x",{}]}',
    "overflow": FP32_INPUT + b'"shape":[9223372036854775807,9223372036854775807],"data":[1]}]}',
    "overflow of shapes": FP32_INPUT + b'"shape":[4294967296,4294967296],"data":[1]}]}',
    "negative": FP32_INPUT + b'"shape":[-1,-2],"data":[1]}],"byte_size":-1,"offset":-5}',
    "huge numbers": b'{"offset":18446744073709551615,"byte_size":18446744073709551615,"key":"/k","priority":1e300}',
    "duplicates": b'{"inputs":[],"inputs":[{"name":"INPUT0","name":"INPUT1"}],"id":"a","id":"b"}',
    "two inputs of one name": INFER_BODY[:-2] + b"," + INFER_BODY[11:],
    "unknown members": b'{"what":{"is":["this"]},"log_what":1,"trace_what":"x"}',
    "NUL": b'{"id":"\\u0000","name\\u0000":"x","model_name":"m\\u0000n"}',
    "a lying binary size": FP32_INPUT + b'"shape":[1,2],"parameters":{"binary_data_size":99999999999}}]}',
}
HEADERS = (
    {},
    {"Inference-Header-Content-Length": "99999999"},
    {"Inference-Header-Content-Length": "-1"},
    {"Inference-Header-Content-Length": "x"},
    {"Content-Encoding": "gzip"},
    {"Content-Encoding": "br"},
    {"Accept-Encoding": ";;q=,,gzip;q=x"},
    {"Content-Type": "\x7f"},
)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    repository = RepositoryBuilder(tmp_path_factory.mktemp("bad"))
    repository.add_identity("m", dims=(2,), max_batch_size=8)
    flags = ("--model-control-mode=explicit", "--load-model=m", f"--http-max-input-size={MAX_INPUT_BYTE_SIZE}")
    with RunningServer(repository.path, *flags, "--allow-client-shm=true", "--port=0") as running:
        yield running
        assert ask(running.http_url, "POST", "/v2/models/m/infer", INFER_BODY)[0] == 200
        assert "unexpected error" not in running.log
        assert "Traceback" not in running.log


def check(status, content_type, body):
    """An error is JSON with one text that says nothing of ours; everything else is fine."""
    if status < 400 or not body:
        return
    assert status in (400, 404, 405, 413, 431, 500, 501, 503), (status, body)
    assert content_type in ("application/json", "text/plain", "text/event-stream; charset=utf-8"), content_type
    if content_type.startswith("text/event-stream"):
        body = body.removeprefix(b"data: ").strip()
    assert list(json.loads(body)) == ["error"]
    for secret in SECRETS:
        assert secret not in body, body


@pytest.mark.parametrize("endpoint", Endpoint, ids=lambda endpoint: endpoint.name)
def test_every_endpoint(server, endpoint):
    target = TARGETS[endpoint]
    for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "X" * 20, "get"):
        allowed = {METHODS[endpoint].decode()} | ({"POST"} if endpoint in CHANGEABLE else set())
        status, content_type, body = ask(server.http_url, method, target)
        if method not in allowed:
            assert (status, body) == (405, b'{"error":"Method Not Allowed"}')
        check(status, content_type, body)
    if METHODS[endpoint] == b"GET" and endpoint not in CHANGEABLE:
        return
    for name, body in BODIES.items():
        for headers in HEADERS if endpoint is Endpoint.MODEL_INFER or name in ("cut", "too large") else HEADERS[:1]:
            status, content_type, answer = ask(server.http_url, "POST", target, body, headers)
            check(status, content_type, answer)
            if name in ("cut", "no JSON") and endpoint is not Endpoint.SYSTEM_SHARED_MEMORY_UNREGISTER:
                assert status >= 400 or "UNREGISTER" in endpoint.name or "UNLOAD" in endpoint.name, (name, headers)


@pytest.mark.parametrize(
    "target",
    ["/", "/v2/", "/v3", "/v2/models/m/versions/99999999999999999999/infer", "/v2/models/" + "a" * 5000,
     "/v2/models/%00/infer", "/v2/models/../../etc/passwd", "/v2/models/m/infer/x", "//", "/\x7f"],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST", "BREW"])
def test_unknown_paths(server, method, target):
    status, content_type, body = ask(server.http_url, method, target.replace("\x7f", "%7f"))
    assert status in (400, 404, 405)
    check(status, content_type, body)


@pytest.mark.parametrize(
    "lie",
    [
        b"POST /v2/models/m/infer HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc",
        b"POST /v2/models/m/infer HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /v2/models/m/infer HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"POST /v2/models/m/infer HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST /v2/models/m/infer HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /v2/models/m/infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF\r\n",
        b"POST /v2/models/m/infer HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"GET /v2 HTTP/9.9\r\n\r\n",
        b"GET\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100,
        b"PRI * HTTP/2.0\r\n\r\nXX",
        b"\0" * 1000,
    ],
)
def test_lies_of_the_transport(server, lie):
    host, _, port = server.http_url.rpartition(":")
    with socket.create_connection((host, int(port)), 20) as client:
        client.sendall(lie)
        client.shutdown(socket.SHUT_WR)
        received = b""
        try:
            while piece := client.recv(65536):
                received += piece
        except ConnectionError:
            pass
    assert not any(secret in received for secret in SECRETS)
    assert ask(server.http_url, "GET", "/v2/health/live")[0] == 200


def grpc_messages(seed):
    rng = random.Random(seed)
    yield b""
    yield b"\xff" * 50
    yield b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"
    yield b"\x0a\x7fshort"
    yield b"\x0b" * 2000
    yield b"\x0a\x02\xff\xfe"
    yield b"\x2a\x00" * 100_000
    yield b"\x3a\x00" * 100_000
    yield b"\x0a\x01m" + b"\x2a\x18\x0a\x06INPUT0\x12\x04FP32\x1a\x08" + b"\xff" * 8
    yield b"\x0a\x01m\x2a\x1a\x0a\x06INPUT0\x12\x04FP32\x1a\x0a" + b"\xff" * 9 + b"\x01"
    for _ in range(10):
        yield rng.randbytes(rng.randrange(1, 60))


@pytest.mark.parametrize("path", GRPC_PATHS)
def test_every_method(server, path):
    with grpc.insecure_channel(server.grpc_url) as channel:
        for message in grpc_messages(path):
            code, text = outcome(channel, path, message)
            if code is not None:
                assert code in GRPC_ERRORS, (message[:50], code, text)
                assert not any(secret in text.encode() for secret in SECRETS), text


GRPC_ERRORS = (
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNIMPLEMENTED,
)


def outcome(channel, path, message):
    """Status and text of a call that failed; a watch is left after its first word."""
    call = channel.stream_stream(path)(iter([message]), timeout=10)
    try:
        for _ in call:
            if "Watch" in path:
                call.cancel()
                return None, ""
    except grpc.RpcError as error:
        return error.code(), error.details() or ""
    return None, ""


def resident_byte_size(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def test_memory_stays_flat(server):
    """The same bad requests again and again, and such as claim much and send little."""

    def one_round(number):
        for name, body in BODIES.items():
            ask(server.http_url, "POST", f"/v2/models/m{number}/infer?{name.replace(' ', '')}", body)
            ask(server.http_url, "POST", "/v2/models/m/infer", body, {f"X-{number}": str(number)})
            ask(server.http_url, "POST", "/v2/models/m/generate", body)
        host, _, port = server.http_url.rpartition(":")
        for _ in range(5):
            with socket.create_connection((host, int(port)), 20) as client:
                client.sendall(b"POST /v2/models/m/infer HTTP/1.1\r\nContent-Length: 2000000000\r\n\r\n" + bytes(1000))
        with grpc.insecure_channel(server.grpc_url) as channel:
            call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            for message in grpc_messages(number):
                with pytest.raises(grpc.RpcError):
                    call(message)

    for number in range(4):
        one_round(number)
    before = resident_byte_size(server.pid)
    for number in range(4, 16):
        one_round(number)
    assert resident_byte_size(server.pid) - before < 8_000_000
