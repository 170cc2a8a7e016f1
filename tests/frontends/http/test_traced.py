"""Inference and generate over REST, traced."""

import numpy as np

from merrow.core.errors import InvalidArgumentError, NotFoundError
from merrow.core.model_config import ModelConfig, ModelInput
from merrow.core.tensor import Tensor
from merrow.frontends.http.door import HttpFrontend
from merrow.frontends.http.generate import HttpGenerate
from merrow.frontends.http.infer import HttpInference
from merrow.frontends.http.tasks import AnswerTasks
from tests.frontends.fakes import FakeEngine, FakeExchange, FakeModel
from tests.frontends.tracing import run_traced

CONFIG = ModelConfig(name="m", input=(ModelInput(name="I", data_type="TYPE_INT32", dims=(-1,)),))
INFER = b'{"inputs":[{"name":"I","datatype":"INT32","shape":[2],"data":[1,2]}]}'
DOOR = ["HTTP_RECV_START", "HTTP_RECV_END", "HTTP_SEND_START", "HTTP_SEND_END"]


def ask(respond, action=b"infer", body=INFER, is_decoupled=False, **settings):
    """Send one request and let `respond` answer what reached the engine; the exchange, and what traces recorded."""
    exchange = FakeExchange(b"POST", b"/v2/models/m/" + action, body)
    engine = FakeEngine(FakeModel(CONFIG, is_decoupled=is_decoupled))

    def talk(tracer):
        tasks = AnswerTasks()
        handlers = {
            **HttpInference(engine, tasks, 1 << 20, tracer).handlers(),
            **HttpGenerate(engine, tasks, 1 << 20, lambda load_format: None, tracer).handlers(),
        }
        HttpFrontend(handlers).on_exchange(exchange)
        respond(engine, exchange)

    return exchange, run_traced(talk, **settings)


def answer(engine, exchange):
    assert engine.submitted[0].trace is not None
    engine.answer(outputs=[Tensor.from_numpy("O", np.array([3], np.int32))])


def test_an_answer_is_recorded():
    exchange, traces = ask(answer)

    assert exchange.status == 200
    assert exchange.on_disconnect is None
    assert traces == [DOOR]


def test_a_request_that_is_not_sampled_is_not_touched():
    def respond(engine, exchange):
        assert engine.submitted[0].trace is None
        engine.answer(outputs=[])

    assert ask(respond, rate=2)[1] == []


def test_an_error_of_a_model_is_recorded():
    exchange, traces = ask(lambda engine, exchange: engine.answer(error=NotFoundError("why")))

    assert (exchange.status, traces) == (404, [DOOR])


def test_a_request_that_is_refused_is_recorded():
    exchange, traces = ask(lambda engine, exchange: None, body=b"{}")

    assert (exchange.status, traces) == (500, [DOOR])


def test_a_client_that_leaves_ends_the_trace_when_the_model_does():
    def respond(engine, exchange):
        exchange.on_disconnect()
        assert engine.cancelled == engine.submitted
        engine.answer(error=InvalidArgumentError("cancelled"))

    assert ask(respond)[1] == [DOOR]


def test_a_stream_of_events_is_one_sending():
    def respond(engine, exchange):
        for is_final in (False, True):
            engine.answer(outputs=[Tensor.from_numpy("O", np.array([3], np.int32))], is_final=is_final)

    exchange, traces = ask(respond, b"generate_stream", b'{"I":1}', is_decoupled=True)

    assert exchange.answer.count(b"data: ") == 2
    assert traces == [DOOR]


def test_generate_that_is_refused_is_recorded():
    exchange, traces = ask(lambda engine, exchange: None, b"generate", b"[]")

    assert (exchange.status, traces) == (500, [DOOR])
