"""The gRPC API besides inference, by value. Bytes are those of Triton 2.51 where it was asked."""

from typing import Any

import pytest

from merrow.core.errors import InternalError, InvalidArgumentError, UnsupportedError
from merrow.core.model_config import (
    ModelConfig,
    ModelInput,
    ModelInstanceGroup,
    ModelOptimizationPolicy,
    ModelOptimizationPolicyPinnedMemoryBuffer,
    ModelOutput,
    ModelVersionPolicy,
    ModelVersionPolicyLatest,
)
from merrow.engine.engine import IndexEntry
from merrow.observe.statistics import (
    BatchStatistics,
    Duration,
    MemoryUsage,
    ModelStatistics,
    ResponseStatistics,
)
from merrow.wire import admin_proto
from merrow.wire._generated import grpc_service_pb2
from merrow.wire.admin_json import LoadOptions

PINNED = ModelOptimizationPolicyPinnedMemoryBuffer(enable=True)
CONFIG = ModelConfig(
    name="ident",
    backend="python",
    version_policy=ModelVersionPolicy(latest=ModelVersionPolicyLatest(1)),
    max_batch_size=4,
    input=(ModelInput("IN", "TYPE_FP32", dims=(4,)),),
    output=(ModelOutput("ON", "TYPE_FP32", dims=(4,), label_filename="l.txt"),),
    optimization=ModelOptimizationPolicy(input_pinned_memory=PINNED, output_pinned_memory=PINNED),
    instance_group=(ModelInstanceGroup(name="ident", kind="KIND_CPU", count=1),),
    default_model_filename="model.py",
)

DECODERS: list[Any] = [
    admin_proto.decode_empty_request,
    admin_proto.decode_model_request,
    admin_proto.decode_index_request,
    admin_proto.decode_load_request,
    admin_proto.decode_unload_request,
    admin_proto.decode_health_request,
]


@pytest.mark.parametrize("decode", DECODERS)
def test_bytes_that_are_no_message(decode: Any):
    with pytest.raises(InternalError) as error:
        decode(b"\xff\xff")
    assert error.value.message == "Unable to parse request"


@pytest.mark.parametrize("decode", DECODERS)
@pytest.mark.parametrize("message", [b"", memoryview(b""), b"\x7a\x01a"])
def test_an_empty_message_and_unknown_fields_are_fine(decode: Any, message: Any):
    decode(message)


def test_requests_about_a_model():
    for request_class in (
        grpc_service_pb2.ModelReadyRequest,
        grpc_service_pb2.ModelMetadataRequest,
        grpc_service_pb2.ModelConfigRequest,
        grpc_service_pb2.ModelStatisticsRequest,
    ):
        message = request_class(name="m", version="1x").SerializeToString()
        assert admin_proto.decode_model_request(message) == ("m", "1x")


def test_index_requests():
    request = grpc_service_pb2.RepositoryIndexRequest

    assert admin_proto.decode_index_request(request(ready=True).SerializeToString()) is True
    assert admin_proto.decode_index_request(request().SerializeToString()) is False


def _load(**settings: Any) -> grpc_service_pb2.RepositoryModelLoadRequest:
    return grpc_service_pb2.RepositoryModelLoadRequest(model_name="m", **settings)


def _unload(**settings: Any) -> grpc_service_pb2.RepositoryModelUnloadRequest:
    return grpc_service_pb2.RepositoryModelUnloadRequest(model_name="m", **settings)


def test_load_requests():
    request = _load()
    assert admin_proto.decode_load_request(request.SerializeToString()) == ("m", LoadOptions(None, {}))

    request.parameters["config"].string_param = "{}"
    request.parameters["file:1/model.py"].bytes_param = b"\xff"
    request.parameters["file:a"].bytes_param = b""
    assert admin_proto.decode_load_request(request.SerializeToString()) == (
        "m",
        LoadOptions("{}", {"1/model.py": b"\xff", "a": b""}),
    )


@pytest.mark.parametrize(
    ("name", "kind", "value", "message"),
    [
        ("config", "int64_param", 1, "invalid value type for load parameter 'config', expected string_param."),
        ("file:a", "string_param", "x", "invalid value type for load parameter 'file:a', expected bytes_param."),
        ("foo", "string_param", "x", "unrecognized load parameter 'foo'."),
    ],
)
def test_load_parameters_that_are_wrong(name: str, kind: str, value: Any, message: str):
    request = _load()
    setattr(request.parameters[name], kind, value)

    with pytest.raises(InvalidArgumentError) as error:
        admin_proto.decode_load_request(request.SerializeToString())
    assert error.value.message == message


def test_unload_requests():
    request = _unload()
    assert admin_proto.decode_unload_request(request.SerializeToString()) == ("m", False)

    request.parameters["other"].int64_param = 1
    request.parameters["unload_dependents"].bool_param = True
    assert admin_proto.decode_unload_request(request.SerializeToString()) == ("m", True)

    request.parameters["unload_dependents"].int64_param = 1
    with pytest.raises(InvalidArgumentError) as error:
        admin_proto.decode_unload_request(request.SerializeToString())
    assert error.value.message == "invalid value type for 'unload_dependents' parameter, expected bool_param."


