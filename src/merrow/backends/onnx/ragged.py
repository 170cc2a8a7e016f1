"""Ragged batches: requests of different shapes in one run. Pure.

An input with `allow_ragged_batch` reaches the graph as one row of elements, those of the first request, then those of
the second, and so on. The graph tells them apart by tensors that describe the batch (`batch_input`), made here from the
shapes of the requests; e is the number of elements of a request's source input, its batch dimension included:

    BATCH_ELEMENT_COUNT                         [e1, e2, ...]
    BATCH_ACCUMULATED_ELEMENT_COUNT             [e1, e1 + e2, ...]
    BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO   [0, e1, e1 + e2, ...]
    BATCH_MAX_ELEMENT_COUNT_AS_SHAPE            max(e) zeros: the shape is what it says
    BATCH_ITEM_SHAPE                            for each row of each request its dims, [rows, rank]
    BATCH_ITEM_SHAPE_FLATTEN                    the same as one row, [rows * rank]

An output of `batch_output` (BATCH_SCATTER_WITH_INPUT_SHAPE) is a row of elements likewise; each request gets as many as
the output's dims say, where a dimension of any size is as large as that of the source input at the same place.

Source: Triton, ragged_batching.md; backend/src/backend_input_collector.cc, backend_output_responder.cc.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from merrow.core.errors import InternalError, InvalidArgumentError
from merrow.core.model_config import BatchInput, ModelConfig
from merrow.core.tensor import element_count

Array = np.ndarray[Any, np.dtype[Any]]
Shape = tuple[int, ...]
ShapesOf = Mapping[str, Sequence[Shape]]
"""The shapes of an input, batch dimension included, of each request of a batch; by the input's name."""

_DTYPES = {"TYPE_INT32": np.int32, "TYPE_FP32": np.float32}


@dataclass(frozen=True, slots=True)
class Scatter:
    """How an output is cut up: its dims (with the batch dimension, -1 is any size), and the input they follow."""

    source: str
    dims: Shape


@dataclass(frozen=True, slots=True)
class RaggedPlan:
    """What a configuration says of ragged batches."""

    inputs: frozenset[str]
    batch_inputs: tuple[BatchInput, ...]
    scatters: Mapping[str, Scatter]

    @classmethod
    def from_config(cls, config: ModelConfig) -> "RaggedPlan | None":
        """None where batches are not ragged, and nothing describes them."""
        inputs = frozenset(entry.name for entry in config.input if entry.allow_ragged_batch)
        if not inputs and not config.batch_input and not config.batch_output:
            return None
        batch = (-1,) if config.has_batch_dim else ()
        dims = {output.name: batch + tuple(output.dims) for output in config.output}
        scatters = {
            target: Scatter(entry.source_input[0], dims[target])
            for entry in config.batch_output
            for target in entry.target_name
        }
        return cls(inputs, config.batch_input, scatters)

    @property
    def sources(self) -> frozenset[str]:
        """The inputs whose shapes are needed."""
        return frozenset(
            (
                *(entry.source_input[0] for entry in self.batch_inputs),
                *(scatter.source for scatter in self.scatters.values()),
            )
        )

    def batch_tensors(self, shapes: ShapesOf) -> dict[str, Array]:
        """The tensors that describe a batch, by their names in the graph.

        Raises:
            InvalidArgumentError: BATCH_ITEM_SHAPE of requests whose inputs have different ranks.
        """
        return {
            target: _batch_tensor(entry, shapes[entry.source_input[0]])
            for entry in self.batch_inputs
            for target in entry.target_name
        }

    def scatter(self, name: str, array: Array, shapes: ShapesOf) -> list[Array]:
        """Cut up an output; a view for each request.

        Raises:
            InternalError: the model made another number of elements.
        """
        scatter = self.scatters[name]
        wanted = [_fill_in(scatter.dims, shape) for shape in shapes[scatter.source]]
        total = sum(map(element_count, wanted))
        if array.size != total:
            raise InternalError(
                f"output '{name}' has {array.size} elements, but the shapes of input '{scatter.source}' ask for {total}"
            )
        row = array.reshape(-1)
        pieces = []
        start = 0
        for shape in wanted:
            end = start + element_count(shape)
            pieces.append(row[start:end].reshape(shape))
            start = end
        return pieces


def concatenate(arrays: Sequence[Array]) -> Array:
    """The elements of all, one after another."""
    return np.concatenate([array.reshape(-1) for array in arrays])


def _batch_tensor(entry: BatchInput, shapes: Sequence[Shape]) -> Array:
    dtype = _DTYPES[entry.data_type]
    counts = [element_count(shape) for shape in shapes]
    if entry.kind == "BATCH_ELEMENT_COUNT":
        return np.array(counts, dtype)
    if entry.kind == "BATCH_ACCUMULATED_ELEMENT_COUNT":
        return np.cumsum(counts).astype(dtype)
    if entry.kind == "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO":
        return np.cumsum([0, *counts]).astype(dtype)
    if entry.kind == "BATCH_MAX_ELEMENT_COUNT_AS_SHAPE":
        return np.zeros(max(counts), dtype)
    rows = [shape[1:] for shape in shapes for _ in range(shape[0])]
    if entry.kind == "BATCH_ITEM_SHAPE_FLATTEN":
        return np.array([dim for row in rows for dim in row], dtype)
    assert entry.kind == "BATCH_ITEM_SHAPE", "the codec knows the kinds"
    if len({len(row) for row in rows}) > 1:
        raise InvalidArgumentError(
            f"batch input kind 'BATCH_ITEM_SHAPE' expects inputs of one rank, got {sorted({len(row) for row in rows})}"
        )
    return np.array(rows, dtype)


def _fill_in(dims: Shape, shape: Shape) -> Shape:
    """The dims with sizes for those of any size."""
    if len(dims) > len(shape) and -1 in dims[len(shape) :]:
        raise InternalError(f"an output with dims {list(dims)} cannot follow an input of shape {list(shape)}")
    return tuple(shape[place] if dim == -1 else dim for place, dim in enumerate(dims))
