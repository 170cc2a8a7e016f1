"""The head of a request: a header block, decoded, checked once, and remembered by its bytes.

A client sends the same header block again and again, because HPACK shortens it to a few table indices. A block that
changes nothing in the dynamic table decodes to the same fields until some block does change it, so `heads` maps a
block's bytes to its decoded head, and is emptied whenever the table changes. Everything that can be known from the
head alone is found out once, when it is decoded, and hangs on the `RequestHead`.

Source: RFC 9113, section 8; RFC 7541, section 2.3.
"""

from collections.abc import Sequence

from merrow.wire.http2.header_block import Field, HpackDecoder
from merrow.wire.http2.stream import RequestHead

# Cached blocks of one connection, and the largest that is cached: what a connection may hold in the cache is bounded
# by the table that a block's indices refer to, and by these.
_MAX_CACHED_HEADS = 64
_MAX_CACHED_BLOCK_BYTE_SIZE = 1024
_MAX_CACHED_LIST_BYTE_SIZE = 8192

# A list this many times over its limit is no mistake: it ends the connection instead of the stream.
_TOLERATED_EXCESS = 4

# What a field name may consist of (the tokens of RFC 9110, lower-case), and names that HTTP/2 does not know.
_NAME_BYTES = b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"
_METHOD_BYTES = _NAME_BYTES + b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_FORBIDDEN_NAMES = frozenset((b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"))
# What need not be looked at more closely.
_COMMON_METHODS = frozenset((b"GET", b"POST"))
_COMMON_NAMES = frozenset(
    (
        b"accept",
        b"accept-encoding",
        b"content-length",
        b"content-type",
        b"grpc-accept-encoding",
        b"grpc-encoding",
        b"grpc-timeout",
        b"traceparent",
        b"tracestate",
        b"user-agent",
    )
)


class HeadDecoder:
    """Decodes one connection's header blocks, each exactly once and in order of arrival."""

    __slots__ = ("_decoder", "_max_field_count", "_max_list_byte_size", "heads")

    def __init__(self, max_list_byte_size: int, max_field_count: int) -> None:
        self._max_list_byte_size = max_list_byte_size
        self._max_field_count = max_field_count
        self._decoder = HpackDecoder(max_list_byte_size * _TOLERATED_EXCESS, max_field_count * _TOLERATED_EXCESS)
        # Well-formed heads by their blocks. Whoever finds one here need not call `decode_head`.
        self.heads: dict[bytes, RequestHead] = {}

    def decode_head(self, block: bytes) -> RequestHead:
        """The head that a block decodes to; its faults are in it.

        Raises:
            ConnectionFault: the block cannot be decoded.
        """
        head = self.heads.get(block)
        if head is not None:
            return head
        changes = self._decoder.change_count
        fields, list_byte_size = self._decoder.decode(block)
        head = build_head(fields)
        head.is_too_large = list_byte_size > self._max_list_byte_size or len(fields) > self._max_field_count
        if self._decoder.change_count != changes:
            self.heads.clear()
        elif (
            head.fault is None
            and len(block) <= _MAX_CACHED_BLOCK_BYTE_SIZE
            and list_byte_size <= _MAX_CACHED_LIST_BYTE_SIZE
        ):
            if len(self.heads) == _MAX_CACHED_HEADS:
                self.heads.clear()
            self.heads[block] = head
        return head

    def decode_trailers(self, block: bytes) -> str | None:
        """Decode trailers, which are checked and dropped; what makes them malformed, None if nothing does.

        Raises:
            ConnectionFault: the block cannot be decoded.
        """
        changes = self._decoder.change_count
        fields, _ = self._decoder.decode(block)
        if self._decoder.change_count != changes:
            self.heads.clear()
        return _fields_fault(fields) or _values_fault(fields)


def build_head(fields: Sequence[Field]) -> RequestHead:
    """The head that these fields make, malformed or not."""
    head = RequestHead()
    pseudo: dict[bytes, bytes] = {}
    for name, value in fields:
        if name[:1] != b":":
            break
        if name in pseudo:
            head.fault = f"pseudo-header {name!r} twice"
            return head
        pseudo[name] = value
    head.fields = tuple(fields[len(pseudo) :])
    head.method = pseudo.pop(b":method", b"")
    head.path = pseudo.pop(b":path", b"")
    head.authority = pseudo.pop(b":authority", b"")
    scheme = pseudo.pop(b":scheme", b"")
    head.fault = (
        _pseudo_fault(head, scheme, pseudo)
        or _fields_fault(head.fields)
        or _values_fault(fields)
        or _framing_fault(head)
    )
    return head


def _pseudo_fault(head: RequestHead, scheme: bytes, unknown: dict[bytes, bytes]) -> str | None:
    if unknown:
        return f"unknown pseudo-header {next(iter(unknown))!r}"
    if head.method not in _COMMON_METHODS and (not head.method or head.method.translate(None, _METHOD_BYTES)):
        return "missing or invalid :method"
    if head.method == b"CONNECT":
        if head.path or scheme or not head.authority:
            return "CONNECT needs an :authority, and neither :path nor :scheme"
        head.path = head.authority
    elif not head.path or not scheme:
        return "missing :path or :scheme"
    if b" " in head.path:
        return "space in :path"
    return None


def _fields_fault(fields: Sequence[Field]) -> str | None:
    for name, value in fields:
        if name in _COMMON_NAMES:
            continue
        if not name or name.translate(None, _NAME_BYTES):
            return f"invalid field name {name!r}"
        if name in _FORBIDDEN_NAMES:
            return f"connection-specific field {name!r}"
        if name == b"te" and value.lower() != b"trailers":
            return "te other than trailers"
    return None


def _values_fault(fields: Sequence[Field]) -> str | None:
    values = b"".join([value for _, value in fields])
    if b"\r" in values or b"\n" in values or b"\0" in values:
        return "forbidden byte in a value"
    return None


def _framing_fault(head: RequestHead) -> str | None:
    for name, value in head.fields:
        if name == b"content-length":
            if not value.isdigit() or len(value) > 18 or head.content_length not in (-1, int(value)):
                return "invalid content-length"
            head.content_length = int(value)
    return None
