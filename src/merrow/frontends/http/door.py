"""The REST front door: from an exchange to its handler, and from what a handler raises to an answer.

What a target resolves to depends on nothing but the target, so routes are kept in a dictionary: a URL that comes
again costs one look-up. The dictionary is emptied when it is full, so that a client that makes up names costs the
others a regular expression now and then, and no memory.
"""

import logging

from merrow.core.errors import ServerError
from merrow.core.restrictions import Restriction, Restrictions
from merrow.frontends.http.routes import (
    CATEGORIES,
    CHANGEABLE,
    ERROR_HEADERS,
    METHODS,
    Handlers,
    Route,
    resolve_target,
)
from merrow.frontends.http.status import TEXT_HEADERS, respond_error, respond_unexpected
from merrow.net.exchange import Exchange
from merrow.wire.admin_json import encode_error
from merrow.wire.infer_proto import parse_model_version

_LOG = logging.getLogger("merrow.frontends.http")

MAX_KEPT_ROUTES = 1024
MAX_KEPT_TARGET_BYTE_SIZE = 1024

NOT_FOUND_BODY = (b'{"error":"Not Found"}',)
METHOD_NOT_ALLOWED_BODY = (b'{"error":"Method Not Allowed"}',)


class HttpFrontend:
    """An `HttpApplication` that answers by endpoint. Endpoints without a handler are not found."""

    def __init__(self, handlers: Handlers, restrictions: Restrictions | None = None) -> None:
        self._handlers = handlers
        self._restrictions = restrictions or {}
        self._kept_routes: dict[bytes, Route] = {}

    def on_exchange(self, exchange: Exchange) -> None:
        """Answer a request, now or later."""
        try:
            route = self._kept_routes.get(exchange.target) or self._find_route(exchange.target)
            if route is None:
                exchange.respond(404, TEXT_HEADERS, NOT_FOUND_BODY)
            elif route.restriction is not None and not is_admitted(exchange, route.restriction):
                respond_restricted(exchange, route.restriction)
            elif exchange.method != route.method and exchange.method != route.second_method:
                exchange.respond(405, route.error_headers, METHOD_NOT_ALLOWED_BODY)
            else:
                try:
                    route.handler(exchange, route)
                except ServerError as error:
                    respond_error(exchange, error, route.error_headers)
        except Exception:
            # The front door: whatever the defect is, the request is answered.
            _LOG.exception("unexpected error in the answer to %r", exchange.target)
            respond_unexpected(exchange)

    def _find_route(self, text: bytes) -> Route | None:
        target = resolve_target(text)
        if target is None:
            return None
        endpoint = target.endpoint
        handler = self._handlers.get(endpoint)
        if handler is None:
            return None
        route = Route(METHODS[endpoint], handler, ERROR_HEADERS[endpoint], target.model_name)
        route.repository = target.repository
        route.region = target.region
        route.second_method = b"POST" if endpoint in CHANGEABLE else None
        category = CATEGORIES[endpoint]
        route.restriction = None if category is None else self._restrictions.get(category)
        try:
            route.model_version = parse_model_version(target.version)
        except ServerError as error:
            route.handler = _Refusal(error)
        if len(text) <= MAX_KEPT_TARGET_BYTE_SIZE:
            if len(self._kept_routes) >= MAX_KEPT_ROUTES:
                self._kept_routes.clear()
            self._kept_routes[text] = route
        return route


def is_admitted(exchange: Exchange, restriction: Restriction) -> bool:
    """Whether a request shows the header that a restriction asks for."""
    return restriction.admits(exchange.header(restriction.key.lower().encode("utf-8", "surrogateescape")))


def respond_restricted(exchange: Exchange, restriction: Restriction) -> None:
    """Refuse a request that does not."""
    text = f"This API is restricted, expecting header '{restriction.key}'"
    exchange.respond(403, TEXT_HEADERS, (encode_error(text),))


class _Refusal:
    """The handler of a target whose version is no number of 64 bits; a wrong method is answered before it."""

    def __init__(self, error: ServerError) -> None:
        self._error = error

    def __call__(self, exchange: Exchange, route: Route) -> None:
        # A new exception each time: one that is raised again would gather tracebacks.
        raise type(self._error)(self._error.message)
