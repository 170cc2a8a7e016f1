"""A tensor of every datatype, as numpy holds it, and how to tell that one came back."""

import numpy as np
from tritonclient.utils import triton_to_np_dtype

ARRAYS = {
    "BOOL": np.array([True, False, True]),
    "UINT8": np.array([0, 1, 255], dtype=np.uint8),
    "UINT16": np.array([0, 1, 65535], dtype=np.uint16),
    "UINT32": np.array([0, 1, 2**32 - 1], dtype=np.uint32),
    "UINT64": np.array([0, 1, 2**64 - 1], dtype=np.uint64),
    "INT8": np.array([-128, 0, 127], dtype=np.int8),
    "INT16": np.array([-32768, 0, 32767], dtype=np.int16),
    "INT32": np.array([-(2**31), 0, 2**31 - 1], dtype=np.int32),
    "INT64": np.array([-(2**63), 0, 2**63 - 1], dtype=np.int64),
    "FP16": np.array([-1.5, 0.0, 65504.0], dtype=np.float16),
    "FP32": np.array([-1.5, 0.1, 3.4e38], dtype=np.float32),
    "FP64": np.array([-1.5, 0.1, 1e300], dtype=np.float64),
    "BYTES": np.array([b"", b"bytes", "ü漢".encode()], dtype=np.object_),
    # Clients up to 2.69 hold BF16 as float32, newer ones as what `ml_dtypes` brings.
    "BF16": np.array([-1.5, 0.0, 256.0], dtype=triton_to_np_dtype("BF16")),
}
# These have no form in JSON.
BINARY_ONLY = ("FP16", "BF16")


def assert_same(actual: np.ndarray, datatype: str) -> None:
    expected = ARRAYS[datatype]
    if datatype == "BYTES":
        # JSON brings text, the binary form brings bytes.
        elements = [one if isinstance(one, bytes) else one.encode() for one in actual.tolist()]
        assert elements == expected.tolist()
    else:
        assert actual.dtype == expected.dtype
        np.testing.assert_array_equal(actual, expected)
