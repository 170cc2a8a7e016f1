import logging

import pytest

from merrow.backends.base import Deferral, UncountedExecution
from merrow.backends.probes.square import SquareBackend
from merrow.core.errors import InvalidArgumentError
from merrow.core.response import TimedResponse
from merrow.testing.recording_host import RecordingHost
from tests.backends.probes.probe_requests import CPU, config, context, request

IN, OUT = ("IN", "INT32", (1,)), ("OUT", "INT32", (1,))


@pytest.mark.parametrize(
    ("inputs", "outputs", "text"),
    [
        ([], [OUT], "expected 1 input, got 0"),
        ([IN], [OUT, OUT], "expected 1 output, got 2"),
        ([("X", "INT32", (1,))], [OUT], "expected first input tensor name to be IN, got X"),
        ([IN], [("X", "INT32", (1,))], "expected first output tensor name to be OUT, got X"),
        ([("IN", "INT32", (2, 3))], [OUT], "expected IN shape to be [1], got [2,3]"),
        ([IN], [("OUT", "INT32", (2,))], "expected OUT shape to be [1], got [2]"),
        ([("IN", "FP32", (1,))], [OUT], "expected IN datatype to be INT32, got TYPE_FP32"),
        ([IN], [("OUT", "FP32", (1,))], "expected OUT datatype to be INT32, got TYPE_FP32"),
    ],
)
def test_another_configuration_is_refused(inputs, outputs, text):
    with pytest.raises(InvalidArgumentError) as refusal:
        SquareBackend().validate(context(config(inputs, outputs)))
    assert refusal.value.message == text


def run(*requests, is_cancelled=False, **parameters):
    """The execution, and what was sent for the first request."""
    host = RecordingHost()
    model = context(config([IN], [OUT], parameters=parameters))
    backend = SquareBackend()
    backend.validate(model)
    instance = backend.create_instance(model, CPU, host)
    for each in requests:
        each.is_cancelled = is_cancelled
    execution = instance.execute(requests)
    instance.close()
    return execution, [response for request, response in host.sent if request is requests[0]]


def seen(responses):
    return [
        (
            response.outputs[0].as_numpy().tolist() if response.outputs else None,
            response.error.message if response.error else None,
            response.is_final,
            response.is_empty,
        )
        for response in responses
    ]


@pytest.mark.parametrize(("shape_of", "output"), [(lambda n: [n], [2]), (lambda n: [[n]], [[2]])])
def test_a_number_is_answered_so_many_times(shape_of, output):
    execution, responses = run(request(IN=shape_of(2)))

    assert isinstance(execution, UncountedExecution)
    assert execution.outcomes == [Deferral.DEFERRED]
    assert seen(responses) == [(output, None, False, False)] * 2 + [(None, None, True, True)]
    assert [response.times.index for response in responses[:-1]] == [0, 1]
    assert all(
        response.times.start_ns <= response.times.output_start_ns <= response.times.end_ns
        for response in responses[:-1]
    )
    assert not isinstance(responses[-1], TimedResponse)


@pytest.mark.parametrize("number", [0, -3])
def test_nothing_is_answered_with_the_end(number):
    assert seen(run(request(IN=[number]))[1]) == [(None, None, True, True)]


def test_the_last_ones_fail_or_are_not_sent():
    _, responses = run(request(IN=[3]), CUSTOM_FAIL_COUNT=1, CUSTOM_EMPTY_COUNT=1)

    assert seen(responses) == [
        ([3], None, False, False),
        ([3], "simulated failure", False, False),
        (None, None, False, True),
        (None, None, True, True),
    ]


def test_a_cancelled_request_is_counted_once_and_ended():
    _, responses = run(request(IN=[3]), is_cancelled=True, CUSTOM_CANCEL_DELAY_NS=1000)

    assert seen(responses) == [(None, "cancelled", False, True), (None, None, True, True)]


def test_delays_are_within_the_times_of_a_response():
    _, responses = run(request(IN=[1]), CUSTOM_INFER_DELAY_NS=2_000_000, CUSTOM_OUTPUT_DELAY_NS=3_000_000)
    times = responses[0].times

    assert times.output_start_ns - times.start_ns >= 2_000_000
    assert times.end_ns - times.output_start_ns >= 3_000_000


def test_more_than_one_row_is_an_error():
    _, responses = run(request(IN=[[1], [2]]))

    assert seen(responses) == [(None, "unexpected shape for IN input", True, False)]


@pytest.mark.parametrize("text", ["x", "-1", "2147483648"])
def test_a_parameter_that_is_no_number_is_logged_and_does_not_count(text, caplog):
    caplog.set_level(logging.ERROR, "merrow.model")
    _, responses = run(request(IN=[1]), CUSTOM_FAIL_COUNT=text)

    assert seen(responses)[0] == ([1], None, False, False)
    assert caplog.messages == [
        f"model 'm': parameter CUSTOM_FAIL_COUNT must be a number up to 2147483647, got '{text}'"
    ]
