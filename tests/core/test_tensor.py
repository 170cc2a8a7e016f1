"""Tensors: encoded bytes and the arrays they stand for."""

import numpy as np
import pytest

from merrow.core.datatypes import NUMPY_DTYPES
from merrow.core.tensor import (
    Tensor,
    decode_bytes_elements,
    element_count,
    encode_bytes_elements,
    split_bytes_elements,
)

FIXED_SIZE = sorted(set(NUMPY_DTYPES) - {"BYTES"})


@pytest.mark.parametrize("datatype", FIXED_SIZE)
@pytest.mark.parametrize("shape", [(2, 3), (0, 3), (1,), ()])
def test_an_array_survives_the_way_through_bytes(datatype: str, shape: tuple[int, ...]):
    array = np.arange(element_count(shape)).reshape(shape).astype(NUMPY_DTYPES[datatype])

    tensor = Tensor.from_numpy("X", array)

    assert (tensor.name, tensor.datatype, tensor.shape) == ("X", datatype, shape)
    assert bytes(tensor.data) == array.tobytes()
    assert tensor.byte_size == array.nbytes
    np.testing.assert_array_equal(tensor.as_numpy(), array)
    assert tensor.as_numpy().dtype == NUMPY_DTYPES[datatype]


def test_a_contiguous_array_is_viewed_and_not_copied():
    array = np.zeros((2, 2), np.float32)
    tensor = Tensor.from_numpy("X", array)

    array[1, 1] = 7

    assert tensor.as_numpy()[1, 1] == 7
    assert isinstance(tensor.data, memoryview)
    assert tensor.data.format == "B"
    assert len(tensor.data) == 16


def test_a_transposed_array_is_copied_into_order():
    tensor = Tensor.from_numpy("X", np.arange(6, dtype=np.int32).reshape(2, 3).T)

    assert tensor.shape == (3, 2)
    assert tensor.as_numpy().tolist() == [[0, 3], [1, 4], [2, 5]]


def test_a_big_endian_array_is_swapped():
    tensor = Tensor.from_numpy("X", np.array([1, 2], dtype=">i4"))

    assert bytes(tensor.data) == b"\1\0\0\0\2\0\0\0"


def test_an_array_over_immutable_bytes_is_read_only():
    assert not Tensor("X", "INT8", (2,), b"ab").as_numpy().flags.writeable
    assert Tensor("X", "INT8", (2,), bytearray(b"ab")).as_numpy().flags.writeable


@pytest.mark.parametrize("array", [np.array(["text"]), np.array([1j])])
def test_a_dtype_without_a_datatype_is_refused(array: np.ndarray):
    with pytest.raises(ValueError, match=r"tensor 'X': numpy dtype .* has no datatype in the protocol"):
        Tensor.from_numpy("X", array)


def test_bf16_has_no_array():
    with pytest.raises(ValueError, match="tensor 'X': datatype BF16 has no numpy dtype"):
        Tensor("X", "BF16", (1,), b"ab").as_numpy()


@pytest.mark.parametrize("data", [b"abc", b"abcd", b""])
def test_data_of_another_size_is_refused(data: bytes):
    with pytest.raises(ValueError, match="size"):
        Tensor("X", "FP32", (2,), data).as_numpy()


BYTES_CASES = [
    ([b"a", b"bc"], b"\1\0\0\0a\2\0\0\0bc"),
    ([b"abc"], b"\3\0\0\0abc"),
    ([b"", b"x\0"], b"\0\0\0\0\2\0\0\0x\0"),
    ([], b""),
]


@pytest.mark.parametrize(("elements", "encoded"), BYTES_CASES)
def test_bytes_elements_both_ways(elements: list[bytes], encoded: bytes):
    array = np.empty(len(elements), np.object_)
    array[:] = elements

    assert encode_bytes_elements(array) == encoded
    assert split_bytes_elements(encoded) == elements
    assert split_bytes_elements(memoryview(encoded)) == elements
    assert decode_bytes_elements(encoded, (len(elements),)).tolist() == elements


def test_a_bytes_tensor_has_the_shape_that_was_asked_for():
    tensor = Tensor.from_numpy("X", np.array([[b"a", b"bc"]], np.object_))

    assert (tensor.datatype, tensor.shape) == ("BYTES", (1, 2))
    assert tensor.as_numpy().tolist() == [[b"a", b"bc"]]
    assert Tensor("X", "BYTES", (), b"\1\0\0\0a").as_numpy().tolist() == b"a"


def test_what_is_no_bytes_is_written_as_text():
    array = np.array(["é", 1, 2.5, None, True], np.object_)

    assert split_bytes_elements(encode_bytes_elements(array)) == ["é".encode(), b"1", b"2.5", b"None", b"True"]


def test_an_array_of_fixed_length_strings_loses_its_padding():
    assert split_bytes_elements(encode_bytes_elements(np.array([b"a", b"bcd"]))) == [b"a", b"bcd"]


def test_bytes_elements_cut_at_every_length():
    encoded = b"\1\0\0\0a\2\0\0\0bc"
    whole = {0: [], 5: [b"a"], 11: [b"a", b"bc"]}
    for end in range(len(encoded) + 1):
        if end in whole:
            assert split_bytes_elements(encoded[:end]) == whole[end]
        else:
            with pytest.raises(ValueError, match="incomplete string"):
                split_bytes_elements(encoded[:end])


def test_another_number_of_elements_than_the_shape_is_refused():
    with pytest.raises(ValueError, match="reshape"):
        decode_bytes_elements(b"\1\0\0\0a", (2,))


def test_a_scalar_has_one_element():
    assert [element_count(shape) for shape in [(), (3,), (2, 3), (2, 0)]] == [1, 3, 6, 0]


def test_a_tensor_shows_what_it_is():
    assert repr(Tensor("X", "FP32", (1, 2), bytes(8))) == "Tensor('X', FP32, [1, 2], 8 bytes)"
