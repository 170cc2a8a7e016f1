"""The port for Google Vertex AI: prediction and health at the routes that the platform names.

    GET  AIP_HEALTH_ROUTE     health/ready
    POST AIP_PREDICT_ROUTE    inference on the default model; or, with the header X-Vertex-Ai-Triton-Redirect, another
                              of Triton's endpoints, under its own method

What changes the server (loading, unloading, registering shared memory) cannot be reached that way: 403. What else is no
endpoint here is 400, without a body.

Source: Triton, vertex_ai_server.cc.
"""

import logging

from merrow.frontends.http.door import HttpFrontend
from merrow.frontends.http.redirect import RedirectedExchange, path_of, respond_empty
from merrow.frontends.http.routes import METHODS, Endpoint, resolve_target
from merrow.frontends.http.status import respond_unexpected
from merrow.net.exchange import Exchange

_LOG = logging.getLogger("merrow.frontends.http")

REDIRECT_HEADER = b"x-vertex-ai-triton-redirect"

REACHABLE = frozenset(
    {
        Endpoint.SERVER_LIVE,
        Endpoint.SERVER_READY,
        Endpoint.SERVER_METADATA,
        Endpoint.MODEL_READY,
        Endpoint.MODEL_METADATA,
        Endpoint.MODEL_CONFIG,
        Endpoint.MODEL_STATISTICS,
        Endpoint.ALL_STATISTICS,
        Endpoint.MODEL_INFER,
        Endpoint.REPOSITORY_INDEX,
        Endpoint.SYSTEM_SHARED_MEMORY_STATUS,
        Endpoint.CUDA_SHARED_MEMORY_STATUS,
        Endpoint.METRICS,
    }
)
FORBIDDEN = frozenset(
    {
        Endpoint.REPOSITORY_MODEL_LOAD,
        Endpoint.REPOSITORY_MODEL_UNLOAD,
        Endpoint.SYSTEM_SHARED_MEMORY_REGISTER,
        Endpoint.SYSTEM_SHARED_MEMORY_UNREGISTER,
        Endpoint.CUDA_SHARED_MEMORY_REGISTER,
        Endpoint.CUDA_SHARED_MEMORY_UNREGISTER,
    }
)


class VertexAiFrontend:
    """An `HttpApplication`.

    Args:
        frontend: serves Triton's endpoints, with the platform's form of binary tensors.
        default_model: predicts where nothing else is asked for.
    """

    def __init__(self, frontend: HttpFrontend, predict_route: str, health_route: str, default_model: str) -> None:
        self._frontend = frontend
        self._predict_route = predict_route.encode()
        self._health_route = health_route.encode()
        self._infer_target = f"/v2/models/{default_model}/infer".encode()

    def on_exchange(self, exchange: Exchange) -> None:
        """Answer a request, now or later."""
        try:
            path = path_of(exchange)
            if path == self._health_route:
                self._frontend.on_exchange(RedirectedExchange(exchange, b"/v2/health/ready"))
            elif path != self._predict_route:
                respond_empty(exchange, 400)
            else:
                redirect = exchange.header(REDIRECT_HEADER)
                if redirect is None:
                    self._frontend.on_exchange(RedirectedExchange(exchange, self._infer_target))
                else:
                    self._redirect(exchange, b"/" + redirect)
        except Exception:
            # The front door: whatever the defect is, the request is answered.
            _LOG.exception("unexpected error in the answer to %r", exchange.target)
            respond_unexpected(exchange)

    def _redirect(self, exchange: Exchange, target: bytes) -> None:
        if exchange.method != b"POST":
            respond_empty(exchange, 405)
            return
        found = None if b"?" in target else resolve_target(target)
        if found is not None and found.endpoint in FORBIDDEN:
            respond_empty(exchange, 403)
        elif found is None or found.endpoint not in REACHABLE:
            respond_empty(exchange, 400)
        else:
            self._frontend.on_exchange(RedirectedExchange(exchange, target, METHODS[found.endpoint]))
