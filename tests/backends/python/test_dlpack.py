import numpy as np
import pytest

from merrow.backends.base import PrivateTensor
from merrow.backends.python.dlpack import export_array, import_tensor
from merrow.backends.python.pb_errors import TritonModelException
from merrow.backends.python.pb_tensor import Tensor, tensor_of_input

DTYPES = [
    np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64,
    np.float16, np.float32, np.float64, np.bool_,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 4)])
def test_every_type_goes_out_and_in_without_a_copy(dtype, shape):
    array = np.ones(shape, dtype)
    tensor = Tensor.from_dlpack("X", Tensor("X", array).to_dlpack())

    assert tensor.shape() == list(shape)
    assert tensor.as_numpy().dtype == dtype
    assert np.array_equal(tensor.as_numpy(), array)
    if array.size:
        assert np.shares_memory(tensor.as_numpy(), array)


def test_bf16_goes_out_and_in_though_numpy_has_no_such_type():
    data = bytearray(b"\x80\x3f\x00\x40\x40\x40")
    tensor = tensor_of_input(PrivateTensor("X", "BF16", (1, 3), data))
    capsule = tensor.to_dlpack()
    datatype, array = import_tensor(capsule)

    assert datatype == "BF16"
    assert array.shape == (1, 3, 2)
    assert array.tobytes() == bytes(data)
    again = Tensor.from_dlpack("Y", tensor)
    assert (again.name(), again.shape(), again.triton_dtype()) == ("Y", [1, 3], 14)


def test_the_memory_outlives_the_tensor():
    def make():
        return Tensor("X", np.full(1000, 7, np.int32)).to_dlpack()

    _, array = import_tensor(make())
    assert int(array.sum()) == 7000


def test_numpy_takes_a_tensor():
    tensor = Tensor("X", np.arange(4.0))

    assert tensor.__dlpack_device__() == (1, 0)
    assert np.from_dlpack(tensor).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("provider", "text"),
    [
        (
            5,
            "Provided tensor is not supported. Tensor must be a DLPack capsule         or have `__dlpack__` and "
            "`__dlpack_device__` attributes",
        ),
        (
            np.zeros((2, 3)).T,
            "DLPack tensor is not contiguous. Only contiguous DLPack tensors that are stored in C-Order are supported.",
        ),
        (np.zeros(2, complex), "DLPack dtype with code 5, 128 bits and 1 lanes is not supported."),
    ],
)
def test_what_cannot_be_a_tensor_is_refused(provider, text):
    with pytest.raises(TritonModelException) as caught:
        import_tensor(provider)

    assert str(caught.value) == text


def test_a_capsule_can_be_taken_once():
    capsule = export_array(np.zeros(3), "FP64")
    import_tensor(capsule)

    with pytest.raises(TritonModelException, match="Provided tensor is not supported"):
        import_tensor(capsule)


def test_strings_have_no_dlpack():
    with pytest.raises(TritonModelException, match="DLPack does not have support for string tensors"):
        Tensor("X", np.array([b"x"], dtype=np.object_)).to_dlpack()


def test_a_tensor_from_dlpack_needs_a_name():
    with pytest.raises(TritonModelException, match="Tensor name cannot be an empty string"):
        Tensor.from_dlpack("", np.zeros(3))
