import pytest

from merrow.backends.probes.iterative_sequence import (
    DELAY_SECONDS,
    IterativeSequenceBackend,
    IterativeSequenceInstance,
)
from merrow.core.errors import InvalidArgumentError
from merrow.testing.recording_host import RecordingHost
from tests.backends.probes.probe_requests import CPU, GPU, config, context, outcomes, request

TENSORS = ([("INPUT", "INT32", (1,))], [("OUTPUT", "INT32", (1,))])


def instance(max_batch_size=0):
    return IterativeSequenceInstance(context(config(*TENSORS, max_batch_size=max_batch_size)), 0.0)


def test_it_is_for_cpus_and_takes_half_a_second():
    backend = IterativeSequenceBackend()
    model = context(config(*TENSORS))
    backend.validate(model)
    assert isinstance(backend.create_instance(model, CPU, RecordingHost()), IterativeSequenceInstance)
    assert DELAY_SECONDS == 0.5
    with pytest.raises(InvalidArgumentError):
        backend.create_instance(model, GPU, RecordingHost())


def test_it_counts_down_and_asks_for_another_turn_until_zero():
    model = instance()
    steps = [model.execute([request(INPUT=[3])]) for _ in range(3)]

    assert [outcomes(step) for step in steps] == [[{"OUTPUT": [2]}], [{"OUTPUT": [1]}], [{"OUTPUT": [0]}]]
    assert [step.outcomes[0].is_final for step in steps] == [False, False, True]
    assert outcomes(model.execute([request(INPUT=[9])])) == [{"OUTPUT": [8]}]


@pytest.mark.parametrize(("value", "answer"), [(1, 0), (0, -1), (-5, -6)])
def test_nothing_to_count_is_one_answer(value, answer):
    execution = instance(max_batch_size=1).execute([request(INPUT=[[value]])])

    assert outcomes(execution) == [{"OUTPUT": [[answer]]}]
    assert execution.outcomes[0].is_final


def test_each_correlation_id_counts_for_itself():
    model = instance()
    model.execute([request(1, INPUT=[5]), request(2, INPUT=[3])])

    assert outcomes(model.execute([request(1, INPUT=[5]), request(2, INPUT=[3]), request("x", INPUT=[3])])) == [
        {"OUTPUT": [3]},
        {"OUTPUT": [1]},
        "[request id: <id_unknown>] correlation ID in request is not an unsigned int",
    ]
