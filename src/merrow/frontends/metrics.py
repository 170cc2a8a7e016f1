"""The metrics port: `GET /metrics`, for Prometheus.

Source: Triton, http_server.cc, HTTPMetricsServer.
"""

import logging

from merrow.engine.engine import Engine
from merrow.net.exchange import Exchange, Header
from merrow.observe.metrics import CONTENT_TYPE

_LOG = logging.getLogger("merrow.frontends.metrics")

METRICS_HEADERS: tuple[Header, ...] = ((b"Content-Type", CONTENT_TYPE.encode()),)
_TEXT_HEADERS: tuple[Header, ...] = ((b"Content-Type", b"text/plain"),)


class MetricsFrontend:
    """An `HttpApplication` that answers `/metrics`, and as Triton does, anything else with nothing."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def on_exchange(self, exchange: Exchange) -> None:
        try:
            if exchange.method != b"GET":
                exchange.respond(405, _TEXT_HEADERS, (b'{"error":"Method Not Allowed"}',))
            elif exchange.target.partition(b"?")[0] in (b"/metrics", b"/metrics/"):
                text = self._engine.metrics_text()
                exchange.respond(200, METRICS_HEADERS, (text.encode("utf-8", "surrogateescape"),))
            else:
                exchange.respond(200, METRICS_HEADERS, ())
        except Exception:
            _LOG.exception("unexpected error in the metrics")
            exchange.respond(500, _TEXT_HEADERS, (b'{"error":"unexpected error in the server; its log tells more"}',))
