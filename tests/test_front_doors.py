"""Which front doors there are, what each serves, and on which port."""

import asyncio
import json
from dataclasses import replace

import pytest

from merrow.core.model_config import ModelConfig
from merrow.front_doors import EXTENSIONS, PROTOCOL_VERSION, FrontDoorError, FrontDoors, path_of_socket, services
from merrow.frontends.grpc.delays import DelayedGrpc
from merrow.observe.metrics_page import MetricsPage
from merrow.observe.trace import Tracer
from merrow.settings import (
    GrpcDelays,
    MetricsSettings,
    NetworkSettings,
    SageMakerSettings,
    Settings,
    TlsSettings,
    TraceSettings,
    VertexAiSettings,
)
from merrow.testing.manual_clock import ManualClock
from tests.frontends.fakes import FakeEngine, FakeExchange, FakeModel
from tests.frontends.tracing import KeepingOutput

VERTEX_AI = VertexAiSettings("/predict", "/health", "0.0.0.0", 8090)


def with_doors(use, network=NetworkSettings(), models=("m",)):  # noqa: B008  # frozen
    """What `use` makes of the front doors of a server."""

    async def run():
        clock = ManualClock()
        page = MetricsPage(MetricsSettings(allow_cpu_metrics=False), clock)
        tracer = Tracer(TraceSettings(), KeepingOutput(), clock)
        try:
            engine = FakeEngine(*(FakeModel(ModelConfig(name=name)) for name in models))
            doors = FrontDoors(engine, Settings(network=network), page, tracer, None)
            result = use(doors)
            await doors.close()
            return result
        finally:
            await tracer.close()
            page.close()

    return asyncio.run(run())


def ask(application, target):
    """The status and the body of an answer that comes at once."""
    exchange = FakeExchange(b"GET", target)
    application.on_exchange(exchange)
    return exchange.status, exchange.answer


def test_the_metadata_tells_the_release_and_the_extensions():
    status, body = with_doors(lambda doors: ask(doors.http, b"/v2"))

    assert status == 200
    assert json.loads(body) == {"name": "triton", "version": PROTOCOL_VERSION, "extensions": list(EXTENSIONS)}


def test_metrics_are_served_with_rest_on_one_port_and_else_on_their_own():
    def statuses(doors):
        return [ask(door, b"/metrics")[0] for door in (doors.http, doors.all_http, doors.metrics)]

    assert with_doors(statuses) == [404, 200, 200]


def test_three_services_in_triton_s_order():
    network = NetworkSettings(
        http_address="::1",
        http_port=1,
        reuse_http_port=True,
        grpc_port=2,
        grpc_tls=TlsSettings("c", "k"),
        metrics_port=3,
    )

    def facts(doors):
        found = list(services(network, doors))
        assert [(each.http, each.grpc) for each in found] == [
            (None, doors.grpc),
            (doors.http, None),
            (doors.metrics, None),
        ]
        return [(each.name, each.title, each.address, each.port, each.reuses_port, each.tls) for each in found]

    assert with_doors(facts, network) == [
        ("grpc", "GRPCInferenceService", "127.0.0.1", 2, False, TlsSettings("c", "k")),
        ("http", "HTTPService", "::1", 1, True, None),
        ("metrics", "Metrics Service", "127.0.0.1", 3, False, None),
    ]


def test_all_services_there_are():
    network = NetworkSettings(port=9, tls=TlsSettings("c", "k"), sagemaker=SageMakerSettings(), vertex_ai=VERTEX_AI)

    def facts(doors):
        found = {each.name: each for each in services(network, doors)}
        assert (found["all"].http, found["all"].grpc) == (doors.all_http, doors.grpc)
        assert found["sagemaker"].http is doors.sagemaker
        assert found["vertex_ai"].http is doors.vertex_ai
        assert found["sagemaker"].tls == found["vertex_ai"].tls == network.tls
        return [(each.name, each.port) for each in found.values()]

    assert with_doors(facts, network) == [
        ("all", 9),
        ("grpc", 8001),
        ("http", 8000),
        ("sagemaker", 8080),
        ("vertex_ai", 8090),
        ("metrics", 8002),
    ]


def test_what_is_not_wanted_is_not_there():
    network = NetworkSettings(allow_http=False, allow_grpc=False, allow_metrics=False)

    assert with_doors(lambda doors: list(services(network, doors)), network) == []
    assert with_doors(lambda doors: (doors.sagemaker, doors.vertex_ai)) == (None, None)


def test_calls_are_held_back_only_where_that_is_asked_for():
    network = NetworkSettings(grpc_delays=GrpcDelays(process_ms=1))

    assert with_doors(lambda doors: isinstance(doors.grpc_calls, DelayedGrpc), network)
    assert with_doors(lambda doors: doors.grpc_calls is doors.grpc)


@pytest.mark.parametrize("models", [(), ("m", "n")])
def test_vertex_ai_without_a_default_needs_one_model(models):
    with pytest.raises(FrontDoorError) as raised:
        with_doors(lambda doors: None, NetworkSettings(vertex_ai=VERTEX_AI), models)

    assert str(raised.value) == (
        "failed to start Vertex AI service: Invalid argument - Expect the model repository contains only a single "
        "model if default model is not specified"
    )
    with_doors(lambda doors: None, NetworkSettings(vertex_ai=replace(VERTEX_AI, default_model="m")), models)


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("unix:/run/merrow.sock", "/run/merrow.sock"),
        ("unix:///run/merrow.sock", "/run/merrow.sock"),
        ("unix:merrow.sock", "merrow.sock"),
        ("127.0.0.1", None),
        ("::1", None),
        ("unix", None),
    ],
)
def test_an_address_may_be_a_unix_socket(address, path):
    assert path_of_socket(address) == path
