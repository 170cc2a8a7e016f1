"""HTTP content codings of inference: gzip and deflate, both ways, with bounded output.

A request's coding is matched exactly (`GZIP` or `gzip, deflate` is no coding we know); both names accept zlib or gzip
framing, told apart by the first bytes. Corrupt or cut data is not an error here: what could be inflated is returned,
and the decoder that gets it complains. An answer's coding is the one with the highest weight in `Accept-Encoding`,
the first of equals; `identity` takes part, and what cannot be read counts as identity.

Source: Triton, data_compressor.h and http_server.cc.
"""

import enum
import re
import zlib
from collections.abc import Sequence

from merrow.core.errors import InvalidArgumentError, UnsupportedError
from merrow.core.tensor import Buffer

UNSUPPORTED_CODING = "Unsupported compression type"

# zlib's window bits: 32 more to detect zlib or gzip framing, 16 more to write gzip framing.
_DETECT_FRAMING = 32 + zlib.MAX_WBITS
_WRITE_GZIP = 16 + zlib.MAX_WBITS
_WEIGHT = re.compile(rb"[0-9]+(\.[0-9]*)?|\.[0-9]+")


class ContentCoding(enum.Enum):
    """A content coding other than identity; the value is its name in headers."""

    GZIP = b"gzip"
    DEFLATE = b"deflate"


def decode_content_coding(value: bytes | None) -> ContentCoding | None:
    """The coding that a request's `Content-Encoding` names; None for identity.

    Raises:
        UnsupportedError: it names another; the answer must carry `Accept-Encoding: gzip, deflate`.
    """
    if not value or value == b"identity":
        return None
    try:
        return ContentCoding(value)
    except ValueError:
        raise UnsupportedError(UNSUPPORTED_CODING) from None


def choose_content_coding(accept_encoding: bytes | None) -> ContentCoding | None:
    """The coding for an answer, from the request's `Accept-Encoding`; None for identity."""
    if not accept_encoding:
        return None
    best: ContentCoding | None = None
    best_weight = 0.0
    for item in accept_encoding.split(b","):
        name, separator, weight_text = item.strip().partition(b";q=")
        weight = 1.0
        if separator:
            # As C reads numbers: what follows the number is ignored.
            number = _WEIGHT.match(weight_text)
            weight = float(number[0]) if number else 0.0
        if weight > best_weight and name in (b"gzip", b"deflate", b"identity"):
            best_weight = weight
            best = None if name == b"identity" else ContentCoding(name)
    return best


def decompress(body: Buffer, max_byte_size: int) -> bytes | None:
    """Inflate a request body, whichever of the two framings it has.

    Returns:
        What could be inflated; None when that is more than `max_byte_size` bytes.

    Raises:
        InvalidArgumentError: the body is empty.
    """
    if not body:
        raise InvalidArgumentError("nothing to be decompressed")
    inflater = zlib.decompressobj(_DETECT_FRAMING)
    pieces: list[bytes] = []
    byte_size = 0
    data: Buffer = body
    try:
        while data and not inflater.eof:
            # One byte over the limit tells "exactly at the limit" from "more to come".
            piece = inflater.decompress(data, max_byte_size + 1 - byte_size)
            byte_size += len(piece)
            if byte_size > max_byte_size:
                return None
            pieces.append(piece)
            data = inflater.unconsumed_tail
    except zlib.error:
        pass
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def compress(parts: Sequence[Buffer], coding: ContentCoding) -> bytes:
    """Deflate the parts of an answer, as one body."""
    wbits = _WRITE_GZIP if coding is ContentCoding.GZIP else zlib.MAX_WBITS
    deflater = zlib.compressobj(wbits=wbits)
    pieces = [deflater.compress(part) for part in parts]
    pieces.append(deflater.flush())
    return b"".join(pieces)


def oversize_error(max_byte_size: int) -> InvalidArgumentError:
    """What a client is told whose body inflates beyond the limit."""
    return InvalidArgumentError(
        f"Decompressed data size exceeds the maximum allowed value of {max_byte_size} bytes. "
        "Use --http-max-input-size to increase the limit."
    )
