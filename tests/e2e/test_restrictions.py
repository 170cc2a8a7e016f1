"""Restricted APIs: every endpoint and method of a running server, without the header, a wrong one, the right one."""

import grpc
import pytest

from merrow.core.restrictions import ApiCategory
from merrow.frontends.grpc.methods import CATEGORIES as GRPC_CATEGORIES
from merrow.frontends.http.routes import CATEGORIES, CHANGEABLE, METHODS, Endpoint
from merrow.testing.repository_builder import RepositoryBuilder
from merrow.testing.running_server import RunningServer
from tests.e2e.endpoints import GRPC_PATHS, INFER_BODY, TARGETS, ask

pytestmark = pytest.mark.slow

ALL = ",".join(category.value for category in ApiCategory)
REFUSAL = b'{"error":"This API is restricted, expecting header \'X-Key\'"}'
GRPC_REFUSAL = "This protocol is restricted, expecting header 'triton-grpc-protocol-Key'"
ROUTES = {"AIP_PREDICT_ROUTE": "/predict", "AIP_HEALTH_ROUTE": "/health", "SAGEMAKER_TRITON_DEFAULT_MODEL_NAME": "m"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    repository = RepositoryBuilder(tmp_path_factory.mktemp("restricted"))
    repository.add_identity("m", dims=(2,), max_batch_size=8)
    with RunningServer(
        repository.path,
        "--model-control-mode=explicit",
        "--load-model=m",
        "--allow-client-shm=true",
        f"--http-restricted-api={ALL}:X-Key=se=cret",
        f"--grpc-restricted-protocol={ALL}:Key=se=cret",
        "--allow-sagemaker=true",
        "--sagemaker-port=0",
        "--allow-vertex-ai=true",
        "--vertex-ai-port=0",
        "--address=127.0.0.1",
        environment=ROUTES,
    ) as running:
        yield running


def methods_of(endpoint):
    methods = [METHODS[endpoint].decode()]
    return [*methods, "POST"] if endpoint in CHANGEABLE else methods


@pytest.mark.parametrize("endpoint", Endpoint, ids=lambda endpoint: endpoint.name)
def test_every_endpoint(server, endpoint):
    url = server.metrics_url if endpoint is Endpoint.METRICS else server.http_url
    is_restricted = CATEGORIES[endpoint] is not None
    assert is_restricted == (endpoint is not Endpoint.METRICS)
    for method in (*methods_of(endpoint), "PUT"):
        for headers in ({}, {"X-Key": "wrong"}, {"X-Key": "se=cret2"}, {"X-Key": ""}, {"X-Other": "se=cret"}):
            answer = ask(url, method, TARGETS[endpoint], INFER_BODY, headers)
            assert (answer == (403, "text/plain", REFUSAL)) == is_restricted, (method, headers, answer)
        assert ask(url, method, TARGETS[endpoint], INFER_BODY, {"x-key": "se=cret"})[0] != 403


def test_a_restriction_comes_before_the_method_and_after_the_route(server):
    assert ask(server.http_url, "DELETE", "/v2") == (403, "text/plain", REFUSAL)
    assert ask(server.http_url, "DELETE", "/v2", headers={"X-Key": "se=cret"})[0] == 405
    assert ask(server.http_url, "GET", "/v2/nothing")[0] == 404


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/ping"),
        ("POST", "/invocations"),
        ("GET", "/models"),
        ("POST", "/models"),
        ("GET", "/models/x"),
        ("DELETE", "/models/x"),
    ],
)
def test_every_endpoint_of_sagemaker(server, method, target):
    assert ask(server.sagemaker_url, method, target, INFER_BODY) == (403, "text/plain", REFUSAL)
    assert ask(server.sagemaker_url, method, target, INFER_BODY, {"X-Key": "se=cret"})[0] != 403


@pytest.mark.parametrize("endpoint", Endpoint, ids=lambda endpoint: endpoint.name)
def test_every_endpoint_of_vertex_ai(server, endpoint):
    redirect = {"X-Vertex-Ai-Triton-Redirect": TARGETS[endpoint][1:]}
    answer = ask(server.vertex_ai_url, "POST", "/predict", INFER_BODY, redirect)
    if endpoint is Endpoint.METRICS:
        assert answer[0] == 200
    else:
        # Refused, or not to be reached at all.
        assert answer in ((403, "text/plain", REFUSAL), (403, "text/plain", b""), (400, "text/plain", b""))


def test_prediction_and_health_of_vertex_ai(server):
    for method, target in (("POST", "/predict"), ("GET", "/health")):
        assert ask(server.vertex_ai_url, method, target, INFER_BODY) == (403, "text/plain", REFUSAL)
        assert ask(server.vertex_ai_url, method, target, INFER_BODY, {"X-Key": "se=cret"})[0] == 200


@pytest.mark.parametrize("path", GRPC_PATHS)
def test_every_method(server, path):
    assert GRPC_CATEGORIES[path.encode()] is not None
    with grpc.insecure_channel(server.grpc_url) as channel:
        for metadata in ((), (("triton-grpc-protocol-key", "wrong"),), (("key", "se=cret"),)):
            assert error_of(channel, path, metadata) == (grpc.StatusCode.UNAVAILABLE, GRPC_REFUSAL)
        assert error_of(channel, path, (("triton-grpc-protocol-key", "se=cret"),))[1] != GRPC_REFUSAL


def error_of(channel, path, metadata):
    """Status and text of a call with an empty message, whatever its kind."""
    call = channel.stream_stream(path)(iter([b""]), metadata=metadata, timeout=10)
    try:
        next(call, None)
        call.cancel()
        return None, ""
    except grpc.RpcError as error:
        return error.code(), error.details()


def test_all_is_on_one_port_too(tmp_path):
    repository = RepositoryBuilder(tmp_path)
    repository.add_identity("m", dims=(2,), max_batch_size=8)
    flags = ("--port=0", "--http-restricted-api=health:X-Key=v", "--grpc-restricted-protocol=metadata:Key=v")
    with RunningServer(repository.path, *flags) as server:
        assert ask(server.http_url, "GET", "/v2/health/live") == (403, "text/plain", REFUSAL)
        assert ask(server.http_url, "GET", "/v2")[0] == 200
        assert ask(server.http_url, "GET", "/metrics")[0] == 200
        with grpc.insecure_channel(server.grpc_url) as channel:
            path = "/inference.GRPCInferenceService/ServerMetadata"
            assert error_of(channel, path, ()) == (grpc.StatusCode.UNAVAILABLE, GRPC_REFUSAL)
            assert error_of(channel, path.replace("ServerMetadata", "ServerLive"), ()) == (None, "")
