"""How a gRPC call ends: a status, and perhaps a message, as header blocks.

Source: gRPC over HTTP/2 (PROTOCOL-HTTP2.md), "Responses".
"""

from typing import Final

from merrow.wire.http2.header_block import encode_fields, encode_status

OK: Final = 0
UNKNOWN: Final = 2
DEADLINE_EXCEEDED: Final = 4
RESOURCE_EXHAUSTED: Final = 8
UNIMPLEMENTED: Final = 12
INTERNAL: Final = 13
UNAVAILABLE: Final = 14

HEAD_BLOCK: Final = encode_status(200) + encode_fields(((b"content-type", b"application/grpc"),))
"""The head of every answer."""
OK_BLOCK: Final = encode_fields(((b"grpc-status", b"0"),))
"""The trailers of a call that succeeded."""

# grpc-message: what need not be percent-encoded.
_PLAIN_MESSAGE_BYTES: Final = frozenset(range(0x20, 0x7F)) - {ord("%")}


def encode_status_fields(status: int, message: str) -> bytes:
    """The header block of a status: trailers, or the end of a response that is nothing else."""
    if not message:
        return OK_BLOCK if status == OK else encode_fields(((b"grpc-status", b"%d" % status),))
    return encode_fields(((b"grpc-status", b"%d" % status), (b"grpc-message", encode_message(message))))


def encode_message(message: str) -> bytes:
    """A status message in the percent-encoding of `grpc-message`."""
    encoded = message.encode("utf-8", "replace")
    if message.isprintable() and message.isascii() and "%" not in message:
        return encoded
    return b"".join(b"%c" % byte if byte in _PLAIN_MESSAGE_BYTES else b"%%%02X" % byte for byte in encoded)
