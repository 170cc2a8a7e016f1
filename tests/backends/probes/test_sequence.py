import time

import pytest

from merrow.backends.probes.sequence import SequenceBackend
from merrow.core.errors import InvalidArgumentError, UnsupportedError
from merrow.testing.recording_host import RecordingHost
from tests.backends.probes.probe_requests import CPU, batching, config, context, outcomes, request

VECTOR = ([("INPUT", "INT32", (-1,))], [("OUTPUT", "INT32", (-1,))])


def instance(max_batch_size=0, **parameters):
    model = context(
        config(*VECTOR, max_batch_size=max_batch_size, parameters=parameters, batching=batching("START", "READY"))
    )
    backend = SequenceBackend()
    backend.validate(model)
    return backend.create_instance(model, CPU, RecordingHost())


def step(values, start=0, ready=1, correlation_id=1):
    return request(correlation_id, INPUT=values, START=[start], READY=[ready])


@pytest.mark.parametrize("controls", [("START",), ("START", "END"), ("START", "READY", "END")])
def test_other_controls_are_refused(controls):
    with pytest.raises(InvalidArgumentError) as refusal:
        SequenceBackend().validate(context(config(*VECTOR, batching=batching(*controls))))
    assert refusal.value.message == "'START' and 'READY' must be configured as the control inputs"


def test_a_row_adds_up_from_its_start():
    model = instance()

    assert outcomes(model.execute([step([1, 2], start=1)])) == [{"OUTPUT": [3, 3]}]
    assert outcomes(model.execute([step([4])])) == [{"OUTPUT": [7]}]
    assert outcomes(model.execute([step([5], start=1)])) == [{"OUTPUT": [5]}]


def test_each_row_has_its_own_sum_whatever_its_correlation_id():
    model = instance(max_batch_size=2)
    model.execute([step([[1]], start=1), step([[10]], start=1)])

    assert outcomes(model.execute([step([[1]], correlation_id=9), step([[1]], correlation_id=9)])) == [
        {"OUTPUT": [[2]]},
        {"OUTPUT": [[11]]},
    ]


def test_a_row_that_is_not_ready_keeps_its_sum_and_gets_no_output():
    model = instance()
    model.execute([step([1], start=1)])

    assert outcomes(model.execute([step([5], start=1, ready=0)])) == [{}]
    assert outcomes(model.execute([step([1])])) == [{"OUTPUT": [2]}]


def test_sums_wrap_and_nothing_is_zero():
    model = instance()

    assert outcomes(model.execute([step([2**31 - 1, 1], start=1)])) == [{"OUTPUT": [-(2**31)] * 2}]
    assert outcomes(model.execute([step([], start=1)])) == [{"OUTPUT": []}]


def test_more_rows_than_the_batch_size_are_refused():
    with pytest.raises(UnsupportedError, match="unable to execute batch larger than max-batch-size"):
        instance(max_batch_size=1).execute([step([[1]]), step([[1]])])


def test_one_bad_request_fails_alone():
    model = instance(max_batch_size=3)

    assert outcomes(
        model.execute([step([[1], [2]], start=1), step([[1]], start=1, correlation_id="x"), step([[1]], start=1)])
    ) == [
        "unable to execute more than one timestep at a time",
        "[request id: <id_unknown>] correlation ID in request is not an unsigned int",
        {"OUTPUT": [[1]]},
    ]


def test_the_delay_is_before_the_execution_begins():
    start_ns = time.monotonic_ns()
    execution = instance(execute_delay_ms=20).execute([step([1], start=1)])

    assert execution.start_ns - start_ns >= 20_000_000
