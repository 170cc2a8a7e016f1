import os
import threading

import numpy as np
import pytest

from merrow.backends.python import runtime as runtime_module
from merrow.backends.python.pb_errors import TritonModelException
from merrow.backends.python.pb_exchange import InferenceRequest, answering_of, request_of_core
from merrow.backends.python.pb_response import InferenceResponse
from merrow.backends.python.pb_sender import InferenceResponseSender
from merrow.backends.python.pb_tensor import Tensor
from merrow.core.errors import InternalError
from tests.backends.python.bound_models import bound_request_class, make_runtime
from tests.backends.python.model_files import make_request

NO_RESPONSE = "Inference Response object must be provided when the response flags is set to zero."
TOO_EARLY = "Unable to send response. Non-decoupled model cannot send complete final before sending a response."
TOO_MANY = "Unable to send response. Non-decoupled model cannot send more than one response."
CLOSED = "Unable to send response. Response sender has been closed."
PREFIX = "Failed to process the request(s) for model 'm_0_0', message: "


@pytest.fixture
def runtime(request):
    runtime = make_runtime(getattr(request, "param", False))
    yield runtime
    runtime.close()


decoupled = pytest.mark.parametrize("runtime", [True], indirect=True)


def batch_request(runtime):
    return request_of_core(make_request(), runtime, bound_request_class(runtime))


def response_of(*values):
    return InferenceResponse([Tensor("OUT", np.array(values, np.float32))])


def values_of(runtime):
    """What was sent: its values, None for an empty response, and whether it is final."""
    return [
        (response.outputs[0].as_numpy().tolist() if response.outputs else None, response.is_final)
        for _, response in runtime.host.sent
    ]


def test_a_model_that_is_not_decoupled_answers_with_the_final_flag(runtime):
    for steps in ([(response_of(1), 1)], [(response_of(1), 0), (None, 1)]):
        runtime.host.sent.clear()
        sender = batch_request(runtime).get_response_sender()
        for response, flags in steps:
            assert values_of(runtime) == []
            sender.send(response, flags)
        assert values_of(runtime) == [([1.0], True)]


@decoupled
def test_a_decoupled_model_sends_any_number_of_responses(runtime):
    sender = batch_request(runtime).get_response_sender()
    sender.send(response_of(1))
    sender.send(response_of(2))
    sender.send(flags=1)

    assert values_of(runtime) == [([1.0], False), ([2.0], False), (None, True)]
    assert runtime.host.sent[-1][1].is_empty


@decoupled
def test_the_last_response_may_carry_the_final_flag(runtime):
    batch_request(runtime).get_response_sender().send(response_of(1), flags=1)

    assert values_of(runtime) == [([1.0], True)]
    assert not runtime.host.sent[0][1].is_empty


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
def test_a_sender_refuses_what_must_not_be_sent(runtime, before, arguments, text):
    request = batch_request(runtime)
    sender = request.get_response_sender()
    for each in before:
        sender.send(*each)

    with pytest.raises(TritonModelException) as caught:
        sender.send(*arguments)
    assert str(caught.value) == text
    answering_of(request).close()


@decoupled
@pytest.mark.parametrize("arguments", [(None, 1), (InferenceResponse(), 0), (InferenceResponse(), 1)])
def test_a_decoupled_model_sends_nothing_after_the_final_flag(runtime, arguments):
    sender = batch_request(runtime).get_response_sender()
    sender.send(flags=1)

    with pytest.raises(TritonModelException) as caught:
        sender.send(*arguments)
    assert str(caught.value) == CLOSED


def test_a_sender_takes_responses_only(runtime):
    request = batch_request(runtime)
    with pytest.raises(TypeError, match=r"send\(\): incompatible function arguments"):
        request.get_response_sender().send(5, flags=1)
    with pytest.raises(TypeError, match="No constructor defined"):
        InferenceResponseSender()
    answering_of(request).close()


def test_a_request_of_the_models_own_cannot_be_answered():
    sender = InferenceRequest(inputs=[], requested_output_names=[], model_name="m").get_response_sender()

    assert sender.is_cancelled() is False
    with pytest.raises(TritonModelException) as caught:
        sender.send(InferenceResponse(), 1)
    assert str(caught.value) == (
        "Unable to send response. Response sender has no reference to the decoupled state of the model."
    )


def test_senders_of_an_answered_request_are_closed(runtime):
    request = batch_request(runtime)
    sender = request.get_response_sender()
    answering_of(request).close()

    with pytest.raises(TritonModelException) as caught:
        sender.send(InferenceResponse(), 1)
    assert str(caught.value) == CLOSED


def test_a_sender_sees_that_the_client_has_gone(runtime):
    request = batch_request(runtime)
    sender = request.get_response_sender()
    assert not sender.is_cancelled()
    request._request.is_cancelled = True
    assert sender.is_cancelled()
    answering_of(request).close()


def test_what_the_server_does_not_take_is_said(runtime):
    def refuse(request, response):
        raise InternalError("the server is gone")

    runtime.host.send = refuse
    with pytest.raises(TritonModelException) as caught:
        batch_request(runtime).get_response_sender().send(InferenceResponse(), 1)
    assert str(caught.value) == "An error occurred while sending a response."


def abandon(runtime, steps=(), in_cycle=False):
    """A request that the model forgets after these steps; returns what the client gets."""
    request = batch_request(runtime)
    core = request._request
    sender = request.get_response_sender()
    for step in steps:
        sender.send(*step)
    answering_of(request).watch()
    if in_cycle:
        cycle = [sender, request]
        cycle.append(cycle)
        del cycle
    del request, sender
    return runtime.host.wait_for_end(core)


@pytest.mark.parametrize("in_cycle", [False, True])
def test_a_request_that_nobody_can_answer_any_more_fails(runtime, in_cycle, monkeypatch):
    monkeypatch.setattr(runtime_module, "_FIRST_PATIENCE_SECONDS", 0.001)
    (response,) = abandon(runtime, in_cycle=in_cycle)

    assert response.error.message == (
        f"{PREFIX}The model returned None for a request and dropped its response sender without sending a response."
    )


@decoupled
def test_a_stream_that_nobody_can_end_any_more_fails(runtime):
    first, last = abandon(runtime, [(response_of(1), 0)])

    assert not first.is_final
    assert last.error.message == f"{PREFIX}The model dropped the response sender of a request without the final flag."


def test_a_response_without_the_final_flag_counts_when_nobody_can_send_that(runtime):
    (response,) = abandon(runtime, [(response_of(1), 0)])

    assert response.outputs[0].as_numpy().tolist() == [1.0]


def test_looking_for_lost_senders_ends_when_there_are_none(runtime, monkeypatch):
    monkeypatch.setattr(runtime_module, "_FIRST_PATIENCE_SECONDS", 0.001)
    # In a large test run a collection takes long, and looking waits for a multiple of that.
    monkeypatch.setattr(runtime_module, "_SHARE", 0)
    for _ in range(3):
        abandon(runtime, in_cycle=True)
        while runtime._lost._is_looking:
            os.sched_yield()


def test_of_many_threads_one_sends(runtime):
    sender = batch_request(runtime).get_response_sender()
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
    assert len(runtime.host.sent) == 1
