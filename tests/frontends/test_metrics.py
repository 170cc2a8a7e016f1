"""The metrics port."""

import pytest

from merrow.frontends.metrics import MetricsFrontend
from tests.frontends.fakes import FakeEngine, FakeExchange


def ask(method, target, engine=None):
    exchange = FakeExchange(method, target)
    MetricsFrontend(engine or FakeEngine()).on_exchange(exchange)
    return exchange.status, exchange.content_type, exchange.answer


@pytest.mark.parametrize("target", [b"/metrics", b"/metrics/", b"/metrics?name=x"])
def test_metrics_are_text(target):
    assert ask(b"GET", target) == (200, b"text/plain; charset=utf-8", b"# HELP x\n")


@pytest.mark.parametrize("target", [b"/", b"/metricsx", b"/v2"])
def test_anything_else_is_nothing(target):
    assert ask(b"GET", target) == (200, b"text/plain; charset=utf-8", b"")


@pytest.mark.parametrize("method", [b"POST", b"HEAD"])
def test_nothing_but_get_is_allowed(method):
    for target in (b"/metrics", b"/"):
        assert ask(method, target) == (405, b"text/plain", b'{"error":"Method Not Allowed"}')


def test_a_defect_is_answered_and_logged(caplog):
    engine = FakeEngine()
    engine.metrics_text = None
    assert ask(b"GET", b"/metrics", engine)[0] == 500
    assert "unexpected error in the metrics" in caplog.text
