"""HTTP statuses as `net` writes them: reason phrases, and its own error answers.

Source: RFC 9110, section 15; Triton answers 405 with the phrase `Not Allowed`.
"""

from typing import Final

from merrow.net.exchange import Header

_PHRASES: Final = {
    200: b"OK",
    201: b"Created",
    202: b"Accepted",
    204: b"No Content",
    206: b"Partial Content",
    301: b"Moved Permanently",
    302: b"Found",
    303: b"See Other",
    304: b"Not Modified",
    307: b"Temporary Redirect",
    308: b"Permanent Redirect",
    400: b"Bad Request",
    401: b"Unauthorized",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Not Allowed",
    406: b"Not Acceptable",
    408: b"Request Timeout",
    409: b"Conflict",
    411: b"Length Required",
    413: b"Content Too Large",
    414: b"URI Too Long",
    415: b"Unsupported Media Type",
    422: b"Unprocessable Content",
    424: b"Failed Dependency",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    499: b"Client Closed Request",
    500: b"Internal Server Error",
    501: b"Not Implemented",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
    505: b"HTTP Version Not Supported",
    507: b"Insufficient Storage",
}

JSON_HEADERS: Final[tuple[Header, ...]] = ((b"Content-Type", b"application/json"),)


class RequestFault(Exception):
    """A request that `net` itself answers, with this status and error text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


def reason_phrase(status: int) -> bytes:
    return _PHRASES.get(status, b"Unknown")


def has_no_body(status: int) -> bool:
    """Whether an answer of this status never has a body, nor a Content-Length."""
    return status == 204 or status == 304 or status < 200


def error_body(text: str) -> bytes:
    """The JSON that Triton's clients look for; `text` is one of ours, or a parser's."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'{{"error":"{escaped}"}}'.encode("ascii", "backslashreplace")
