"""generate and generate_stream."""

import asyncio
import json

import numpy as np
import pytest

from merrow.core.errors import InternalError, InvalidArgumentError, NotFoundError
from merrow.core.model_config import ModelConfig, ModelInput
from merrow.core.tensor import Tensor
from merrow.frontends.http.door import HttpFrontend
from merrow.frontends.http.generate import TOO_SLOW, HttpGenerate
from merrow.frontends.http.infer import MAX_INLINE_JSON_BYTE_SIZE
from merrow.frontends.http.tasks import AnswerTasks
from merrow.settings import ConnectionLimits
from tests.frontends.fakes import FakeEngine, FakeExchange, FakeModel

CONFIG = ModelConfig(name="m", input=(ModelInput(name="I", data_type="TYPE_INT32", dims=(-1,)),))
BODY = b'{"I":[1,2],"id":"a"}'
EVENT_STREAM = b"text/event-stream; charset=utf-8"
NOT_ONE = (
    b'{"error":"generate expects model to produce exactly 1 response, use generate stream for model that generates '
    b'various number of responses"}'
)


class Scene:
    """A door with the two endpoints, and an engine for the test to answer with."""

    def __init__(self, load=None, **limits):
        self.engine = FakeEngine(FakeModel(CONFIG, is_decoupled=True))
        self.tasks = AnswerTasks()
        handlers = HttpGenerate(
            self.engine, self.tasks, 1 << 22, lambda load_format: load, limits=ConnectionLimits(**limits)
        ).handlers()
        self.frontend = HttpFrontend(handlers)

    def ask(self, action, body=BODY, headers=()):
        exchange = FakeExchange(b"POST", b"/v2/models/m/" + action, body, headers)
        self.frontend.on_exchange(exchange)
        return exchange

    def answer(self, *values, is_final=False):
        self.engine.answer(outputs=[output(*values)], is_final=is_final)

    def end(self):
        self.engine.answer(is_empty=True, is_final=True)


def output(*values):
    return Tensor.from_numpy("O", np.array(values, np.int32))


def event(*values):
    data = json.dumps(values[0] if len(values) == 1 else list(values), separators=(",", ":")).encode()
    return b'data: {"O":%b,"id":"a","model_name":"m","model_version":"1"}\n\n' % data


def test_one_response_is_one_object():
    scene = Scene()
    exchange = scene.ask(b"generate")
    assert exchange.status is None
    scene.answer(3, is_final=True)

    assert (exchange.status, exchange.content_type) == (200, b"application/json")
    assert exchange.answer == b'{"O":3,"id":"a","model_name":"m","model_version":"1"}'
    assert exchange.on_disconnect is None
    (request,) = scene.engine.submitted
    assert request.inputs["I"].as_numpy().tolist() == [1, 2]


def test_a_separate_end_does_not_count():
    scene = Scene()
    exchange = scene.ask(b"generate")
    scene.answer(3)
    scene.end()

    assert exchange.answer == b'{"O":3,"id":"a","model_name":"m","model_version":"1"}'


@pytest.mark.parametrize(("count", "first_error", "status"), [(0, False, 200), (2, False, 200), (2, True, 400)])
def test_generate_wants_exactly_one_response(count, first_error, status):
    scene = Scene()
    exchange = scene.ask(b"generate")
    for index in range(count):
        if first_error and index == 0:
            scene.engine.answer(error=InternalError("no"), is_final=False)
        else:
            scene.answer(3)
    scene.end()

    assert (exchange.status, exchange.content_type, exchange.answer) == (status, b"application/json", NOT_ONE)


def test_the_error_of_a_model_is_400_whatever_its_code():
    scene = Scene()
    exchange = scene.ask(b"generate")
    scene.engine.answer(error=InternalError("no"))

    assert (exchange.status, exchange.answer) == (400, b'{"error":"no"}')


def test_what_cannot_be_written_is_an_error():
    scene = Scene()
    exchange = scene.ask(b"generate")
    scene.engine.answer(outputs=[Tensor.from_numpy("O", np.zeros(1, np.float16))])

    assert exchange.status == 400
    assert b"sending FP16 data via JSON is not supported" in exchange.answer


def test_a_defect_is_answered_and_logged(caplog):
    scene = Scene()
    exchange = scene.ask(b"generate")
    scene.engine.answer(outputs=[None])

    assert (exchange.status, exchange.answer) == (
        400,
        b'{"error":"unexpected error in the server; its log tells more"}',
    )
    assert "unexpected error in a response of model 'm'" in caplog.text


def test_each_response_is_an_event_at_once():
    scene = Scene()
    exchange = scene.ask(b"generate_stream")
    scene.answer(1)
    assert (exchange.status, exchange.content_type, exchange.chunks) == (200, EVENT_STREAM, [event(1)])
    scene.answer(2, 3)
    assert exchange.answer is None
    scene.end()

    assert exchange.answer == event(1) + event(2, 3)


def test_an_error_is_an_event_and_the_stream_goes_on():
    scene = Scene()
    exchange = scene.ask(b"generate_stream")
    scene.answer(1)
    scene.engine.answer(error=InvalidArgumentError("err at 1"), is_final=False)
    scene.answer(2, is_final=True)

    assert exchange.status == 200
    assert exchange.answer == event(1) + b'data: {"error":"err at 1"}\n\n' + event(2)


def test_an_error_that_is_first_decides_the_status():
    scene = Scene()
    exchange = scene.ask(b"generate_stream")
    scene.engine.answer(error=InternalError("err at 0"), is_final=False)
    scene.answer(2, is_final=True)

    assert (exchange.status, exchange.content_type) == (400, EVENT_STREAM)
    assert exchange.answer == b'data: {"error":"err at 0"}\n\n' + event(2)


