import gc
import json
import threading

import numpy as np
import pytest

from merrow.backends.python.pb_errors import TritonError, TritonModelException
from merrow.backends.python.pb_exchange import (
    InferenceRequest,
    InferenceResponse,
    MemoryType,
    PreferredMemory,
    close_senders,
    encode_response,
    has_senders,
    request_of_core,
    sent_slot_of,
    slot_of,
)
from merrow.backends.python.pb_tensor import Tensor
from merrow.core.errors import NotFoundError
from tests.backends.python.model_files import make_request

OUT = Tensor("OUT", np.arange(3, dtype=np.float32))
OTHER = Tensor("OTHER", np.zeros(1))


def batch_request(**fields):
    return request_of_core(make_request({"A": np.zeros(2), "B": np.ones(1)}, **fields), ("OUT", "OTHER"))


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
    request = request_of_core(core_request, ())
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


def test_what_is_not_available_yet_says_so():
    with pytest.raises(TritonModelException, match="not available yet"):
        own_request().exec()
    with pytest.raises(TritonModelException, match="not available yet"):
        own_request().async_exec().send(None)
    with pytest.raises(TritonModelException, match="not available yet"):
        batch_request().set_release_flags(2)
    batch_request().set_release_flags(1)
    with pytest.raises(TypeError, match=r"set_release_flags\(\): incompatible function arguments"):
        batch_request().set_release_flags("a")


def test_a_response_holds_tensors_or_an_error():
    assert InferenceResponse([OUT]).output_tensors() == [OUT]
    assert InferenceResponse((OUT,)).output_tensors() == [OUT]
    assert InferenceResponse().output_tensors() == []
    assert InferenceResponse(output_tensors=[OUT]).error() is None
    error = TritonError("x")
    assert InferenceResponse([], error).error() is error
    assert InferenceResponse(error=error).has_error()
    assert json.loads(InferenceResponse([], parameters={"a": 1, "b": "c"}).parameters()) == {"a": 1, "b": "c"}


@pytest.mark.parametrize("args", [([1],), ("a",), ([], "a"), (5,), ([], None, {}, 1)])
def test_a_response_of_the_wrong_types_is_refused(args):
    with pytest.raises(TypeError) as caught:
        InferenceResponse(*args)

    assert str(caught.value) == (
        "__init__(): incompatible constructor arguments. The following argument types are supported:\n"
        "    1. c_python_backend_utils.InferenceResponse(output_tensors: List[c_python_backend_utils.Tensor] = [], "
        "error: c_python_backend_utils.TritonError = None, parameters: object = None)\n\n"
        f"Invoked with: {', '.join(map(repr, args))}"
    )


def test_a_response_that_makes_no_sense_is_refused():
    with pytest.raises(TritonModelException) as caught:
        InferenceResponse([None])
    assert str(caught.value) == "Output tensor for inference response should not be empty."
    with pytest.raises(TritonModelException):
        InferenceResponse([], parameters={"a": 1.5})


def test_only_what_was_asked_for_is_encoded():
    response = InferenceResponse([OUT, OTHER, OUT], parameters={"p": 1})

    every = encode_response(response, make_request(), ("OUT", "OTHER"))
    assert [tensor.name for tensor in every.outputs] == ["OUT", "OTHER", "OUT"]
    assert every.parameters == {"p": 1}
    some = encode_response(response, make_request(requested_outputs=("OTHER", "NONE")), ("OUT", "OTHER"))
    assert [tensor.name for tensor in some.outputs] == ["OTHER"]


def test_an_error_response_keeps_its_code_and_loses_its_tensors():
    response = InferenceResponse([OUT], TritonError("gone", TritonError.NOT_FOUND))
    encoded = encode_response(response, make_request(), ("OUT",))

    assert isinstance(encoded.error, NotFoundError)
    assert encoded.error.message == "gone"
    assert encoded.outputs == ()


def test_preferred_memory_takes_members_only():
    with pytest.raises(TypeError, match=r"PreferredMemory\(preferred_memory_type"):
        PreferredMemory(0)


def test_a_sender_sends_a_response_and_the_final_flag_together_or_apart():
    for steps in ([(InferenceResponse(), 1)], [(InferenceResponse(), 0), (None, 1)]):
        request = batch_request()
        assert sent_slot_of(request) is None
        assert not has_senders([request])
        sender = request.get_response_sender()
        assert has_senders([request])
        slot = sent_slot_of(request)
        for response, flags in steps:
            assert not slot.settled.is_set()
            sender.send(response, flags)
        assert slot.is_final
        assert slot.settled.is_set()
        assert slot.response is steps[0][0]


NO_RESPONSE = "Inference Response object must be provided when the response flags is set to zero."
TOO_EARLY = "Unable to send response. Non-decoupled model cannot send complete final before sending a response."
TOO_MANY = "Unable to send response. Non-decoupled model cannot send more than one response."
CLOSED = "Unable to send response. Response sender has been closed."


@pytest.mark.parametrize(
    ("before", "arguments", "text"),
    [
        ([], (None, 2), "Unable to send response. Unsupported flag provided."),
        ([], (None, 0), NO_RESPONSE),
        ([], (None, 1), TOO_EARLY),
        ([(InferenceResponse(), 0)], (InferenceResponse(), 0), TOO_MANY),
        ([(InferenceResponse(), 1)], (InferenceResponse(), 1), TOO_MANY),
        ([(InferenceResponse(), 1)], (None, 1), CLOSED),
    ],
)
def test_a_sender_refuses_what_must_not_be_sent(before, arguments, text):
    sender = batch_request().get_response_sender()
    for each in before:
        sender.send(*each)

    with pytest.raises(TritonModelException) as caught:
        sender.send(*arguments)
    assert str(caught.value) == text


def test_a_sender_takes_responses_only():
    with pytest.raises(TypeError, match=r"send\(\): incompatible function arguments"):
        batch_request().get_response_sender().send(5, flags=1)


def test_a_request_of_the_models_own_cannot_be_answered():
    sender = own_request().get_response_sender()

    assert sender.is_cancelled() is False
    with pytest.raises(TritonModelException) as caught:
        sender.send(InferenceResponse(), 1)
    assert str(caught.value) == (
        "Unable to send response. Response sender has no reference to the decoupled state of the model."
    )


def test_senders_of_an_answered_request_are_closed():
    request = batch_request()
    sender = request.get_response_sender()
    close_senders(request)

    with pytest.raises(TritonModelException) as caught:
        sender.send(InferenceResponse(), 1)
    assert str(caught.value) == CLOSED
    close_senders(batch_request())


def test_all_senders_of_a_request_are_one():
    request = batch_request()
    request.get_response_sender().send(InferenceResponse(), 0)
    request.get_response_sender().send(None, 1)

    assert slot_of(request).is_final


def test_a_slot_is_settled_when_nobody_can_send_any_more():
    request = batch_request()
    slot = slot_of(request)
    sender = request.get_response_sender()
    del request
    gc.collect()
    assert not slot.settled.is_set()
    del sender
    gc.collect()

    assert slot.settled.is_set()
    assert not slot.is_final


def test_of_many_threads_one_sends():
    request = batch_request()
    sender = request.get_response_sender()
    refused = []

    def send():
        try:
            sender.send(InferenceResponse(), 1)
        except TritonModelException as error:
            refused.append(str(error))

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert refused == [TOO_MANY] * 7
