"""Everything of the REST API that is not inference: answers -> JSON bodies, bodies of requests -> values.

What the server knows comes in as values of other packages, described here by the attributes that are written
(`IndexEntryLike`, `ModelStatisticsLike`). Keys stand in Triton's order, since clients compare texts.

A body is refused for its size first, then for its JSON, then for its contents. An empty body of an index, load or
unload request means "no options"; so does a JSON value that is no object.

Source: Triton, http_server.cc and the extensions model repository, statistics, model configuration.
"""

import binascii
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from merrow.core.datatypes import DATATYPES_OF_CONFIG
from merrow.core.errors import InternalError, InvalidArgumentError
from merrow.core.model_config import ModelConfig, ModelInput, ModelOutput
from merrow.core.tensor import Buffer
from merrow.wire.triton_json import (
    NO_MEMBERS,
    NOT_STRING,
    check_input_size,
    cut_at_nul,
    decode_json,
    encode_json,
    member_error,
)

_FILE_PREFIX = "file:"
_BASE64_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_NOT_BASE64 = bytes(set(range(256)) - set(_BASE64_ALPHABET))


class IndexEntryLike(Protocol):
    """One line of the repository index; `version` None and `state` "" are left out."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> int | None: ...
    @property
    def state(self) -> str: ...
    @property
    def reason(self) -> str: ...


class DurationLike(Protocol):
    """How often, and how long in total."""

    @property
    def count(self) -> int: ...
    @property
    def ns(self) -> int: ...


class BatchStatisticsLike(Protocol):
    """Executions of one batch size."""

    @property
    def batch_size(self) -> int: ...
    @property
    def compute_input(self) -> DurationLike: ...
    @property
    def compute_infer(self) -> DurationLike: ...
    @property
    def compute_output(self) -> DurationLike: ...


class ResponseStatisticsLike(Protocol):
    """Responses of one index of a decoupled model."""

    @property
    def compute_infer(self) -> DurationLike: ...
    @property
    def compute_output(self) -> DurationLike: ...
    @property
    def success(self) -> DurationLike: ...
    @property
    def fail(self) -> DurationLike: ...
    @property
    def empty_response(self) -> DurationLike: ...
    @property
    def cancel(self) -> DurationLike: ...


class MemoryUsageLike(Protocol):
    """Memory that a backend reports."""

    @property
    def type(self) -> str: ...
    @property
    def id(self) -> int: ...
    @property
    def byte_size(self) -> int: ...


class ModelStatisticsLike(Protocol):
    """Statistics of one model version."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def last_inference_ms(self) -> int: ...
    @property
    def inference_count(self) -> int: ...
    @property
    def execution_count(self) -> int: ...
    @property
    def success(self) -> DurationLike: ...
    @property
    def fail(self) -> DurationLike: ...
    @property
    def queue(self) -> DurationLike: ...
    @property
    def compute_input(self) -> DurationLike: ...
    @property
    def compute_infer(self) -> DurationLike: ...
    @property
    def compute_output(self) -> DurationLike: ...
    @property
    def cache_hit(self) -> DurationLike: ...
    @property
    def cache_miss(self) -> DurationLike: ...
    @property
    def response_stats(self) -> Mapping[str, ResponseStatisticsLike]: ...
    @property
    def batch_stats(self) -> Sequence[BatchStatisticsLike]: ...
    @property
    def memory_usage(self) -> Sequence[MemoryUsageLike]: ...


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """What a load request brings: a configuration as JSON text, and files by their path in the model's directory."""

    config: str | None
    files: Mapping[str, bytes]


def encode_error(message: str) -> bytes:
    """The body of every answer that is an error."""
    return encode_json({"error": message})


def encode_server_metadata(name: str, version: str, extensions: Sequence[str]) -> bytes:
    return encode_json({"name": name, "version": version, "extensions": list(extensions)})


def encode_model_metadata(versions: Iterable[int], config: ModelConfig) -> bytes:
    """`versions` are all ready ones, ascending, or the one that was asked for."""
    has_batch_dim = config.max_batch_size > 0
    return encode_json(
        {
            "name": config.name,
            "versions": [str(version) for version in versions],
            "platform": config.platform or config.backend,
            "inputs": [_describe_tensor(tensor, has_batch_dim) for tensor in config.input],
            "outputs": [_describe_tensor(tensor, has_batch_dim) for tensor in config.output],
        }
    )


def encode_statistics(statistics: Iterable[ModelStatisticsLike]) -> bytes:
    return encode_json({"model_stats": [_describe_statistics(model) for model in statistics]})


def encode_repository_index(entries: Iterable[IndexEntryLike]) -> bytes:
    return encode_json([_describe_index_entry(entry) for entry in entries])


