"""The messages between the server and a model's process, as bytes. Nothing here has effects, and nothing is unpickled.

Two stream sockets join the two. The *data* socket carries batches and their answers; each side writes many messages at
once and reads whatever has gathered. The *control* socket carries what is rare, and the descriptors of shared memory.

Every message is a header, `length kind flags count number`, and a body; lengths are multiples of 8, so that a tensor's
data is aligned wherever its message lies in what was read. A tensor is a head that says where its data is (in the
message, in the sender's arena, or in a block of the receiver's own arena that the sender was lent), a description
(datatype, shape, name) and, when small, the data. Descriptions repeat: both sides keep those seen before.

Whatever was received is checked before it is used: a length or count that points outside its message, a block outside
its segment, an unknown kind or code is a `ProtocolError`, upon which the process is no longer trusted.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from merrow.backends.base import Execution, Outcome, PrivateTensor
from merrow.core.datatypes import ELEMENT_BYTE_SIZES
from merrow.core.errors import ServerError, error_of_code
from merrow.core.request import ParameterValue, Request, ResponseSink
from merrow.core.response import Response
from merrow.core.tensor import Buffer, Tensor

# Data socket, to the child.
BATCH = 1
CLOSE = 2
# Data socket, from the child.
ANSWER = 3
# `number` is a batch: the blocks listed, lent with it, are still seen by the model and must not be reused yet.
KEEP = 4
# Data socket, both ways: blocks of the receiver's arena that the sender no longer sees; a segment the sender removed.
FREE = 5
DROP = 6
# Control socket.
SETUP = 16
READY = 17
FAILED = 18
COMPLETED = 19
LOG = 20
SEGMENT = 21
STARTED = 22

INLINE_LIMIT = 8192
MAX_MESSAGE_BYTE_SIZE = 1 << 30
RECEIVE_BYTE_SIZE = 1 << 18

# Where a tensor's data is.
INLINE = 0
SENDER_ARENA = 1
RECEIVER_ARENA = 2

CANCELLATION_SLOTS = 512
"""Slot `n % 512` of the cancellation page holds `n` once request number `n` of the session was cancelled."""

SEGMENT_BYTE_SIZE = struct.Struct("<Q")
"""The body of a SEGMENT message."""

HEADER = struct.Struct("<IBBHQ")
HEADER_SIZE = HEADER.size

_REQUEST = struct.Struct("<HHI")
_TENSOR = struct.Struct("<IHHQQ")
_DESCRIPTION = struct.Struct("<BBH")
_STAMPS = struct.Struct("<QQQQ")
_OUTCOME = struct.Struct("<HHI")
_BLOCK = struct.Struct("<QQ")
_CODE = struct.Struct("<I")
_LENGTH = struct.Struct("<I")
_CONTROL = struct.Struct("<QQQ")
_CORRELATION = struct.Struct("<Q")
_COUNT = struct.Struct("<I")
_LOG_RECORD = struct.Struct("<III")

_DATATYPES = tuple(ELEMENT_BYTE_SIZES)
_DATATYPE_CODES = {name: code for code, name in enumerate(_DATATYPES)}
_PADDING = tuple(bytes(-size % 8) for size in range(8))

_HAS_ID = 1
_HAS_NUMBER_CORRELATION = 2
_HAS_TEXT_CORRELATION = 4
_HAS_CONTROL = 8
_HAS_PARAMETERS = 16
_HAS_REQUESTED_OUTPUTS = 32

_SUCCEEDED = 0
_SUCCEEDED_WITH_PARAMETERS = 1
_ANSWERED_WITH_ERROR = 2
_FAILED = 3

# How many different descriptions (and lists of requested outputs) are remembered.
_MEMORY = 4096

Place = Callable[[Buffer], tuple[int, int, int]]
"""Puts the data of a large tensor somewhere: (location, segment, offset)."""

OpenBlock = Callable[[int, int, int, int], memoryview]
"""Makes received data readable: (location, segment, offset, byte size)."""

Description = tuple[str, str, tuple[int, ...]]
"""Name, datatype, shape."""


class ProtocolError(Exception):
    """A message that makes no sense."""


MALFORMED = (ProtocolError, struct.error, ValueError, LookupError)
"""What decoding a message can raise: most checks are those that Python makes anyway."""


def frame(kind: int, number: int = 0, body: bytes = b"", count: int = 0) -> bytes:
    """A whole message; the body is padded."""
    size = len(body)
    padding = _PADDING[size % 8]
    return HEADER.pack(HEADER_SIZE + size + len(padding), kind, 0, count, number) + body + padding


def split_frames(chunk: bytes) -> tuple[list[tuple[int, int, int, int, int]], int]:
    """The messages that are whole: (kind, count, number, start of the body, end), and where the rest begins."""
    frames: list[tuple[int, int, int, int, int]] = []
    position, size = 0, len(chunk)
    while size - position >= HEADER_SIZE:
        length, kind, _, count, number = HEADER.unpack_from(chunk, position)
        if length < HEADER_SIZE or length % 8 or length > MAX_MESSAGE_BYTE_SIZE:
            raise ProtocolError(f"a message of {length} bytes")
        end = position + length
        if end > size:
            break
        frames.append((kind, count, number, position + HEADER_SIZE, end))
        position = end
    return frames, position


def encode_blocks(kind: int, number: int, blocks: Sequence[tuple[int, int]]) -> bytes:
    """A FREE or KEEP message."""
    return b"".join(
        frame(kind, number, b"".join([_BLOCK.pack(*block) for block in part]), len(part))
        for part in (blocks[first : first + 0xFFFF] for first in range(0, len(blocks), 0xFFFF))
    )


def decode_blocks(chunk: bytes, position: int, end: int, count: int) -> list[tuple[int, int]]:
    """Segment and offset of each block."""
    if end - position != count * _BLOCK.size:
        raise ProtocolError(f"{count} blocks in {end - position} bytes")
    return [_BLOCK.unpack_from(chunk, position + index * _BLOCK.size) for index in range(count)]


class TensorHeads:
    """Heads and descriptions of tensors, both ways, and a memory of those seen before."""

    def __init__(self) -> None:
        self._inline: dict[tuple[str, str, tuple[int, ...], int], bytes] = {}
        self._descriptions: dict[Description, bytes] = {}
        self._known: dict[bytes, Description] = {}

    def inline(self, tensor: Tensor, shape: tuple[int, ...], byte_size: int) -> bytes:
        """Everything that stands before the data of a small tensor."""
        key = (tensor.name, tensor.datatype, shape, byte_size)
        head = self._inline.get(key)
        if head is None:
            description = self.description(tensor, shape)
            head = _TENSOR.pack(len(description), INLINE, 0, 0, byte_size) + description
            if len(self._inline) >= _MEMORY:
                self._inline.clear()
            self._inline[key] = head
        return head

    def description(self, tensor: Tensor, shape: tuple[int, ...]) -> bytes:
        """Padded to a multiple of 8."""
        key = (tensor.name, tensor.datatype, shape)
        encoded = self._descriptions.get(key)
        if encoded is None:
            name = tensor.name.encode()
            encoded = _DESCRIPTION.pack(_DATATYPE_CODES[tensor.datatype], len(shape), len(name))
            encoded += struct.pack(f"<{len(shape)}Q", *shape) + name
            encoded += _PADDING[len(encoded) % 8]
            if len(self._descriptions) >= _MEMORY:
                self._descriptions.clear()
            self._descriptions[key] = encoded
        return encoded

    def decode_description(self, encoded: bytes) -> Description:
        """The description again."""
        known = self._known.get(encoded)
        if known is None:
            code, rank, name_size = _DESCRIPTION.unpack_from(encoded)
            name_start = _DESCRIPTION.size + 8 * rank
            shape = struct.unpack_from(f"<{rank}Q", encoded, _DESCRIPTION.size)
            name = encoded[name_start : name_start + name_size]
            if code >= len(_DATATYPES) or len(name) != name_size:
                raise ProtocolError("a tensor's description is cut")
            known = (name.decode(), _DATATYPES[code], shape)
            if len(self._known) >= _MEMORY:
                self._known.clear()
            self._known[encoded] = known
        return known


class BatchCodec:
    """Batches of requests: `encode` in the server, `decode` in the child."""

    def __init__(self, model_name: str, model_version: int) -> None:
        self._model_name = model_name
        self._model_version = model_version
        self._heads = TensorHeads()
        self._requested: dict[tuple[str, ...], bytes] = {}
        self._known_requested: dict[bytes, tuple[str, ...]] = {}

    def encode(self, number: int, requests: Sequence[Request], place: Place) -> bytes:
        """One BATCH message.

        Raises:
            struct.error: a number does not fit (more than 65,535 requests or inputs).
        """
        parts: list[Buffer] = [b""]
        heads = self._heads
        for request in requests:
            inputs = request.inputs
            # Most requests have no more than tensors.
            if (
                request.id
                or request.requested_outputs
                or request.correlation_id
                or request.flags
                or request.parameters
                or request.priority
                or request.timeout_us
            ):
                contents, extras = self._encode_extras(request)
                parts.append(_REQUEST.pack(len(inputs), contents, len(extras)))
                parts.append(extras)
            else:
                parts.append(_REQUEST.pack(len(inputs), 0, 0))
            for tensor in inputs.values():
                data = tensor.data
                size = len(data)
                shape = tensor.shape
                if type(shape) is not tuple:
                    shape = tuple(shape)
                if size <= INLINE_LIMIT:
                    parts.append(heads.inline(tensor, shape, size))
                    parts.append(data)
                    if size & 7:
                        parts.append(_PADDING[size & 7])
                else:
                    location, segment, offset = place(data)
                    description = heads.description(tensor, shape)
                    parts.append(_TENSOR.pack(len(description), location, segment, offset, size))
                    parts.append(description)
        length = HEADER_SIZE + sum(map(len, parts))
        parts[0] = HEADER.pack(length, BATCH, 0, len(requests), number)
        return b"".join(parts)

    def decode(
        self,
        chunk: bytes,
        data: memoryview,
        position: int,
        end: int,
        count: int,
        sink: ResponseSink,
        open_block: OpenBlock,
        request_class: type[Request] = Request,
    ) -> list[Request]:
        """The requests of a BATCH message.

        Args:
            chunk: what was read; the body lies from `position` to `end`.
            data: the same bytes, writable and never reused: small tensors are views of it.
            sink: of every request; the child answers in its own way.
            request_class: called as `Request` is.
        """
        requests: list[Request] = []
        name, version = self._model_name, self._model_version
        for _ in range(count):
            input_count, contents, extras_size = _REQUEST.unpack_from(chunk, position)
            position += _REQUEST.size
            extras = position
            position += extras_size
            inputs: dict[str, Tensor] = {}
            for _ in range(input_count):
                description, location, segment, offset, size, position = _read_head(chunk, position, end, self._heads)
                if location == INLINE:
                    content = data[position : position + size]
                    position += size + (-size & 7)
                else:
                    content = open_block(location, segment, offset, size)
                inputs[description[0]] = PrivateTensor(*description, content)
            request = request_class(name, version, sink, inputs)
            if contents:
                self._decode_extras(request, contents, chunk, extras, extras + extras_size)
            requests.append(request)
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
                names = b"".join([_encode_text(name) for name in requested])
                encoded = _COUNT.pack(len(requested)) + _LENGTH.pack(len(names)) + names
                if len(self._requested) >= _MEMORY:
                    self._requested.clear()
                self._requested[requested] = encoded
            parts.append(encoded)
        if request.id:
            contents |= _HAS_ID
            parts.append(_encode_text(request.id))
        correlation_id = request.correlation_id
        if isinstance(correlation_id, str):
            if correlation_id:
                contents |= _HAS_TEXT_CORRELATION
                parts.append(_encode_text(correlation_id))
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
        return contents, extras + _PADDING[len(extras) & 7]

    def _decode_extras(self, request: Request, contents: int, chunk: bytes, position: int, end: int) -> None:
        if end > len(chunk):
            raise ProtocolError("a request is cut")
        if contents & _HAS_REQUESTED_OUTPUTS:
            (size,) = _LENGTH.unpack_from(chunk, position + 4)
            encoded = chunk[position : position + 8 + size]
            position += 8 + size
            requested = self._known_requested.get(encoded)
            if requested is None:
                (count,) = _COUNT.unpack_from(encoded)
                names, names_position = [], 8
                for _ in range(count):
                    name, names_position = _decode_text(encoded, names_position, len(encoded))
                    names.append(name)
                requested = tuple(names)
                if len(self._known_requested) >= _MEMORY:
                    self._known_requested.clear()
                self._known_requested[encoded] = requested
            request.requested_outputs = requested
        if contents & _HAS_ID:
            request.id, position = _decode_text(chunk, position, end)
        if contents & _HAS_TEXT_CORRELATION:
            request.correlation_id, position = _decode_text(chunk, position, end)
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


@dataclass(frozen=True, slots=True)
class Reference:
    """A tensor in an encoded answer whose data is, so far, in a block that the receiver lent.

    `position` is that of the tensor's head in the message.
    """

    position: int
    segment: int
    offset: int
    byte_size: int


class AnswerCodec:
    """Executions: `encode` in the child, `decode` in the server."""

    def __init__(self, model_name: str, model_version: int) -> None:
        self._model_name = model_name
        self._model_version = model_version
        self._heads = TensorHeads()

    def encode(self, number: int, execution: Execution, place: Place) -> tuple[bytes, list[Reference]]:
        """One ANSWER message, and those of its tensors that `relocate` may still move."""
        outcomes = execution.outcomes
        parts: list[Buffer] = [
            b"",
            _STAMPS.pack(execution.start_ns, execution.input_end_ns, execution.output_start_ns, execution.end_ns),
        ]
        references: list[Reference] = []
        heads = self._heads
        for outcome in outcomes:
            if not isinstance(outcome, Response) or outcome.error is not None:
                _encode_error(parts, outcome)
                continue
            outputs = outcome.outputs
            if outcome.parameters:
                extras = encode_parameters(outcome.parameters)
                extras += _PADDING[len(extras) & 7]
                parts.append(_OUTCOME.pack(len(outputs), _SUCCEEDED_WITH_PARAMETERS, len(extras)))
                parts.append(extras)
            else:
                parts.append(_OUTCOME.pack(len(outputs), _SUCCEEDED, 0))
            for tensor in outputs:
                data = tensor.data
                size = len(data)
                shape = tensor.shape
                if type(shape) is not tuple:
                    shape = tuple(shape)
                if size <= INLINE_LIMIT:
                    parts.append(heads.inline(tensor, shape, size))
                    parts.append(data)
                    if size & 7:
                        parts.append(_PADDING[size & 7])
                else:
                    location, segment, offset = place(data)
                    description = heads.description(tensor, shape)
                    if location == RECEIVER_ARENA:
                        references.append(Reference(HEADER_SIZE + sum(map(len, parts)), segment, offset, size))
                    parts.append(_TENSOR.pack(len(description), location, segment, offset, size))
                    parts.append(description)
        length = HEADER_SIZE + sum(map(len, parts))
        parts[0] = HEADER.pack(length, ANSWER, 0, len(outcomes), number)
        return b"".join(parts), references

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
            output_count, kind, extras_size = _OUTCOME.unpack_from(chunk, position)
            position += _OUTCOME.size
            if kind in (_ANSWERED_WITH_ERROR, _FAILED):
                error = _decode_error(chunk, position, extras_size, end)
                outcomes.append(error if kind == _FAILED else Response(name, version, request.id, error=error))
                position += extras_size
                continue
            parameters: dict[str, ParameterValue] | None = None
            if kind == _SUCCEEDED_WITH_PARAMETERS:
                parameters, _ = decode_parameters(chunk, position, min(end, position + extras_size))
            elif kind != _SUCCEEDED or extras_size:
                raise ProtocolError(f"an outcome of kind {kind}")
            position += extras_size
            outputs: list[Tensor] = []
            for _ in range(output_count):
                description, location, segment, offset, size, position = _read_head(chunk, position, end, self._heads)
                content: Buffer
                if location == INLINE:
                    content = chunk[position : position + size]
                    position += size + (-size & 7)
                else:
                    content = open_block(location, segment, offset, size)
                outputs.append(Tensor(*description, content))
            outcomes.append(Response(name, version, request.id, outputs, parameters))
        if position != end:
            raise ProtocolError(f"an answer ends at {position}, not at {end}")
        return Execution(outcomes, *stamps)


def relocate(message: bytearray, reference: Reference, location: int, segment: int, offset: int) -> None:
    """Say in an encoded answer that a tensor's data is elsewhere after all."""
    description_size = _TENSOR.unpack_from(message, reference.position)[0]
    _TENSOR.pack_into(message, reference.position, description_size, location, segment, offset, reference.byte_size)


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
        parts += [kind, _encode_text(name), _encode_text(text)]
    return b"".join(parts)


