"""Warm-up: sample requests that every instance runs before its model takes requests.

A sample is `batch_size` requests of one row each, executed together, `count` times. It passes the same validation as a
client's request, before anything is started, but not the queue, and its executions are counted in the statistics, as in
Triton. A sample that fails fails the load.

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
from merrow.core.request import Request, ResponseSink
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

    `extra_inputs` are those that no client can send: whatever the configuration does not list as an input, controls and
    states of a model that batches sequences above all.
    """

    name: str
    request_count: int
    iteration_count: int
    inputs: Mapping[str, Tensor]
    extra_inputs: Mapping[str, Tensor]
    max_batch_size: int


def plan_samples(config: ModelConfig, read_file: Callable[[str], bytes]) -> list[WarmupSample]:
    """Make the samples that a configuration asks for; one with `batch_size` 0 is skipped.

    Args:
        read_file: the content of a file in the model's `warmup` directory.

    Raises:
        ServerError: a setting is incomplete, a file is missing or too short, or no client could send such a request.
    """
    rows = (1,) if config.max_batch_size else ()
    names = {model_input.name for model_input in config.input}
    validator = RequestValidator(config)
    samples = []
    for warmup in config.model_warmup:
        if _is_wanted(warmup):
            tensors = {name: _tensor(name, setting, rows, read_file) for name, setting in warmup.inputs.items()}
            sample = WarmupSample(
                warmup.name,
                warmup.batch_size,
                max(1, warmup.count),
                {name: tensor for name, tensor in tensors.items() if name in names},
                {name: tensor for name, tensor in tensors.items() if name not in names},
                config.max_batch_size,
            )
            validator.validate(_request(config.name, 0, sample, _Sink(0)))
            samples.append(sample)
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
            if sample.request_count > max(1, sample.max_batch_size):
                limit = sample.max_batch_size
                text = f"batch size {sample.request_count} for '{instance.name}', max allowed is {limit}"
                raise _failure(sample, [text] * sample.request_count)
            for _ in range(sample.iteration_count):
                sink = _Sink(sample.request_count)
                requests = []
                for _ in range(sample.request_count):
                    request = _request(model_name, model_version, sample, sink)
                    request.arrival_ns = clock()
                    validator.validate(request)
                    if sample.extra_inputs:
                        request.inputs = {**request.inputs, **sample.extra_inputs}
                    requests.append(request)
                try:
                    run_on(instance, requests, clock())
                except ServerError as error:
                    raise _failure(sample, [error.message]) from None
                await sink.done.wait()
                if sink.errors:
                    raise _failure(sample, [error.message for error in sink.errors])
            _LOG.info(
                "warmed up instance '%s' with sample '%s' in %.1f ms: %d x %d requests",
                instance.name,
                sample.name,
                (clock() - start_ns) / 1e6,
                sample.iteration_count,
                sample.request_count,
            )


class _Sink:
    """Waits for the final responses of a sample's requests, and keeps what failed."""

    def __init__(self, expected: int) -> None:
        self.done = asyncio.Event()
        self.errors: list[ServerError] = []
        self._expected = expected

    def on_response(self, response: Response) -> None:
        if response.error is not None:
            self.errors.append(response.error)
        if response.is_final:
            self._expected -= 1
            if not self._expected:
                self.done.set()


def _request(model_name: str, model_version: int, sample: WarmupSample, sink: ResponseSink) -> Request:
    """A request of a sample, as a client could send it; its tensors are its own, validation may turn their shapes."""
    inputs = {name: Tensor(name, tensor.datatype, tensor.shape, tensor.data) for name, tensor in sample.inputs.items()}
    return Request(model_name, model_version, sink, inputs)


def _failure(sample: WarmupSample, texts: Sequence[str]) -> InvalidArgumentError:
    joined = "".join(f"{text}; " for text in texts)
    return InvalidArgumentError(f"failed to run warmup sample '{sample.name}': {joined}")


def _is_wanted(warmup: ModelWarmup) -> bool:
    if not warmup.batch_size:
        _LOG.warning("skipping batch 0 warmup sample '%s'", warmup.name)
    return warmup.batch_size > 0


def _tensor(name: str, setting: ModelWarmupInput, rows: tuple[int, ...], read_file: Callable[[str], bytes]) -> Tensor:
    if any(dim < 0 for dim in setting.dims):
        raise InvalidArgumentError(
            f"warmup setting expects all variable-size dimensions are specified for input '{name}'"
        )
    # Without a type there are no bytes; that it does not suit the model is for validation to say.
    datatype = DATATYPES_OF_CONFIG.get(setting.data_type, "<invalid>")
    count = element_count(setting.dims)
    byte_size = count * (ELEMENT_BYTE_SIZES.get(datatype, 0) or 4)
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
    # What is chosen counts, not whether it says true, as in Triton.
    elif setting.random_data is not None and datatype in NUMPY_DTYPES and datatype != BYTES:
        data = _random_data(datatype, count)
    elif setting.zero_data is not None or setting.random_data is not None:
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
