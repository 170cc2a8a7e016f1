import numpy as np
import pytest

from merrow.core.errors import InvalidArgumentError
from merrow.core.model_config import ModelConfig, ModelInput, ModelOutput, ModelTensorReshape
from merrow.core.request import Request
from merrow.core.response import Response
from merrow.core.tensor import Tensor
from merrow.engine.validation import RequestValidator, ResponseShaper

NOTE = (
    "NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be prepended to each "
    "input shape. If you want to specify the full shape including the batch dim in your input dims config, try setting "
    "max_batch_size to zero. See the model configuration docs for more info on max_batch_size."
)


def fp32(name="A", shape=(1, 2), data=None):
    size = 4 * int(np.prod([max(dim, 0) for dim in shape]))
    return Tensor(name, "FP32", shape, bytes(size) if data is None else data)


def config(*inputs, max_batch_size=8, outputs=("Y",)):
    return ModelConfig(
        name="m",
        max_batch_size=max_batch_size,
        input=inputs or (ModelInput(name="A", data_type="TYPE_FP32", dims=(2,)),),
        output=tuple(ModelOutput(name=name, data_type="TYPE_FP32", dims=(2,)) for name in outputs),
    )


def validate(model_config, *tensors, id="", requested=(), is_raw=False):
    request = Request("m", 1, None, {tensor.name: tensor for tensor in tensors}, requested, id, is_raw=is_raw)
    RequestValidator(model_config).validate(request)
    return request


def failure(model_config, *tensors, **options):
    with pytest.raises(InvalidArgumentError) as caught:
        validate(model_config, *tensors, **options)
    return caught.value.message


OPTIONAL = config(
    ModelInput(name="A", data_type="TYPE_FP32", dims=(2,)),
    ModelInput(name="B", data_type="TYPE_FP32", dims=(2,), optional=True),
)
TWO = config(
    ModelInput(name="A", data_type="TYPE_FP32", dims=(2,)), ModelInput(name="B", data_type="TYPE_FP32", dims=(2,))
)
STRINGS = config(ModelInput(name="A", data_type="TYPE_STRING", dims=(-1,)), max_batch_size=0)


def test_a_valid_request_passes_and_knows_its_rows():
    assert validate(config(), fp32(shape=(3, 2))).batch_size == 3


def test_without_a_batch_dimension_a_request_is_one_row():
    assert validate(config(max_batch_size=0), fp32(shape=(2,))).batch_size == 1


def test_the_same_shape_is_accepted_and_checked_again_the_second_time():
    validator = RequestValidator(config())
    for _ in range(2):
        request = Request("m", 1, None, {"A": fp32(shape=(2, 2))})
        validator.validate(request)
        assert request.batch_size == 2
    with pytest.raises(InvalidArgumentError, match="Expected 16, got 15"):
        validator.validate(Request("m", 1, None, {"A": fp32(shape=(2, 2), data=bytes(15))}))


