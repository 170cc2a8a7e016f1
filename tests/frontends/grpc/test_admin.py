"""Health, metadata, configuration, statistics and the repository over gRPC."""

import asyncio

import pytest

from merrow.core.errors import InvalidArgumentError, UnavailableError
from merrow.engine.engine import IndexEntry
from merrow.frontends.grpc.admin import GrpcAdmin
from merrow.frontends.grpc.infer import GrpcInference
from merrow.frontends.grpc.methods import GrpcFrontend
from merrow.wire._generated import grpc_service_pb2 as service
from merrow.wire._generated import health_pb2
from tests.frontends.fakes import FakeCall, FakeEngine, FakeModel
from tests.frontends.grpc.messages import config_of

BAD_VERSION = (
    "failed to get model version from specified version string 'x' (details: stol), version should be an integral "
    "value > 0"
)


def make_engine():
    return FakeEngine(FakeModel(config_of("m"), version=3))


def ask(engine, method, request, service_name=b"inference.GRPCInferenceService"):
    """The call of one method after it has ended."""

    async def run():
        admin = GrpcAdmin(engine, b"metadata")
        frontend = GrpcFrontend(engine, admin, GrpcInference(engine))
        call = FakeCall(b"/%b/%b" % (service_name, method))
        frontend.on_unary(call, request if isinstance(request, bytes) else request.SerializeToString())
        await admin.close()
        return call

    return asyncio.run(run())


def answer(response_class, *arguments, **more):
    call = ask(*arguments, **more)
    assert (call.status, call.message) == (0, "")
    (data,) = call.sent
    return response_class.FromString(data)


def failure(*arguments):
    call = ask(*arguments)
    assert call.sent == []
    return call.status, call.message


def test_health_is_told_by_its_fields():
    engine = make_engine()
    assert answer(service.ServerLiveResponse, engine, b"ServerLive", service.ServerLiveRequest()).live
    assert answer(service.ServerReadyResponse, engine, b"ServerReady", service.ServerReadyRequest()).ready
    engine.live = engine.ready = False
    assert not answer(service.ServerLiveResponse, engine, b"ServerLive", service.ServerLiveRequest()).live
    assert not answer(service.ServerReadyResponse, engine, b"ServerReady", service.ServerReadyRequest()).ready


@pytest.mark.parametrize(
    ("ready", "status"),
    [(True, health_pb2.HealthCheckResponse.SERVING), (False, health_pb2.HealthCheckResponse.NOT_SERVING)],
)
def test_the_health_service_means_the_server_whatever_it_is_asked_about(ready, status):
    engine = make_engine()
    engine.ready = ready
    request = health_pb2.HealthCheckRequest(service="anything")
    response = answer(health_pb2.HealthCheckResponse, engine, b"Check", request, service_name=b"grpc.health.v1.Health")
    assert response.status == status


def test_an_exiting_server_says_so():
    engine = make_engine()
    engine.is_exiting = True
    for method in (b"ServerLive", b"ServerReady"):
        assert failure(engine, method, b"") == (14, "Server exiting")


def test_a_model_s_readiness():
    engine = make_engine()
    assert answer(service.ModelReadyResponse, engine, b"ModelReady", service.ModelReadyRequest(name="m")).ready
    engine.model_ready = False
    request = service.ModelReadyRequest(name="m", version="3")
    assert not answer(service.ModelReadyResponse, engine, b"ModelReady", request).ready
    assert failure(engine, b"ModelReady", service.ModelReadyRequest(name="n")) == (
        5,
        "Request for unknown model: 'n' is not found",
    )
    assert failure(engine, b"ModelReady", service.ModelReadyRequest(name="m", version="x")) == (3, BAD_VERSION)


def test_metadata_and_configuration():
    engine = make_engine()
    assert ask(engine, b"ServerMetadata", b"").sent == [b"metadata"]
    request = service.ModelMetadataRequest(name="m")
    metadata = answer(service.ModelMetadataResponse, engine, b"ModelMetadata", request)
    assert (metadata.name, list(metadata.versions), metadata.platform) == ("m", ["3"], "python")
    assert [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in metadata.inputs] == [("I", "INT32", [-1])]
    assert [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in metadata.outputs] == [("O", "INT32", [-1])]
    request = service.ModelConfigRequest(name="m", version="3")
    assert answer(service.ModelConfigResponse, engine, b"ModelConfig", request).config.name == "m"


