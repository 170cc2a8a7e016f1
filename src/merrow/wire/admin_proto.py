"""Everything of the gRPC API that is not inference: requests -> values, values -> responses.

The counterpart of `admin_json`, which describes the values that come in. Decoders raise InternalError for bytes that
are no such message, as gRPC's C++ runtime does; encoders return whole messages.

Source: Triton, grpc/grpc_server.cc.
"""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from merrow.core.datatypes import DATATYPES_OF_CONFIG
from merrow.core.errors import InternalError, InvalidArgumentError, UnsupportedError
from merrow.core.model_config import ModelConfig, ModelInput, ModelOutput
from merrow.core.tensor import Buffer
from merrow.wire._generated import grpc_service_pb2, health_pb2
from merrow.wire.admin_json import DurationLike, IndexEntryLike, LoadOptions, ModelStatisticsLike
from merrow.wire.model_config_text import encode_config_message

EMPTY_MESSAGE = b""
"""The answer to a load, an unload, and every other request whose response has no fields."""

_FILE_PREFIX = "file:"

_AnyMessage = TypeVar("_AnyMessage", bound=Message)


def decode_empty_request(message: Buffer) -> None:
    """A ServerLiveRequest, ServerReadyRequest or ServerMetadataRequest: none has a field."""
    parse_message(grpc_service_pb2.ServerLiveRequest, message)


def decode_model_request(message: Buffer) -> tuple[str, str]:
    """Name and version of a request about a model; the version is the client's text, often empty.

    ModelReady-, ModelMetadata-, ModelConfig- and ModelStatisticsRequest have the same two fields.
    """
    request = parse_message(grpc_service_pb2.ModelReadyRequest, message)
    return request.name, request.version


def decode_index_request(message: Buffer) -> bool:
    """Whether only models that are ready are asked for.

    Raises:
        UnsupportedError: a repository is named.
    """
    request = parse_message(grpc_service_pb2.RepositoryIndexRequest, message)
    _check_no_repository(request.repository_name)
    return request.ready


def decode_load_request(message: Buffer) -> tuple[str, LoadOptions]:
    """The model's name, and what comes with the request.

    Raises:
        UnsupportedError: a repository is named.
        InvalidArgumentError: a parameter is unknown, or of the wrong type.
    """
    request = parse_message(grpc_service_pb2.RepositoryModelLoadRequest, message)
    _check_no_repository(request.repository_name)
    config: str | None = None
    files: dict[str, bytes] = {}
    for name in sorted(request.parameters):
        parameter = request.parameters[name]
        kind = parameter.WhichOneof("parameter_choice")
        if name == "config":
            if kind != "string_param":
                raise _wrong_load_type(name, "string_param")
            config = parameter.string_param
        elif name.startswith(_FILE_PREFIX):
            if kind != "bytes_param":
                raise _wrong_load_type(name, "bytes_param")
            files[name.removeprefix(_FILE_PREFIX)] = parameter.bytes_param
        else:
            raise InvalidArgumentError(f"unrecognized load parameter '{name}'.")
    return request.model_name, LoadOptions(config, files)


def decode_unload_request(message: Buffer) -> tuple[str, bool]:
    """The model's name, and whether to unload what it depends on, too.

    Raises:
        UnsupportedError: a repository is named.
        InvalidArgumentError: `unload_dependents` is no boolean.
    """
    request = parse_message(grpc_service_pb2.RepositoryModelUnloadRequest, message)
    _check_no_repository(request.repository_name)
    unload_dependents = False
    if "unload_dependents" in request.parameters:
        parameter = request.parameters["unload_dependents"]
        if parameter.WhichOneof("parameter_choice") != "bool_param":
            raise InvalidArgumentError("invalid value type for 'unload_dependents' parameter, expected bool_param.")
        unload_dependents = parameter.bool_param
    return request.model_name, unload_dependents


def decode_health_request(message: Buffer) -> None:
    """A HealthCheckRequest; which service it asks for makes no difference."""
    parse_message(health_pb2.HealthCheckRequest, message)


def encode_server_live(is_live: bool) -> bytes:
    return grpc_service_pb2.ServerLiveResponse(live=is_live).SerializeToString()


def encode_server_ready(is_ready: bool) -> bytes:
    return grpc_service_pb2.ServerReadyResponse(ready=is_ready).SerializeToString()


def encode_model_ready(is_ready: bool) -> bytes:
    return grpc_service_pb2.ModelReadyResponse(ready=is_ready).SerializeToString()


def encode_health(is_serving: bool) -> bytes:
    status = health_pb2.HealthCheckResponse.SERVING if is_serving else health_pb2.HealthCheckResponse.NOT_SERVING
    return health_pb2.HealthCheckResponse(status=status).SerializeToString()


