import numpy as np
import pytest

from merrow.backends.base import PrivateTensor
from merrow.backends.python.pb_errors import TritonModelException
from merrow.backends.python.pb_tensor import Tensor, encode_output, tensor_of_input
from merrow.core import tensor as core


def test_a_tensor_holds_the_array_it_was_given():
    array = np.zeros((2, 3), np.float32)
    tensor = Tensor("X", array)

    assert tensor.as_numpy() is array
    assert (tensor.name(), tensor.shape(), tensor.triton_dtype(), tensor.is_cpu()) == ("X", [2, 3], 11, True)


def test_an_array_that_is_not_contiguous_is_copied():
    array = np.arange(6).reshape(2, 3).T
    tensor = Tensor("X", array)

    assert tensor.as_numpy().flags.c_contiguous
    assert tensor.as_numpy().tolist() == array.tolist()


@pytest.mark.parametrize(("shape", "listed"), [((), []), ((2, 0), [2, 0]), ((0,), [0])])
def test_shapes_may_be_empty(shape, listed):
    tensor = Tensor("X", np.zeros(shape, np.int64))

    assert tensor.shape() == listed
    assert tuple(encode_output(tensor).shape) == shape


@pytest.mark.parametrize(
    ("args", "kwargs", "invoked"),
    [
        (("x", [1]), {}, "'x', [1]"),
        (("x",), {}, "'x'"),
        ((1, np.zeros(1)), {}, "1, array([0.])"),
        ((), {"name": "x", "x": np.zeros(1)}, "kwargs: name='x', x=array([0.])"),
    ],
)
def test_wrong_arguments_are_refused(args, kwargs, invoked):
    with pytest.raises(TypeError) as caught:
        Tensor(*args, **kwargs)

    assert str(caught.value) == (
        "__init__(): incompatible constructor arguments. The following argument types are supported:\n"
        f"    1. c_python_backend_utils.Tensor(arg0: str, arg1: numpy.ndarray)\n\nInvoked with: {invoked}"
    )


@pytest.mark.parametrize("array", [np.zeros(1, complex), np.array(["a"]), np.zeros(1, ">f4"), np.zeros(1, "M8[s]")])
def test_a_dtype_that_no_datatype_has_is_refused(array):
    with pytest.raises(TritonModelException) as caught:
        Tensor("X", array)

    assert str(caught.value) == "NumPy dtype is not supported."


def test_a_tensor_needs_a_name():
    with pytest.raises(TritonModelException) as caught:
        Tensor("", np.zeros(1))

    assert str(caught.value) == "Tensor name cannot be an empty string."


def test_an_input_becomes_an_array_once_and_the_model_may_write_to_it():
    data = bytearray(np.arange(3, dtype=np.float32).tobytes())
    tensor = tensor_of_input(PrivateTensor("X", "FP32", (1, 3), memoryview(data)))
    array = tensor.as_numpy()
    array += 1

    assert tensor.as_numpy() is array
    assert np.frombuffer(data, np.float32).tolist() == [1, 2, 3]


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview])
def test_an_input_that_others_see_too_is_copied_before_a_model_may_write_to_it(wrap):
    data = wrap(np.arange(3, dtype=np.float32).tobytes())
    array = tensor_of_input(core.Tensor("X", "FP32", (3,), data)).as_numpy()
    array += 1

    assert np.frombuffer(data, np.float32).tolist() == [0, 1, 2]


def test_an_input_without_elements_is_an_array_without_elements():
    tensor = tensor_of_input(PrivateTensor("X", "INT16", (0, 3), memoryview(bytearray())))

    assert tensor.as_numpy().shape == (0, 3)


def test_bytes_are_an_object_array_and_elements_of_any_type_go_out():
    encoded = core.encode_bytes_elements(np.array([[b"a", b"", b"\xff"]], dtype=np.object_))
    tensor = tensor_of_input(PrivateTensor("X", "BYTES", (1, 3), memoryview(encoded)))

    assert tensor.as_numpy().tolist() == [[b"a", b"", b"\xff"]]
    mixed = encode_output(Tensor("Y", np.array([b"b", "é", 5, None], dtype=np.object_)))
    assert mixed.as_numpy().tolist() == [b"b", "é".encode(), b"5", b"None"]
    fixed = encode_output(Tensor("Y", np.array([b"ab", b"c"])))
    assert fixed.as_numpy().tolist() == [b"ab", b"c"]


def test_an_input_that_goes_out_again_is_never_decoded():
    encoded = core.encode_bytes_elements(np.array([b"a"], dtype=np.object_))
    tensor = tensor_of_input(PrivateTensor("X", "BYTES", (1,), encoded))

    assert encode_output(tensor).data is encoded


def test_bf16_is_bytes_only():
    tensor = tensor_of_input(PrivateTensor("X", "BF16", (1, 2), bytearray(b"\x80\x3f\x00\x40")))

    assert (tensor.shape(), tensor.triton_dtype()) == ([1, 2], 14)
    with pytest.raises(TritonModelException) as caught:
        tensor.as_numpy()
    assert str(caught.value) == (
        "Tensor dtype is BF16 and cannot be converted to NumPy. Use to_dlpack() and from_dlpack() instead."
    )
    assert bytes(encode_output(tensor).data) == b"\x80\x3f\x00\x40"


@pytest.mark.parametrize("size", [3, 100_000])
def test_outputs_are_encoded_as_the_protocol_sends_them(size):
    array = np.arange(size, dtype=np.int32).reshape(1, size)
    encoded = encode_output(Tensor("X", array))

    assert (encoded.name, encoded.datatype, tuple(encoded.shape)) == ("X", "INT32", (1, size))
    assert bytes(encoded.data) == array.tobytes()


def test_tensors_print_as_those_of_triton():
    assert repr(Tensor("X", np.zeros(1))).startswith("<c_python_backend_utils.Tensor object at 0x")