def decode_index_request(body: Buffer, max_input_byte_size: int) -> bool:
    """Whether only models that are ready are asked for.

    Raises:
        InternalError: the body is not JSON.
        InvalidArgumentError: it is too long, or `ready` is no boolean.
    """
    options = _decode_options(body, max_input_byte_size)
    is_ready_only = options.get("ready", False)
    if type(is_ready_only) is not bool:
        raise InvalidArgumentError("Invalid value for 'ready': expected a boolean")
    return is_ready_only


def decode_load_request(body: Buffer, max_input_byte_size: int) -> LoadOptions:
    """The options of a load.

    Raises:
        InternalError: the body is not JSON, or a parameter is unknown or no string.
        InvalidArgumentError: the body is too long.
    """
    options = _decode_options(body, max_input_byte_size)
    config: str | None = None
    files: dict[str, bytes] = {}
    if "parameters" in options:
        parameters = options["parameters"]
        if type(parameters) is not dict:
            raise InternalError(NO_MEMBERS)
        for member in parameters:
            name = cut_at_nul(member)
            value = parameters.get(name)
            if type(value) is not str:
                raise member_error(parameters, name, NOT_STRING)
            if name == "config":
                config = cut_at_nul(value)
            elif name.startswith(_FILE_PREFIX):
                files[name[len(_FILE_PREFIX) :]] = decode_base64(value)
            else:
                raise InternalError("unexpected error on creating Triton parameter")
    return LoadOptions(config, files)


def decode_unload_request(body: Buffer, max_input_byte_size: int) -> bool:
    """Whether to unload what the model depends on, too. What cannot be read counts as false: Triton drops the error.

    Raises:
        InvalidArgumentError: the body is too long.
    """
    try:
        parameters = _decode_options(body, max_input_byte_size).get("parameters")
    except InternalError:
        return False
    return type(parameters) is dict and parameters.get("unload_dependents") is True


def decode_base64(text: str) -> bytes:
    """Base64 as libb64 reads it: what is not of the alphabet is skipped, padding too; bits that make no byte drop."""
    digits = text.encode("utf-8", "surrogateescape").translate(None, _NOT_BASE64)
    if len(digits) % 4 == 1:
        digits = digits[:-1]
    return binascii.a2b_base64(digits + b"=" * (-len(digits) % 4))


def _decode_options(body: Buffer, max_input_byte_size: int) -> dict[str, Any]:
    if not len(body):
        return {}
    check_input_size(len(body), max_input_byte_size)
    options = decode_json(body)
    return options if type(options) is dict else {}


def _describe_tensor(tensor: ModelInput | ModelOutput, has_batch_dim: bool) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "datatype": DATATYPES_OF_CONFIG[tensor.data_type],
        "shape": [-1, *tensor.dims] if has_batch_dim else list(tensor.dims),
    }


def _describe_index_entry(entry: IndexEntryLike) -> dict[str, Any]:
    described = {"name": entry.name}
    if entry.version is not None:
        described["version"] = str(entry.version)
    if entry.state:
        described["state"] = entry.state
    if entry.reason:
        described["reason"] = entry.reason
    return described


def _describe_statistics(model: ModelStatisticsLike) -> dict[str, Any]:
    return {
        "name": model.name,
        "version": str(model.version),
        "last_inference": model.last_inference_ms,
        "inference_count": model.inference_count,
        "execution_count": model.execution_count,
        "inference_stats": {
            "success": _describe_duration(model.success),
            "fail": _describe_duration(model.fail),
            "queue": _describe_duration(model.queue),
            "compute_input": _describe_duration(model.compute_input),
            "compute_infer": _describe_duration(model.compute_infer),
            "compute_output": _describe_duration(model.compute_output),
            "cache_hit": _describe_duration(model.cache_hit),
            "cache_miss": _describe_duration(model.cache_miss),
        },
        "response_stats": {
            index: {
                "compute_infer": _describe_duration(response.compute_infer),
                "compute_output": _describe_duration(response.compute_output),
                "success": _describe_duration(response.success),
                "fail": _describe_duration(response.fail),
                "empty_response": _describe_duration(response.empty_response),
                "cancel": _describe_duration(response.cancel),
            }
            for index, response in model.response_stats.items()
        },
        "batch_stats": [
            {
                "batch_size": batch.batch_size,
                "compute_input": _describe_duration(batch.compute_input),
                "compute_infer": _describe_duration(batch.compute_infer),
                "compute_output": _describe_duration(batch.compute_output),
            }
            for batch in model.batch_stats
        ],
        "memory_usage": [
            {"type": usage.type, "id": usage.id, "byte_size": usage.byte_size} for usage in model.memory_usage
        ],
    }


def _describe_duration(duration: DurationLike) -> dict[str, int]:
    return {"count": duration.count, "ns": duration.ns}
