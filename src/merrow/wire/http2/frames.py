"""HTTP/2 frames as bytes: the numbers of the protocol, and frames that a server sends.

A frame is a nine-byte header (24 bits of length, type, flags, 31 bits of stream id) and its payload. `FRAME_HEADER`
splits the length in two fields, because no struct code is three bytes wide.

Source: RFC 9113, sections 4, 6 and 7.
"""

import enum
import struct
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

FRAME_HEADER: Final = struct.Struct(">HBBBI")
"""(length >> 8, length & 0xFF, type, flags, stream id)"""
FRAME_HEADER_BYTE_SIZE: Final = 9

# Plain integers, not an enum: the receive loop compares them for every frame.
DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

FLAG_ACK: Final = 0x1
FLAG_END_STREAM: Final = 0x1
FLAG_END_HEADERS: Final = 0x4
FLAG_PADDED: Final = 0x8
FLAG_PRIORITY: Final = 0x20

MAX_WINDOW_BYTE_SIZE: Final = 2**31 - 1
MAX_STREAM_ID: Final = 2**31 - 1
DEFAULT_WINDOW_BYTE_SIZE: Final = 65_535
DEFAULT_MAX_FRAME_BYTE_SIZE: Final = 16_384
MAX_MAX_FRAME_BYTE_SIZE: Final = 2**24 - 1


class ErrorCode(enum.IntEnum):
    """Why a stream or a connection ended."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


class Setting(enum.IntEnum):
    """Parameters of a SETTINGS frame."""

    HEADER_TABLE_SIZE = 0x1
    ENABLE_PUSH = 0x2
    MAX_CONCURRENT_STREAMS = 0x3
    INITIAL_WINDOW_SIZE = 0x4
    MAX_FRAME_SIZE = 0x5
    MAX_HEADER_LIST_SIZE = 0x6


class ConnectionFault(Exception):
    """The peer broke the protocol in a way that ends the connection; `code` and the text go into GOAWAY."""

    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


_SETTING = struct.Struct(">HI")
_UINT32 = struct.Struct(">I")
_GOAWAY = struct.Struct(">II")


def encode_frame_header(byte_size: int, kind: int, flags: int, stream_id: int) -> bytes:
    return FRAME_HEADER.pack(byte_size >> 8, byte_size & 0xFF, kind, flags, stream_id)


def encode_settings(settings: dict[Setting, int]) -> bytes:
    payload = b"".join(_SETTING.pack(setting, value) for setting, value in settings.items())
    return encode_frame_header(len(payload), SETTINGS, 0, 0) + payload


def decode_settings(payload: bytes) -> list[tuple[int, int]]:
    """(parameter, value) in order; unknown parameters included.

    Raises:
        ConnectionFault: the payload is no list of six-byte entries.
    """
    if len(payload) % _SETTING.size:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS of a wrong size")
    return list(_SETTING.iter_unpack(payload))


SETTINGS_ACK: Final = encode_frame_header(0, SETTINGS, FLAG_ACK, 0)


def encode_ping(payload: bytes, is_ack: bool) -> bytes:
    return encode_frame_header(8, PING, FLAG_ACK if is_ack else 0, 0) + payload


def encode_goaway(last_stream_id: int, code: ErrorCode, text: str = "") -> bytes:
    debug_data = text.encode()
    return encode_frame_header(8 + len(debug_data), GOAWAY, 0, 0) + _GOAWAY.pack(last_stream_id, code) + debug_data


def encode_rst_stream(stream_id: int, code: ErrorCode) -> bytes:
    return encode_frame_header(4, RST_STREAM, 0, stream_id) + _UINT32.pack(code)


def encode_window_update(stream_id: int, increment: int) -> bytes:
    return encode_frame_header(4, WINDOW_UPDATE, 0, stream_id) + _UINT32.pack(increment)


def decode_uint32(payload: bytes) -> int:
    """The number a RST_STREAM (code) or WINDOW_UPDATE (increment, with a reserved bit) consists of."""
    return int(_UINT32.unpack(payload)[0])


def encode_header_frames(stream_id: int, block: bytes, end_stream: bool, max_frame_byte_size: int) -> bytes:
    """A header block as one HEADERS frame, and CONTINUATION frames for what does not fit the peer's frame size."""
    end_stream_flag = FLAG_END_STREAM if end_stream else 0
    byte_size = len(block)
    if byte_size <= max_frame_byte_size:
        return encode_frame_header(byte_size, HEADERS, FLAG_END_HEADERS | end_stream_flag, stream_id) + block
    frames = [
        encode_frame_header(max_frame_byte_size, HEADERS, end_stream_flag, stream_id),
        block[:max_frame_byte_size],
    ]
    for start in range(max_frame_byte_size, byte_size, max_frame_byte_size):
        piece = block[start : start + max_frame_byte_size]
        flags = FLAG_END_HEADERS if start + len(piece) == byte_size else 0
        frames += (encode_frame_header(len(piece), CONTINUATION, flags, stream_id), piece)
    return b"".join(frames)