def encode_server_metadata(name: str, version: str, extensions: Sequence[str]) -> bytes:
    response = grpc_service_pb2.ServerMetadataResponse(name=name, version=version, extensions=extensions)
    return response.SerializeToString()


def encode_model_metadata(versions: Iterable[int], config: ModelConfig) -> bytes:
    """`versions` are all ready ones, ascending, or the one that was asked for."""
    response = grpc_service_pb2.ModelMetadataResponse(
        name=config.name,
        versions=[str(version) for version in versions],
        platform=config.platform or config.backend,
        inputs=[_describe_tensor(tensor, config.has_batch_dim) for tensor in config.input],
        outputs=[_describe_tensor(tensor, config.has_batch_dim) for tensor in config.output],
    )
    return response.SerializeToString()


def encode_model_config(config: ModelConfig) -> bytes:
    return grpc_service_pb2.ModelConfigResponse(config=encode_config_message(config)).SerializeToString()


def encode_statistics(statistics: Iterable[ModelStatisticsLike]) -> bytes:
    response = grpc_service_pb2.ModelStatisticsResponse(
        model_stats=[_describe_statistics(model) for model in statistics]
    )
    return response.SerializeToString()


def encode_repository_index(entries: Iterable[IndexEntryLike]) -> bytes:
    response = grpc_service_pb2.RepositoryIndexResponse(
        models=[
            grpc_service_pb2.RepositoryIndexResponse.ModelIndex(
                name=entry.name,
                version="" if entry.version is None else str(entry.version),
                state=entry.state,
                reason=entry.reason,
            )
            for entry in entries
        ]
    )
    return response.SerializeToString()


def parse_message(message_class: type[_AnyMessage], message: Buffer) -> _AnyMessage:
    """Raises InternalError for bytes that are no such message."""
    try:
        return message_class.FromString(bytes(message))
    except DecodeError:
        raise InternalError("Unable to parse request") from None


def _check_no_repository(name: str) -> None:
    if name:
        raise UnsupportedError("'repository_name' specification is not supported")


def _wrong_load_type(name: str, expected: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"invalid value type for load parameter '{name}', expected {expected}.")


def _describe_tensor(
    tensor: ModelInput | ModelOutput, has_batch_dim: bool
) -> grpc_service_pb2.ModelMetadataResponse.TensorMetadata:
    return grpc_service_pb2.ModelMetadataResponse.TensorMetadata(
        name=tensor.name,
        datatype=DATATYPES_OF_CONFIG[tensor.data_type],
        shape=[-1, *tensor.dims] if has_batch_dim else tensor.dims,
    )


def _describe_statistics(model: ModelStatisticsLike) -> grpc_service_pb2.ModelStatistics:
    return grpc_service_pb2.ModelStatistics(
        name=model.name,
        version=str(model.version),
        last_inference=model.last_inference_ms,
        inference_count=model.inference_count,
        execution_count=model.execution_count,
        inference_stats=grpc_service_pb2.InferStatistics(
            success=_describe_duration(model.success),
            fail=_describe_duration(model.fail),
            queue=_describe_duration(model.queue),
            compute_input=_describe_duration(model.compute_input),
            compute_infer=_describe_duration(model.compute_infer),
            compute_output=_describe_duration(model.compute_output),
            cache_hit=_describe_duration(model.cache_hit),
            cache_miss=_describe_duration(model.cache_miss),
        ),
        response_stats={
            index: grpc_service_pb2.InferResponseStatistics(
                compute_infer=_describe_duration(response.compute_infer),
                compute_output=_describe_duration(response.compute_output),
                success=_describe_duration(response.success),
                fail=_describe_duration(response.fail),
                empty_response=_describe_duration(response.empty_response),
                cancel=_describe_duration(response.cancel),
            )
            for index, response in model.response_stats.items()
        },
        batch_stats=[
            grpc_service_pb2.InferBatchStatistics(
                batch_size=batch.batch_size,
                compute_input=_describe_duration(batch.compute_input),
                compute_infer=_describe_duration(batch.compute_infer),
                compute_output=_describe_duration(batch.compute_output),
            )
            for batch in model.batch_stats
        ],
        memory_usage=[
            grpc_service_pb2.MemoryUsage(type=usage.type, id=usage.id, byte_size=usage.byte_size)
            for usage in model.memory_usage
        ],
    )


def _describe_duration(duration: DurationLike) -> grpc_service_pb2.StatisticDuration:
    return grpc_service_pb2.StatisticDuration(count=duration.count, ns=duration.ns)
