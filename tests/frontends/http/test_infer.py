"""Inference over REST."""

import asyncio
import gzip
import json
import threading
import zlib

import numpy as np
import pytest

from merrow.core.errors import InvalidArgumentError, UnavailableError
from merrow.core.model_config import ModelConfig, ModelInput, ModelOutput
from merrow.core.tensor import Tensor
from merrow.frontends.http.door import HttpFrontend
from merrow.frontends.http.infer import MAX_INLINE_JSON_BYTE_SIZE, HttpInference
from merrow.frontends.http.tasks import AnswerTasks
from merrow.wire.infer_json import InferJsonCodec
from tests.frontends.fakes import FakeEngine, FakeExchange, FakeModel

CONFIG = ModelConfig(
    name="m",
    backend="python",
    input=(ModelInput(name="I", data_type="TYPE_INT32", dims=(-1,)),),
    output=(ModelOutput(name="O", data_type="TYPE_INT32", dims=(-1,)),),
)
BODY = b'{"id":"a","inputs":[{"name":"I","datatype":"INT32","shape":[2],"data":[1,2]}]}'
BINARY_JSON = (
    b'{"inputs":[{"name":"I","datatype":"INT32","shape":[2],"parameters":{"binary_data_size":8}}],'
    b'"outputs":[{"name":"O","parameters":{"binary_data":true}}]}'
)
BINARY_BODY = BINARY_JSON + np.array([1, 2], np.int32).tobytes()
OUTPUT = Tensor.from_numpy("O", np.array([3, 4], np.int32))
ANSWER = (
    b'{"id":"a","model_name":"m","model_version":"1","outputs":'
    b'[{"name":"O","datatype":"INT32","shape":[2],"data":[3,4]}]}'
)


def summary(exchange):
    return exchange.status, exchange.content_type, exchange.answer


def infer(
    engine,
    body=BODY,
    headers=(),
    respond=lambda engine: None,
    target=b"/v2/models/m/infer",
    max_input_byte_size=1 << 20,
):
    """Send one request, let `respond` answer what reached the engine, and return the exchange."""

    async def run():
        tasks = AnswerTasks()
        frontend = HttpFrontend(HttpInference(engine, tasks, max_input_byte_size).handlers())
        exchange = FakeExchange(b"POST", target, body, headers)
        frontend.on_exchange(exchange)
        await tasks.close()
        respond(engine)
        await tasks.close()
        return exchange

    return asyncio.run(run())


def make_engine(**arguments):
    return FakeEngine(FakeModel(CONFIG, **arguments))


def answer_with_output(engine):
    engine.answer(outputs=[OUTPUT])


def test_json_in_and_out():
    engine = make_engine()

    exchange = infer(engine, respond=answer_with_output)

    (request,) = engine.submitted
    assert (request.id, request.model_name, request.model_version) == ("a", "m", 1)
    assert request.inputs["I"].as_numpy().tolist() == [1, 2]
    assert summary(exchange) == (200, b"application/json", ANSWER)


def test_binary_in_and_out():
    engine = make_engine()
    header = (b"inference-HEADER-content-length", b"%d" % len(BINARY_JSON))

    exchange = infer(engine, BINARY_BODY, [header], respond=answer_with_output)

    length = int(dict(exchange.answer_headers)[b"Inference-Header-Content-Length"])
    assert exchange.status == 200
    assert exchange.content_type == b"application/octet-stream"
    assert json.loads(exchange.answer[:length])["outputs"] == [
        {"name": "O", "datatype": "INT32", "shape": [2], "parameters": {"binary_data_size": 8}}
    ]
    assert exchange.answer[length:] == np.array([3, 4], np.int32).tobytes()


def test_large_json_is_read_and_written_on_another_thread(monkeypatch):
    threads = []
    for name in ("decode", "encode"):
        original = getattr(InferJsonCodec, name)

        def watched(self, *arguments, original=original):
            threads.append(threading.current_thread() is threading.main_thread())
            return original(self, *arguments)

        monkeypatch.setattr(InferJsonCodec, name, watched)
    count = MAX_INLINE_JSON_BYTE_SIZE // 4 + 1
    body = b'{"inputs":[{"name":"I","datatype":"INT32","shape":[%d],"data":[%b]}]}' % (
        count,
        b",".join([b"10"] * count),
    )
    engine = make_engine()
    large = Tensor.from_numpy("O", np.full(count, 7, np.int32))

    exchange = infer(
        engine, body + b" " * MAX_INLINE_JSON_BYTE_SIZE, respond=lambda engine: engine.answer(outputs=[large])
    )

    assert threads == [False, False]
    assert engine.submitted[0].inputs["I"].as_numpy().tolist() == [10] * count
    assert json.loads(exchange.answer)["outputs"][0]["data"] == [7] * count


