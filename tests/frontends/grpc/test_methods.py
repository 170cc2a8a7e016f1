"""Which methods there are, and the gRPC front door."""

from unittest.mock import Mock

import pytest

from merrow.frontends.grpc.admin import GrpcAdmin
from merrow.frontends.grpc.infer import GrpcInference
from merrow.frontends.grpc.methods import GrpcFrontend
from merrow.frontends.grpc.settings import GrpcSettings
from merrow.frontends.grpc.stream import InferStream
from merrow.wire._generated.grpc_service_pb2 import DESCRIPTOR
from tests.frontends.fakes import FakeCall, FakeEngine, FakeModel
from tests.frontends.grpc.messages import OUTPUT, config_of, describe_response, encode_request

INFER = b"/inference.GRPCInferenceService/ModelInfer"


def make_frontend(engine):
    settings = GrpcSettings(engine, Mock(), None)
    return GrpcFrontend(engine, GrpcAdmin(engine, b""), GrpcInference(engine), settings=settings)


def make_engine():
    return FakeEngine(FakeModel(config_of("m")))


def test_every_method_of_the_published_service_is_there():
    frontend = make_frontend(make_engine())
    for method in DESCRIPTOR.services_by_name["GRPCInferenceService"].methods:
        is_streaming = frontend.is_streaming(b"/inference.GRPCInferenceService/" + method.name.encode())
        assert is_streaming == (method.name == "ModelStreamInfer"), method.name


@pytest.mark.parametrize(
    "path",
    [
        b"/inference.GRPCInferenceService/Nope",
        b"/grpc.health.v1.Health/Nope",
        b"",
    ],
)
def test_any_other_path_is_no_method(path):
    assert make_frontend(make_engine()).is_streaming(path) is None


def test_the_health_service_can_be_checked():
    assert make_frontend(make_engine()).is_streaming(b"/grpc.health.v1.Health/Check") is False


def test_an_error_of_a_handler_ends_the_call():
    call = FakeCall(INFER)
    make_frontend(make_engine()).on_unary(call, encode_request("n"))
    assert (call.status, call.message) == (5, "Request for unknown model: 'n' is not found")


def test_a_defect_of_a_handler_ends_the_call_and_is_logged(caplog):
    engine = make_engine()
    engine.submit_error = ZeroDivisionError("secret")
    call = FakeCall(INFER)
    make_frontend(engine).on_unary(call, encode_request())
    assert (call.status, call.message) == (13, "unexpected error in the server; its log tells more")
    assert "secret" in caplog.text


def test_an_inference_goes_through():
    engine = make_engine()
    call = FakeCall(INFER)
    make_frontend(engine).on_unary(call, memoryview(encode_request()))
    engine.answer(outputs=[OUTPUT])
    assert describe_response(call.sent[0]) == ("m", "1", "a", ["O"], None)


def test_a_stream_begins_and_ends_when_the_server_exits():
    frontend = make_frontend(make_engine())
    path = b"/inference.GRPCInferenceService/ModelStreamInfer"
    first, second = FakeCall(path), FakeCall(path)
    assert isinstance(frontend.on_stream(first), InferStream)
    frontend.on_stream(second).on_half_close()
    assert second.status == 0

    frontend.shut_down()

    assert first.status == 14
    assert not frontend._streams
