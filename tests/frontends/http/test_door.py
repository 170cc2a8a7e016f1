"""The REST front door: from a target to a handler, and from what it raises to an answer."""

import pytest

from merrow.core.errors import UnavailableError
from merrow.frontends.http import door
from merrow.frontends.http.door import HttpFrontend
from merrow.frontends.http.routes import Endpoint
from tests.frontends.fakes import FakeExchange


class Handlers:
    """Handlers that note what reached them, and raise what the test wants raised."""

    def __init__(self, error=None):
        self.seen = []
        self.error = error

    def __call__(self, exchange, route):
        self.seen.append((route.model_name, route.model_version, route.repository))
        if self.error is not None:
            raise self.error
        exchange.respond(200, ((b"Content-Type", b"text/plain"),), (b"done",))


def ask(frontend, method, target):
    exchange = FakeExchange(method, target)
    frontend.on_exchange(exchange)
    return exchange


def frontend_of(handler):
    return HttpFrontend(dict.fromkeys(Endpoint, handler))


def test_a_handler_gets_what_the_target_names():
    handler = Handlers()
    frontend = frontend_of(handler)

    ask(frontend, b"GET", b"/v2/models/m/versions/12/config?x=1")
    ask(frontend, b"POST", b"/v2/models/m/infer")
    ask(frontend, b"POST", b"/v2/repository/r/models/m/load")

    assert handler.seen == [("m", 12, ""), ("m", -1, ""), ("m", -1, "r")]


def test_an_unknown_target_is_not_found_whatever_the_method():
    for method in (b"GET", b"POST", b"BREW"):
        exchange = ask(frontend_of(Handlers()), method, b"/v2/nothing")
        assert (exchange.status, exchange.content_type, exchange.answer) == (
            404,
            b"text/plain",
            b'{"error":"Not Found"}',
        )


def test_an_endpoint_without_a_handler_is_not_found():
    assert ask(HttpFrontend({}), b"GET", b"/v2").status == 404


@pytest.mark.parametrize(
    ("method", "target", "content_type"),
    [
        (b"POST", b"/v2/health/live", b"text/plain"),
        (b"HEAD", b"/v2/health/ready", b"text/plain"),
        (b"POST", b"/v2/models/m/ready", b"text/plain"),
        (b"GET", b"/v2/models/m/infer", b"text/plain"),
        (b"POST", b"/v2", b"application/json"),
        (b"PUT", b"/v2/models/m", b"application/json"),
        (b"OPTIONS", b"/v2/models/m/config", b"application/json"),
        (b"POST", b"/v2/models/stats", b"application/json"),
        (b"GET", b"/v2/repository/index", b"application/json"),
        (b"GET", b"/v2/repository/models/m/load", b"application/json"),
    ],
)
def test_a_wrong_method_is_refused_with_the_endpoint_s_content_type(method, target, content_type):
    handler = Handlers()

    exchange = ask(frontend_of(handler), method, target)

    assert (exchange.status, exchange.content_type, exchange.answer) == (
        405,
        content_type,
        b'{"error":"Method Not Allowed"}',
    )
    assert handler.seen == []


def test_an_error_of_a_handler_is_the_answer():
    exchange = ask(frontend_of(Handlers(UnavailableError("Server exiting"))), b"GET", b"/v2/health/live")
    assert (exchange.status, exchange.content_type, exchange.answer) == (
        503,
        b"text/plain",
        b'{"error":"Server exiting"}',
    )


def test_a_defect_of_a_handler_is_answered_and_logged(caplog):
    exchange = ask(frontend_of(Handlers(ZeroDivisionError("secret"))), b"GET", b"/v2")

    assert exchange.status == 500
    assert b"secret" not in exchange.answer
    assert "secret" in caplog.text


def test_a_version_beyond_64_bits_is_an_error_of_the_endpoint_after_the_method():
    frontend = frontend_of(Handlers())
    target = b"/v2/models/m/versions/99999999999999999999"

    for _ in range(2):
        exchange = ask(frontend, b"GET", target)
        assert (exchange.status, exchange.content_type, exchange.answer) == (
            400,
            b"application/json",
            b'{"error":"failed to get model version from specified version string \'99999999999999999999\' '
            b'(details: stol), version should be an integral value > 0"}',
        )
    assert ask(frontend, b"POST", target).status == 405


def test_kept_routes_are_bounded(monkeypatch):
    monkeypatch.setattr(door, "MAX_KEPT_ROUTES", 4)
    handler = Handlers()
    frontend = frontend_of(handler)

    for number in range(10):
        ask(frontend, b"GET", b"/v2/models/m%d" % number)
        assert len(frontend._kept_routes) <= 4
    long_name = b"n" * 2000
    ask(frontend, b"GET", b"/v2/models/" + long_name)

    assert handler.seen[-1] == (long_name.decode(), -1, "")
    assert all(len(target) < 2000 for target in frontend._kept_routes)
