import pytest

from merrow.wire.http2 import frames
from merrow.wire.http2.frames import ConnectionFault, ErrorCode, Setting


def test_a_frame_header_is_nine_bytes():
    assert frames.encode_frame_header(0x012345, frames.HEADERS, 0x05, 0x7FFFFFFF) == bytes.fromhex(
        "012345 01 05 7fffffff"
    )


def test_settings_are_pairs_of_parameter_and_value():
    encoded = frames.encode_settings({Setting.MAX_CONCURRENT_STREAMS: 100, Setting.INITIAL_WINDOW_SIZE: 65536})

    assert encoded == bytes.fromhex("00000c 04 00 00000000 0003 00000064 0004 00010000")
    assert frames.decode_settings(encoded[9:]) == [(3, 100), (4, 65536)]


def test_unknown_settings_are_kept():
    assert frames.decode_settings(bytes.fromhex("00ff 00000001")) == [(255, 1)]


@pytest.mark.parametrize("size", [1, 5, 7, 11])
def test_settings_cut_inside_an_entry_are_a_fault(size):
    with pytest.raises(ConnectionFault) as caught:
        frames.decode_settings(bytes(size))

    assert caught.value.code is ErrorCode.FRAME_SIZE_ERROR


def test_the_frames_of_a_server_byte_by_byte():
    assert bytes.fromhex("000000 04 01 00000000") == frames.SETTINGS_ACK
    assert frames.encode_ping(b"12345678", is_ack=True) == bytes.fromhex("000008 06 01 00000000") + b"12345678"
    assert frames.encode_ping(b"12345678", is_ack=False) == bytes.fromhex("000008 06 00 00000000") + b"12345678"
    assert frames.encode_goaway(5, ErrorCode.PROTOCOL_ERROR, "no") == bytes.fromhex(
        "00000a 07 00 00000000 00000005 00000001 6e6f"
    )
    assert frames.encode_rst_stream(3, ErrorCode.CANCEL) == bytes.fromhex("000004 03 00 00000003 00000008")
    assert frames.encode_window_update(3, 65535) == bytes.fromhex("000004 08 00 00000003 0000ffff")


def test_numbers_of_window_updates_and_resets():
    assert frames.decode_uint32(bytes.fromhex("0000ffff")) == 65535


def test_a_header_block_is_one_frame_where_it_fits():
    assert frames.encode_header_frames(1, b"abc", True, 16384) == bytes.fromhex("000003 01 05 00000001") + b"abc"
    assert frames.encode_header_frames(1, b"abc", False, 3) == bytes.fromhex("000003 01 04 00000001") + b"abc"


def test_a_longer_header_block_goes_on_in_continuations():
    assert frames.encode_header_frames(1, b"abcdefg", True, 3) == (
        bytes.fromhex("000003 01 01 00000001")
        + b"abc"
        + bytes.fromhex("000003 09 00 00000001")
        + b"def"
        + bytes.fromhex("000001 09 04 00000001")
        + b"g"
    )
    assert frames.encode_header_frames(1, b"abcdef", False, 3) == (
        bytes.fromhex("000003 01 00 00000001") + b"abc" + bytes.fromhex("000003 09 04 00000001") + b"def"
    )
