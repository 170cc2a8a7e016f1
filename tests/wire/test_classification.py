"""Outputs as classes. Recorded from Triton 2.51 where a comment does not say otherwise."""

import struct

import numpy as np
import pytest

from merrow.core.datatypes import NUMPY_DTYPES
from merrow.core.errors import InvalidArgumentError
from merrow.core.tensor import Tensor, split_bytes_elements
from merrow.wire.classification import MAX_CLASSIFICATION_ELEMENTS, classify

LABELS = ("zero", "one", "", "three", "four")
ROW = [0.5, 3, 1, 3, -1, 7, 0.001, 0]


def classes(tensor, *arguments):
    result = classify(tensor, *arguments)
    assert (result.name, result.datatype) == (tensor.name, "BYTES")
    return tuple(result.shape), [element.decode() for element in split_bytes_elements(result.data)]


def fp32(values, shape):
    return Tensor("OUT", "FP32", shape, struct.pack(f"<{len(values)}f", *values))


def test_the_largest_come_first_with_their_labels():
    assert classes(fp32(ROW, (1, 8)), 3, True, LABELS) == ((1, 3), ["7.000000:5", "3.000000:1:one", "3.000000:3:three"])


def test_each_row_of_a_batch_is_classified():
    tensor = fp32([*ROW, *range(8)], (2, 8))

    assert classes(tensor, 2, True, LABELS) == (
        (2, 2),
        ["7.000000:5", "3.000000:1:one", "7.000000:7", "6.000000:6"],
    )


def test_without_a_batch_dimension_all_elements_compete():
    assert classes(fp32([1, 2, 3, 4], (2, 2)), 2, False) == ((2,), ["4.000000:3", "3.000000:2"])


def test_more_classes_than_elements_are_all_elements():
    shape, texts = classes(fp32(ROW, (1, 8)), 4294967295, True, LABELS)

    assert shape == (1, 8)
    assert texts[-1] == "-1.000000:4:four"


@pytest.mark.parametrize(
    ("datatype", "values", "texts"),
    [
        ("INT32", [5, 1, 7], ["7:2", "5:0", "1:1"]),
        ("INT8", [-128, 127, 0], ["127:1", "0:2", "-128:0"]),
        ("UINT8", [0, 255, 1], ["255:1", "1:2", "0:0"]),
        ("UINT64", [0, 2**64 - 1, 2**63], ["18446744073709551615:1", "9223372036854775808:2", "0:0"]),
        ("INT64", [-(2**63), 2**63 - 1, 0], ["9223372036854775807:1", "0:2", "-9223372036854775808:0"]),
        ("FP64", [0.1, 1e10, -0.5], ["10000000000.000000:1", "0.100000:0", "-0.500000:2"]),
    ],
)
def test_integers_are_plain_and_floats_have_six_decimals(datatype, values, texts):
    tensor = Tensor("OUT", datatype, (3,), np.array(values, NUMPY_DTYPES[datatype]).tobytes())

    assert classes(tensor, 3, False) == ((3,), texts)


def test_infinities_sort_and_nan_comes_last():
    # Triton's order is undefined once there is a NaN.
    values = [float("nan"), float("-inf"), 1, float("inf")]

    assert classes(fp32(values, (4,)), 4, False)[1] == ["inf:3", "1.000000:2", "-inf:1", "nan:0"]


@pytest.mark.parametrize("shape", [(0, 4), (0,)])
def test_no_rows_are_no_classes(shape):
    assert classes(fp32([], shape), 2, True) == ((0,), [])


@pytest.mark.parametrize("datatype", ["BOOL", "FP16", "BF16", "BYTES"])
def test_other_datatypes_have_no_order(datatype):
    with pytest.raises(InvalidArgumentError) as raised:
        classify(Tensor("OUT", datatype, (1,), b"\0\0"), 1, False)

    assert raised.value.message == f"class result not available for output due to unsupported type '{datatype}'"


def test_a_very_large_output_is_refused():
    # Newer than 2.51.
    count = MAX_CLASSIFICATION_ELEMENTS + 1

    with pytest.raises(InvalidArgumentError, match=r"^classification output tensor too large$"):
        classify(Tensor("OUT", "INT8", (count,), bytes(count)), 1, False)