def test_no_responses_are_an_empty_stream():
    scene = Scene()
    exchange = scene.ask(b"generate_stream")
    scene.end()

    assert (exchange.status, exchange.content_type, exchange.answer) == (200, EVENT_STREAM, b"")


@pytest.mark.parametrize("action", [b"generate", b"generate_stream"])
def test_what_is_wrong_with_a_request_is_json(action):
    scene = Scene()
    exchange = scene.ask(action, b"[]")

    assert (exchange.status, exchange.content_type) == (500, b"application/json")
    assert exchange.answer == b'{"error":"attempt to get members for non-object"}'
    assert exchange.chunks is None

    scene.engine.submit_error = InvalidArgumentError("refused")
    exchange = scene.ask(action)
    assert (exchange.status, exchange.answer, exchange.on_disconnect) == (400, b'{"error":"refused"}', None)


def test_unknown_models_are_not_found():
    scene = Scene()
    scene.engine.by_name.clear()
    exchange = scene.ask(b"generate")

    assert (exchange.status, exchange.content_type) == (404, b"application/json")


@pytest.mark.parametrize(("encoding", "is_taken"), [(b"identity", True), (b"gzip", False), (b"", False)])
def test_bodies_are_not_encoded(encoding, is_taken):
    scene = Scene()
    exchange = scene.ask(b"generate", headers=[(b"Content-Encoding", encoding)])

    assert len(scene.engine.submitted) == is_taken
    if not is_taken:
        text = b'{"error":"Unsupported content-encoding, only \'identity\' is supported."}'
        assert (exchange.status, exchange.answer) == (400, text)


@pytest.mark.parametrize("action", [b"generate", b"generate_stream"])
def test_a_client_that_leaves_cancels(action):
    scene = Scene()
    exchange = scene.ask(action)
    exchange.on_disconnect()

    assert scene.engine.cancelled == scene.engine.submitted
    scene.engine.answer(error=InternalError("cancelled"))


@pytest.mark.parametrize("action", [b"generate", b"generate_stream"])
def test_the_load_is_a_header_when_it_is_asked_for(action):
    scene = Scene(load=b"TEXT x")
    asked = scene.ask(action, headers=[(b"Endpoint-Load-Metrics-Format", b"text")])
    not_asked = scene.ask(action)
    for index in (0, 1):
        scene.engine.answer(index, outputs=[output(1)])

    assert dict(asked.answer_headers)[b"endpoint-load-metrics"] == b"TEXT x"
    assert b"endpoint-load-metrics" not in dict(not_asked.answer_headers)


def test_no_load_no_header():
    scene = Scene()
    exchange = scene.ask(b"generate", headers=[(b"endpoint-load-metrics-format", b"text")])
    scene.answer(1, is_final=True)

    assert b"endpoint-load-metrics" not in dict(exchange.answer_headers)


def test_a_large_body_is_read_on_a_thread():
    async def run():
        scene = Scene()
        body = json.dumps({"I": [0] * MAX_INLINE_JSON_BYTE_SIZE}).encode()
        exchange = scene.ask(b"generate", body)
        assert not scene.engine.submitted
        bad = scene.ask(b"generate", body[:-1])
        await scene.tasks.close()
        assert len(scene.engine.submitted) == 1
        assert exchange.on_disconnect is not None
        assert (bad.status, bad.content_type) == (500, b"application/json")

    asyncio.run(run())


class Owner:
    def __init__(self):
        self.resumed = []

    def resume(self, request):
        self.resumed.append(request)


class TestSlowClients:
    def test_events_wait_and_the_model_is_held_back(self):
        async def run():
            scene = Scene()
            exchange = scene.ask(b"generate_stream")
            (request,) = scene.engine.submitted
            request.owner = Owner()
            scene.answer(1)
            exchange.writable = False
            scene.answer(2)
            scene.answer(3)
            assert exchange.chunks == [event(1)]
            assert request.is_congested
            await asyncio.sleep(0)
            exchange.let_drain()
            await scene.tasks.close()
            assert exchange.chunks == [event(1), event(2), event(3)]
            assert not request.is_congested
            assert request.owner.resumed == [request]
            scene.end()
            assert exchange.answer == event(1) + event(2) + event(3)

        asyncio.run(run())

    def test_the_end_waits_for_its_turn(self):
        async def run():
            scene = Scene()
            exchange = scene.ask(b"generate_stream")
            exchange.writable = False
            scene.answer(1)
            scene.end()
            assert exchange.answer is None
            await asyncio.sleep(0)
            exchange.let_drain()
            await scene.tasks.close()
            assert exchange.answer == event(1)

        asyncio.run(run())

    def test_what_waits_is_bounded(self):
        async def run():
            scene = Scene(max_stream_buffer_byte_size=100)
            exchange = scene.ask(b"generate_stream")
            exchange.writable = False
            for value in range(10):
                scene.answer(value)
            assert exchange.answer == b'data: {"error":"%b"}\n\n' % TOO_SLOW.encode()
            assert scene.engine.cancelled == scene.engine.submitted
            # What the model still says is for nobody.
            scene.end()
            exchange.let_drain()
            await scene.tasks.close()

        asyncio.run(run())

    def test_a_client_that_leaves_while_events_wait(self):
        async def run():
            scene = Scene()
            exchange = scene.ask(b"generate_stream")
            exchange.writable = False
            scene.answer(1)
            await asyncio.sleep(0)
            exchange.on_disconnect()
            exchange.let_drain()
            scene.engine.answer(error=NotFoundError("cancelled"))
            await scene.tasks.close()
            assert scene.engine.cancelled == scene.engine.submitted

        asyncio.run(run())
