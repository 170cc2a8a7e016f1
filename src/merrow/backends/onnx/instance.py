"""One instance of an ONNX model: batches put together, run, and cut up again.

Requests of a batch are concatenated along the first dimension, run once, and the outputs cut up again. A tensor is a
view of the request's bytes all the way into the runtime where a single request runs, and outputs are views of what the
runtime returns. BF16 has no numpy type; such tensors travel as 16-bit integers through `OrtValue`. Ragged batches are
put together and taken apart by `ragged`.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from merrow.backends.base import Execution, Instance, ModelContext, Outcome
from merrow.backends.onnx.ragged import RaggedPlan, concatenate
from merrow.backends.onnx.runtime import Array, array_of_ort_value, ort_value, run_options, runtime_error
from merrow.backends.onnx.signature import ModelSignature, format_shape
from merrow.core.datatypes import BYTES, DATATYPES_OF_CONFIG, NUMPY_DTYPES
from merrow.core.errors import InternalError, InvalidArgumentError, ServerError
from merrow.core.model_config import ModelConfig
from merrow.core.request import Request
from merrow.core.response import Response
from merrow.core.tensor import Tensor, encode_bytes_elements

# Of the datatypes whose elements have a size. BF16 has no numpy type.
_ARRAY_DTYPES: dict[str, np.dtype[Any]] = {
    **{datatype: dtype for datatype, dtype in NUMPY_DTYPES.items() if datatype != BYTES},
    "BF16": np.dtype(np.uint16),
}


class OnnxInstance(Instance):
    """A session of the runtime, on one thread; others may use it at the same time."""

    def __init__(self, context: ModelContext, name: str, session: Any, signature: ModelSignature) -> None:
        config = context.config
        self._name = name
        self._model_name = context.name
        self._model_version = context.version
        self._session = session
        self._max_batch_size = config.max_batch_size
        self._outputs = _outputs_of(config)
        self._output_names = [name for name, _ in self._outputs]
        # Inputs that the graph wants without any dimension; a model that does not batch declares them as [1].
        self._scalar_inputs = frozenset(
            tensor.name for tensor in (*signature.inputs.values(), *signature.defaults.values()) if not tensor.shape
        )
        self._bfloat16_inputs = frozenset(
            tensor.name
            for tensor in (*signature.inputs.values(), *signature.defaults.values())
            if tensor.datatype == "BF16"
        )
        self._uses_bfloat16 = bool(self._bfloat16_inputs) or any(datatype == "BF16" for _, datatype in self._outputs)
        self._run_options = run_options(config)
        self._ragged = RaggedPlan.from_config(config)
        datatypes = [datatype for _, datatype in self._outputs]
        datatypes += [tensor.datatype or "" for tensor in signature.inputs.values()]
        # Whether batches can be joined and cut as bytes.
        self._has_fixed_sizes = self._max_batch_size > 0 and all(datatype in _ARRAY_DTYPES for datatype in datatypes)

    def execute(self, requests: Sequence[Request]) -> Execution:
        if self._ragged is None:
            if len(requests) == 1:
                return self._execute_one(requests[0])
            if self._has_fixed_sizes:
                return self._execute_rows(requests)
        return self._execute_batch(requests)

    def _execute_one(self, request: Request) -> Execution:
        # Apart from `_execute_batch`, whose lists cost half as much as the runtime's own call.
        start_ns = input_end_ns = output_start_ns = time.monotonic_ns()
        outcome: Outcome
        try:
            feed = self._feed(request)
            input_end_ns = output_start_ns = time.monotonic_ns()
            rows = self._rows(feed) if self._max_batch_size else 0
            arrays = self._run(feed)
            output_start_ns = time.monotonic_ns()
            outputs = []
            for (name, datatype), array in zip(self._outputs, arrays, strict=True):
                if self._max_batch_size:
                    self._check_rows(name, array, rows)
                elif not array.shape:
                    array = array.reshape(1)
                outputs.append(_tensor_of(name, datatype, array))
            outcome = Response(self._model_name, self._model_version, request.id, outputs)
        except ServerError as error:
            outcome = error
        return Execution((outcome,), start_ns, input_end_ns, output_start_ns, time.monotonic_ns())

    def _execute_rows(self, requests: Sequence[Request]) -> Execution:
        """A batch of tensors whose elements have a size: put together and cut up as bytes.

        What `_execute_batch` does with an array for each request takes three times as long, and holds up the loop.
        """
        start_ns = time.monotonic_ns()
        try:
            feed, row_counts = self._join_rows(requests)
        except (ServerError, ValueError, KeyError):
            # One of them is at fault, and shall fail alone.
            return self._execute_batch(requests)
        input_end_ns = output_start_ns = time.monotonic_ns()
        outcomes: Sequence[Outcome]
        try:
            total = sum(row_counts)
            self._check_limit(total)
            arrays = self._run(feed)
            output_start_ns = time.monotonic_ns()
            outputs: list[list[Tensor]] = [[] for _ in requests]
            for (name, datatype), array in zip(self._outputs, arrays, strict=True):
                self._check_rows(name, array, total)
                view = array.reshape(-1).view(np.uint8).data
                row_byte_size, dims = len(view) // total, array.shape[1:]
                start = 0
                for tensors, rows in zip(outputs, row_counts, strict=True):
                    end = start + rows * row_byte_size
                    tensors.append(Tensor(name, datatype, (rows, *dims), view[start:end]))
                    start = end
            outcomes = [
                Response(self._model_name, self._model_version, request.id, tensors)
                for request, tensors in zip(requests, outputs, strict=True)
            ]
        except ServerError as error:
            outcomes = [error] * len(requests)
        return Execution(outcomes, start_ns, input_end_ns, output_start_ns, time.monotonic_ns())

    def _join_rows(self, requests: Sequence[Request]) -> tuple[dict[str, Array], list[int]]:
        """The inputs of a batch as arrays, and the rows of each request.

        Raises:
            ServerError, ValueError, KeyError: a request does not fit in.
        """
        first = requests[0].inputs
        leading = next(iter(first))
        row_counts = [request.inputs[leading].shape[0] for request in requests]
        total = sum(row_counts)
        if not total:
            raise ValueError("a batch without rows")
        feed: dict[str, Array] = {}
        for name, tensor in first.items():
            data = b"".join([request.inputs[name].data for request in requests])
            feed[name] = np.frombuffer(data, _ARRAY_DTYPES[tensor.datatype]).reshape(total, *tensor.shape[1:])
        return feed, row_counts

    def _execute_batch(self, requests: Sequence[Request]) -> Execution:
        assert self._max_batch_size or len(requests) == 1, "a model without batching is given one request at a time"
        start_ns = time.monotonic_ns()
        outcomes: dict[int, Outcome] = {}
        feeds: dict[int, dict[str, Array]] = {}
        for position, request in enumerate(requests):
            try:
                feeds[position] = self._feed(request)
            except ServerError as error:
                outcomes[position] = error
        input_end_ns = output_start_ns = time.monotonic_ns()
        if feeds:
            try:
                feed, shapes = self._join(list(feeds.values()))
                row_counts = [self._rows(each) if self._max_batch_size else 1 for each in feeds.values()]
                if self._max_batch_size:
                    self._check_limit(sum(row_counts))
                input_end_ns = output_start_ns = time.monotonic_ns()
                arrays = self._run(feed)
                output_start_ns = time.monotonic_ns()
                pieces = [
                    self._cut(name, array, row_counts, shapes)
                    for name, array in zip(self._output_names, arrays, strict=True)
                ]
                for position, outputs in zip(feeds, zip(*pieces, strict=True), strict=True):
                    tensors = [
                        _tensor_of(name, datatype, array)
                        for (name, datatype), array in zip(self._outputs, outputs, strict=True)
                    ]
                    outcomes[position] = Response(self._model_name, self._model_version, requests[position].id, tensors)
            except ServerError as error:
                outcomes.update(dict.fromkeys(feeds, error))
        return Execution(
            [outcomes[position] for position in range(len(requests))],
            start_ns,
            input_end_ns,
            output_start_ns,
            time.monotonic_ns(),
        )

    def close(self) -> None:
        self._session = None

    def _feed(self, request: Request) -> dict[str, Array]:
        """The inputs of one request as arrays: views of its bytes, except for strings and data that is not aligned."""
        feed: dict[str, Array] = {}
        for name, tensor in request.inputs.items():
            try:
                array = _array_of(tensor)
            except ValueError as error:
                raise InvalidArgumentError(f"{request.log_prefix}input '{name}': {error}") from None
            if name in self._scalar_inputs and not self._max_batch_size:
                array = array.reshape(())
            feed[name] = array
        return feed

    def _join(self, feeds: Sequence[Mapping[str, Array]]) -> tuple[dict[str, Array], dict[str, list[tuple[int, ...]]]]:
        """The feeds of a batch as one, and the shapes that tell how to take it apart again, if it is ragged."""
        ragged = self._ragged
        if ragged is None:
            return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}, {}
        shapes = {name: [feed[name].shape for feed in feeds] for name in ragged.sources}
        joined = {}
        for name in feeds[0]:
            arrays = [feed[name] for feed in feeds]
            if name in ragged.inputs:
                joined[name] = concatenate(arrays)
            else:
                joined[name] = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        joined.update(ragged.batch_tensors(shapes))
        return joined, shapes

    def _cut(
        self, name: str, array: Array, row_counts: Sequence[int], shapes: Mapping[str, list[tuple[int, ...]]]
    ) -> Sequence[Array]:
        """What an output holds for each request; views."""
        if self._ragged is not None and name in self._ragged.scatters:
            return self._ragged.scatter(name, array, shapes)
        if not self._max_batch_size:
            return [array if array.shape else array.reshape(1)]
        self._check_rows(name, array, sum(row_counts))
        pieces = []
        start = 0
        for rows in row_counts:
            end = start + rows
            pieces.append(array[start:end])
            start = end
        return pieces

    def _rows(self, feed: Mapping[str, Array]) -> int:
        """The rows of a batch, checked against the limit."""
        rows: int = feed[next(iter(feed))].shape[0]
        self._check_limit(rows)
        return rows

    def _check_limit(self, rows: int) -> None:
        if rows > self._max_batch_size:
            raise InvalidArgumentError(f"batch size {rows} for '{self._name}', max allowed is {self._max_batch_size}")

    def _check_rows(self, name: str, array: Array, rows: int) -> None:
        if not array.shape or array.shape[0] != rows:
            raise InternalError(
                f"output '{name}' of model '{self._model_name}' has shape {format_shape(array.shape)}, but the "
                f"batch has {rows} rows"
            )

    def _run(self, feed: Mapping[str, Array]) -> Sequence[Array]:
        """The configured outputs. An array of BF16 has the dtype uint16.

        Raises:
            InternalError: the runtime refused; its code and text.
        """
        try:
            if self._uses_bfloat16:
                values = {name: ort_value(array, name in self._bfloat16_inputs) for name, array in feed.items()}
                outputs = self._session.run_with_ort_values(self._output_names, values, self._run_options)
                return [array_of_ort_value(output) for output in outputs]
            arrays: Sequence[Array] = self._session.run(self._output_names, feed, self._run_options)
            return arrays
        except Exception as error:
            raise runtime_error(error) from None


def _outputs_of(config: ModelConfig) -> list[tuple[str, str]]:
    """Names and datatypes of what is run for: the outputs, and the states that the server keeps for a sequence."""
    outputs = {output.name: DATATYPES_OF_CONFIG[output.data_type] for output in config.output}
    if config.sequence_batching is not None:
        for state in config.sequence_batching.state:
            outputs.setdefault(state.output_name, DATATYPES_OF_CONFIG[state.data_type])
    return list(outputs.items())


def _array_of(tensor: Tensor) -> Array:
    """A tensor as the runtime takes it: BF16 as uint16, strings as `str`, which must be UTF-8.

    Raises:
        ValueError: the data does not hold what datatype and shape promise.
    """
    if tensor.datatype == "BF16":
        array: Array = np.frombuffer(tensor.data, np.uint16).reshape(tensor.shape)
    else:
        array = tensor.as_numpy()
        if tensor.datatype == "BYTES":
            elements = [element.decode() for element in array.reshape(-1).tolist()]
            array = np.empty(len(elements), np.object_)
            array[:] = elements
            return array.reshape(tensor.shape)
    return array if array.flags.aligned else array.copy()


def _tensor_of(name: str, datatype: str, array: Array) -> Tensor:
    """An output; a view of the array, except for strings."""
    if datatype == "BYTES":
        return Tensor(name, datatype, array.shape, encode_bytes_elements(array))
    # reshape(-1) first: a memoryview of a zero-dimensional or empty array cannot be cast.
    return Tensor(name, datatype, array.shape, array.reshape(-1).view(np.uint8).data)