def test_large_json_that_is_broken_is_answered():
    exchange = infer(make_engine(), b"[" * (MAX_INLINE_JSON_BYTE_SIZE + 1))

    assert (exchange.status, exchange.content_type) == (500, b"application/json")


def test_equal_headers_of_binary_answers_are_one_object():
    inference = HttpInference(make_engine(), AnswerTasks(), 1)
    assert inference._binary_headers(153) is inference._binary_headers(153)
    for length in range(10_000):
        inference._binary_headers(length)
    assert len(inference._headers_of_binary) <= 4096


def test_an_empty_body_is_a_raw_request():
    engine = make_engine()
    infer(engine, b"")
    assert engine.submitted[0].is_raw


def test_errors_before_the_body_is_read_are_plain_text():
    assert summary(infer(make_engine(), target=b"/v2/models/n/infer")) == (
        404,
        b"text/plain",
        b'{"error":"Request for unknown model: \'n\' is not found"}',
    )
    assert summary(infer(make_engine(is_decoupled=True))) == (
        501,
        b"text/plain",
        b'{"error":"HTTP end point doesn\'t support models with decoupled transaction policy"}',
    )
    exchange = infer(make_engine(), headers=[(b"Inference-Header-Content-Length", b"-1")])
    assert summary(exchange) == (
        400,
        b"text/plain",
        b'{"error":"inference header size should be in range (0, %d), got: -1"}' % len(BODY),
    )


def test_errors_of_the_body_are_json():
    assert summary(infer(make_engine(), b"[]")) == (
        500,
        b"application/json",
        b"{\"error\":\"Unable to parse 'inputs': attempt to access non-existing object member 'inputs'\"}",
    )


def test_a_refusal_of_the_engine_is_json_and_forgets_the_client():
    engine = make_engine()
    engine.submit_error = UnavailableError("[request id: a] Exceeds maximum queue size")

    exchange = infer(engine)

    assert summary(exchange) == (
        503,
        b"application/json",
        b'{"error":"[request id: a] Exceeds maximum queue size"}',
    )
    assert exchange.on_disconnect is None


def test_an_error_of_the_model_is_plain_text():
    exchange = infer(make_engine(), respond=lambda engine: engine.answer(error=InvalidArgumentError("why")))
    assert summary(exchange) == (400, b"text/plain", b'{"error":"why"}')


def test_an_output_that_cannot_be_json_is_an_error():
    half = Tensor("O", "FP16", (1,), b"\0\0")
    exchange = infer(make_engine(), respond=lambda engine: engine.answer(outputs=[half]))
    assert summary(exchange) == (
        400,
        b"text/plain",
        b'{"error":"sending FP16 data via JSON is not supported. Please use the binary data format for output"}',
    )


def test_a_defect_in_a_response_is_answered_and_logged(caplog):
    exchange = infer(make_engine(), respond=lambda engine: engine.answer(outputs=[object()]))
    assert exchange.status == 500
    assert "unexpected error in a response of model 'm'" in caplog.text


def test_a_client_that_leaves_cancels_its_request():
    engine = make_engine()

    exchange = infer(engine)
    exchange.on_disconnect()

    assert engine.cancelled == engine.submitted


def test_a_client_that_was_answered_cancels_nothing():
    exchange = infer(make_engine(), respond=answer_with_output)
    assert exchange.on_disconnect is None


def test_a_reloaded_model_gets_a_codec_of_its_own_and_the_old_one_is_dropped():
    engine = make_engine()
    inference = HttpInference(engine, AnswerTasks(), 1 << 20)
    frontend = HttpFrontend(inference.handlers())
    frontend.on_exchange(FakeExchange(b"POST", b"/v2/models/m/infer", BODY))
    engine.by_name["m"] = FakeModel(CONFIG, version=2)
    frontend.on_exchange(FakeExchange(b"POST", b"/v2/models/m/infer", BODY))

    assert [request.model_version for request in engine.submitted] == [1, 2]
    assert list(inference._codecs) == [engine.by_name["m"]]


