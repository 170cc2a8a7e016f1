import pytest

from merrow.backends.base import InstanceDescription, ModelContext
from merrow.backends.identity import IdentityBackend
from merrow.core.errors import InvalidArgumentError
from merrow.core.model_config import ModelConfig, ModelInput, ModelOutput, ModelParameter
from merrow.core.request import Request
from merrow.core.tensor import Tensor


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
    instance = IdentityBackend().create_instance(context([X], [Y]), InstanceDescription("m_0", "KIND_CPU", 0))
    execution = instance.execute([Request("m", 1, None, {"X": Tensor("X", "FP32", (2,), data)})])

    (response,) = execution.outcomes
    (output,) = response.outputs
    assert (output.name, output.datatype, output.shape) == ("Y", "FP32", (2,))
    assert output.data is data
    assert response.parameters == {"param0": "an example string parameter", "param1": 42, "param2": False}


def test_pairs_go_by_position_and_a_missing_optional_input_has_no_output():
    both = context([X, ("B", "TYPE_INT8", (1,))], [Y, ("Z", "TYPE_INT8", (1,))])
    instance = IdentityBackend().create_instance(both, InstanceDescription("m_0", "KIND_CPU", 0))
    execution = instance.execute([Request("m", 1, None, {"B": Tensor("B", "INT8", (1,), b"x")})])

    assert [output.name for output in execution.outcomes[0].outputs] == ["Z"]


def test_an_execution_can_be_delayed():
    slow = context([X], [Y], execute_delay_ms="20")
    instance = IdentityBackend().create_instance(slow, InstanceDescription("m_0", "KIND_CPU", 0))
    execution = instance.execute([Request("m", 1, None, {"X": Tensor("X", "FP32", (2,), bytes(8))})])

    assert execution.end_ns - execution.start_ns >= 20_000_000


@pytest.mark.parametrize(
    ("inputs", "outputs", "parameters", "text"),
    [
        ([X], [], {}, "equal input/output pairs, got 1 inputs and 0 outputs"),
        ([X], [("Y", "TYPE_INT8", (2,))], {}, "datatype to match, got TYPE_FP32 and TYPE_INT8"),
        ([X], [("Y", "TYPE_FP32", (3,))], {}, r"shape to match, got \[2\] and \[3\]"),
        ([X], [Y], {"execute_delay_ms": "soon"}, "failed to convert execute_delay_ms 'soon' to a number"),
    ],
)
def test_a_configuration_that_cannot_be_mirrored_is_refused(inputs, outputs, parameters, text):
    with pytest.raises(InvalidArgumentError, match=text):
        IdentityBackend().validate(context(inputs, outputs, **parameters))