def decode_parameters(chunk: bytes, position: int, end: int) -> "tuple[dict[str, ParameterValue], int]":
    """The parameters, and where they end."""
    parameters: dict[str, ParameterValue] = {}
    (count,) = _COUNT.unpack_from(chunk, position)
    position += _COUNT.size
    for _ in range(count):
        kind = chunk[position : position + 1]
        name, position = _decode_text(chunk, position + 1, end)
        text, position = _decode_text(chunk, position, end)
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


def encode_failure(error: ServerError) -> bytes:
    """The body of a FAILED message."""
    return _CODE.pack(error.code) + error.message.encode(errors="replace")


def decode_failure(body: bytes) -> ServerError:
    """The error again."""
    (code,) = _CODE.unpack_from(body)
    return error_of_code(code, body[_CODE.size :].decode(errors="replace"))


def encode_log(level: int, line: int, process_id: int, logger: str, file: str, text: str) -> bytes:
    """The body of a LOG message."""
    return _LOG_RECORD.pack(level, line, process_id) + b"".join(map(_encode_text, (logger, file, text)))


def decode_log(body: bytes) -> tuple[int, int, int, str, str, str]:
    """Level, line, process id, logger, file, text."""
    level, line, process_id = _LOG_RECORD.unpack_from(body)
    logger, position = _decode_text(body, _LOG_RECORD.size, len(body))
    file, position = _decode_text(body, position, len(body))
    text, _ = _decode_text(body, position, len(body))
    return level, line, process_id, logger, file, text


