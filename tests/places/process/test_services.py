"""What models in real processes ask of the server: calls of other models, questions, and the server's of them."""

import ast
import asyncio

import numpy as np
import pytest

from merrow.backends.base import DropMetric, IsModelReady, LoadModel, ReadMetric
from merrow.core.errors import InternalError, NotFoundError
from merrow.core.response import Response
from merrow.core.tensor import Tensor
from merrow.places.process.host import ProcessPlace
from merrow.places.process.sections import INLINE_LIMIT
from tests.places.process.place_harness import (
    FAKE_BACKENDS,
    SETTINGS,
    Reports,
    make_context,
    make_request,
    outputs_of,
    running_instance,
    start,
    text_of,
)
from tests.places.recording_services import RecordingServices, echo_call

pytestmark = [
    pytest.mark.skipif(not ProcessPlace.is_available(), reason="needs fork and Unix sockets"),
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def server():
    """The services and one fork server for all tests; every test has instances of its own."""
    services = RecordingServices()
    place = ProcessPlace(SETTINGS, services, FAKE_BACKENDS)
    yield services, place
    asyncio.run(place.close())


@pytest.fixture
def services(server):
    services = server[0]
    yield services
    # What it keeps keeps memory.
    services.__init__()


@pytest.fixture
def place(server):
    return server[1]


@pytest.mark.parametrize("size", [1, INLINE_LIMIT + 1, 3_000_000])
def test_tensors_of_every_size_go_to_another_model_and_back(place, services, size):
    async def main():
        services.on_call = echo_call
        async with running_instance(place) as (instance, reports):
            for _ in range(3):
                data = np.random.default_rng(size).integers(0, 200, size, np.uint8)
                outcome = await reports.ask(instance, make_request({"A": data, "B": data[::-1].copy()}, "call"))
                outputs = outputs_of(outcome)
                assert np.array_equal(outputs["A0"], data + 1)
                assert np.array_equal(outputs["B1"], data[::-1] + 1)
                del outcome, outputs

    asyncio.run(main())


def test_the_server_sees_the_whole_call(place, services):
    async def main():
        services.on_call = echo_call
        async with running_instance(place) as (instance, reports):
            request = make_request({"A": np.zeros(3)}, "call")
            assert outputs_of(await reports.ask(instance, request))
            (call,) = services.calls
            made = call.request
            assert (made.model_name, made.model_version, made.id, made.correlation_id) == ("other", 3, "id", "c")
            assert (made.requested_outputs, made.parameters, made.timeout_us) == (("X",), {"a": 1}, 5)
            assert call.is_decoupled
            assert list(call.parents) == [request]
            assert list(call.executing) == [request]
            assert call.trace is request
            assert call.caller.instance_name == "m_0_0"
            assert not call.caller.is_loading
            assert instance.depth == 1

    asyncio.run(main())


def test_responses_of_a_stream_and_errors_reach_the_caller(place, services):
    async def main():
        def answer(call):
            outputs = [Tensor.from_numpy("OUT", np.full(20_000, 5, np.uint8))]
            for _ in range(4):
                call.request.sink.on_response(Response("other", 3, "", outputs, is_final=False))
            call.request.sink.on_response(Response("other", 3, is_empty=True))

        async with running_instance(place) as (instance, reports):
            services.on_call = answer
            outputs = outputs_of(await reports.ask(instance, make_request(do="call")))
            assert [array[0] for array in outputs.values()] == [6] * 4
            services.on_call = lambda call: call.request.sink.on_response(
                Response("other", 3, error=NotFoundError("no such thing"))
            )
            outcome = await reports.ask(instance, make_request(do="call"))
            assert isinstance(outcome, NotFoundError)
            assert outcome.message == "no such thing"

    asyncio.run(main())


def test_a_caller_that_uses_nothing_holds_back_whom_it_calls(place, services):
    async def main():
        async with running_instance(place) as (instance, reports):
            await reports.ask(instance, make_request(do="call and return"))
            (call,) = services.calls
            assert services.released == [call]
            outputs = [Tensor.from_numpy("OUT", np.zeros(SETTINGS.stream_window_byte_size // 2, np.uint8))]
            for _ in range(2):
                assert not call.request.is_congested
                call.request.sink.on_response(Response("other", 3, "", outputs, is_final=False))
            assert call.request.is_congested
            call.request.sink.on_response(Response("other", 3, is_empty=True))
            counted = text_of(await reports.ask(instance, make_request(do="count responses of calls")))
            assert counted == "[3]"

    asyncio.run(main())


def test_calls_are_cancelled_with_the_request_they_were_made_for(place, services):
    async def main():
        called = asyncio.Event()
        services.on_call = lambda call: called.set()
        async with running_instance(place) as (instance, reports):
            request = make_request(do="call")
            execution = reports.submit(instance, request)
            await called.wait()
            request.is_cancelled = True
            instance.cancel(request)
            (call,) = services.calls
            assert services.cancelled == [call]
            call.request.sink.on_response(Response("other", 3, error=InternalError("cancelled")))
            await execution

    asyncio.run(main())


def test_questions_are_answered(place, services):
    async def main():
        def answer(question):
            return {IsModelReady: True, ReadMetric: 1.5}.get(type(question))

        async with running_instance(place) as (instance, reports):
            services.on_question = answer
            assert ast.literal_eval(text_of(await reports.ask(instance, make_request(do="ask")))) == [True, None, 1.5]
            # What follows is sent when the next is said.
            services.on_question = lambda question: NotFoundError("no")
            assert isinstance(await reports.ask(instance, make_request(do="ask")), NotFoundError)
            first, second, third, fourth, *_ = [question for _, question in services.questions]
            assert first == IsModelReady("other", "2")
            assert isinstance(second, LoadModel)
            assert {path: bytes(data) for path, data in second.files.items()} == {
                "file:1/model.py": b"x" * 100_000,
                "small": b"y",
            }
            assert (second.name, second.config) == ("other", "{}")
            assert third == ReadMetric(7)
            assert fourth == DropMetric(7)

    asyncio.run(main())


def test_a_model_asks_while_it_loads(place, services):
    async def main():
        services.on_question = lambda question: True
        reports = Reports()
        instance = await start(place, reports, make_context("asks while it loads"))
        ((caller, question),) = services.questions
        assert question == IsModelReady("other")
        await instance.close()
        assert services.closed == [caller]

    asyncio.run(main())


def test_services_end_with_the_process(place, services):
    async def main():
        called = asyncio.Event()
        services.on_call = lambda call: called.set()
        async with running_instance(place) as (instance, reports):
            execution = reports.submit(instance, make_request(do="call"))
            await called.wait()
            instance._session.child.process.kill()
            assert isinstance(await execution, InternalError)
            (call,) = services.calls
            assert services.closed == [call.caller]
            # What comes too late goes nowhere.
            call.request.sink.on_response(Response("other", 3))
            await reports.wait_for_health(False, True)

    asyncio.run(main())


def test_a_failed_load_ends_its_services(place, services):
    async def main():
        with pytest.raises(InternalError):
            await start(place, Reports(), make_context("dies"))
        await asyncio.sleep(0)
        assert len(services.closed) == 1

    asyncio.run(main())
