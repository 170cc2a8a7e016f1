import json

import numpy as np
import pytest

from merrow.backends.python.pb_errors import TritonModelException
from merrow.backends.python.pb_exchange import (
    InferenceRequest,
    MemoryType,
    PreferredMemory,
    answering_of,
    existing_answering,
    has_answering,
    request_of_core,
)
from merrow.backends.python.pb_tensor import Tensor
from tests.backends.python.bound_models import bound_request_class, make_runtime
from tests.backends.python.model_files import make_request

OUT = Tensor("OUT", np.arange(3, dtype=np.float32))


def batch_request(**fields):
    runtime = make_runtime(output_names=("OUT", "OTHER"))
    request = make_request({"A": np.zeros(2), "B": np.ones(1)}, **fields)
    return request_of_core(request, runtime, bound_request_class(runtime))


def own_request(**fields):
    return InferenceRequest(**{"inputs": [], "requested_output_names": [], "model_name": "m", **fields})


def test_a_request_of_a_batch_says_what_the_client_sent():
    request = batch_request(
        id="seven",
        correlation_id="c",
        flags=3,
        timeout_us=5,
        parameters={"a": 1, "b": "é", "c": True, "d": 1.5},
        requested_outputs=("OUT",),
    )

    assert [tensor.name() for tensor in request.inputs()] == ["A", "B"]
    assert request.inputs()[0] is request.inputs()[0]
    assert request.request_id() == "seven"
    assert request.correlation_id() == "c"
    assert request.flags() == 3
    assert request.timeout() == 5
    assert request.parameters() == '{"a":1,"b":"é","c":true,"d":1.5}'
    assert request.requested_output_names() == {"OUT"}
    assert request.trace().get_context() is None
    assert request.is_cancelled() is False


def test_a_client_that_asks_for_nothing_asks_for_everything():
    request = batch_request()

    assert request.requested_output_names() == {"OUT", "OTHER"}
    assert request.parameters() == "{}"


def test_cancellation_and_flags_are_those_of_the_request():
    core_request = make_request()
    runtime = make_runtime()
    request = request_of_core(core_request, runtime, bound_request_class(runtime))
    core_request.is_cancelled = True
    request.set_flags(2)

    assert request.is_cancelled()
    assert request.flags() == 2


def test_a_request_of_the_models_own():
    request = own_request(
        request_id="x",
        correlation_id=7,
        inputs=(OUT,),
        requested_output_names=["a", "a"],
        flags=1,
        timeout=2,
        parameters={"a": 1, "b": True},
        preferred_memory=PreferredMemory(MemoryType.TRITONSERVER_MEMORY_CPU),
    )

    assert request.inputs() == [OUT]
    assert request.requested_output_names() == {"a"}
    assert (request.request_id(), request.correlation_id(), request.flags(), request.timeout()) == ("x", 7, 1, 2)
    assert request.parameters() == '{"a": 1, "b": true}'
    assert request.is_cancelled() is False
    assert own_request().parameters() == "{}"
    assert InferenceRequest("a", "c", [], [], "m").correlation_id() == "c"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"inputs": [None]}, "Input tensor for request with id '' and model name 'm' should not be empty."),
        (
            {"requested_output_names": [""]},
            "Requested output name for request with id '' and model name 'm' should not be empty.",
        ),
        ({"correlation_id": 1.5}, "Correlation ID must be integer or string"),
        ({"parameters": {1: 1}}, "Expect parameters keys to have type str, found type <class 'int'>"),
        ({"parameters": {"a": 1.5}}, "Expect parameters values to have type bool/int/str, found type <class 'float'>"),
        ({"parameters": "x"}, "Expect N8pybind114dictE, got <class 'str'>"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(fields, text):
    with pytest.raises(TritonModelException) as caught:
        own_request(**fields)

    assert str(caught.value) == text


@pytest.mark.parametrize(
    "fields",
    [{"model_name": 1}, {"inputs": [1]}, {"inputs": None}, {"requested_output_names": [1]}, {"what": 1}, {"flags": ""}],
)
def test_a_request_of_the_wrong_types_is_refused(fields):
    with pytest.raises(TypeError, match=r"__init__\(\): incompatible constructor arguments"):
        own_request(**fields)


def test_release_flags_are_kept_with_the_right_to_answer():
    request = batch_request()
    request.set_release_flags(1)
    assert not has_answering([request])
    request.set_release_flags(2)
    assert existing_answering(request).is_rescheduled
    request.set_release_flags(1)
    assert not existing_answering(request).is_rescheduled
    with pytest.raises(TypeError, match=r"set_release_flags\(\): incompatible function arguments"):
        request.set_release_flags("a")
    with pytest.raises(TritonModelException, match=r"Only a request of a batch"):
        own_request().set_release_flags(2)
    existing_answering(request).close()


def test_all_senders_of_a_request_share_one_right_to_answer():
    request = batch_request()
    assert existing_answering(request) is None
    sender = request.get_response_sender()
    assert has_answering([request])
    assert sender._answering is request.get_response_sender()._answering is answering_of(request)
    answering_of(request).close()


def test_a_request_without_an_instance_cannot_call():
    with pytest.raises(TritonModelException, match="BLS is only supported during the 'execute' function"):
        own_request().exec()
    with pytest.raises(TritonModelException, match="BLS is only supported during the 'execute' function"):
        own_request().async_exec().send(None)


def test_a_trace_has_the_context_of_its_request():
    class Traced:
        def context_text(self):
            return '{"traceparent":"00-1-2-01"}'

    request = batch_request()
    assert request.trace().get_context() is None
    request._request.trace = Traced()
    assert json.loads(request.trace().get_context()) == {"traceparent": "00-1-2-01"}
    assert own_request(trace=request.trace()).trace().get_context() == request.trace().get_context()


def test_preferred_memory_takes_members_only():
    with pytest.raises(TypeError, match=r"PreferredMemory\(preferred_memory_type"):
        PreferredMemory(0)