def _encode_error(parts: list[Buffer], outcome: Outcome) -> None:
    error: Any = outcome.error if isinstance(outcome, Response) else outcome
    kind = _ANSWERED_WITH_ERROR if isinstance(outcome, Response) else _FAILED
    content = _CODE.pack(error.code) + _encode_text(error.message)
    content += _PADDING[len(content) & 7]
    parts += [_OUTCOME.pack(0, kind, len(content)), content]


def _decode_error(chunk: bytes, position: int, size: int, end: int) -> ServerError:
    (code,) = _CODE.unpack_from(chunk, position)
    message, _ = _decode_text(chunk, position + _CODE.size, min(end, position + size))
    return error_of_code(code, message)


def _read_head(
    chunk: bytes, position: int, end: int, heads: TensorHeads
) -> tuple[Description, int, int, int, int, int]:
    """A tensor's description, location, segment, offset, size, and where what follows the head begins."""
    description_size, location, segment, offset, size = _TENSOR.unpack_from(chunk, position)
    position += _TENSOR.size
    description = heads.decode_description(chunk[position : position + description_size])
    position += description_size
    if position > end or location > RECEIVER_ARENA or (location == INLINE and size > end - position):
        raise ProtocolError("a tensor is cut")
    return description, location, segment, offset, size, position


def _encode_text(text: str) -> bytes:
    encoded = text.encode(errors="replace")
    return _LENGTH.pack(len(encoded)) + encoded


def _decode_text(chunk: bytes, position: int, end: int) -> tuple[str, int]:
    (size,) = _LENGTH.unpack_from(chunk, position)
    position += _LENGTH.size
    if size > end - position:
        raise ProtocolError("a text is cut")
    return chunk[position : position + size].decode(), position + size