@pytest.mark.parametrize(
    ("model_config", "tensors", "text"),
    [
        (
            config(),
            (),
            "[request id: <id_unknown>] expected 1 inputs but got 0 inputs for model 'm'. Got input(s) [], but missing "
            "required input(s) ['A']. Please provide all required input(s).",
        ),
        (
            OPTIONAL,
            (),
            "[request id: <id_unknown>] expected number of inputs between 1 and 2 but got 0 inputs for model 'm'. Got "
            "input(s) [], but missing required input(s) ['A']. Please provide all required input(s).",
        ),
        (
            config(),
            (fp32(), fp32("B")),
            "[request id: <id_unknown>] expected 1 inputs but got 2 inputs for model 'm'. Got input(s) ['A','B'], but "
            "missing required input(s) ]. Please provide all required input(s).",
        ),
        (config(), (fp32("X"),), "unexpected inference input 'X' for model 'm'"),
        (
            config(),
            (fp32(shape=()),),
            "[request id: <id_unknown>] input 'A' has no shape but model requires batch dimension for 'm'",
        ),
        (
            TWO,
            (fp32(shape=(1, 2)), fp32("B", (2, 2))),
            "[request id: <id_unknown>] input 'B' batch size does not match other inputs for 'm'",
        ),
        (
            config(),
            (fp32(shape=(9, 2)),),
            "[request id: <id_unknown>] inference request batch-size must be <= 8 for 'm'",
        ),
        (
            config(),
            (Tensor("A", "INT32", (1, 2), bytes(8)),),
            "[request id: <id_unknown>] inference input 'A' data-type is 'INT32', but model 'm' expects 'FP32'",
        ),
        (
            config(),
            (Tensor("A", "STRING", (1, 2), bytes(8)),),
            "[request id: <id_unknown>] inference input 'A' data-type is '<invalid>', but model 'm' expects 'FP32'",
        ),
        (
            config(),
            (fp32(shape=(1, -1)),),
            "[request id: <id_unknown>] All input dimensions should be specified for input 'A' for model 'm', got "
            "[1,-1]",
        ),
        (
            config(),
            (fp32(shape=(1, 3)),),
            "[request id: <id_unknown>] unexpected shape for input 'A' for model 'm'. Expected [-1,2], got [1,3]. "
            + NOTE,
        ),
        (
            config(max_batch_size=0),
            (fp32(shape=(3,)),),
            "[request id: <id_unknown>] unexpected shape for input 'A' for model 'm'. Expected [2], got [3]. ",
        ),
        (
            config(),
            (fp32(data=bytes(7)),),
            "[request id: <id_unknown>] input byte size mismatch for input 'A' for model 'm'. Expected 8, got 7",
        ),
        (
            config(),
            (fp32(shape=(0, 2)),),
            "[request id: <id_unknown>] input byte size mismatch for input 'A' for model 'm'. Expected 8, got 0",
        ),
        (
            STRINGS,
            (Tensor("A", "BYTES", (2,), b"\1\0\0\0x"),),
            "[request id: <id_unknown>] expected 2 string elements for inference input 'A' for model 'm', got 1",
        ),
        (
            STRINGS,
            (Tensor("A", "BYTES", (1,), b"\1\0\0\0x\1\0\0\0y"),),
            "[request id: <id_unknown>] unexpected number of string elements 2 for inference input 'A' for model 'm', "
            "expecting 1",
        ),
        (
            STRINGS,
            (Tensor("A", "BYTES", (2,), b"\1\0\0\0x\3\0\0\0yz"),),
            "incomplete string data for inference input 'A', expecting string of length 3 but only 2 bytes available",
        ),
        (
            STRINGS,
            (Tensor("A", "BYTES", (2,), b"\1\0\0\0x\1\0\0"),),
            "[request id: <id_unknown>] incomplete string length indicator for inference input 'A' for model 'm', "
            "expecting 4 bytes but only 3 bytes available. Please make sure the string length indicator is in one "
            "buffer.",
        ),
    ],
)
def test_a_broken_rule_has_tritons_text(model_config, tensors, text):
    assert failure(model_config, *tensors) == text


def test_the_request_id_stands_in_the_text():
    assert failure(config(), id="r7").startswith("[request id: r7] expected 1 inputs")


def test_an_unknown_output_is_found_before_anything_else():
    assert failure(config(), requested=("N",)) == "unexpected inference output 'N' for model 'm'"
    assert failure(config(), fp32(), requested=("N",)) == "unexpected inference output 'N' for model 'm'"


def raw(data):
    return Tensor("raw_input", "", (), data)


