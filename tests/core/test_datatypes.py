"""Datatypes: names, sizes, and what numpy calls them."""

import numpy as np
import pytest

from merrow.core.datatypes import (
    CONFIG_TYPE_NUMBERS,
    CONFIG_TYPES,
    DATATYPES_OF_CONFIG,
    ELEMENT_BYTE_SIZES,
    NUMPY_DTYPES,
    datatype_of_numpy,
)
from merrow.wire._generated import model_config_pb2


def test_every_datatype_of_the_configuration_has_a_protocol_name_and_back():
    assert {CONFIG_TYPES[name]: name for name in ELEMENT_BYTE_SIZES} == DATATYPES_OF_CONFIG
    assert CONFIG_TYPES["BYTES"] == "TYPE_STRING"
    assert set(DATATYPES_OF_CONFIG) | {"TYPE_INVALID"} == set(CONFIG_TYPE_NUMBERS)


def test_numbers_are_those_of_the_published_enum():
    enum = model_config_pb2.DESCRIPTOR.enum_types_by_name["DataType"]

    assert {value.name: value.number for value in enum.values} == CONFIG_TYPE_NUMBERS


def test_numpy_dtypes_have_the_protocols_sizes():
    for name, dtype in NUMPY_DTYPES.items():
        if name != "BYTES":
            assert dtype.itemsize == ELEMENT_BYTE_SIZES[name]
    assert set(ELEMENT_BYTE_SIZES) - set(NUMPY_DTYPES) == {"BF16"}


@pytest.mark.parametrize("name", sorted(NUMPY_DTYPES))
def test_a_dtype_is_named_as_it_was_made(name: str):
    assert datatype_of_numpy(NUMPY_DTYPES[name]) == name


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (np.dtype("longlong"), "INT64"),
        (np.dtype("ulonglong"), "UINT64"),
        (np.dtype(float), "FP64"),
        (np.dtype("S5"), "BYTES"),
        (np.dtype("U5"), None),
        (np.dtype("complex64"), None),
        (np.dtype("datetime64[s]"), None),
        (np.dtype(">f4"), None),
        (np.dtype([("a", "f4")]), None),
    ],
)
def test_dtypes_the_protocol_does_not_spell(dtype: np.dtype, name: str | None):
    assert datatype_of_numpy(dtype) == name
