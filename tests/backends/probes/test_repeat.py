import numpy as np
import pytest

from merrow.backends.base import Deferral
from merrow.backends.probes.repeat import RepeatBackend
from merrow.core.errors import InvalidArgumentError
from merrow.testing.recording_host import RecordingHost
from tests.backends.probes.probe_requests import CPU, config, context, request

INPUTS = [("IN", "INT32", (-1,)), ("DELAY", "UINT32", (-1,)), ("WAIT", "UINT32", (1,))]
OUTPUTS = [("OUT", "INT32", (1,)), ("IDX", "UINT32", (1,))]


def changed(tensors, position, tensor):
    return [*tensors[:position], tensor, *tensors[position + 1 :]]


@pytest.mark.parametrize(
    ("inputs", "outputs", "max_batch_size", "text"),
    [
        (INPUTS, OUTPUTS, 1, "repeat backend only supports models with max_batch_size == 0"),
        (INPUTS[:2], OUTPUTS, 0, "expected 3 inputs, got 2"),
        (INPUTS, OUTPUTS[:1], 0, "expected 2 outputs, got 1"),
        (changed(INPUTS, 0, ("X", "INT32", (-1,))), OUTPUTS, 0, "expected first input tensor name to be IN, got X"),
        (changed(INPUTS, 2, ("X", "UINT32", (1,))), OUTPUTS, 0, "expected third input tensor name to be WAIT, got X"),
        (INPUTS, changed(OUTPUTS, 1, ("X", "UINT32", (1,))), 0, "expected second output tensor name to be IDX, got X"),
        (changed(INPUTS, 0, ("IN", "INT32", (1, 2))), OUTPUTS, 0, "expected IN shape to have one dimension, got [1,2]"),
        (
            changed(INPUTS, 1, ("DELAY", "UINT32", (3,))),
            OUTPUTS,
            0,
            "expected IN and DELAY shape to match, got [-1] and [3]",
        ),
        (changed(INPUTS, 2, ("WAIT", "UINT32", (2,))), OUTPUTS, 0, "expected WAIT shape to be [1], got [2]"),
        (INPUTS, changed(OUTPUTS, 0, ("OUT", "INT32", (2,))), 0, "expected OUT shape to be [1], got [2]"),
        (changed(INPUTS, 0, ("IN", "FP32", (-1,))), OUTPUTS, 0, "expected IN datatype to be INT32, got TYPE_FP32"),
        (INPUTS, changed(OUTPUTS, 1, ("IDX", "INT32", (1,))), 0, "expected IDX datatype to be UINT32, got TYPE_INT32"),
    ],
)
def test_another_configuration_is_refused(inputs, outputs, max_batch_size, text):
    with pytest.raises(InvalidArgumentError) as refusal:
        RepeatBackend().validate(context(config(inputs, outputs, max_batch_size=max_batch_size)))
    assert refusal.value.message == text


def ask(values, delays, wait=0):
    return request(IN=values, DELAY=np.array(delays, np.uint32), WAIT=np.array([wait], np.uint32))


def run(*requests):
    host = RecordingHost()
    model = context(config(INPUTS, OUTPUTS))
    backend = RepeatBackend()
    backend.validate(model)
    instance = backend.create_instance(model, CPU, host)
    executions = [instance.execute([each]) for each in requests]
    instance.close()
    return executions, host.sent


def test_each_element_is_answered_and_then_the_end():
    (execution,), sent = run(ask([4, 2], [0, 5]))

    assert execution.outcomes == [Deferral.DEFERRED]
    responses = [response for _, response in sent]
    assert [[output.as_numpy().tolist() for output in response.outputs] for response in responses] == [
        [[4], [0]],
        [[2], [1]],
        [],
    ]
    assert [(response.is_final, response.is_empty) for response in responses] == [
        (False, False),
        (False, False),
        (True, True),
    ]


def test_requests_are_answered_independently():
    slow, quick = ask([1], [60]), ask([2], [0])
    _, sent = run(slow, quick)

    assert [request for request, _ in sent] == [quick, quick, slow, slow]


def test_the_instance_is_busy_for_the_wait():
    (execution,), _ = run(ask([], [], wait=20))

    assert execution.end_ns - execution.start_ns >= 20_000_000


def test_shapes_that_differ_are_an_error_of_the_request_which_comes_before_the_wait():
    (execution,), ((_, response),) = run(ask([1], [0, 0], wait=20))

    assert response.error.message == "expected IN and DELAY shape to match, got [1] and [2]"
    assert response.is_final
    assert execution.outcomes == [Deferral.DEFERRED]
    assert execution.end_ns - execution.start_ns >= 20_000_000


def test_a_batch_is_refused():
    model = context(config(INPUTS, OUTPUTS))
    instance = RepeatBackend().create_instance(model, CPU, RecordingHost())

    with pytest.raises(InvalidArgumentError, match="repeat backend does not support batched request execution"):
        instance.execute([ask([1], [0]), ask([1], [0])])