@pytest.mark.parametrize(
    ("data_type", "dims", "max_batch_size", "data", "shape", "encoded"),
    [
        ("TYPE_FP32", (2,), 8, bytes(8), (1, 2), bytes(8)),
        ("TYPE_FP32", (2,), 0, bytes(8), (2,), bytes(8)),
        ("TYPE_INT16", (-1, 2), 0, bytes(12), (3, 2), bytes(12)),
        ("TYPE_STRING", (1,), 4, b"abc", (1, 1), b"\3\0\0\0abc"),
    ],
)
def test_a_raw_request_takes_its_shape_from_the_configuration(data_type, dims, max_batch_size, data, shape, encoded):
    model_config = config(ModelInput(name="A", data_type=data_type, dims=dims), max_batch_size=max_batch_size)
    request = validate(model_config, raw(data), is_raw=True)

    assert request.inputs["A"].shape == shape
    assert request.inputs["A"].data == encoded


@pytest.mark.parametrize(
    ("model_config", "text"),
    [
        (
            TWO,
            "[request id: <id_unknown>] Raw request must only have 1 input (found 1) to be deduced but got 2 inputs in "
            "'m' model configuration",
        ),
        (
            config(ModelInput(name="A", data_type="TYPE_FP32", dims=(-1, -1))),
            "[request id: <id_unknown>] The shape of the raw input 'A' can not be deduced because there are more than "
            "one variable-sized dimension",
        ),
        (
            config(ModelInput(name="A", data_type="TYPE_STRING", dims=(2,))),
            "[request id: <id_unknown>] For BYTE datatype raw input 'A', the model must have input shape [1]",
        ),
        (
            config(),
            "[request id: <id_unknown>] input byte size mismatch for input 'raw_input' for model 'm'. Expected 8, got "
            "0",
        ),
    ],
)
def test_a_raw_request_that_cannot_be_deduced_says_why(model_config, text):
    assert failure(model_config, raw(b""), is_raw=True) == text


def test_a_missing_required_input_passes_while_the_count_is_in_range():
    assert validate(OPTIONAL, fp32("B")).batch_size == 1


def test_zero_elements_are_fine_where_a_dimension_may_vary():
    assert validate(STRINGS, Tensor("A", "BYTES", (0,), b"")).batch_size == 1


def test_the_model_sees_the_reshaped_shape_and_the_client_its_own():
    reshaped = ModelConfig(
        name="m",
        max_batch_size=4,
        input=(ModelInput(name="A", data_type="TYPE_FP32", dims=(1, -1), reshape=ModelTensorReshape((-1,))),),
        output=(ModelOutput(name="Y", data_type="TYPE_FP32", dims=(1, -1), reshape=ModelTensorReshape((-1,))),),
    )
    request = validate(reshaped, fp32(shape=(2, 1, 3)))
    assert request.inputs["A"].shape == (2, 3)

    response = Response("m", 1, outputs=[Tensor("Y", "FP32", (2, 3), bytes(24))])
    ResponseShaper(reshaped).shape(request, response)
    assert response.outputs[0].shape == (2, 1, 3)


def test_requests_share_a_batch_key_only_when_varying_shapes_agree():
    varying = config(ModelInput(name="A", data_type="TYPE_FP32", dims=(-1,)))
    validator = RequestValidator(varying)
    assert validator.batch_key_needed()
    keys = [validator.batch_key(Request("m", 1, None, {"A": fp32(shape=shape)})) for shape in [(1, 2), (3, 2), (1, 3)]]
    assert keys[0] == keys[1] != keys[2]
    assert not RequestValidator(config()).batch_key_needed()


def test_requests_share_a_batch_only_with_the_same_shape_tensors():
    shapes = config(
        ModelInput(name="A", data_type="TYPE_FP32", dims=(2,)),
        ModelInput(name="S", data_type="TYPE_INT32", dims=(2,), is_shape_tensor=True),
    )
    validator = RequestValidator(shapes)
    assert validator.batch_key_needed()

    def key(rows, *numbers):
        tensors = {"A": fp32(shape=(rows, 2)), "S": Tensor.from_numpy("S", np.array(numbers, np.int32))}
        return validator.batch_key(Request("m", 1, None, tensors))

    assert key(1, 3, 4) == key(2, 3, 4)
    assert key(1, 3, 4) != key(1, 3, 5)
