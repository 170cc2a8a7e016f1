import pytest

from merrow.net.body import BodyBuffer, ReceiveBudget, allocate


@pytest.mark.parametrize("piece_byte_size", [1, 3, 100, 1000])
def test_a_body_is_what_was_added(piece_byte_size):
    body = bytes(range(256)) * 4
    buffer = BodyBuffer(len(body), ReceiveBudget(2**40))

    for start in range(0, len(body), piece_byte_size):
        assert not buffer.is_complete
        buffer.add(body[start : start + piece_byte_size])

    assert buffer.is_complete
    assert buffer.remaining_byte_size == 0
    assert buffer.take() == body


def test_a_body_in_one_piece_is_that_piece():
    piece = b"abc"
    buffer = BodyBuffer(3, ReceiveBudget(2**40))
    buffer.add(piece)

    assert buffer.take() is piece


def test_no_memory_is_taken_for_what_is_only_announced():
    buffer = BodyBuffer(2**31 - 1, ReceiveBudget(2**40))

    buffer.add(bytes(1000))

    assert buffer.remaining_view() is None


def test_the_rest_may_be_written_into_its_place():
    buffer = BodyBuffer(1000, ReceiveBudget(2**40))
    buffer.add(b"a" * 100)

    view = buffer.remaining_view()
    view[:400] = b"b" * 400
    buffer.advance(400)
    view = buffer.remaining_view()
    view[:] = b"c" * 500
    buffer.advance(500)

    assert buffer.is_complete
    assert buffer.take() == b"a" * 100 + b"b" * 400 + b"c" * 500


def test_more_than_the_body_is_a_mistake_of_the_caller():
    buffer = BodyBuffer(1, ReceiveBudget(2**40))

    with pytest.raises(AssertionError):
        buffer.add(b"ab")


@pytest.mark.parametrize("byte_size", [0, 1, 1000, 17_000_001])
def test_memory_is_writable_and_of_the_size_asked_for(byte_size):
    memory = memoryview(allocate(byte_size))

    assert (len(memory), memory.format, memory.readonly) == (byte_size, "B", False)
    memory[:] = bytes(byte_size)


def test_a_large_body_is_what_was_added():
    body = bytes(range(256)) * 70_000
    buffer = BodyBuffer(len(body), ReceiveBudget(2**40))
    buffer.add(body[:1_000_000])
    buffer.remaining_view()[:] = body[1_000_000:]
    buffer.advance(len(body) - 1_000_000)

    assert buffer.take() == body


def test_no_memory_is_an_error_of_its_own():
    with pytest.raises(MemoryError):
        allocate(2**62)
