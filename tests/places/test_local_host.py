"""Models in the server's own process: what they send, call and ask, on a thread and on the loop itself."""

import asyncio
import threading

import numpy as np
import pytest

from merrow.backends.base import (
    Deferral,
    DropMetric,
    Execution,
    Instance,
    IsModelReady,
    LoadModel,
    UnloadModel,
)
from merrow.core.errors import InternalError
from merrow.core.request import Request
from merrow.core.response import Response
from merrow.core.tensor import Tensor
from merrow.places.base import Caller
from merrow.places.inline import InlineInstance
from merrow.places.local_host import LocalEnvironment
from merrow.places.thread import ThreadInstance
from tests.places.process.place_harness import Reports
from tests.places.recording_services import RecordingServices, echo_call

WINDOW = 1000


class Sink:
    """Of a call: keeps the responses."""

    def __init__(self):
        self.responses = []
        self.news = threading.Semaphore(0)

    def on_response(self, response):
        self.responses.append(response)
        self.news.release()


class Scripted(Instance):
    """Executes what the test says: a function of the host and the requests."""

    def __init__(self, host, script):
        self.host = host
        self.script = script
        self.has_readiness_check = True

    def execute(self, requests):
        outcome = self.script(self.host, requests)
        return Execution([outcome] * len(requests), 1, 2, 3, 4)

    def is_ready(self):
        return self.script(self.host, None)


def make_request(**fields):
    return Request("m", 1, Sink(), {}, **fields)


def response_of(size, **fields):
    return Response("m", 1, outputs=[Tensor.from_numpy("OUT", np.zeros(size, np.uint8))], **fields)


def run(script, scenario, place=ThreadInstance):
    async def main():
        services, reports = RecordingServices(), Reports()
        environment = LocalEnvironment(asyncio.get_running_loop(), services, WINDOW)

        def make():
            return place(Caller("m", 1, "m_0"), lambda host: Scripted(host, script), reports, environment)

        instance = await asyncio.to_thread(make)
        try:
            await asyncio.wait_for(scenario(instance, reports, services), 20)
        finally:
            await instance.close()
        assert len(services.closed) == 1

    asyncio.run(main())


@pytest.mark.parametrize("place", [ThreadInstance, InlineInstance])
def test_responses_come_in_order_from_any_thread(place):
    def script(host, requests):
        host.send(requests[0], response_of(1, is_final=False))
        thread = threading.Thread(target=host.send, args=(requests[0], Response("m", 1, is_empty=True)))
        thread.start()
        if host.can_wait():
            thread.join()
        return Deferral.DEFERRED

    async def scenario(instance, reports, services):
        request = make_request()
        (outcome,) = (await reports.execute(instance, request)).outcomes
        assert outcome is Deferral.DEFERRED
        first, last = await reports.wait_for_end(request)
        assert first.outputs
        assert last.is_empty

    run(script, scenario, place)


