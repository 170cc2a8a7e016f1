"""Batches of requests, as the bodies of messages: one section (`sections`) for each request.

The extras of a request are whatever it says besides its tensors; the contents say which of them there are. A request
has few, and most have none, or names of outputs, which repeat and are remembered.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import TypeVar

from merrow.backends.base import PrivateTensor
from merrow.core.region import RegionFile, RegionSlice
from merrow.core.request import Request, RequestTrace, ResponseSink
from merrow.core.response import Response
from merrow.core.tensor import Buffer, Tensor
from merrow.places.process.channel import (
    BATCH,
    HEADER,
    HEADER_SIZE,
    PADDING,
    ProtocolError,
    decode_parameters,
    decode_text,
    encode_parameters,
    encode_text,
)
from merrow.places.process.sections import (
    MAX_REMEMBERED,
    PLACED,
    REPEATED_EXTRAS,
    OpenBlock,
    Place,
    Sections,
    ShareFile,
)

# The contents of a request's section.
_HAS_ID = 1
_HAS_NUMBER_CORRELATION = 2
_HAS_TEXT_CORRELATION = 4
_HAS_CONTROL = 8
_HAS_PARAMETERS = 16
_HAS_REQUESTED_OUTPUTS = REPEATED_EXTRAS
_HAS_TRACE = 64
_HAS_OUTPUT_REGIONS = 128

# Number of the file, offset, bytes.
_REGION = struct.Struct("<QQQ")
_CONTROL = struct.Struct("<QQQ")
_CORRELATION = struct.Struct("<Q")
_COUNT = struct.Struct("<I")
_LENGTH = struct.Struct("<I")

RequestType = TypeVar("RequestType", bound=Request)


class BatchCodec:
    """Batches of requests: `encode` in the server, `decode` in the child."""

    def __init__(self, model_name: str, model_version: int, share_file: ShareFile | None = None) -> None:
        self._model_name = model_name
        self._model_version = model_version
        self._sections = Sections()
        self._share_file = share_file
        self._sections.share_file = share_file
        # Names of requested outputs, both ways: they are all the extras of most requests that have any.
        self._requested: dict[tuple[str, ...], bytes] = {}
        self._known_requested: dict[bytes, tuple[str, ...]] = {}

    def encode(self, number: int, requests: Sequence[Request], place: Place) -> bytes:
        """One BATCH message.

        Raises:
            struct.error: a number does not fit (a time-out above 64 bits, more than 65,535 requests).
        """
        parts: list[Buffer] = []
        for request in requests:
            contents, extras = 0, b""
            # Most requests have no more than tensors, and names of outputs.
            if (
                request.id
                or request.correlation_id != 0
                or request.flags
                or request.parameters
                or request.priority
                or request.timeout_us
                or request.trace is not None
                or request.output_regions is not None
            ):
                contents, extras = self._encode_extras(request)
            elif request.requested_outputs:
                contents = _HAS_REQUESTED_OUTPUTS
                requested = request.requested_outputs
                extras = self._requested.get(requested) or self._encode_requested(requested)
            # Nothing was lent to this side, so there are no references.
            self._sections.write(parts, request.inputs.values(), contents, extras, place, [])
        body = b"".join(parts)
        return HEADER.pack(HEADER_SIZE + len(body), BATCH, 0, len(requests), number) + body

    def decode(
        self,
        chunk: bytes,
        data: memoryview,
        position: int,
        end: int,
        count: int,
        sink: ResponseSink,
        open_block: OpenBlock,
        request_class: type[RequestType],
    ) -> list[RequestType]:
        """The requests of a BATCH message.

        Args:
            chunk: what was read; the body lies from `position` to `end`.
            data: the same bytes, writable and never reused: small tensors are views of it.
            sink: of every request; the child answers in its own way.
            request_class: called as `Request` is.
        """
        requests: list[RequestType] = []
        for _ in range(count):
            layout, contents, extras, position = self._sections.read(chunk, position, end)
            inputs: dict[str, Tensor] = {}
            request = request_class(self._model_name, self._model_version, sink, inputs)
            if contents:
                known = (
                    self._known_requested.get(chunk[extras:position]) if contents == _HAS_REQUESTED_OUTPUTS else None
                )
                if known is None:
                    self._decode_extras(request, contents, chunk, extras, position)
                else:
                    request.requested_outputs = known
            for name, datatype, shape, size, padded_size in layout:
                if padded_size >= 0:
                    inputs[name] = PrivateTensor(name, datatype, shape, data[position : position + size])
                    position += padded_size
                else:
                    location, segment, offset = PLACED.unpack_from(chunk, position)
                    block = open_block(location, segment, offset, size)
                    inputs[name] = PrivateTensor(name, datatype, shape, block)
                    position += PLACED.size
            requests.append(request)
        # A tensor cut short would have pushed this beyond the end.
        if position != end:
            raise ProtocolError(f"a batch ends at {position}, not at {end}")
        return requests

    def _encode_requested(self, requested: tuple[str, ...]) -> bytes:
        """Names of outputs, padded."""
        names = b"".join([encode_text(name) for name in requested])
        names += PADDING[len(names) & 7]
        encoded = _COUNT.pack(len(requested)) + _LENGTH.pack(len(names)) + names
        if len(self._requested) >= MAX_REMEMBERED:
            self._requested.clear()
        self._requested[requested] = encoded
        return encoded

    def _encode_extras(self, request: Request) -> tuple[int, bytes]:
        contents = 0
        parts: list[bytes] = []
        if request.requested_outputs:
            contents |= _HAS_REQUESTED_OUTPUTS
            requested = request.requested_outputs
            parts.append(self._requested.get(requested) or self._encode_requested(requested))
        if request.id:
            contents |= _HAS_ID
            parts.append(encode_text(request.id))
        correlation_id = request.correlation_id
        if isinstance(correlation_id, str):
            # An empty one too: a model sees the type that the client sent.
            contents |= _HAS_TEXT_CORRELATION
            parts.append(encode_text(correlation_id))
        elif correlation_id:
            contents |= _HAS_NUMBER_CORRELATION
            parts.append(_CORRELATION.pack(correlation_id))
        if request.flags or request.priority or request.timeout_us:
            contents |= _HAS_CONTROL
            parts.append(_CONTROL.pack(request.flags, request.priority, request.timeout_us))
        if request.parameters:
            contents |= _HAS_PARAMETERS
            parts.append(encode_parameters(request.parameters))
        if request.trace is not None:
            contents |= _HAS_TRACE
            parts.append(encode_text(request.trace.context_text()))
        if request.output_regions:
            contents |= _HAS_OUTPUT_REGIONS
            parts.append(self._encode_output_regions(request.output_regions))
        extras = b"".join(parts)
        return contents, extras + PADDING[len(extras) & 7]

    def _decode_extras(self, request: Request, contents: int, chunk: bytes, position: int, end: int) -> None:
        if contents & _HAS_REQUESTED_OUTPUTS:
            (size,) = _LENGTH.unpack_from(chunk, position + 4)
            encoded = chunk[position : position + 8 + size]
            position += 8 + size
            requested = self._known_requested.get(encoded)
            if requested is None:
                (count,) = _COUNT.unpack_from(encoded)
                names, names_position = [], 8
                for _ in range(count):
                    name, names_position = decode_text(encoded, names_position, len(encoded))
                    names.append(name)
                requested = tuple(names)
                if len(self._known_requested) >= MAX_REMEMBERED:
                    self._known_requested.clear()
                self._known_requested[encoded] = requested
            request.requested_outputs = requested
        if contents & _HAS_ID:
            request.id, position = decode_text(chunk, position, end)
        if contents & _HAS_TEXT_CORRELATION:
            request.correlation_id, position = decode_text(chunk, position, end)
        if contents & _HAS_NUMBER_CORRELATION:
            (request.correlation_id,) = _CORRELATION.unpack_from(chunk, position)
            position += _CORRELATION.size
        if contents & _HAS_CONTROL:
            request.flags, request.priority, request.timeout_us = _CONTROL.unpack_from(chunk, position)
            position += _CONTROL.size
        if contents & _HAS_PARAMETERS:
            request.parameters, position = decode_parameters(chunk, position, end)
        if contents & _HAS_TRACE:
            context, position = decode_text(chunk, position, end)
            request.trace = RemoteTrace(context)
        if contents & _HAS_OUTPUT_REGIONS:
            request.output_regions, position = _decode_output_regions(chunk, position, end)
        if position > end:
            raise ProtocolError("a request is cut")

    def _encode_output_regions(self, regions: Mapping[str, RegionSlice]) -> bytes:
        """Those that are files, each: name, number, offset, bytes."""
        parts: list[bytes] = []
        for name, region in regions.items():
            file = region.file
            if file is not None and self._share_file is not None:
                self._share_file(file)
                parts += [encode_text(name), _REGION.pack(file.number, region.file_offset, region.byte_size)]
        return _COUNT.pack(len(parts) // 2) + b"".join(parts)


class RemoteFile:
    """The file of a client's shared memory as a model's process names it."""

    __slots__ = ("descriptor", "number")

    def __init__(self, number: int, descriptor: int = -1) -> None:
        self.number = number
        self.descriptor = descriptor


class RemoteSlice:
    """Part of a client's shared memory as a model's process knows it: where to put an output."""

    __slots__ = ("byte_size", "file", "file_offset")

    def __init__(self, number: int, file_offset: int, byte_size: int) -> None:
        self.file: RegionFile | None = RemoteFile(number)
        self.file_offset = file_offset
        self.byte_size = byte_size

    def read(self) -> Buffer:
        raise AssertionError("a model's process writes its outputs only")

    def write(self, data: Buffer) -> None:
        raise AssertionError("whoever has the descriptor writes")


def _decode_output_regions(chunk: bytes, position: int, end: int) -> "tuple[dict[str, RegionSlice], int]":
    """The regions by output, and where they end."""
    regions: dict[str, RegionSlice] = {}
    (count,) = _COUNT.unpack_from(chunk, position)
    position += _COUNT.size
    for _ in range(count):
        name, position = decode_text(chunk, position, end)
        regions[name] = RemoteSlice(*_REGION.unpack_from(chunk, position))
        position += _REGION.size
    return regions, position


class RemoteTrace:
    """The trace of a request as a model's process knows it: what other services need. The times are the server's."""

    def __init__(self, context: str) -> None:
        self._context = context

    def context_text(self) -> str:
        return self._context

    def begin(self, request: Request) -> None:
        """The server's."""

    def record_queued(self, queue_ns: int) -> None:
        """The server's."""

    def record_batch(self, cut: str, now_ns: int) -> None:
        """The server's."""

    def record_activity(self, name: str, now_ns: int) -> None:
        """Does not reach the server: a backend that has activities refuses to run in a process of its own."""

    def record_execution(self, start_ns: int, input_end_ns: int, output_start_ns: int, end_ns: int) -> None:
        """The server's."""

    def record_response(self, response: Response, now_ns: int) -> None:
        """The server's."""

    def child(self, model_name: str, model_version: int) -> RequestTrace | None:
        return None
