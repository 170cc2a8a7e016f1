"""The datatypes of the KServe v2 protocol.

A datatype is named by its protocol name (`"FP32"`, `"BYTES"`), a plain `str`, everywhere in merrow; the names of
the model configuration (`TYPE_FP32`, `TYPE_STRING`) stay in `core.model_config` and are translated here.

Source: Triton, model_configuration.md, "Datatypes".
"""

from typing import Any

import numpy as np

BYTES = "BYTES"

ELEMENT_BYTE_SIZES: dict[str, int] = {
    "BOOL": 1,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "FP16": 2,
    "FP32": 4,
    "FP64": 8,
    "BF16": 2,
    # Variable: four bytes of length, then the element.
    BYTES: 0,
}

# BF16 has no numpy dtype: such a tensor is bytes here, and reaches frameworks through DLPack.
NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    BYTES: np.dtype(np.object_),
}

CONFIG_TYPES: dict[str, str] = {
    **{name: f"TYPE_{name}" for name in ELEMENT_BYTE_SIZES if name != BYTES},
    BYTES: "TYPE_STRING",
}

DATATYPES_OF_CONFIG: dict[str, str] = {config_type: name for name, config_type in CONFIG_TYPES.items()}

# Numbers of the enum inference.DataType of model_config.proto.
CONFIG_TYPE_NUMBERS: dict[str, int] = {
    "TYPE_INVALID": 0,
    "TYPE_BOOL": 1,
    "TYPE_UINT8": 2,
    "TYPE_UINT16": 3,
    "TYPE_UINT32": 4,
    "TYPE_UINT64": 5,
    "TYPE_INT8": 6,
    "TYPE_INT16": 7,
    "TYPE_INT32": 8,
    "TYPE_INT64": 9,
    "TYPE_FP16": 10,
    "TYPE_FP32": 11,
    "TYPE_FP64": 12,
    "TYPE_STRING": 13,
    "TYPE_BF16": 14,
}

_DATATYPES_OF_NUMPY: dict[np.dtype[Any], str] = {dtype: name for name, dtype in NUMPY_DTYPES.items()}


def datatype_of_numpy(dtype: np.dtype[Any]) -> str | None:
    """The protocol name for a numpy dtype; None where the protocol has none (complex, datetime, unicode).

    Object and bytes (`S`) arrays are BYTES. Big-endian dtypes have no name: convert first.
    """
    name = _DATATYPES_OF_NUMPY.get(dtype)
    if name is None and dtype.kind == "S":
        return BYTES
    return name
