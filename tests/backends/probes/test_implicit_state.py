import numpy as np
import pytest

from merrow.backends.probes.implicit_state import ImplicitStateBackend
from merrow.core.errors import InvalidArgumentError
from merrow.core.model_config import ModelSequenceBatchingState
from merrow.core.tensor import Tensor
from merrow.testing.recording_host import RecordingHost
from tests.backends.probes.probe_requests import CPU, batching, config, context, outcomes, request

MIB = 1024 * 1024
INPUTS = [("INPUT", "INT32", (1,)), ("TEST_CASE", "INT32", (1,))]


def instance(has_state=True, **settings):
    states = (ModelSequenceBatchingState("INPUT_STATE", "OUTPUT_STATE", "TYPE_INT32", (1,), **settings),)
    model = context(
        config(
            INPUTS, [("OUTPUT", "INT32", (1,))], batching=batching("START", "READY", "END", state=states * has_state)
        )
    )
    backend = ImplicitStateBackend()
    backend.validate(model)
    return backend.create_instance(model, CPU, RecordingHost())


def step(test_case, state=None, value=1, start=0.0, end=0.0):
    controls = {name: np.array([truth], np.float32) for name, truth in (("START", start), ("END", end), ("READY", 1.0))}
    result = request(INPUT=[value], TEST_CASE=[test_case], **controls)
    if state is not None:
        result.inputs["INPUT_STATE"] = state
    return result


def state_of(*numbers):
    return Tensor.from_numpy("INPUT_STATE", np.array(numbers, np.int32))


@pytest.mark.parametrize("controls", [("START", "READY"), ("A", "B", "C")])
def test_other_controls_are_refused(controls):
    with pytest.raises(InvalidArgumentError) as refusal:
        ImplicitStateBackend().validate(context(config(INPUTS, [], batching=batching(*controls))))
    assert refusal.value.message == "'START', 'END, and 'READY' must be configured as the control inputs"


def test_a_state_that_is_not_configured():
    assert outcomes(instance(has_state=False).execute([step(0, start=1.0)])) == [
        "unable to add state 'undefined_state'. State configuration is missing for model 'm'."
    ]
    assert outcomes(instance().execute([step(0)])) == ["state 'undefined_state' is not a valid state name."]


def test_the_sum_with_the_state_is_not_committed():
    assert outcomes(instance().execute([step(1, state_of(5), value=3)])) == [{"OUTPUT": [8]}]


def test_the_buffer_must_be_the_one_handed_out_before():
    model = instance(use_same_buffer_for_input_output=True)
    state, other = state_of(0), state_of(0)
    different = "Input and output state are using different buffers."

    assert outcomes(model.execute([step(2, state, start=1.0)])) == [{}]
    assert outcomes(model.execute([step(2, state)])) == [{}]
    assert outcomes(model.execute([step(2, other)])) == [different]
    # A new sequence begins anew, as one that follows an end does.
    assert outcomes(model.execute([step(2, other, start=1.0, end=1.0)])) == [{}]
    assert outcomes(model.execute([step(2, state)])) == [{}]


def test_without_one_buffer_each_request_is_given_another():
    model = instance()
    state = state_of(0)
    model.execute([step(2, state, start=1.0)])

    assert outcomes(model.execute([step(2, state)])) == ["Input and output state are using different buffers."]


def test_a_state_grows_by_a_mebibyte():
    model = instance(use_growable_memory=True)
    state = Tensor("INPUT_STATE", "INT8", (1024, 1024), bytes(MIB))
    for index in range(3):
        (outcome,) = model.execute([step(3, state, start=float(index == 0))]).outcomes
        (output,) = outcome.outputs
        assert (output.name, output.shape) == ("OUTPUT_STATE", ((index + 1) * MIB,))
        assert bytes(output.data) == b"".join(bytes([part]) * MIB for part in range(index + 1))
        state = Tensor("INPUT_STATE", "INT8", output.shape, output.data)


def test_any_other_case_does_nothing():
    assert outcomes(instance().execute([step(9, state_of(0))])) == [{}]
    assert outcomes(instance().execute([step(9)])) == [
        "[request id: <id_unknown>] unknown request input name INPUT_STATE"
    ]