def test_what_headers_say_is_kept_while_it_is_small_and_bounded():
    inference = HttpInference(make_engine(), AnswerTasks(), 1 << 20)
    frontend = HttpFrontend(inference.handlers())
    for size in (10, 5000):
        headers = [(b"x", b"v" * size), (b"Inference-Header-Content-Length", b"-1")]
        for _ in range(2):
            exchange = FakeExchange(b"POST", b"/v2/models/m/infer", BODY)
            exchange.headers = headers
            frontend.on_exchange(exchange)
            assert exchange.status == 400
        assert (id(headers) in inference._options) is (size == 10)
    for _ in range(2000):
        frontend.on_exchange(FakeExchange(b"POST", b"/v2/models/m/infer", BODY))
    assert len(inference._options) <= 512


# Compression.

GZIP = (b"Content-Encoding", b"gzip")


@pytest.mark.parametrize(
    ("encoding", "body"),
    [(b"gzip", gzip.compress(BODY, mtime=0)), (b"deflate", zlib.compress(BODY)), (b"identity", BODY), (b"", BODY)],
)
def test_a_compressed_body_is_inflated(encoding, body):
    exchange = infer(make_engine(), body, [(b"Content-Encoding", encoding)], respond=answer_with_output)
    assert summary(exchange) == (200, b"application/json", ANSWER)


def test_the_header_length_counts_inflated_bytes():
    engine = make_engine()
    length = b"%d" % len(BINARY_JSON)
    infer(engine, gzip.compress(BINARY_BODY), [GZIP, (b"Inference-Header-Content-Length", length)])
    assert engine.submitted[0].inputs["I"].as_numpy().tolist() == [1, 2]


def test_a_body_that_inflates_a_lot_is_inflated_off_the_loop():
    engine = make_engine()
    numbers = list(range(50_000))
    body = json.dumps({"inputs": [{"name": "I", "datatype": "INT32", "shape": [50_000], "data": numbers}]}).encode()
    infer(engine, gzip.compress(body), [GZIP])
    assert engine.submitted[0].inputs["I"].as_numpy().tolist() == numbers


def test_an_inflated_body_is_bounded():
    for limit in (1000, 100_000):
        exchange = infer(make_engine(), gzip.compress(b" " * 200_000), [GZIP], max_input_byte_size=limit)
        assert summary(exchange) == (
            400,
            b"text/plain",
            b'{"error":"Decompressed data size exceeds the maximum allowed value of %d bytes. '
            b'Use --http-max-input-size to increase the limit."}' % limit,
        )


def test_an_unknown_coding_is_refused_with_those_that_are_known():
    exchange = infer(make_engine(), headers=[(b"Content-Encoding", b"br")])
    assert summary(exchange) == (501, b"text/plain", b'{"error":"Unsupported compression type"}')
    assert dict(exchange.answer_headers)[b"Accept-Encoding"] == b"gzip, deflate"


def test_an_unknown_model_is_answered_before_an_unknown_coding():
    exchange = infer(make_engine(), headers=[(b"Content-Encoding", b"br")], target=b"/v2/models/n/infer")
    assert exchange.status == 404


def test_an_empty_compressed_body_is_refused():
    assert summary(infer(make_engine(), b"", [GZIP])) == (
        400,
        b"text/plain",
        b'{"error":"nothing to be decompressed"}',
    )


def test_an_answer_is_compressed_as_the_client_prefers():
    headers = [(b"accept-encoding", b"deflate;q=0.5,gzip;q=0.7")]
    exchange = infer(make_engine(), headers=headers, respond=answer_with_output)
    assert exchange.answer_headers == ((b"Content-Type", b"application/json"), (b"Content-Encoding", b"gzip"))
    assert gzip.decompress(exchange.answer) == ANSWER


def test_a_large_answer_is_compressed_off_the_loop():
    output = Tensor.from_numpy("O", np.zeros(100_000, np.int32))
    exchange = infer(
        make_engine(),
        headers=[(b"Accept-Encoding", b"deflate")],
        respond=lambda engine: engine.answer(outputs=[output]),
    )
    assert dict(exchange.answer_headers)[b"Content-Encoding"] == b"deflate"
    assert json.loads(zlib.decompress(exchange.answer))["outputs"][0]["data"] == [0] * 100_000


def test_an_error_is_never_compressed():
    exchange = infer(
        make_engine(),
        headers=[(b"Accept-Encoding", b"gzip")],
        respond=lambda engine: engine.answer(error=InvalidArgumentError("why")),
    )
    assert exchange.answer == b'{"error":"why"}'
