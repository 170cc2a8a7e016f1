import dataclasses

import pytest

from merrow.backends.base import InstanceDescription, ModelContext
from merrow.backends.identity import IdentityBackend
from merrow.core.errors import InvalidArgumentError
from merrow.core.model_config import ModelConfig, ModelInput, ModelOutput, ModelParameter
from merrow.core.request import Request
from merrow.core.tensor import Tensor
from merrow.testing.recording_host import RecordingHost


def context(inputs, outputs, **parameters):
    config = ModelConfig(
        name="m",
        backend="identity",
        input=tuple(ModelInput(name=name, data_type=data_type, dims=dims) for name, data_type, dims in inputs),
        output=tuple(ModelOutput(name=name, data_type=data_type, dims=dims) for name, data_type, dims in outputs),
        parameters={key: ModelParameter(value) for key, value in parameters.items()},
    )
    return ModelContext("m", 1, config, "", "", "")


X, Y = ("X", "TYPE_FP32", (2,)), ("Y", "TYPE_FP32", (2,))


def test_an_output_is_its_inputs_very_bytes():
    data = memoryview(bytearray(8))
    instance = IdentityBackend().create_instance(
        context([X], [Y]), InstanceDescription("m_0", "KIND_CPU", 0), RecordingHost()
    )
    execution = instance.execute([Request("m", 1, None, {"X": Tensor("X", "FP32", (2,), data)})])

    (response,) = execution.outcomes
    (output,) = response.outputs
    assert (output.name, output.datatype, output.shape) == ("Y", "FP32", (2,))
    assert output.data is data
    assert response.parameters == {
        "param0": "an example string parameter",
        "param1": 42,
        "param2": False,
        "param3": 123.123,
    }


def instance_of(model, name="m_0"):
    IdentityBackend().validate(model)
    return IdentityBackend().create_instance(model, InstanceDescription(name, "KIND_CPU", 0), RecordingHost())


def test_pairs_go_by_the_numbers_of_their_names():
    model = context(
        [("INPUT1", "TYPE_INT8", (1,)), ("INPUT0", "TYPE_FP32", (1,))],
        [("OUTPUT0", "TYPE_FP32", (1,)), ("OUTPUT1", "TYPE_INT8", (1,))],
    )
    inputs = {"INPUT0": Tensor("INPUT0", "FP32", (1,), bytes(4)), "INPUT1": Tensor("INPUT1", "INT8", (1,), b"x")}
    (response,) = instance_of(model).execute([Request("m", 1, None, inputs)]).outcomes

    assert [(output.name, output.datatype) for output in response.outputs] == [("OUTPUT0", "FP32"), ("OUTPUT1", "INT8")]


def test_other_names_pair_by_position():
    both = context([X, ("B", "TYPE_INT8", (1,))], [Y, ("Z", "TYPE_INT8", (1,))])
    inputs = {"B": Tensor("B", "INT8", (1,), b"x"), "X": Tensor("X", "FP32", (2,), bytes(8))}
    (response,) = instance_of(both).execute([Request("m", 1, None, inputs)]).outcomes

    assert [(output.name, output.datatype) for output in response.outputs] == [("Y", "FP32"), ("Z", "INT8")]


def test_an_optional_input_that_is_left_out_is_zeros():
    both = context(
        [("X", "TYPE_FP32", (-1, 2)), ("B", "TYPE_STRING", (2,))],
        [("Y", "TYPE_FP32", (-1, 2)), ("Z", "TYPE_STRING", (2,))],
    )
    (response,) = instance_of(both).execute([Request("m", 1, None, {})]).outcomes

    assert [(output.name, output.shape, bytes(output.data)) for output in response.outputs] == [
        ("Y", (1, 2), bytes(8)),
        ("Z", (2,), bytes(8)),
    ]


def test_an_input_that_is_left_out_has_the_rows_of_the_others():
    model = context([X, ("B", "TYPE_INT8", (3,))], [Y, ("Z", "TYPE_INT8", (3,))])
    model = dataclasses.replace(model, config=dataclasses.replace(model.config, max_batch_size=4))
    request = Request("m", 1, None, {"X": Tensor("X", "FP32", (2, 2), bytes(16))})
    request.batch_size = 2
    (response,) = instance_of(model).execute([request]).outcomes

    assert response.outputs[1].shape == (2, 3)


@pytest.mark.parametrize(("name", "delay_ms"), [("m_0", 10), ("m_2", 40)])
def test_instances_can_be_slower_one_after_another(name, delay_ms):
    model = context([X], [Y], execute_delay_ms="10", instance_wise_delay_multiplier="2")
    execution = instance_of(model, name).execute([Request("m", 1, None, {"X": Tensor("X", "FP32", (2,), bytes(8))})])

    assert execution.end_ns - execution.start_ns >= delay_ms * 1_000_000


def test_an_execution_can_be_delayed():
    slow = context([X], [Y], execute_delay_ms="20")
    instance = IdentityBackend().create_instance(slow, InstanceDescription("m_0", "KIND_CPU", 0), RecordingHost())
    execution = instance.execute([Request("m", 1, None, {"X": Tensor("X", "FP32", (2,), bytes(8))})])

    assert execution.end_ns - execution.start_ns >= 20_000_000


@pytest.mark.parametrize(
    ("inputs", "outputs", "parameters", "text"),
    [
        ([X], [], {}, "equal input/output pairs, got 1 inputs and 0 outputs"),
        ([X], [("Y", "TYPE_INT8", (2,))], {}, "datatype to match, got TYPE_FP32 and TYPE_INT8"),
        (
            [("INPUT0", "TYPE_FP32", (2,))],
            [("OUTPUT1", "TYPE_FP32", (2,))],
            {},
            "expected input and output indices to match",
        ),
        ([X], [("Y", "TYPE_FP32", (3,))], {}, r"shape to match, got \[2\] and \[3\]"),
        ([X], [Y], {"execute_delay_ms": "soon"}, "failed to convert execute_delay_ms 'soon' to a number"),
    ],
)
def test_a_configuration_that_cannot_be_mirrored_is_refused(inputs, outputs, parameters, text):
    with pytest.raises(InvalidArgumentError, match=text):
        IdentityBackend().validate(context(inputs, outputs, **parameters))
