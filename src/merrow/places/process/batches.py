"""Batches of requests and their executions, as the bodies of messages.

A body is one section for each request: a layout (name, datatype, shape and size of each tensor), what else there is to
say, then the tensors' data. The data of a large tensor is not there but in a block of the sender's arena, or of the
receiver's own that the sender was lent. Layouts repeat, so both sides remember those seen before, and a section costs
one look into a dictionary.
"""

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from merrow.backends.base import Execution, Outcome, PrivateTensor
from merrow.core.datatypes import ELEMENT_BYTE_SIZES
from merrow.core.request import ParameterValue, Request, ResponseSink
from merrow.core.response import Response
from merrow.core.tensor import Buffer, Tensor
from merrow.places.process.channel import (
    ANSWER,
    BATCH,
    HEADER,
    HEADER_SIZE,
    PADDING,
    ProtocolError,
    decode_failure,
    decode_text,
    encode_failure,
    encode_text,
)

INLINE_LIMIT = 8192
"""A tensor with more bytes travels through an arena."""

# Where a tensor's data is.
SENDER_ARENA = 1
RECEIVER_ARENA = 2

# Bytes of the layout, bytes of what follows it, contents (of a request) or kind (of an outcome).
_SECTION = struct.Struct("<IIII")
_TENSOR_COUNT = struct.Struct("<I")
_LENGTH = struct.Struct("<I")
# Datatype, rank, bytes of the name, where the data is, bytes of data; then the dims and the name.
_TENSOR = struct.Struct("<BBHIQ")
# Location, segment, offset.
_PLACED = struct.Struct("<IIQ")
_STAMPS = struct.Struct("<QQQQ")
_CONTROL = struct.Struct("<QQQ")
_CORRELATION = struct.Struct("<Q")
_COUNT = struct.Struct("<I")
_LENGTH = struct.Struct("<I")

_DATATYPES = tuple(ELEMENT_BYTE_SIZES)
_DATATYPE_CODES = {name: code for code, name in enumerate(_DATATYPES)}

_HAS_ID = 1
_HAS_NUMBER_CORRELATION = 2
_HAS_TEXT_CORRELATION = 4
_HAS_CONTROL = 8
_HAS_PARAMETERS = 16
_HAS_REQUESTED_OUTPUTS = 32

_SUCCEEDED = 0
_ANSWERED_WITH_ERROR = 1
_FAILED = 2

# How many different layouts (and lists of requested outputs) are remembered.
_MEMORY = 4096

Place = Callable[[Buffer], tuple[int, int, int]]
"""Puts the data of a large tensor somewhere: (location, segment, offset)."""

RequestType = TypeVar("RequestType", bound=Request)

OpenBlock = Callable[[int, int, int, int], memoryview]
"""Makes received data readable: (location, segment, offset, byte size)."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A tensor in an encoded answer whose data is, so far, in a block that the receiver lent.

    `position` is where the message says so.
    """

    position: int
    segment: int
    offset: int
    byte_size: int


# Of each tensor: name, datatype, shape, bytes, and bytes with padding; -1 for data that is not in the message.
_Layout = tuple[tuple[str, str, tuple[int, ...], int, int], ...]


