"""Warm-up: sample requests that every instance runs before its model takes requests.

A sample is `batch_size` requests of one row each, executed together, `count` times. It passes the same validation as a
client's request but not the queue, and its executions are counted in the statistics, as in Triton. A sample that fails
fails the load.

Source: Triton, model_configuration.md, "Model Warmup"; core/src/backend_model.cc, GenerateWarmupData.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from merrow.core.clock import Clock
from merrow.core.datatypes import BYTES, DATATYPES_OF_CONFIG, ELEMENT_BYTE_SIZES, NUMPY_DTYPES
from merrow.core.errors import InvalidArgumentError, ServerError
from merrow.core.model_config import ModelConfig, ModelWarmup, ModelWarmupInput
from merrow.core.request import Request
from merrow.core.response import Response
from merrow.core.tensor import Tensor, element_count
from merrow.engine.validation import RequestValidator
from merrow.places.base import PlacedInstance

_LOG = logging.getLogger("merrow.engine")

RunOn = Callable[[PlacedInstance, Sequence[Request], int], None]
"""Hands validated requests to one instance as one batch, past the queue; the number is the time."""

_NO_ID = "[request id: <id_unknown>] "


@dataclass(frozen=True, slots=True)
class WarmupSample:
    """One sample: how many requests run together, how often, and what each carries.

    `control_inputs` are those that no client sends: controls and states of a model that batches sequences.
    """

    name: str
    request_count: int
    iteration_count: int
    inputs: Mapping[str, Tensor]
    control_inputs: Mapping[str, Tensor]


def plan_samples(config: ModelConfig, read_file: Callable[[str], bytes]) -> list[WarmupSample]:
    """Make the samples that a configuration asks for; one with `batch_size` 0 is skipped.

    Args:
        read_file: the content of a file in the model's `warmup` directory.

    Raises:
        ServerError: a setting is incomplete, or a file is missing or too short.
    """
    rows = (1,) if config.max_batch_size else ()
    controls = _control_names(config)
    samples = []
    for warmup in config.model_warmup:
        if _is_wanted(warmup):
            tensors = {name: _tensor(name, setting, rows, read_file) for name, setting in warmup.inputs.items()}
            samples.append(
                WarmupSample(
                    warmup.name,
                    warmup.batch_size,
                    max(1, warmup.count),
                    {name: tensor for name, tensor in tensors.items() if name not in controls},
                    {name: tensor for name, tensor in tensors.items() if name in controls},
                )
            )
    return samples


async def warm_up(
    model_name: str,
    model_version: int,
    samples: Sequence[WarmupSample],
    validator: RequestValidator,
    run_on: RunOn,
    instances: Sequence[PlacedInstance],
    clock: Clock,
) -> None:
    """Run every sample on every instance, one after another.

    Raises:
        InvalidArgumentError: a sample failed.
    """
    for instance in instances:
        for sample in samples:
            start_ns = clock()
            for _ in range(sample.iteration_count):
                sink = _Sink(sample.request_count)
                try:
                    requests = []
                    for _ in range(sample.request_count):
                        inputs = {
                            name: Tensor(name, tensor.datatype, tensor.shape, tensor.data)
                            for name, tensor in sample.inputs.items()
                        }
                        request = Request(model_name, model_version, sink, inputs)
                        request.arrival_ns = clock()
                        validator.validate(request)
                        if sample.control_inputs:
                            request.inputs = {**request.inputs, **sample.control_inputs}
                        requests.append(request)
                    run_on(instance, requests, clock())
                    await sink.done
                except ServerError as error:
                    raise InvalidArgumentError(
                        f"failed to run warmup sample '{sample.name}': {error.message}; "
                    ) from None
            _LOG.info(
                "warmed up instance '%s' with sample '%s' in %.1f ms: %d x %d requests",
                instance.name,
                sample.name,
                (clock() - start_ns) / 1e6,
                sample.iteration_count,
                sample.request_count,
            )


class _Sink:
    """Waits for the responses of a sample's requests; the first error is its result."""

    def __init__(self, expected: int) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._expected = expected

    def on_response(self, response: Response) -> None:
        if not response.is_final or self.done.done():
            return
        self._expected -= 1
        if response.error is not None:
            self.done.set_exception(response.error)
        elif not self._expected:
            self.done.set_result(None)


def _control_names(config: ModelConfig) -> frozenset[str]:
    """Inputs that the server adds to the requests of a sequence."""
    batching = config.sequence_batching
    if batching is None:
        return frozenset()
    return frozenset(control.name for control in batching.control_input) | {
        state.input_name for state in batching.state
    }


def _is_wanted(warmup: ModelWarmup) -> bool:
    if not warmup.batch_size:
        _LOG.warning("skipping batch 0 warmup sample '%s'", warmup.name)
    return warmup.batch_size > 0


def _tensor(name: str, setting: ModelWarmupInput, rows: tuple[int, ...], read_file: Callable[[str], bytes]) -> Tensor:
    if any(dim < 0 for dim in setting.dims):
        raise InvalidArgumentError(
            f"warmup setting expects all variable-size dimensions are specified for input '{name}'"
        )
    datatype = DATATYPES_OF_CONFIG.get(setting.data_type)
    if datatype is None:
        raise InvalidArgumentError(f"warmup setting expects a data_type for input '{name}', got {setting.data_type}")
    count = element_count(setting.dims)
    byte_size = count * (ELEMENT_BYTE_SIZES[datatype] or 4)
    if setting.input_data_file is not None:
        data = read_file(setting.input_data_file)
        if datatype != BYTES:
            if len(data) < byte_size:
                # The missing space is Triton's.
                raise InvalidArgumentError(
                    f"{_NO_ID}warmup setting expects {byte_size} bytes, but the data provided from "
                    f"{setting.input_data_file}only has {len(data)} bytes"
                )
            data = data[:byte_size]
    elif setting.random_data and datatype in NUMPY_DTYPES and datatype != BYTES:
        data = _random_data(datatype, count)
    elif setting.zero_data or setting.random_data:
        # Of BYTES, zeros are empty elements.
        data = bytes(byte_size)
    else:
        raise InvalidArgumentError(f"{_NO_ID}warmup setting expects input '{name}' to have input_data_type set")
    return Tensor(name, datatype, rows + setting.dims, data)


def _random_data(datatype: str, count: int) -> bytes:
    generator = np.random.default_rng()
    dtype = NUMPY_DTYPES[datatype]
    if dtype.kind == "f":
        return generator.random(count).astype(dtype).tobytes()
    if dtype.kind == "b":
        return generator.integers(0, 2, count).astype(dtype).tobytes()
    limits = np.iinfo(dtype)
    return generator.integers(limits.min, limits.max, count, dtype=dtype, endpoint=True).tobytes()
