"""The payload of one frame: in pieces, with padding, into its place, and of a stream that goes away."""

import pytest

from merrow.wire.http2.payload import Payload
from merrow.wire.http2.stream import RequestHead, Stream
from tests.wire.http2.recording import RecordingHandler, RecordingReceiver


def open_stream():
    """A stream whose receiver keeps what comes, and the list of what it is told."""
    handler = RecordingHandler()
    stream = Stream(1, RequestHead(), 65535)
    stream.receiver = RecordingReceiver(handler, stream)
    return stream, handler.events


def test_it_is_not_open_before_a_frame_begins():
    payload = Payload()

    assert not payload.is_open
    assert payload.direct_view(1) is None


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 8, 100])
def test_a_body_comes_in_pieces_and_what_follows_is_left(piece):
    stream, events = open_stream()
    payload = Payload()
    data = b"body" + bytes(3) + b"next"
    payload.begin(stream, 4, padding_byte_size=3, ends_stream=True)

    position = 0
    while payload.is_open:
        position = payload.receive(data, position, min(position + piece, len(data)))

    assert position == 7
    assert stream.receiver.body == b"body"
    assert events == [("end", 1, b"body")]
    assert stream.is_remote_closed
    assert payload.stream is None


def test_a_frame_that_is_not_the_last_ends_nothing():
    stream, events = open_stream()
    payload = Payload()
    payload.begin(stream, 4)

    assert payload.receive(b"..body", 2, 6) == 6

    assert not payload.is_open
    assert (stream.receiver.body, events, stream.is_remote_closed) == (b"body", [], False)


def test_an_empty_payload_ends_without_a_byte():
    stream, events = open_stream()
    payload = Payload()
    payload.begin(stream, 0, ends_stream=True)

    assert payload.receive(b"", 0, 0) == 0
    assert not payload.is_open
    assert events == [("end", 1, b"")]


def test_what_belongs_to_nobody_is_skipped():
    payload = Payload()
    payload.begin(None, 10)

    assert payload.receive(bytes(6), 0, 6) == 6
    assert payload.is_open
    assert payload.receive(bytes(6), 0, 6) == 4
    assert not payload.is_open


def test_a_stream_that_is_closed_meanwhile_gets_no_more():
    stream, events = open_stream()
    payload = Payload()
    payload.begin(stream, 4, ends_stream=True)
    payload.receive(b"bo", 0, 2)
    stream.is_closed = True

    assert payload.direct_view(1) is None
    payload.receive(b"dy", 0, 2)

    assert not payload.is_open
    assert (stream.receiver.body, events) == (b"bo", [])


def test_the_rest_has_a_place_if_it_is_long_enough_and_the_receiver_knows_one():
    stream, _ = open_stream()
    payload = Payload()
    payload.begin(stream, 50, padding_byte_size=2)
    assert payload.direct_view(1) is None
    stream.receiver.place = bytearray(100)

    view = payload.direct_view(50)
    assert len(view) == 50
    view[:3] = b"abc"
    assert stream.receiver.place[:3] == b"abc"
    assert payload.direct_view(51) is None


def test_a_place_may_be_smaller_than_the_rest():
    stream, _ = open_stream()
    stream.receiver.place = bytearray(20)
    payload = Payload()
    payload.begin(stream, 50)

    assert len(payload.direct_view(1)) == 20
