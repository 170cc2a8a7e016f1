import numpy as np
import pytest

from merrow.backends.probes import signature
from merrow.core.errors import InternalError, InvalidArgumentError
from merrow.core.tensor import Tensor
from tests.backends.probes.probe_requests import CPU, GPU, config, context, request

VECTOR_IN, VECTOR_OUT = ("INPUT", "INT32", (-1,)), ("OUTPUT", "INT32", (-1,))


@pytest.mark.parametrize(
    ("inputs", "outputs", "text"),
    [
        ([], [VECTOR_OUT], "model must have input 'INPUT' with vector shape, any length"),
        (
            [VECTOR_IN, ("X", "INT32", (1,))],
            [VECTOR_OUT],
            "model must have input 'INPUT' with vector shape, any length",
        ),
        ([("INPUT", "INT32", (1, 2))], [VECTOR_OUT], "model must have one input 'INPUT' with vector shape, any length"),
        ([("INPUT", "FP32", (-1,))], [VECTOR_OUT], "model input must have TYPE_INT32 data-type"),
        ([("X", "INT32", (-1,))], [VECTOR_OUT], "model input must be named 'INPUT'"),
        ([VECTOR_IN], [], "model must have one output 'OUTPUT' with vector shape, any length"),
        ([VECTOR_IN], [("OUTPUT", "INT32", (4,))], "model must have output 'OUTPUT' with shape matching 'INPUT'"),
        ([VECTOR_IN], [("OUTPUT", "FP32", (-1,))], "model output must have TYPE_INT32 data-type"),
        ([VECTOR_IN], [("X", "INT32", (-1,))], "model output must be named 'OUTPUT'"),
    ],
)
def test_other_tensors_than_a_vector_in_and_out_are_refused(inputs, outputs, text):
    with pytest.raises(InvalidArgumentError) as refusal:
        signature.check_vector_in_and_out(config(inputs, outputs))
    assert refusal.value.message == text


def test_a_vector_in_and_out_passes():
    signature.check_vector_in_and_out(config([VECTOR_IN], [VECTOR_OUT]))


def test_an_optional_input_is_refused():
    with pytest.raises(InvalidArgumentError) as refusal:
        signature.refuse_optional_inputs(config([VECTOR_IN], [VECTOR_OUT], optional=True))
    assert refusal.value.message == (
        "'optional' is set to true for input 'INPUT' while the backend model doesn't support optional input"
    )


def test_another_kind_than_cpu_is_refused():
    signature.require_cpu("sequence", CPU)
    with pytest.raises(InvalidArgumentError, match=r"^'sequence' backend only supports CPU instances$"):
        signature.require_cpu("sequence", GPU)


def test_a_configuration_without_sequences_is_told_as_a_missing_member():
    with pytest.raises(InternalError, match="attempt to access non-existing object member 'sequence_batching'"):
        signature.sequence_batching_of(context(config([], [])))


@pytest.mark.parametrize(("text", "value"), [("12", 12), (" -3ms", -3), ("2147483647", 2147483647)])
def test_a_parameter_is_the_number_it_starts_with(text, value):
    assert signature.integer_parameter(config([], [], parameters={"n": text}), "n") == value


@pytest.mark.parametrize("text", ["", "x1", "2147483648"])
def test_a_parameter_without_a_number_is_refused(text):
    with pytest.raises(InvalidArgumentError) as refusal:
        signature.integer_parameter(config([], [], parameters={"n": text}), "n")
    assert refusal.value.message == f"failed to convert n '{text}' to integral number"


def test_a_parameter_that_is_not_there_is_zero():
    assert signature.integer_parameter(config([], []), "n") == 0


def test_a_missing_input_is_named():
    with pytest.raises(InvalidArgumentError, match=r"^\[request id: <id_unknown>\] unknown request input name X$"):
        signature.required_input(request(), "X")


def test_a_correlation_id_must_be_a_number():
    assert signature.integer_correlation_id(request(5)) == 5
    with pytest.raises(InvalidArgumentError, match="correlation ID in request is not an unsigned int"):
        signature.integer_correlation_id(request("5"))


@pytest.mark.parametrize(
    ("array", "truth"),
    [(np.int32(0), False), (np.int32(256), True), (np.float32(1.0), True), (np.float32(0), False), (np.bool_(1), True)],
)
def test_a_control_is_true_if_it_is_not_zero(array, truth):
    assert signature.is_true(Tensor.from_numpy("READY", np.array([array]))) is truth


@pytest.mark.parametrize(("value", "wrapped"), [(5, 5), (2**31, -(2**31)), (-(2**31) - 1, 2**31 - 1), (2**32, 0)])
def test_numbers_wrap_at_32_bits(value, wrapped):
    assert signature.wrapped_int32(value) == wrapped
