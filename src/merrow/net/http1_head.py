"""The head of an HTTP/1.1 request: parsed once, and remembered by its bytes.

A client repeats itself: the next request of a connection, and of its neighbours, mostly has the very same head. So
heads are kept in a dictionary from the bytes of a head to what they mean, which costs a tenth of parsing them again.
The parser, `httptools`, sees each head alone and whole; bodies do not pass through it. What frames a body, where
request smuggling would begin, is checked here too, and anything ambiguous is refused.

Source: RFC 9112.
"""

from collections.abc import Sequence

import httptools

from merrow.net.exchange import Header
from merrow.net.status import RequestFault

_MAX_CACHED_HEADS = 512
_MAX_CACHED_HEAD_BYTE_SIZE = 2048
_METHOD_BYTES = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_MAX_METHOD_BYTE_SIZE = 32


class Http1Head:
    """What one head says.

    `target` is in origin form, also where the client sent an absolute one. `fields` maps lower-case names to the
    first value; like `headers`, they are shared by all requests of this head, and never changed. `content_length` is 0
    where none was given; -1 means chunked. `is_plain`: nothing about framing the answer is special.
    """

    __slots__ = (
        "content_length",
        "expects_continue",
        "fields",
        "headers",
        "is_http_1_0",
        "is_plain",
        "keeps_alive",
        "method",
        "target",
    )

    def __init__(self, method: bytes, target: bytes, headers: list[Header], is_http_1_0: bool) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.is_http_1_0 = is_http_1_0
        self.fields = fields = {name.lower(): value for name, value in headers}
        if len(fields) != len(headers):
            self.fields = fields = _first_values(headers)
        connection = fields.get(b"connection")
        if connection is None:
            self.keeps_alive = not is_http_1_0
        else:
            options = {option.strip() for option in connection.lower().split(b",")}
            self.keeps_alive = b"keep-alive" in options if is_http_1_0 else b"close" not in options
        self.expects_continue = not is_http_1_0 and fields.get(b"expect", b"").lower() == b"100-continue"
        self.content_length = _framing(fields, is_http_1_0)
        self.is_plain = self.keeps_alive and not is_http_1_0 and method != b"HEAD" and self.content_length >= 0


def _first_values(headers: Sequence[Header]) -> dict[bytes, bytes]:
    """The first value of each name; of `Connection`, all of them. Framing must not be said twice."""
    fields: dict[bytes, bytes] = {}
    for name, value in headers:
        lower_name = name.lower()
        if lower_name not in fields:
            fields[lower_name] = value
        elif lower_name in (b"content-length", b"transfer-encoding"):
            raise RequestFault(400, f"request has more than one {lower_name.decode()} header")
        elif lower_name == b"connection":
            fields[lower_name] += b"," + value
    return fields


def _framing(fields: dict[bytes, bytes], is_http_1_0: bool) -> int:
    """The length of the body; -1 means chunked."""
    length = fields.get(b"content-length")
    coding = fields.get(b"transfer-encoding")
    if coding is not None:
        if length is not None:
            raise RequestFault(400, "request has both Content-Length and Transfer-Encoding")
        if is_http_1_0 or coding.strip().lower() != b"chunked":
            raise RequestFault(501, "unsupported Transfer-Encoding, only 'chunked' is supported")
        return -1
    if length is None:
        return 0
    if not length.isdigit() or len(length) > 18:
        raise RequestFault(400, "invalid Content-Length")
    return int(length)


class _Collector:
    """Takes httptools' callbacks."""

    __slots__ = ("head_count", "headers", "target")

    def __init__(self) -> None:
        self.target = b""
        self.headers: list[Header] = []
        self.head_count = 0

    def on_url(self, url: bytes) -> None:
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        self.head_count += 1


def parse_head(block: bytes, max_header_count: int) -> Http1Head:
    """The meaning of a whole head, from its first byte to its empty line.

    Raises:
        RequestFault: it is no head, or one that is not served.
    """
    method = block[: _MAX_METHOD_BYTE_SIZE + 1].partition(b" ")[0]
    collector = _Collector()
    parser = httptools.HttpRequestParser(collector)
    try:
        parser.feed_data(block)
    except httptools.HttpParserUpgrade:
        # A wish to upgrade, which may be ignored; or CONNECT, which the application refuses.
        pass
    except httptools.HttpParserInvalidMethodError as error:
        # A method that the parser does not know is the application's to refuse.
        if (
            not method
            or len(method) > _MAX_METHOD_BYTE_SIZE
            or method.translate(None, _METHOD_BYTES)
            or method == b"GET"
        ):
            raise RequestFault(400, f"unable to parse the request: {error}") from None
        head = parse_head(b"GET" + block[len(method) :], max_header_count)
        head.method = method
        return head
    except httptools.HttpParserError as error:
        raise RequestFault(400, f"unable to parse the request: {error}") from None
    if collector.head_count != 1 or not collector.target:
        raise RequestFault(400, "unable to parse the request: incomplete head")
    if len(collector.headers) > max_header_count:
        raise RequestFault(431, f"request has more than {max_header_count} headers")
    version = parser.get_http_version()
    if version not in ("1.1", "1.0"):
        raise RequestFault(505, f"HTTP version {version} is not supported")
    return Http1Head(method, _origin_form(collector.target), collector.headers, version == "1.0")


def _origin_form(target: bytes) -> bytes:
    scheme, separator, rest = target.partition(b"://")
    if not separator or target.startswith(b"/") or scheme.lower() not in (b"http", b"https"):
        return target
    _, slash, path = rest.partition(b"/")
    return slash + path or b"/"


class HeadCache:
    """Heads by their bytes; shared by the connections of a listener."""

    __slots__ = ("_max_body_byte_size", "_max_header_count", "heads")

    def __init__(self, max_header_count: int, max_body_byte_size: int) -> None:
        self._max_header_count = max_header_count
        self._max_body_byte_size = max_body_byte_size
        # Whoever finds a head here need not call `parse`.
        self.heads: dict[bytes, Http1Head] = {}

    def parse(self, block: bytes) -> Http1Head:
        """As `parse_head`, and remember.

        Raises:
            RequestFault: as `parse_head`, and for a body over the limit: what is remembered needs no check.
        """
        head = parse_head(block, self._max_header_count)
        if head.content_length > self._max_body_byte_size:
            raise RequestFault(413, f"request body exceeds the limit of {self._max_body_byte_size} bytes")
        if len(block) <= _MAX_CACHED_HEAD_BYTE_SIZE:
            if len(self.heads) >= _MAX_CACHED_HEADS:
                self.heads.clear()
            self.heads[block] = head
        return head
