import numpy as np
import pytest

from merrow.backends.probes.dyna_sequence import DynaSequenceBackend
from merrow.core.errors import InternalError, InvalidArgumentError, UnsupportedError
from merrow.testing.recording_host import RecordingHost
from tests.backends.probes.probe_requests import CPU, batching, config, context, outcomes, request

VECTOR = ([("INPUT", "INT32", (-1,))], [("OUTPUT", "INT32", (-1,))])


def model_of(*controls, max_batch_size=0):
    return context(config(*VECTOR, max_batch_size=max_batch_size, batching=batching(*controls)))


def instance(data_type="TYPE_UINT64", max_batch_size=0):
    model = model_of("START", "END", "READY", ("CORRID", data_type), max_batch_size=max_batch_size)
    backend = DynaSequenceBackend()
    backend.validate(model)
    return backend.create_instance(model, CPU, RecordingHost())


def step(values, correlation_id=7, start=0, end=0, ready=1):
    if isinstance(correlation_id, str):
        control = np.array([correlation_id.encode()], np.object_)
    else:
        control = np.array([correlation_id], np.uint64)
    return request(correlation_id, INPUT=values, START=[start], END=[end], READY=[ready], CORRID=control)


@pytest.mark.parametrize(
    ("controls", "error", "text"),
    [
        (
            ("START", "READY"),
            InvalidArgumentError,
            "'START', 'END, 'READY' and 'CORRID' must be configured as the control inputs",
        ),
        (("START", "END", "READY", "X"), InternalError, "attempt to access non-existing array index '4'"),
        (
            ("START", "END", "READY", ("CORRID", "TYPE_INT32")),
            InvalidArgumentError,
            "model CORRID control input must have TYPE_UINT64 or TYPE_STRING data-type",
        ),
    ],
)
def test_other_controls_are_refused(controls, error, text):
    with pytest.raises(error) as refusal:
        DynaSequenceBackend().validate(model_of(*controls))
    assert refusal.value.message == text


def test_a_correlation_id_adds_up_and_is_forgotten_at_its_end():
    model = instance()

    assert outcomes(model.execute([step([1, 2], start=1)])) == [{"OUTPUT": [3, 3]}]
    assert outcomes(model.execute([step([4])])) == [{"OUTPUT": [7]}]
    assert outcomes(model.execute([step([1], correlation_id=8, start=1)])) == [{"OUTPUT": [1]}]
    assert outcomes(model.execute([step([1], end=1)])) == [{"OUTPUT": [15]}]
    assert outcomes(model.execute([step([1])])) == [{"OUTPUT": [1]}]


def test_a_sequence_of_one_request():
    assert outcomes(instance().execute([step([1, 2], start=1, end=1)])) == [{"OUTPUT": [10, 10]}]


def test_a_request_that_is_not_ready_changes_nothing():
    model = instance()
    model.execute([step([1], start=1)])

    assert outcomes(model.execute([step([5], ready=0)])) == [{}]
    assert outcomes(model.execute([step([1])])) == [{"OUTPUT": [2]}]


def test_a_text_counts_as_the_number_it_starts_with():
    model = instance("TYPE_STRING")
    model.execute([step([1], "7 apples", start=1)])

    assert outcomes(model.execute([step([1], "7 pears", end=1)])) == [{"OUTPUT": [9]}]
    assert outcomes(model.execute([step([1], "pears", start=1)])) == [
        "dyna sequence backend expects correlation ID to be decodable into an integer"
    ]


def test_the_request_and_its_control_must_be_of_one_kind():
    text = step([1], "7", start=1)
    text.correlation_id = 7
    number = step([1], start=1)
    number.correlation_id = "7"

    assert outcomes(instance("TYPE_STRING").execute([text])) == [
        "[request id: <id_unknown>] correlation ID in request is not a string"
    ]
    assert outcomes(instance().execute([number])) == [
        "[request id: <id_unknown>] correlation ID in request is not an unsigned int"
    ]


def test_more_requests_than_the_batch_size_are_refused():
    with pytest.raises(UnsupportedError, match="unable to execute batch larger than max-batch-size"):
        instance().execute([step([1]), step([1])])
