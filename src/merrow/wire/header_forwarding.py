"""Request headers that become parameters of an inference request.

A header whose name the pattern is found in becomes a string parameter under the name as it was sent; it replaces a
parameter of the same name in the request itself. Names that mean something to the server cannot be forwarded.

Source: Triton, http_server.cc, HTTPAPIServer::ForwardHeaders; grpc/infer_handler.cc, SetInferenceRequestMetadata.
"""

import binascii
from collections.abc import Iterable, Iterator
from functools import lru_cache

from merrow.core.errors import InvalidArgumentError
from merrow.wire.header_pattern import HeaderPattern

_RESERVED = frozenset(
    ("sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "headers", "binary_data_output")
)
_RESERVED_PREFIX = "triton_"
_MAX_REMEMBERED_NAMES = 1024


# Metadata that is gRPC's own business.
_GRPC_PREFIX = b"grpc-"
_GRPC_NAMES = frozenset((b"te", b"content-type"))
_BINARY_SUFFIX = b"-bin"


def metadata_of_application(metadata: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    """The metadata of a call that is not gRPC's own, as an application sees it: binary values are decoded."""
    for name, value in metadata:
        if name in _GRPC_NAMES or name.startswith(_GRPC_PREFIX):
            continue
        if name.endswith(_BINARY_SUFFIX):
            try:
                # Clients leave the padding out.
                value = binascii.a2b_base64(value + b"==")
            except binascii.Error:
                continue
        yield name, value


class HeaderForwarding:
    """Chooses the headers that a pattern names; made once, since it remembers names."""

    def __init__(self, pattern: str) -> None:
        self._is_forwarded = lru_cache(_MAX_REMEMBERED_NAMES)(HeaderPattern(pattern).is_found_in)

    def parameters_of(self, headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
        """The parameters that these headers are; of several of one name, the last.

        Raises:
            InvalidArgumentError: one of them has a reserved name.
        """
        parameters: dict[str, str] = {}
        for name_bytes, value in headers:
            name = name_bytes.decode("latin-1")
            if not self._is_forwarded(name):
                continue
            if name in _RESERVED or name.startswith(_RESERVED_PREFIX):
                raise InvalidArgumentError(f"Header '{name}' is reserved for Triton usage and cannot be forwarded.")
            parameters[name] = value.decode("utf-8", "surrogateescape")
        return parameters
