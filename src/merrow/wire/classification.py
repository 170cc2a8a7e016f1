"""The classification extension: an output is answered as its best classes, each `value:index` or `value:index:label`.

Of every row of a batch (or of the whole tensor, for a model that does not batch) the largest values are taken, in
descending order, equal ones by ascending index. The answer is a BYTES tensor. Both protocols use it.

Source: Triton, extension_classification.md and classification.cc.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from merrow.core.datatypes import BYTES, NUMPY_DTYPES
from merrow.core.errors import InvalidArgumentError
from merrow.core.tensor import Tensor, encode_bytes_elements

MAX_CLASSIFICATION_ELEMENTS = 1_000_000

_CLASSIFIABLE = frozenset({"UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP32", "FP64"})


def classify(tensor: Tensor, class_count: int, has_batch_dim: bool, labels: Sequence[str] = ()) -> Tensor:
    """The `class_count` best classes of an output.

    Args:
        class_count: at least 1; more than there are elements means all.
        has_batch_dim: the model batches, so the first dimension counts rows.
        labels: the output's labels by index; an empty one is none.

    Returns:
        BYTES of shape [rows, classes], or [classes] without rows.

    Raises:
        InvalidArgumentError: the datatype has no order, or the tensor is too large to be sorted.
    """
    if tensor.datatype not in _CLASSIFIABLE:
        raise InvalidArgumentError(f"class result not available for output due to unsupported type '{tensor.datatype}'")
    shape = tuple(tensor.shape)
    # A batch of zero rows counts as no batch, here as everywhere in Triton.
    row_count = shape[0] if has_batch_dim and shape else 0
    row_element_count = 1
    for dim in shape[1:] if row_count else shape:
        row_element_count *= dim
    if row_element_count > MAX_CLASSIFICATION_ELEMENTS:
        raise InvalidArgumentError("classification output tensor too large")
    values = np.frombuffer(tensor.data, NUMPY_DTYPES[tensor.datatype])
    classes: list[str] = []
    for row in range(max(1, row_count)):
        row_values = values[row * row_element_count : (row + 1) * row_element_count]
        classes += _best_classes(row_values, class_count, labels)
    class_count = min(class_count, row_element_count)
    result_shape = (row_count, class_count) if row_count else (class_count,)
    return Tensor(tensor.name, BYTES, result_shape, encode_bytes_elements(np.array(classes, np.object_)))


def _best_classes(values: "npt.NDArray[Any]", count: int, labels: Sequence[str]) -> list[str]:
    # Ascending order of what descends with the values: equal ones keep the order of their index, and NaN comes last.
    order = np.argsort(-values if values.dtype.kind == "f" else ~values, kind="stable")[:count]
    texts = map("{:f}".format if values.dtype.kind == "f" else str, values[order].tolist())
    return [
        f"{text}:{index}:{labels[index]}" if index < len(labels) and labels[index] else f"{text}:{index}"
        for text, index in zip(texts, order.tolist(), strict=True)
    ]