def test_a_slow_client_makes_the_model_wait():
    def script(host, requests):
        for index in range(20):
            host.send(requests[0], response_of(WINDOW // 2, is_final=index == 19))
        return Deferral.DEFERRED

    async def scenario(instance, reports, services):
        request = make_request()
        request.is_congested = True
        execution = reports.submit(instance, request)
        await reports.wait_for_responses(request, 2)
        # A second instance's whole life takes longer than what the first would send if it did not wait.
        await asyncio.to_thread(lambda: None)
        assert len(reports.responses) <= 3
        assert not execution.done()
        request.is_congested = False
        instance.resume(request)
        assert len(await reports.wait_for_end(request)) == 20
        await execution

    run(script, scenario)


def test_a_model_calls_another_and_waits():
    def script(host, requests):
        sink = Sink()
        inputs = {"IN": Tensor.from_numpy("IN", np.arange(3))}
        host.infer(Request("other", -1, sink, inputs), False, requests, None)
        sink.news.acquire()
        return sink.responses[0]

    async def scenario(instance, reports, services):
        services.on_call = echo_call
        request = make_request()
        (outcome,) = (await reports.execute(instance, request)).outcomes
        assert outcome.outputs[0].as_numpy().tolist() == [0, 1, 2]
        (call,) = services.calls
        assert list(call.executing) == [request]
        assert call.caller.instance_name == "m_0"
        assert services.released == []

    run(script, scenario)


def test_calls_are_cancelled_with_the_requests_they_were_made_for_and_released_with_their_batch():
    sinks = []

    def script(host, requests):
        for parents in (requests, ()):
            sinks.append(Sink())
            host.infer(Request("other", -1, sinks[-1], {}), True, parents, None)
        return Deferral.DEFERRED

    async def scenario(instance, reports, services):
        request = make_request()
        await reports.execute(instance, request)
        theirs, others = services.calls
        assert services.released == [theirs, others]
        request.is_cancelled = True
        instance.cancel(request)
        assert services.cancelled == [theirs]
        for call in services.calls:
            call.request.sink.on_response(Response("other", 1, is_empty=True))
        assert [len(sink.responses) for sink in sinks] == [1, 1]

    run(script, scenario)


def test_a_caller_that_is_slow_holds_back_whom_it_calls():
    sink = Sink()

    def script(host, requests):
        request = Request("other", -1, sink, {})
        host.infer(request, True, (), None)
        for _ in range(2):
            sink.news.acquire()
        host.consume(request, 5 * WINDOW)
        sink.news.acquire()
        return Response("m", 1)

    async def scenario(instance, reports, services):
        resumed = asyncio.Event()
        services.resume = lambda call: resumed.set()
        called = asyncio.Event()
        services.on_call = lambda call: called.set()
        execution = reports.submit(instance, make_request())
        await called.wait()
        (call,) = services.calls
        for _ in range(2):
            call.request.sink.on_response(response_of(2 * WINDOW, is_final=False))
        assert call.request.is_congested
        await resumed.wait()
        assert not call.request.is_congested
        call.request.sink.on_response(Response("other", 1, is_empty=True))
        await execution

    run(script, scenario)


@pytest.mark.parametrize("place", [ThreadInstance, InlineInstance])
def test_questions_are_answered(place):
    def script(host, requests):
        try:
            answer = host.ask(IsModelReady("other"))
        except InternalError as error:
            return error
        host.drop(DropMetric(1))
        return Response("m", 1, parameters={"answer": answer})

    async def scenario(instance, reports, services):
        services.on_question = lambda question: True if isinstance(question, IsModelReady) else None
        (outcome,) = (await reports.execute(instance, make_request())).outcomes
        assert outcome.parameters == {"answer": True}
        await asyncio.sleep(0)
        assert [question for _, question in services.questions][-1] == DropMetric(1)
        services.on_question = lambda question: InternalError("no")
        (outcome,) = (await reports.execute(instance, make_request())).outcomes
        assert outcome.message == "no"

    run(script, scenario, place)


@pytest.mark.parametrize("question", [LoadModel("x"), UnloadModel("x")])
def test_an_inline_model_cannot_wait_for_a_load(question):
    def script(host, requests):
        host.ask(question)

    async def scenario(instance, reports, services):
        (outcome,) = (await reports.execute(instance, make_request())).outcomes
        assert "runs inline" in outcome.message
        assert services.questions == []

    run(script, scenario, InlineInstance)


@pytest.mark.parametrize("place", [ThreadInstance, InlineInstance])
def test_an_instance_says_whether_it_is_ready(place):
    answers = [True, False]
    asked = threading.Event()

    def script(host, requests):
        asked.wait()
        if not answers:
            raise ValueError("boom")
        return answers.pop(0)

    async def scenario(instance, reports, services):
        assert instance.has_readiness_check
        both = [asyncio.ensure_future(instance.check_readiness(5)) for _ in range(2)]
        await asyncio.sleep(0)
        asked.set()
        # Questions at the same time are one.
        assert await asyncio.gather(*both) == [True, True]
        assert await instance.check_readiness(5) is False
        with pytest.raises(InternalError, match="ValueError: boom"):
            await instance.check_readiness(5)
        asked.clear()
        with pytest.raises(asyncio.TimeoutError):
            await instance.check_readiness(0.01)
        asked.set()

    run(script, scenario, place)