class _Sections:
    """Sections, both ways, and the layouts seen before."""

    def __init__(self) -> None:
        # Name, datatype, shape and bytes of each tensor, all in one tuple -> the layout, encoded, behind the head of a
        # section that has nothing else to say.
        self._encoded: dict[tuple[Any, ...], bytes] = {}
        self._decoded: dict[bytes, _Layout] = {}

    def write(
        self,
        parts: list[Buffer],
        tensors: Iterable[Tensor],
        contents: int,
        extras: bytes,
        place: Place,
        references: list[Reference],
    ) -> None:
        """Append a section to the parts of a message's body."""
        key: list[Any] = []
        content: list[Buffer] = []
        placed: list[tuple[int, int, int, int]] = []
        for tensor in tensors:
            data = tensor.data
            size = len(data)
            shape = tensor.shape
            key += (tensor.name, tensor.datatype, shape if type(shape) is tuple else tuple(shape), size)
            if size <= INLINE_LIMIT:
                content.append(data)
                if size & 7:
                    content.append(PADDING[size & 7])
            else:
                location, segment, offset = place(data)
                if location == RECEIVER_ARENA:
                    placed.append((sum(map(len, content)), segment, offset, size))
                content.append(_PLACED.pack(location, segment, offset))
        head = self._encoded.get(tuple(key))
        if head is None:
            head = self._encode_layout(key)
        if contents or extras:
            layout = head[_SECTION.size :]
            head = _SECTION.pack(len(layout), len(extras), contents, 0) + layout + extras
        parts.append(head)
        if placed:
            start = HEADER_SIZE + sum(map(len, parts))
            references += [Reference(start + position, *block) for position, *block in placed]
        parts += content

    def read(self, chunk: bytes, position: int, end: int) -> tuple[_Layout, int, int, int]:
        """A section's layout, its contents, and where its extras and its data begin."""
        layout_size, extras_size, contents, _ = _SECTION.unpack_from(chunk, position)
        position += _SECTION.size
        extras = position + layout_size
        data = extras + extras_size
        if data > end:
            raise ProtocolError("a section is cut")
        encoded = chunk[position:extras]
        layout = self._decoded.get(encoded)
        if layout is None:
            layout = self._decode_layout(encoded)
        return layout, contents, extras, data

    def _encode_layout(self, key: list[Any]) -> bytes:
        pieces = [_TENSOR_COUNT.pack(len(key) // 4)]
        for name, datatype, shape, size in zip(key[::4], key[1::4], key[2::4], key[3::4], strict=True):
            encoded_name = name.encode()
            numbers = (_DATATYPE_CODES[datatype], len(shape), len(encoded_name), size > INLINE_LIMIT, size)
            pieces += [_TENSOR.pack(*numbers), struct.pack(f"<{len(shape)}Q", *shape), encoded_name]
        layout = b"".join(pieces)
        layout += PADDING[len(layout) & 7]
        head = _SECTION.pack(len(layout), 0, 0, 0) + layout
        if len(self._encoded) >= _MEMORY:
            self._encoded.clear()
        self._encoded[tuple(key)] = head
        return head

    def _decode_layout(self, encoded: bytes) -> _Layout:
        (count,) = _TENSOR_COUNT.unpack_from(encoded)
        position = _TENSOR_COUNT.size
        layout = []
        for _ in range(count):
            code, rank, name_size, is_placed, size = _TENSOR.unpack_from(encoded, position)
            position += _TENSOR.size
            shape = struct.unpack_from(f"<{rank}Q", encoded, position)
            position += 8 * rank
            name = encoded[position : position + name_size].decode()
            position += name_size
            if position > len(encoded) or code >= len(_DATATYPES):
                raise ProtocolError("a layout is cut")
            layout.append((name, _DATATYPES[code], shape, size, -1 if is_placed else size + (-size & 7)))
        if len(self._decoded) >= _MEMORY:
            self._decoded.clear()
        self._decoded[encoded] = tuple(layout)
        return self._decoded[encoded]


class BatchCodec:
    """Batches of requests: `encode` in the server, `decode` in the child."""

    def __init__(self, model_name: str, model_version: int) -> None:
        self._model_name = model_name
        self._model_version = model_version
        self._sections = _Sections()
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
            # Most requests have no more than tensors.
            if (
                request.id
                or request.requested_outputs
                or request.correlation_id != 0
                or request.flags
                or request.parameters
                or request.priority
                or request.timeout_us
            ):
                contents, extras = self._encode_extras(request)
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
                self._decode_extras(request, contents, chunk, extras, position)
            for name, datatype, shape, size, padded_size in layout:
                if padded_size >= 0:
                    inputs[name] = PrivateTensor(name, datatype, shape, data[position : position + size])
                    position += padded_size
                else:
                    location, segment, offset = _PLACED.unpack_from(chunk, position)
                    block = open_block(location, segment, offset, size)
                    inputs[name] = PrivateTensor(name, datatype, shape, block)
                    position += _PLACED.size
            requests.append(request)
        # A tensor cut short would have pushed this beyond the end.
        if position != end:
            raise ProtocolError(f"a batch ends at {position}, not at {end}")
        return requests

    def _encode_extras(self, request: Request) -> tuple[int, bytes]:
        contents = 0
        parts: list[bytes] = []
        if request.requested_outputs:
            contents |= _HAS_REQUESTED_OUTPUTS
            requested = request.requested_outputs
            encoded = self._requested.get(requested)
            if encoded is None:
                names = b"".join([encode_text(name) for name in requested])
                encoded = _COUNT.pack(len(requested)) + _LENGTH.pack(len(names)) + names
                if len(self._requested) >= _MEMORY:
                    self._requested.clear()
                self._requested[requested] = encoded
            parts.append(encoded)
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
                if len(self._known_requested) >= _MEMORY:
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
        if position > end:
            raise ProtocolError("a request is cut")


class AnswerCodec:
    """Executions: `encode` in the child, `decode` in the server."""

    def __init__(self, model_name: str, model_version: int) -> None:
        self._model_name = model_name
        self._model_version = model_version
        self._sections = _Sections()

    def encode(self, number: int, execution: Execution, place: Place) -> tuple[bytes, list[Reference]]:
        """One ANSWER message, and those of its tensors that `relocate` may still move."""
        outcomes = execution.outcomes
        parts: list[Buffer] = [
            _STAMPS.pack(execution.start_ns, execution.input_end_ns, execution.output_start_ns, execution.end_ns)
        ]
        references: list[Reference] = []
        for outcome in outcomes:
            kind, extras = _SUCCEEDED, b""
            outputs: Sequence[Tensor] = ()
            if isinstance(outcome, Response):
                if outcome.error is not None:
                    kind, extras = _ANSWERED_WITH_ERROR, encode_failure(outcome.error)
                else:
                    outputs = outcome.outputs
                    if outcome.parameters:
                        extras = encode_parameters(outcome.parameters)
                        extras += PADDING[len(extras) & 7]
            else:
                kind, extras = _FAILED, encode_failure(outcome)
            self._sections.write(parts, outputs, kind, extras, place, references)
        body = b"".join(parts)
        return HEADER.pack(HEADER_SIZE + len(body), ANSWER, 0, len(outcomes), number) + body, references

    def decode(
        self, chunk: bytes, position: int, end: int, requests: Sequence[Request], open_block: OpenBlock
    ) -> Execution:
        """The execution of an ANSWER message.

        Small outputs are copied out of the chunk; large ones are what `open_block` gives.
        """
        stamps = _STAMPS.unpack_from(chunk, position)
        position += _STAMPS.size
        name, version = self._model_name, self._model_version
        outcomes: list[Outcome] = []
        for request in requests:
            layout, kind, extras, position = self._sections.read(chunk, position, end)
            parameters: dict[str, ParameterValue] | None = None
            if kind != _SUCCEEDED:
                if kind not in (_ANSWERED_WITH_ERROR, _FAILED):
                    raise ProtocolError(f"an outcome of kind {kind}")
                error = decode_failure(chunk, extras, position)
                outcomes.append(error if kind == _FAILED else Response(name, version, request.id, error=error))
                continue
            if extras != position:
                parameters, _ = decode_parameters(chunk, extras, position)
            outputs: list[Tensor] = []
            for tensor_name, datatype, shape, size, padded_size in layout:
                if padded_size >= 0:
                    outputs.append(Tensor(tensor_name, datatype, shape, chunk[position : position + size]))
                    position += padded_size
                else:
                    location, segment, offset = _PLACED.unpack_from(chunk, position)
                    block = open_block(location, segment, offset, size)
                    outputs.append(Tensor(tensor_name, datatype, shape, block))
                    position += _PLACED.size
            outcomes.append(Response(name, version, request.id, outputs, parameters))
        # A tensor cut short would have pushed this beyond the end.
        if position != end:
            raise ProtocolError(f"an answer ends at {position}, not at {end}")
        return Execution(outcomes, *stamps)


def relocate(message: bytearray, reference: Reference, location: int, segment: int, offset: int) -> None:
    """Say in an encoded answer that a tensor's data is elsewhere after all."""
    _PLACED.pack_into(message, reference.position, location, segment, offset)


def encode_parameters(parameters: "dict[str, ParameterValue]") -> bytes:
    """Parameters: a count, then name, type and text of each; the type is a letter."""
    parts = [_COUNT.pack(len(parameters))]
    for name, value in parameters.items():
        if isinstance(value, bool):
            kind, text = b"b", "1" if value else ""
        elif isinstance(value, int):
            kind, text = b"i", str(value)
        elif isinstance(value, float):
            kind, text = b"f", value.hex()
        else:
            kind, text = b"s", value
        parts += [kind, encode_text(name), encode_text(text)]
    return b"".join(parts)


def decode_parameters(chunk: bytes, position: int, end: int) -> "tuple[dict[str, ParameterValue], int]":
    """The parameters, and where they end."""
    parameters: dict[str, ParameterValue] = {}
    (count,) = _COUNT.unpack_from(chunk, position)
    position += _COUNT.size
    for _ in range(count):
        kind = chunk[position : position + 1]
        name, position = decode_text(chunk, position + 1, end)
        text, position = decode_text(chunk, position, end)
        if kind == b"b":
            parameters[name] = bool(text)
        elif kind == b"i":
            parameters[name] = int(text)
        elif kind == b"f":
            parameters[name] = float.fromhex(text)
        elif kind == b"s":
            parameters[name] = text
        else:
            raise ProtocolError(f"a parameter of type {kind!r}")
    return parameters, position
