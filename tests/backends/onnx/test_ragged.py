"""Ragged batches: the tensors that describe them by value, and a real graph that reads them."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from merrow.backends.base import InstanceDescription, ModelContext
from merrow.backends.onnx.backend import OnnxBackend
from merrow.backends.onnx.ragged import RaggedPlan, concatenate
from merrow.core.errors import InternalError, InvalidArgumentError
from merrow.core.model_config import BatchInput, BatchOutput, ModelConfig, ModelInput, ModelOutput
from merrow.core.request import Request
from merrow.core.response import Response
from merrow.core.tensor import Tensor
from merrow.testing.recording_host import RecordingHost


def plan(kind: str, data_type: str = "TYPE_INT32") -> RaggedPlan:
    made = RaggedPlan.from_config(
        ModelConfig(
            max_batch_size=8,
            input=(ModelInput(name="x", dims=(-1, -1), allow_ragged_batch=True),),
            batch_input=(BatchInput(kind, ("b",), data_type, ("x",)),),
        )
    )
    assert made is not None
    return made


# Two requests: one row of 2 x 3, two rows of 1 x 4.
SHAPES = {"x": [(1, 2, 3), (2, 1, 4)]}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("BATCH_ELEMENT_COUNT", [6, 8]),
        ("BATCH_ACCUMULATED_ELEMENT_COUNT", [6, 14]),
        ("BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO", [0, 6, 14]),
        ("BATCH_MAX_ELEMENT_COUNT_AS_SHAPE", [0] * 8),
        ("BATCH_ITEM_SHAPE", [[2, 3], [1, 4], [1, 4]]),
        ("BATCH_ITEM_SHAPE_FLATTEN", [2, 3, 1, 4, 1, 4]),
    ],
)
@pytest.mark.parametrize(("data_type", "dtype"), [("TYPE_INT32", np.int32), ("TYPE_FP32", np.float32)])
def test_what_describes_a_batch(kind: str, expected: list[int], data_type: str, dtype: type):
    (tensor,) = plan(kind, data_type).batch_tensors(SHAPES).values()

    assert tensor.dtype == dtype
    assert tensor.tolist() == expected


def test_shapes_of_different_rank_cannot_be_told_row_by_row():
    with pytest.raises(InvalidArgumentError, match="'BATCH_ITEM_SHAPE' expects inputs of one rank, got \\[1, 2\\]"):
        plan("BATCH_ITEM_SHAPE").batch_tensors({"x": [(1, 2), (1, 2, 3)]})
    assert plan("BATCH_ITEM_SHAPE_FLATTEN").batch_tensors({"x": [(1, 2), (1, 2, 3)]})["b"].tolist() == [2, 2, 3]


def test_a_plain_configuration_has_no_plan():
    assert RaggedPlan.from_config(ModelConfig(max_batch_size=8, input=(ModelInput(name="x", dims=(-1,)),))) is None


def test_elements_are_put_in_a_row_and_cut_by_the_shape_of_the_source():
    made = RaggedPlan.from_config(
        ModelConfig(
            max_batch_size=8,
            input=(ModelInput(name="x", dims=(-1, 3), allow_ragged_batch=True),),
            output=(ModelOutput(name="y", dims=(-1, 3)),),
            batch_output=(BatchOutput(("y",), source_input=("x",)),),
        )
    )
    assert made is not None
    arrays = [np.arange(6).reshape(1, 2, 3), np.arange(6, 12).reshape(2, 1, 3)]
    row = concatenate(arrays)
    assert row.tolist() == list(range(12))

    pieces = made.scatter("y", row, {"x": [array.shape for array in arrays]})
    for piece, array in zip(pieces, arrays, strict=True):
        np.testing.assert_array_equal(piece, array)
        assert piece.base is not None, "a view"
    with pytest.raises(InternalError) as failure:
        made.scatter("y", row[:-1], {"x": [array.shape for array in arrays]})
    assert failure.value.message == "output 'y' has 11 elements, but the shapes of input 'x' ask for 12"


def test_an_output_cannot_have_a_dimension_that_its_source_lacks():
    made = RaggedPlan.from_config(
        ModelConfig(
            max_batch_size=8,
            input=(ModelInput(name="x", dims=(-1,)),),
            output=(ModelOutput(name="y", dims=(2, -1)),),
            batch_output=(BatchOutput(("y",), source_input=("x",)),),
        )
    )
    assert made is not None
    with pytest.raises(InternalError, match="cannot follow an input of shape \\[1, 2\\]"):
        made.scatter("y", np.zeros(4), {"x": [(1, 2)]})


def ragged_model() -> bytes:
    """DOUBLED = 2 x, cut up again by elements; SUM of each request, by the places where it begins and ends."""
    zero = numpy_helper.from_array(np.zeros(1, np.float32), "zero")
    constants = [
        zero,
        numpy_helper.from_array(np.array(2, np.float32), "two"),
        numpy_helper.from_array(np.array(0, np.int64), "axis"),
        numpy_helper.from_array(np.array([0], np.int64), "first"),
        numpy_helper.from_array(np.array([1], np.int64), "second"),
        numpy_helper.from_array(np.array([-1], np.int64), "last"),
        numpy_helper.from_array(np.array([2**31 - 1], np.int64), "end"),
        numpy_helper.from_array(np.array([-1, 1], np.int64), "column"),
    ]
    nodes = [
        helper.make_node("Mul", ["x", "two"], ["DOUBLED"]),
        helper.make_node("Concat", ["zero", "x"], ["padded"], axis=0),
        helper.make_node("CumSum", ["padded", "axis"], ["sums"]),
        helper.make_node("Slice", ["bounds", "first", "last"], ["starts"]),
        helper.make_node("Slice", ["bounds", "second", "end"], ["ends"]),
        helper.make_node("Gather", ["sums", "starts"], ["before"]),
        helper.make_node("Gather", ["sums", "ends"], ["after"]),
        helper.make_node("Sub", ["after", "before"], ["row"]),
        helper.make_node("Reshape", ["row", "column"], ["SUM"]),
    ]
    inputs = [("x", TensorProto.FLOAT, ["elements"]), ("bounds", TensorProto.INT32, ["requests"])]
    outputs = [("DOUBLED", TensorProto.FLOAT, ["elements"]), ("SUM", TensorProto.FLOAT, ["rows", 1])]
    graph = helper.make_graph(
        nodes,
        "ragged",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    serialized: bytes = model.SerializeToString()
    return serialized


CONFIG = ModelConfig(
    name="m",
    max_batch_size=8,
    input=(ModelInput(name="x", data_type="TYPE_FP32", dims=(-1,), allow_ragged_batch=True),),
    output=(
        ModelOutput(name="DOUBLED", data_type="TYPE_FP32", dims=(-1,)),
        ModelOutput(name="SUM", data_type="TYPE_FP32", dims=(1,)),
    ),
    batch_input=(BatchInput("BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO", ("bounds",), "TYPE_INT32", ("x",)),),
    batch_output=(BatchOutput(("DOUBLED",), source_input=("x",)),),
)


@pytest.mark.parametrize("lengths", [(3,), (3, 1, 5), (1, 1, 1, 1)])
def test_a_graph_runs_requests_of_different_length_together(tmp_path, lengths: tuple[int, ...]):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model.onnx").write_bytes(ragged_model())
    context = ModelContext("m", 1, CONFIG, "{}", str(tmp_path), str(tmp_path / "1"))
    instance = OnnxBackend().create_instance(context, InstanceDescription("m_0", "KIND_CPU", 0), RecordingHost())
    arrays = [np.arange(1, length + 1, dtype=np.float32).reshape(1, -1) * length for length in lengths]
    requests = [
        Request("m", 1, None, {"x": Tensor.from_numpy("x", array)})  # type: ignore[arg-type]  # nobody answers here
        for array in arrays
    ]

    execution = instance.execute(requests)
    for array, outcome in zip(arrays, execution.outcomes, strict=True):
        assert isinstance(outcome, Response)
        outputs = {tensor.name: tensor.as_numpy() for tensor in outcome.outputs}
        np.testing.assert_array_equal(outputs["DOUBLED"], array * 2)
        np.testing.assert_array_equal(outputs["SUM"], [[array.sum()]])
    instance.close()
