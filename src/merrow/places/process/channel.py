"""The messages between the server and a model's process, as bytes. Nothing here has effects, and nothing is unpickled.

Three stream sockets join the two. The *data* socket carries batches and their answers; each side writes many messages
at once and reads whatever has gathered. The *control* socket carries what is rare, and the descriptors of the data's
shared memory. The *services* socket carries what may come while a batch is being executed, on any thread of the model:
responses of deferred requests, calls of other models and their responses, questions; it has shared memory of its own.

Every message is a header, `length kind flags count number`, and a body; lengths are multiples of 8, so that a tensor's
data is aligned wherever its message lies in what was read. `batches` and `answers` have the bodies of theirs.

Whatever was received is checked before it is used: a length or count that points outside its message, a block outside
its segment, an unknown kind or code is a `ProtocolError`, upon which the process is no longer trusted.
"""

import struct
from collections.abc import Sequence

from merrow.core.errors import ServerError, error_of_code
from merrow.core.request import ParameterValue
from merrow.core.tensor import Buffer

# Data socket, to the child.
BATCH = 1
CLOSE = 2
# Data socket, from the child.
ANSWER = 3
# `number` is a batch: the blocks listed, lent with it, are still seen by the model and must not be reused yet.
KEEP = 4
# Data and services socket, both ways: blocks of the receiver's arena that the sender no longer sees; a segment that
# the sender removed.
FREE = 5
DROP = 6
# Data socket, to the child: the file of this number will not be named again.
DROP_CLIENT_FILE = 7
# Control socket.
SETUP = 16
READY = 17
FAILED = 18
COMPLETED = 19
LOG = 20
SEGMENT = 21
# `number` is the process id.
STARTED = 22
# With the child's end of the services socket.
SERVICES = 23
# With the file of a client's shared memory; `number` is the region's.
CLIENT_FILE = 24
# Services socket, from the child: a response of request `number`, with flags; a request for another model, and that
# nobody waits for its responses, or that the model went on without them; so many bytes of them were used; a question;
# whether the instance is ready.
RESPONSE = 32
CALL = 33
CALL_CANCEL = 34
CALL_CONSUMED = 35
QUESTION = 36
READINESS = 37
# Services socket, to the child: so many bytes of the responses of request `number` have left the server; request
# `number` was cancelled; a response to a call, with flags; the answer to a question; is the instance ready?
CONSUMED = 48
CANCEL = 49
CALL_RESPONSE = 50
REPLY = 51
CHECK_READINESS = 52

# A flag of READY, in the place of a message's count.
HAS_READINESS_CHECK = 1

# Flags of a response, in the place of a message's count.
IS_FINAL = 1
IS_EMPTY = 2

MAX_MESSAGE_BYTE_SIZE = 1 << 30
RECEIVE_BYTE_SIZE = 1 << 18

FIRST_FLUSH_COUNT = 4
"""So many messages for a side that waits for them are sent before the rest is written: enough to be worth waking it."""

CANCELLATION_SLOTS = 512
"""Slot `n % 512` of the cancellation page holds `n` once request number `n` of the session was cancelled."""

SEGMENT_BYTE_SIZE = struct.Struct("<Q")
"""The body of a SEGMENT message."""

HEADER = struct.Struct("<IBBHQ")
HEADER_SIZE = HEADER.size

_BLOCK = struct.Struct("<QQ")
_CODE = struct.Struct("<I")
_COUNT = struct.Struct("<I")
_LENGTH = struct.Struct("<I")
_LOG_RECORD = struct.Struct("<III")

PADDING = tuple(bytes(-size % 8) for size in range(8))
"""By the number of bytes, modulo 8, that are to be padded."""


class ProtocolError(Exception):
    """A message that makes no sense."""


MALFORMED = (ProtocolError, struct.error, ValueError, LookupError)
"""What decoding a message can raise: most checks are those that Python makes anyway."""


def frame(kind: int, number: int = 0, body: bytes = b"", count: int = 0) -> bytes:
    """A whole message; the body gets zeros at its end, so that its length is a multiple of 8."""
    size = len(body)
    padding = PADDING[size % 8]
    return HEADER.pack(HEADER_SIZE + size + len(padding), kind, 0, count, number) + body + padding


def frame_of_parts(kind: int, number: int, count: int, parts: "Sequence[Buffer]") -> bytes:
    """As `frame`, of a body in parts."""
    size = sum(map(len, parts))
    padding = PADDING[size & 7]
    header = HEADER.pack(HEADER_SIZE + size + len(padding), kind, 0, count, number)
    return b"".join([header, *parts, padding])


def split_frames(chunk: bytes) -> tuple[list[tuple[int, int, int, int, int]], int]:
    """The messages that are whole: (kind, count, number, start of the body, end), and where the rest begins."""
    position, size = 0, len(chunk)
    if size >= HEADER_SIZE:
        length, kind, _, count, number = HEADER.unpack_from(chunk)
        if length == size and not size % 8:
            # The usual case: one message, whole.
            return [(kind, count, number, HEADER_SIZE, size)], size
    frames: list[tuple[int, int, int, int, int]] = []
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


def whole_size(start: bytes) -> int:
    """The length of the message that begins here; 0 while too little of it is known."""
    return HEADER.unpack_from(start)[0] if len(start) >= HEADER_SIZE else 0


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


def encode_failure(error: ServerError) -> bytes:
    """A code and a text: the body of a FAILED message, or part of an answer."""
    encoded = _CODE.pack(error.code) + encode_text(error.message)
    return encoded + PADDING[len(encoded) & 7]


def decode_failure(chunk: bytes, position: int, end: int) -> ServerError:
    """The error again; padding may follow it."""
    (code,) = _CODE.unpack_from(chunk, position)
    message, _ = decode_text(chunk, position + _CODE.size, end)
    return error_of_code(code, message)


def encode_parameters(parameters: dict[str, ParameterValue]) -> bytes:
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


def decode_parameters(chunk: bytes, position: int, end: int) -> tuple[dict[str, ParameterValue], int]:
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


def encode_log(level: int, line: int, process_id: int, logger: str, file: str, text: str) -> bytes:
    """The body of a LOG message."""
    return _LOG_RECORD.pack(level, line, process_id) + b"".join(map(encode_text, (logger, file, text)))


def decode_log(body: bytes) -> tuple[int, int, int, str, str, str]:
    """Level, line, process id, logger, file, text."""
    level, line, process_id = _LOG_RECORD.unpack_from(body)
    logger, position = decode_text(body, _LOG_RECORD.size, len(body))
    file, position = decode_text(body, position, len(body))
    text, _ = decode_text(body, position, len(body))
    return level, line, process_id, logger, file, text


def encode_text(text: str) -> bytes:
    """A length and UTF-8; what is no Unicode becomes question marks."""
    encoded = text.encode(errors="replace")
    return _LENGTH.pack(len(encoded)) + encoded


def decode_text(chunk: bytes, position: int, end: int) -> tuple[str, int]:
    """The text, and where it ends."""
    (size,) = _LENGTH.unpack_from(chunk, position)
    position += _LENGTH.size
    if size > end - position:
        raise ProtocolError("a text is cut")
    return chunk[position : position + size].decode(), position + size
