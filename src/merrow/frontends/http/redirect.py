"""Exchanges of the platforms' ports, seen as requests of Triton's own endpoints.

The front doors for SageMaker and Vertex AI answer by handing their requests, under another target, to an `HttpFrontend`
of their own: so each passes the same checks as every other request.
"""

from merrow.frontends.http.status import TEXT_HEADERS
from merrow.net.exchange import Exchange
from merrow.net.forwarding import ForwardingExchange


class RedirectedExchange(ForwardingExchange):
    """An exchange with another target, and where it must be, another method."""

    __slots__ = ()

    def __init__(self, inner: Exchange, target: bytes, method: bytes | None = None) -> None:
        super().__init__(inner)
        self.target = target
        if method is not None:
            self.method = method


def path_of(exchange: Exchange) -> bytes:
    """The path of an exchange, as it was sent."""
    return exchange.target.partition(b"?")[0]


def respond_empty(exchange: Exchange, status: int) -> None:
    """Answer with a status alone, as the platforms' endpoints do."""
    exchange.respond(status, TEXT_HEADERS, ())
