"""The metrics port: `GET /metrics`, for Prometheus.

Source: Triton, http_server.cc, HTTPMetricsServer.
"""

import asyncio
import logging

from merrow.engine.engine import Engine
from merrow.net.exchange import Exchange, Header
from merrow.observe.exposition import CONTENT_TYPE
from merrow.observe.metrics_page import MetricsPage

_LOG = logging.getLogger("merrow.frontends.metrics")

METRICS_HEADERS: tuple[Header, ...] = ((b"Content-Type", CONTENT_TYPE.encode()),)
_TEXT_HEADERS: tuple[Header, ...] = ((b"Content-Type", b"text/plain"),)


class MetricsFrontend:
    """An `HttpApplication` that answers `/metrics`, and as Triton does, anything else with nothing.

    Args:
        page: asked, on a thread, for figures that take a while to read.
    """

    def __init__(self, engine: Engine, page: MetricsPage) -> None:
        self._engine = engine
        self._page = page
        # Those who ask while the figures are read wait for the same reading.
        self._refreshing: asyncio.Task[None] | None = None
        self._waiting: list[Exchange] = []

    def on_exchange(self, exchange: Exchange) -> None:
        if exchange.method != b"GET":
            exchange.respond(405, _TEXT_HEADERS, (b'{"error":"Method Not Allowed"}',))
        elif exchange.target.partition(b"?")[0] not in (b"/metrics", b"/metrics/"):
            exchange.respond(200, METRICS_HEADERS, ())
        elif self._page.must_refresh:
            self._waiting.append(exchange)
            if self._refreshing is None:
                self._refreshing = asyncio.ensure_future(self._refresh())
        else:
            self._answer(exchange)

    async def close(self) -> None:
        """Wait until everything is answered."""
        if self._refreshing is not None:
            await self._refreshing

    async def _refresh(self) -> None:
        try:
            await asyncio.to_thread(self._page.refresh)
        except Exception:
            # The driver's library: those who wait are answered all the same, without its figures.
            _LOG.exception("unexpected error while reading what the metrics tell")
        self._refreshing = None
        waiting, self._waiting = self._waiting, []
        for exchange in waiting:
            self._answer(exchange)

    def _answer(self, exchange: Exchange) -> None:
        try:
            text = self._engine.metrics_text()
            exchange.respond(200, METRICS_HEADERS, (text.encode("utf-8", "surrogateescape"),))
        except Exception:
            # The front door: whatever the defect is, the request is answered.
            _LOG.exception("unexpected error in the metrics")
            exchange.respond(500, _TEXT_HEADERS, (b'{"error":"unexpected error in the server; its log tells more"}',))
