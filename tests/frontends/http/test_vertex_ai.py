"""The port for Vertex AI: where each request goes."""

import pytest

from merrow.core.restrictions import ApiCategory, Restriction
from merrow.frontends.http.door import HttpFrontend
from merrow.frontends.http.routes import METHODS, Endpoint
from merrow.frontends.http.status import TEXT_HEADERS
from merrow.frontends.http.vertex_ai import FORBIDDEN, REACHABLE, VertexAiFrontend
from tests.e2e.endpoints import TARGETS
from tests.frontends.fakes import FakeExchange


def name_the_endpoint(endpoint):
    """A handler that answers with its endpoint, method and model."""

    def handle(exchange, route):
        body = f"{endpoint.name} {exchange.method.decode()} {route.model_name}".encode()
        exchange.respond(200, TEXT_HEADERS, (body,))

    return handle


def ask(method, target, redirect=None, restrictions=None, **headers):
    handlers = {endpoint: name_the_endpoint(endpoint) for endpoint in Endpoint}
    door = VertexAiFrontend(HttpFrontend(handlers, restrictions), "/predict", "/health", "m")
    sent = [(name.encode(), value.encode()) for name, value in headers.items()]
    if redirect is not None:
        sent.append((b"X-Vertex-Ai-Triton-Redirect", redirect.encode()))
    exchange = FakeExchange(method, target, headers=sent)
    door.on_exchange(exchange)
    return exchange.status, exchange.answer


def test_prediction_and_health():
    assert ask(b"POST", b"/predict") == (200, b"MODEL_INFER POST m")
    assert ask(b"POST", b"/predict?a=b") == (200, b"MODEL_INFER POST m")
    assert ask(b"GET", b"/health") == (200, b"SERVER_READY GET ")
    for method, target in ((b"GET", b"/predict"), (b"POST", b"/health")):
        assert ask(method, target) == (405, b'{"error":"Method Not Allowed"}')
    for target in (b"/", b"/predict/", b"/v2", b"/health/"):
        assert ask(b"POST", target) == (400, b"")


@pytest.mark.parametrize("endpoint", Endpoint, ids=lambda endpoint: endpoint.name)
def test_every_endpoint_is_reached_with_its_own_method_or_not_at_all(endpoint):
    status, answer = ask(b"POST", b"/predict", TARGETS[endpoint][1:])
    if endpoint in REACHABLE:
        assert answer.startswith(f"{endpoint.name} {METHODS[endpoint].decode()} ".encode())
    else:
        assert (status, answer) == (403 if endpoint in FORBIDDEN else 400, b"")


@pytest.mark.parametrize("redirect", ["", "/v2", "v2/", "v2?x=1", "x", "v2/models/m/versions/a", "../v2"])
def test_what_is_no_endpoint(redirect):
    assert ask(b"POST", b"/predict", redirect) == (400, b"")


def test_a_redirect_is_a_post():
    assert ask(b"GET", b"/predict", "v2") == (405, b"")


def test_restrictions_hold():
    restrictions = {ApiCategory.INFERENCE: Restriction("X-Key", "v"), ApiCategory.HEALTH: Restriction("X-Key", "v")}
    for method, target, redirect in (
        (b"POST", b"/predict", None),
        (b"GET", b"/health", None),
        (b"POST", b"/predict", "v2/models/m/infer"),
        (b"POST", b"/predict", "v2/health/live"),
    ):
        assert ask(method, target, redirect, restrictions)[0] == 403
        assert ask(method, target, redirect, restrictions, **{"X-Key": "v"})[0] == 200
    assert ask(b"POST", b"/predict", "v2", restrictions)[0] == 200


def test_a_defect_is_answered(caplog):
    def fail(name):
        raise RuntimeError("defect")

    exchange = FakeExchange(b"POST", b"/predict")
    exchange.header = fail
    VertexAiFrontend(HttpFrontend({}), "/predict", "/health", "m").on_exchange(exchange)
    assert exchange.status == 500
    assert "defect" in caplog.text
