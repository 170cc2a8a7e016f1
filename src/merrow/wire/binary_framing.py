"""Where a request over HTTP says how long the JSON before its binary tensors is, and an answer likewise.

Triton's own endpoints use the header `Inference-Header-Content-Length`. The platforms' containers cannot count on
headers of their own, so their endpoints say it in the content type, and know no compression.

Source: Triton, http_server.cc, sagemaker_server.cc, vertex_ai_server.cc, GetInferenceHeaderLength.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping

from merrow.core.errors import InvalidArgumentError
from merrow.wire.binary_tensor import decode_header_length

HeaderFields = tuple[tuple[bytes, bytes], ...]

_INTEGER_PREFIX = re.compile(rb"[ \t\n\v\f\r]*([+-]?[0-9]+)")
_MAX_INT32 = 2**31 - 1


class BinaryFraming(ABC):
    """One of the two ways. `has_compression`: whether Content-Encoding and Accept-Encoding mean anything."""

    has_compression: bool

    @abstractmethod
    def length_text_of(self, fields: Mapping[bytes, bytes]) -> bytes | None:
        """What a request's headers, by lower-case name, say of the length; None if all of the body is JSON."""

    @abstractmethod
    def decode_length(self, text: bytes, body_byte_size: int) -> int | None:
        """The length that this text says.

        Raises:
            InvalidArgumentError: it is no number, or reaches beyond the body.
        """

    @abstractmethod
    def response_headers(self, header_length: int) -> HeaderFields:
        """The headers of an answer with binary tensors."""


class InferenceHeaderFraming(BinaryFraming):
    """A header says it."""

    has_compression = True

    def length_text_of(self, fields: Mapping[bytes, bytes]) -> bytes | None:
        return fields.get(b"inference-header-content-length")

    def decode_length(self, text: bytes, body_byte_size: int) -> int | None:
        return decode_header_length(text, body_byte_size)

    def response_headers(self, header_length: int) -> HeaderFields:
        return (
            (b"Content-Type", b"application/octet-stream"),
            (b"Inference-Header-Content-Length", b"%d" % header_length),
        )


class ContentTypeFraming(BinaryFraming):
    """The content type of a request says it: `application/vnd.NAME.binary+json;json-header-size=N`.

    `answers_alike`: so does that of an answer; otherwise it has Triton's own header.
    """

    has_compression = False

    def __init__(self, name: bytes, answers_alike: bool) -> None:
        self._prefix = b"application/vnd.%b.binary+json;json-header-size=" % name
        self._answers_alike = answers_alike

    def length_text_of(self, fields: Mapping[bytes, bytes]) -> bytes | None:
        content_type = fields.get(b"content-type", b"")
        if content_type.startswith(self._prefix):
            return content_type[len(self._prefix) :]
        # The whole of it, for `decode_length` to refuse.
        return content_type if self._prefix in content_type else None

    def decode_length(self, text: bytes, body_byte_size: int) -> int | None:
        shown = text.decode("utf-8", "surrogateescape")
        if self._prefix in text:
            raise InvalidArgumentError(
                f"expect MIME type for binary data starts with '{self._prefix.decode()}', got: {shown}"
            )
        match = _INTEGER_PREFIX.match(text)
        if match is None:
            raise InvalidArgumentError(f"Unable to parse inference header size, got: {shown}")
        digits = match[1]
        length = int(digits) if len(digits.lstrip(b"+-0")) <= 10 else _MAX_INT32 + 1
        if not -_MAX_INT32 - 1 <= length <= _MAX_INT32:
            raise InvalidArgumentError(f"Unable to parse inference header size, value is out of range, got: {shown}")
        if not 0 <= length <= body_byte_size:
            raise InvalidArgumentError(f"inference header size should be in range (0, {body_byte_size}), got: {shown}")
        return length

    def response_headers(self, header_length: int) -> HeaderFields:
        if not self._answers_alike:
            return INFERENCE_HEADER.response_headers(header_length)
        return ((b"Content-Type", self._prefix + b"%d" % header_length),)


INFERENCE_HEADER = InferenceHeaderFraming()
SAGEMAKER_CONTENT_TYPE = ContentTypeFraming(b"sagemaker-triton", answers_alike=True)
VERTEX_AI_CONTENT_TYPE = ContentTypeFraming(b"vertex-ai-triton", answers_alike=False)
