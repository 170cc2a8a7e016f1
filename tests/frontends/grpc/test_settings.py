"""Log and trace settings over gRPC."""

import asyncio
import io

from merrow.core.model_config import ModelConfig
from merrow.frontends.grpc.admin import GrpcAdmin
from merrow.frontends.grpc.infer import GrpcInference
from merrow.frontends.grpc.methods import GrpcFrontend
from merrow.frontends.grpc.settings import GrpcSettings
from merrow.observe.logs import start_logging, stop_logging
from merrow.observe.trace import Tracer
from merrow.observe.trace_file import TraceFile
from merrow.settings import LogSettings, TraceSettings
from merrow.wire._generated import grpc_service_pb2 as pb
from tests.frontends.fakes import FakeCall, FakeEngine, FakeModel

SERVICE = b"/inference.GRPCInferenceService/"


def ask(*requests, log=None):
    """Call methods one after another; returns status, text, and messages of each."""

    async def run():
        engine = FakeEngine(FakeModel(ModelConfig(name="m")))
        tracer = Tracer(TraceSettings(file="/nowhere"), TraceFile("/nowhere"), lambda: 0)
        settings = GrpcSettings(engine, tracer, log)
        frontend = GrpcFrontend(engine, GrpcAdmin(engine, b""), GrpcInference(engine), settings=settings)
        answers = []
        for request in requests:
            engine.model_ready = getattr(request, "model_name", "") != "m!"
            method = b"TraceSetting" if isinstance(request, pb.TraceSettingRequest) else b"LogSettings"
            call = FakeCall(SERVICE + method)
            frontend.on_unary(call, request.SerializeToString())
            await settings.close()
            answers.append((call.status, call.message, call.sent))
        await tracer.close()
        return answers

    return asyncio.run(run())


def trace_request(model_name="", **settings):
    request = pb.TraceSettingRequest(model_name=model_name)
    for key, values in settings.items():
        request.settings[key].value.extend(values)
    return request


def settings_of(answer):
    status, _, (message,) = answer
    assert status == 0
    return {key: list(value.value) for key, value in pb.TraceSettingResponse.FromString(message).settings.items()}


def test_trace_settings_are_read_and_changed():
    first, second, third = ask(
        trace_request(),
        trace_request("m", trace_rate=["5"], trace_level=["TIMESTAMPS"]),
        trace_request("m", trace_rate=[]),
    )

    assert settings_of(first)["trace_rate"] == ["1000"]
    assert settings_of(second)["trace_rate"] == ["5"]
    assert settings_of(second)["trace_level"] == settings_of(third)["trace_level"] == ["TIMESTAMPS"]
    assert settings_of(third)["trace_rate"] == ["1000"]


def test_a_model_that_is_not_there_has_no_settings():
    assert ask(trace_request("nope", trace_rate=["5"])) == [(0, "", [b""])]


def test_mistakes_are_statuses():
    assert ask(trace_request(trace_rate=["1", "2"])) == [(3, "expect only 1 value for 'trace_rate'", [])]
    assert ask(trace_request(trace_level=["TIMESTAMPS"], trace_rate=["0"])) == [
        (3, "Attempting to set invalid trace setting :sample rate must be non-zero", [])
    ]


def test_log_settings_are_changed_until_the_first_mistake():
    log = start_logging(LogSettings(), io.StringIO())
    request = pb.LogSettingsRequest()
    request.settings["log_error"].bool_param = False
    request.settings["log_format"].string_param = "x"
    try:
        refused, answer = ask(request, pb.LogSettingsRequest(), log=log)
    finally:
        stop_logging(log)

    assert refused == (3, "invalid argument for log_format, got: x", [])
    (message,) = answer[2]
    assert pb.LogSettingsResponse.FromString(message).settings["log_error"].bool_param is False


def test_a_log_that_is_not_the_servers_cannot_be_changed():
    assert ask(pb.LogSettingsRequest()) == [(14, "the server does not support dynamic logging", [])]
