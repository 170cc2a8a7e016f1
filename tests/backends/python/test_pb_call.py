import asyncio
import json

import numpy as np
import pytest

from merrow.backends.python.pb_call import ResponseIterator
from merrow.backends.python.pb_errors import TritonError, TritonModelException
from merrow.backends.python.pb_exchange import InferenceRequest, request_of_core
from merrow.backends.python.pb_tensor import Tensor
from merrow.core.errors import NotFoundError
from merrow.core.response import Response
from merrow.core.tensor import Tensor as CoreTensor
from tests.backends.python.bound_models import bound_request_class, make_runtime
from tests.backends.python.model_files import make_request


def respond(*values, **fields):
    """Answer a call with these numbers, each in a response of its own; the last is final."""

    def answer(request):
        for index, value in enumerate(values):
            outputs = [CoreTensor.from_numpy("OUT", np.array([value]))]
            request.sink.on_response(
                Response(request.model_name, 1, "", outputs, is_final=index == len(values) - 1, **fields)
            )

    return answer


def respond_and_end(*values):
    def answer(request):
        for value in values:
            outputs = [CoreTensor.from_numpy("OUT", np.array([value]))]
            request.sink.on_response(Response(request.model_name, 1, "", outputs, is_final=False))
        request.sink.on_response(Response(request.model_name, 1, is_empty=True))

    return answer


def call_of(runtime, **fields):
    make = bound_request_class(runtime)
    return make(**{"inputs": [Tensor("IN", np.arange(3))], "requested_output_names": [], "model_name": "t", **fields})


def value_of(response):
    return response.output_tensors()[0].as_numpy().tolist() if response.output_tensors() else None


def test_a_call_is_a_request_of_its_own():
    runtime = make_runtime(on_call=respond(5))
    request = call_of(
        runtime,
        request_id="x",
        correlation_id="c",
        requested_output_names=["OUT"],
        model_version=3,
        flags=1,
        timeout=7,
        parameters={"a": 1},
    )

    assert value_of(request.exec()) == [5]
    assert value_of(request.exec()) == [5]
    first, second = runtime.host.calls
    assert first is not second
    assert (first.model_name, first.model_version, first.id, first.correlation_id) == ("t", 3, "x", "c")
    assert (first.requested_outputs, first.flags, first.timeout_us, first.parameters) == (("OUT",), 1, 7, {"a": 1})
    assert first.inputs["IN"].as_numpy().tolist() == [0, 1, 2]


def test_failures_are_values():
    def fail(request):
        request.sink.on_response(Response("t", 1, error=NotFoundError("no such thing")))

    response = call_of(make_runtime(on_call=fail)).exec()
    assert response.has_error()
    assert response.error().message() == "no such thing"
    assert response.error().code() is TritonError.NOT_FOUND


def test_an_empty_response_is_an_error_where_one_response_is_due():
    response = call_of(make_runtime(on_call=respond_and_end())).exec()

    assert response.error().message() == "Unexpected empty response."


def test_calls_are_refused_outside_of_execute():
    runtime = make_runtime()
    runtime.accepts_calls = False
    for call in (call_of(runtime).exec, lambda: call_of(runtime).async_exec().send(None)):
        with pytest.raises(TritonModelException) as caught:
            call()
        assert str(caught.value) == "BLS is only supported during the 'execute' function."
    assert runtime.host.calls == []


def test_a_decoupled_call_yields_every_response_and_can_be_iterated_again():
    runtime = make_runtime(on_call=respond_and_end(1, 2))
    responses = call_of(runtime).exec(decoupled=True)

    assert isinstance(responses, ResponseIterator)
    assert [value_of(each) for each in responses] == [[1], [2], None]
    assert [value_of(each) for each in responses] == [[1], [2], None]
    with pytest.raises(StopIteration):
        next(responses)
    assert value_of(next(iter(responses))) == [1]
    assert runtime.host.consumed > 0


def test_a_final_response_with_outputs_is_the_last():
    responses = call_of(make_runtime(on_call=respond(1, 2))).exec(decoupled=True)

    assert [value_of(each) for each in responses] == [[1], [2]]


def test_a_decoupled_call_can_be_cancelled():
    runtime = make_runtime(on_call=lambda request: None)
    responses = call_of(runtime).exec(decoupled=True)
    responses.cancel()
    (request,) = runtime.host.calls
    assert runtime.host.cancelled == [request]
    respond_and_end()(request)
    assert [value_of(each) for each in responses] == [None]
    responses.cancel()
    assert len(runtime.host.cancelled) == 1


def test_responses_that_nobody_takes_hold_nobody_back():
    runtime = make_runtime(on_call=lambda request: None)
    call_of(runtime).exec(decoupled=True)
    (request,) = runtime.host.calls
    assert runtime.host.consumed == 0
    respond_and_end(1, 2)(request)
    assert runtime.host.consumed > 0
    assert runtime.host.cancelled == []


def test_coroutines_wait_without_holding_the_loop():
    waiting = []
    runtime = make_runtime(on_call=waiting.append)

    async def main():
        calls = [asyncio.ensure_future(call_of(runtime).async_exec(decoupled=each)) for each in (False, True)]
        # Both are made in the first pass of the loop.
        await asyncio.sleep(0)
        assert len(waiting) == 2
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, respond(7), waiting[0])
        await loop.run_in_executor(None, respond_and_end(8), waiting[1])
        return await asyncio.gather(*calls)

    response, responses = asyncio.run(main())
    assert value_of(response) == [7]
    assert [value_of(each) for each in responses] == [[8], None]


def test_a_thread_that_cannot_wait_gets_an_error():
    runtime = make_runtime(on_call=lambda request: None, can_wait=lambda: False)
    response = call_of(runtime).exec()

    assert "runs inline" in response.error().message()
    assert runtime.host.cancelled == runtime.host.calls
    runtime.host.on_call = respond(1)
    assert value_of(call_of(runtime).exec()) == [1]


def test_a_call_says_on_whose_behalf_it_is_made_and_whose_trace_it_belongs_to():
    runtime = make_runtime()
    told = []
    runtime.host.infer = lambda request, is_decoupled, parents, trace: (
        told.append((is_decoupled, parents, trace)),
        respond(1)(request),
    )
    core = make_request()
    batch = request_of_core(core, runtime, bound_request_class(runtime))
    runtime.executing, runtime.execute_thread_id = (core,), __import__("threading").get_ident()
    call_of(runtime, trace=batch.trace()).exec()
    runtime.executing = ()
    call_of(runtime).exec(decoupled=True)

    assert told == [(False, (core,), core), (True, (), None)]


def test_a_request_of_a_batch_can_itself_be_made_again():
    runtime = make_runtime(on_call=respond(3))
    core = make_request({"IN": np.zeros(2)}, id="seven", parameters={"a": 1.5})
    request = request_of_core(core, runtime, bound_request_class(runtime))

    assert value_of(request.exec()) == [3]
    assert runtime.host.calls[0].id == "seven"
    assert json.loads(request.parameters()) == {"a": 1.5}
    assert isinstance(request, InferenceRequest)
