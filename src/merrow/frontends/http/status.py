"""Errors as HTTP answers: one status for every code of the server API, and the body that carries the text.

Source: Triton, http_server.cc, HttpCodeFromError.
"""

from collections.abc import Sequence

from merrow.core.errors import ErrorCode, ServerError
from merrow.net.exchange import Exchange, Header
from merrow.wire.admin_json import encode_error

STATUSES: dict[ErrorCode, int] = {
    ErrorCode.UNKNOWN: 400,
    ErrorCode.INTERNAL: 500,
    ErrorCode.NOT_FOUND: 404,
    ErrorCode.INVALID_ARG: 400,
    ErrorCode.UNAVAILABLE: 503,
    ErrorCode.UNSUPPORTED: 501,
    ErrorCode.ALREADY_EXISTS: 400,
    ErrorCode.CANCELLED: 400,
}

JSON_HEADERS: tuple[Header, ...] = ((b"Content-Type", b"application/json"),)
TEXT_HEADERS: tuple[Header, ...] = ((b"Content-Type", b"text/plain"),)

UNEXPECTED_TEXT = "unexpected error in the server; its log tells more"


def respond_error(exchange: Exchange, error: ServerError, headers: Sequence[Header]) -> None:
    """Answer with an error; `headers` name the content type, which depends on the endpoint and not on the body."""
    exchange.respond(STATUSES[error.code], headers, (encode_error(error.message),))


def respond_unexpected(exchange: Exchange) -> None:
    """Answer for a defect of the server, whose details are for the log only."""
    exchange.respond(500, TEXT_HEADERS, (encode_error(UNEXPECTED_TEXT),))
