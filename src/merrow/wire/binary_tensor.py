"""The binary tensor extension of HTTP: a body is JSON, then the bytes of tensors, back to back.

The header `Inference-Header-Content-Length` says where the JSON ends. Without it everything is JSON; 0 makes the whole
body one tensor's data (a raw request).

Source: Triton, extension_binary_data.md and http_server.cc (GetInferenceHeaderLength).
"""

import re

from merrow.core.errors import InvalidArgumentError
from merrow.core.tensor import Buffer

HEADER_LENGTH_NAME = "Inference-Header-Content-Length"

_INTEGER_PREFIX = re.compile(rb"[ \t\n\v\f\r]*([+-]?[0-9]+)")
_MIN_INT32, _MAX_INT32 = -(2**31), 2**31 - 1


def decode_header_length(value: bytes | None, body_byte_size: int) -> int | None:
    """Bytes of JSON at the start of the body, from the header's value; None when there is no such header.

    Args:
        body_byte_size: of the body after decompression.

    Raises:
        InvalidArgumentError: the value is no number, or reaches beyond the body.
    """
    if value is None:
        return None
    # As C's stoi reads it: what follows the number is ignored.
    match = _INTEGER_PREFIX.match(value)
    shown = value.decode("utf-8", "surrogateescape")
    if match is None:
        raise InvalidArgumentError(f"Unable to parse {HEADER_LENGTH_NAME}, got: {shown}")
    digits = match[1]
    # Longer is out of range, whatever it says; and Python refuses to convert very long ones.
    length = int(digits) if len(digits.lstrip(b"+-0")) <= 10 else _MAX_INT32 + 1
    if not _MIN_INT32 <= length <= _MAX_INT32:
        raise InvalidArgumentError(
            f"Unable to parse {HEADER_LENGTH_NAME}, value is out of range [ {_MIN_INT32}, {_MAX_INT32} ], got: {shown}"
        )
    if not 0 <= length <= body_byte_size:
        raise InvalidArgumentError(f"inference header size should be in range (0, {body_byte_size}), got: {shown}")
    return length


def split_body(body: Buffer, header_length: int) -> tuple[bytes, memoryview]:
    """The JSON (a copy: it is short) and a view of the binary data behind it."""
    view = memoryview(body)
    return bytes(view[:header_length]), view[header_length:]
