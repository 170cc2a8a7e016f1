"""Batches of requests and their executions, as the bodies of messages.

A body is one section for each request: a layout (name, datatype, shape and size of each tensor), what else there is to
say, then the tensors' data. The data of a large tensor is not there but in a block of the sender's arena, or of the
receiver's own that the sender was lent. Layouts repeat, so both sides remember those seen before, and a section costs
one look into a dictionary.
"""

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from merrow.backends.base import Deferral, Execution, Outcome, PrivateTensor
from merrow.core.datatypes import ELEMENT_BYTE_SIZES
from merrow.core.region import RegionFile, RegionSlice, RegionTensor
from merrow.core.request import ParameterValue, Request, RequestTrace, ResponseSink
from merrow.core.response import Response
from merrow.core.tensor import Buffer, Tensor
from merrow.places.process.channel import (
    ANSWER,
    BATCH,
    HEADER,
    HEADER_SIZE,
    IS_EMPTY,
    IS_FINAL,
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
# In a client's shared memory: the segment is the number of its file.
CLIENT_MEMORY = 3

# Bytes of the layout, bytes of what follows it, contents (of a request) or kind (of an outcome).
_SECTION = struct.Struct("<IIII")
_TENSOR_COUNT = struct.Struct("<I")
_LENGTH = struct.Struct("<I")
# Datatype, rank, bytes of the name, where the data is, bytes of data; then the dims and the name.
_TENSOR = struct.Struct("<BBHIQ")
# Location, segment, offset.
_PLACED = struct.Struct("<IIQ")
# Number of the file, offset, bytes.
_REGION = struct.Struct("<QQQ")
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
_HAS_OUTPUT_REGIONS = 128
_HAS_TRACE = 64

_SUCCEEDED = 0
_ANSWERED_WITH_ERROR = 1
_FAILED = 2
_DEFERRED = 3
_RESCHEDULED = 4

# How many different layouts (and lists of requested outputs) are remembered.
_MEMORY = 4096

Place = Callable[[Buffer], tuple[int, int, int]]
"""Puts the data of a large tensor somewhere: (location, segment, offset)."""

ShareFile = Callable[[RegionFile], None]
"""Makes sure that the other side has the file of a client's shared memory."""

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
        # None where the other side has all files that it needs.
        self.share_file: ShareFile | None = None
        # Name, datatype, shape and bytes of each tensor, all in one tuple -> the layout, encoded, behind the head of a
        # section that has nothing else to say.
        self._encoded: dict[tuple[Any, ...], bytes] = {}
        # The same for requests that only name outputs besides: by that head and their extras.
        self._encoded_with_outputs: dict[tuple[bytes, bytes], bytes] = {}
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
            if type(tensor) is RegionTensor and tensor.byte_size > INLINE_LIMIT and not tensor.is_copied:
                content.append(self._refer_to_region(tensor, key))
                continue
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
            whole = self._encoded_with_outputs.get((head, extras)) if contents == _HAS_REQUESTED_OUTPUTS else None
            head = self._add_extras(head, contents, extras) if whole is None else whole
        parts.append(head)
        if placed:
            start = HEADER_SIZE + sum(map(len, parts))
            references += [Reference(start + position, *block) for position, *block in placed]
        parts += content

    def _refer_to_region(self, tensor: RegionTensor, key: list[Any]) -> bytes:
        """Where a tensor is in a client's shared memory; its part of the layout is appended to the key."""
        key += (tensor.name, tensor.datatype, tuple(tensor.shape), tensor.byte_size)
        source = tensor.source
        file = source.file
        assert file is not None
        if self.share_file is not None:
            self.share_file(file)
        return _PLACED.pack(CLIENT_MEMORY, file.number, source.file_offset)

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

    def _add_extras(self, head: bytes, contents: int, extras: bytes) -> bytes:
        layout = head[_SECTION.size :]
        whole = _SECTION.pack(len(layout), len(extras), contents, 0) + layout + extras
        if contents == _HAS_REQUESTED_OUTPUTS:
            if len(self._encoded_with_outputs) >= _MEMORY:
                self._encoded_with_outputs.clear()
            self._encoded_with_outputs[(head, extras)] = whole
        return whole

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

    def __init__(self, model_name: str, model_version: int, share_file: ShareFile | None = None) -> None:
        self._model_name = model_name
        self._model_version = model_version
        self._sections = _Sections()
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
                    location, segment, offset = _PLACED.unpack_from(chunk, position)
                    block = open_block(location, segment, offset, size)
                    inputs[name] = PrivateTensor(name, datatype, shape, block)
                    position += _PLACED.size
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
        if len(self._requested) >= _MEMORY:
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


class AnswerCodec:
    """Executions: `encode` in the child, `decode` in the server.

    `has_exceptions` is set by either when an outcome is no response; whoever asks for it also resets it.
    """

    def __init__(self, model_name: str, model_version: int) -> None:
        self.has_exceptions = False
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
            elif isinstance(outcome, Deferral):
                self.has_exceptions = True
                kind = _DEFERRED if outcome is Deferral.DEFERRED else _RESCHEDULED
            else:
                self.has_exceptions = True
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
                if kind in (_DEFERRED, _RESCHEDULED):
                    self.has_exceptions = True
                    outcomes.append(Deferral.DEFERRED if kind == _DEFERRED else Deferral.RESCHEDULED)
                    continue
                if kind not in (_ANSWERED_WITH_ERROR, _FAILED):
                    raise ProtocolError(f"an outcome of kind {kind}")
                self.has_exceptions = self.has_exceptions or kind == _FAILED
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
                    position += _PLACED.size
                    if location == CLIENT_MEMORY:
                        region = _find_output_region(request, tensor_name, segment, offset, size)
                        outputs.append(RegionTensor(tensor_name, datatype, shape, region, size))
                        continue
                    block = open_block(location, segment, offset, size)
                    outputs.append(Tensor(tensor_name, datatype, shape, block))
            outcomes.append(Response(name, version, request.id, outputs, parameters))
        # A tensor cut short would have pushed this beyond the end.
        if position != end:
            raise ProtocolError(f"an answer ends at {position}, not at {end}")
        return Execution(outcomes, *stamps)


def _find_output_region(request: Request, name: str, number: int, offset: int, byte_size: int) -> RegionSlice:
    """Where the request wants an output that is said to be there.

    Raises:
        ProtocolError: the request wants it elsewhere.
    """
    region = None if request.output_regions is None else request.output_regions.get(name)
    file = None if region is None else region.file
    if region is None or file is None or (file.number, region.file_offset) != (number, offset):
        raise ProtocolError(f"output '{name}' is not wanted in file {number}")
    if byte_size > region.byte_size:
        raise ProtocolError(f"output '{name}' does not fit where it is said to be")
    return region


class ResponseCodec:
    """Single responses, each as an execution of one request without its times; what kind of message it is, and whether
    the response is final, stands in the header."""

    def __init__(self, model_name: str, model_version: int) -> None:
        self._answers = AnswerCodec(model_name, model_version)

    def encode(self, kind: int, number: int, response: Response, place: Place) -> bytes:
        """One RESPONSE or CALL_RESPONSE message."""
        message, _ = self._answers.encode(number, Execution((response,), 0, 0, 0, 0), place)
        flags = (IS_FINAL if response.is_final else 0) | (IS_EMPTY if response.is_empty else 0)
        return HEADER.pack(len(message), kind, 0, flags, number) + message[HEADER_SIZE:]

    def decode(
        self, chunk: bytes, position: int, end: int, flags: int, request: Request, open_block: OpenBlock
    ) -> Response:
        """The response of such a message, to this request."""
        (response,) = self._answers.decode(chunk, position, end, (request,), open_block).outcomes
        if not isinstance(response, Response):
            raise ProtocolError("a response is none")
        response.is_final = bool(flags & IS_FINAL)
        response.is_empty = bool(flags & IS_EMPTY)
        return response


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