@pytest.mark.parametrize("method", [b"ModelMetadata", b"ModelConfig"])
def test_an_unknown_model_or_version_has_neither(method):
    engine = make_engine()
    assert failure(engine, method, service.ModelMetadataRequest(name="n")) == (
        5,
        "Request for unknown model: 'n' is not found",
    )
    assert failure(engine, method, service.ModelMetadataRequest(name="m", version="4")) == (
        5,
        "Request for unknown model: 'm' version 4 is not found",
    )
    assert failure(engine, method, service.ModelMetadataRequest(name="m", version="x")) == (3, BAD_VERSION)


def test_statistics_are_of_a_version_a_model_or_all():
    engine = make_engine()
    for name, version in (("", ""), ("m", ""), ("m", "3")):
        request = service.ModelStatisticsRequest(name=name, version=version)
        assert not answer(service.ModelStatisticsResponse, engine, b"ModelStatistics", request).model_stats
    assert engine.controls == [("statistics", "", -1), ("statistics", "m", -1), ("statistics", "m", 3)]


def test_the_index_holds_models():
    engine = make_engine()
    engine.index = [IndexEntry("m", 3, "READY", ""), IndexEntry("n", None, "", "")]
    request = service.RepositoryIndexRequest(ready=True)
    index = answer(service.RepositoryIndexResponse, engine, b"RepositoryIndex", request)
    assert [(model.name, model.version, model.state) for model in index.models] == [("m", "3", "READY"), ("n", "", "")]
    assert engine.controls == [("index", True)]
    assert failure(engine, b"RepositoryIndex", service.RepositoryIndexRequest(repository_name="r")) == (
        12,
        "'repository_name' specification is not supported",
    )


def test_a_load_is_answered_when_it_is_done():
    engine = make_engine()
    request = service.RepositoryModelLoadRequest(model_name="m")
    assert ask(engine, b"RepositoryModelLoad", request).sent == [b""]
    request.parameters["config"].string_param = "{}"
    request.parameters["file:1/a"].bytes_param = b"ab"
    assert ask(engine, b"RepositoryModelLoad", request).sent == [b""]
    assert engine.controls == [("load", "m", None, None), ("load", "m", "{}", {"1/a": b"ab"})]


def test_an_unload_may_take_dependents_along():
    engine = make_engine()
    request = service.RepositoryModelUnloadRequest(model_name="m")
    request.parameters["unload_dependents"].bool_param = True
    assert ask(engine, b"RepositoryModelUnload", request).sent == [b""]
    assert engine.controls == [("unload", "m", True)]


@pytest.mark.parametrize("method", [b"RepositoryModelLoad", b"RepositoryModelUnload"])
def test_failed_control_is_answered_with_its_error(method, caplog):
    engine = make_engine()
    request = service.RepositoryModelLoadRequest(model_name="m")
    engine.control_error = InvalidArgumentError("load failed for model 'm': why;\n")
    assert failure(engine, method, request) == (3, "load failed for model 'm': why;\n")
    engine.control_error = UnavailableError("not allowed")
    assert failure(engine, method, request) == (14, "not allowed")
    engine.control_error = ZeroDivisionError("secret")
    assert failure(engine, method, request) == (13, "unexpected error in the server; its log tells more")
    assert "secret" in caplog.text


@pytest.mark.parametrize(
    "method",
    [
        b"ServerLive",
        b"ServerReady",
        b"ServerMetadata",
        b"ModelReady",
        b"ModelMetadata",
        b"ModelConfig",
        b"ModelStatistics",
        b"ModelInfer",
        b"RepositoryIndex",
        b"RepositoryModelLoad",
        b"RepositoryModelUnload",
    ],
)
def test_bytes_that_are_no_message_are_an_internal_error(method):
    assert failure(make_engine(), method, b"\xff\xff\xff") == (13, "Unable to parse request")
