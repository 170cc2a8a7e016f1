"""The metrics port."""

import asyncio

import pytest

from merrow.frontends.metrics import MetricsFrontend
from merrow.observe.metrics_page import MetricsPage
from merrow.settings import MetricsSettings
from tests.frontends.fakes import FakeEngine, FakeExchange

PAGE = MetricsPage(MetricsSettings(), lambda: 0)


def ask(method, target, engine=None):
    exchange = FakeExchange(method, target)
    MetricsFrontend(engine or FakeEngine(), PAGE).on_exchange(exchange)
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


class SlowPage:
    """Has to be refreshed on a thread, which fails the first time."""

    def __init__(self):
        self.must_refresh = True
        self.refresh_count = 0

    def refresh(self):
        self.refresh_count += 1
        if self.refresh_count == 1:
            raise OSError("driver")


def test_all_who_wait_for_slow_figures_wait_for_one_reading(caplog):
    async def run():
        page = SlowPage()
        frontend = MetricsFrontend(FakeEngine(), page)
        exchanges = [FakeExchange(b"GET", b"/metrics") for _ in range(3)]
        for exchange in exchanges:
            frontend.on_exchange(exchange)
        assert [exchange.status for exchange in exchanges] == [None] * 3
        await frontend.close()
        assert [exchange.status for exchange in exchanges] == [200] * 3
        assert page.refresh_count == 1
        again = FakeExchange(b"GET", b"/metrics")
        frontend.on_exchange(again)
        await frontend.close()
        assert (again.status, page.refresh_count) == (200, 2)

    asyncio.run(run())
    assert "unexpected error while reading" in caplog.text