@pytest.mark.parametrize(
    ("decode", "request_message"),
    [
        (admin_proto.decode_index_request, grpc_service_pb2.RepositoryIndexRequest(repository_name="r")),
        (admin_proto.decode_load_request, _load(repository_name="r")),
        (admin_proto.decode_unload_request, _unload(repository_name="r")),
    ],
)
def test_no_repository_can_be_named(decode: Any, request_message: Any):
    # Said before any parameter is looked at.
    if hasattr(request_message, "parameters"):
        request_message.parameters["foo"].int64_param = 1
    with pytest.raises(UnsupportedError) as error:
        decode(request_message.SerializeToString())
    assert error.value.message == "'repository_name' specification is not supported"


def test_what_is_live_or_ready_is_one_field():
    assert admin_proto.encode_server_live(True) == b"\x08\x01"
    assert admin_proto.encode_server_live(False) == b""
    assert admin_proto.encode_server_ready(True) == b"\x08\x01"
    assert admin_proto.encode_model_ready(True) == b"\x08\x01"
    assert admin_proto.encode_model_ready(False) == b""
    assert admin_proto.encode_health(True) == b"\x08\x01"
    assert admin_proto.encode_health(False) == b"\x08\x02"
    assert admin_proto.EMPTY_MESSAGE == b""


def test_server_metadata():
    assert admin_proto.encode_server_metadata("triton", "2.51.0", ["classification", "sequence"]) == (
        b"\n\x06triton\x12\x062.51.0\x1a\x0eclassification\x1a\x08sequence"
    )


def test_model_metadata():
    minus_one = b"\xff" * 9 + b"\x01"

    tensor = b"%b\x12\x04FP32\x1a\x0b" + minus_one + b"\x04"
    assert admin_proto.encode_model_metadata([1], CONFIG) == (
        b'\n\x05ident\x12\x011\x1a\x06python"\x17%b*\x17%b' % (tensor % b"\n\x02IN", tensor % b"\n\x02ON")
    )


def test_model_metadata_of_a_model_that_does_not_batch():
    config = ModelConfig(
        name="m",
        platform="onnxruntime_onnx",
        backend="onnxruntime",
        input=(ModelInput("A", "TYPE_STRING", dims=(-1, 2)),),
    )

    decoded = grpc_service_pb2.ModelMetadataResponse.FromString(admin_proto.encode_model_metadata([1, 12], config))

    assert list(decoded.versions) == ["1", "12"]
    assert decoded.platform == "onnxruntime_onnx"
    assert (decoded.inputs[0].datatype, list(decoded.inputs[0].shape)) == ("BYTES", [-1, 2])


def test_model_config():
    assert admin_proto.encode_model_config(CONFIG) == (
        b'\nV\n\x05ident\x1a\x04\n\x02\x08\x01 \x04*\t\n\x02IN\x10\x0b"\x01\x042\x10\n\x02ON\x10\x0b\x1a\x01\x04"'
        b"\x05l.txt:\x0b\n\x05ident\x10\x01 \x02B\x08model.pyb\x08*\x02\x08\x012\x02\x08\x01\x8a\x01\x06python"
    )


def test_repository_index():
    entries = [
        IndexEntry("a", 1, "READY", ""),
        IndexEntry("b", None, "", ""),
        IndexEntry("c", 2, "UNAVAILABLE", "unloaded"),
    ]

    decoded = grpc_service_pb2.RepositoryIndexResponse.FromString(admin_proto.encode_repository_index(entries))

    assert [(model.name, model.version, model.state, model.reason) for model in decoded.models] == [
        ("a", "1", "READY", ""),
        ("b", "", "", ""),
        ("c", "2", "UNAVAILABLE", "unloaded"),
    ]
    assert admin_proto.encode_repository_index(entries[:1]) == b"\n\x0d\n\x01a\x12\x011\x1a\x05READY"


def test_statistics():
    names = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")
    durations = {name: Duration(number, 100 + number) for number, name in enumerate(names)}
    response_names = ("compute_infer", "compute_output", "success", "fail", "empty_response", "cancel")
    response_durations = {name: Duration(number, 200 + number) for number, name in enumerate(response_names)}
    statistics = ModelStatistics(
        name="m",
        version=3,
        last_inference_ms=5,
        inference_count=6,
        execution_count=7,
        **durations,
        response_stats={"0": ResponseStatistics(**response_durations)},
        batch_stats=(BatchStatistics(4, Duration(1, 2), Duration(3, 4), Duration(5, 6)),),
        memory_usage=(MemoryUsage("CPU", 0, 99),),
    )

    encoded = admin_proto.encode_statistics([statistics, ModelStatistics("n", 1)])
    first, second = grpc_service_pb2.ModelStatisticsResponse.FromString(encoded).model_stats

    assert (first.name, first.version, first.last_inference) == ("m", "3", 5)
    assert (first.inference_count, first.execution_count) == (6, 7)
    for number, name in enumerate(names):
        duration = getattr(first.inference_stats, name)
        assert (duration.count, duration.ns) == (number, 100 + number)
    for number, name in enumerate(response_names):
        duration = getattr(first.response_stats["0"], name)
        assert (duration.count, duration.ns) == (number, 200 + number)
    batch = first.batch_stats[0]
    assert (batch.batch_size, batch.compute_input.ns, batch.compute_infer.ns, batch.compute_output.ns) == (4, 2, 4, 6)
    usage = first.memory_usage[0]
    assert (usage.type, usage.id, usage.byte_size) == ("CPU", 0, 99)
    assert (second.name, second.version, list(second.batch_stats)) == ("n", "1", [])
