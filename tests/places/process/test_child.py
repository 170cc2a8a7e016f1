"""A model's process, of which a test plays the server: what it says, in which order, and when it ends."""

import asyncio
import gc
import logging
import signal
import struct

import numpy as np
import pytest

from merrow.backends.base import Deferral
from merrow.core.errors import InternalError, NotFoundError
from merrow.core.request import Request
from merrow.core.tensor import Tensor
from merrow.places.process.answers import AnswerCodec
from merrow.places.process.batches import BatchCodec
from merrow.places.process.channel import (
    ANSWER,
    BATCH,
    CLOSE,
    DROP,
    FIRST_FLUSH_COUNT,
    FREE,
    HEADER_SIZE,
    KEEP,
    LOG,
    decode_blocks,
    decode_log,
    encode_blocks,
    frame,
)
from merrow.places.process.host import ProcessPlace
from merrow.places.process.sections import CLIENT_MEMORY, RECEIVER_ARENA, SENDER_ARENA
from tests.places.process.launch_harness import Talk, launching, talking
from tests.places.process.place_harness import make_request, outputs_of, text_of

pytestmark = [
    pytest.mark.skipif(not ProcessPlace.is_available(), reason="needs fork and Unix sockets"),
    pytest.mark.slow,
]

FLOATS = np.arange(6, dtype=np.float32).reshape(1, 6)
LARGE = np.arange(10_000, dtype=np.float32)


@pytest.fixture(scope="module")
def launcher():
    """One fork server for all; every test has a child of its own."""
    with launching() as launcher:
        yield launcher


@pytest.fixture
def run(launcher, caplog):
    """Runs a test's function with a child; it blocks, so that the loop only serves what surrounds it.

    What the child printed is in the log afterwards.
    """

    def run(test, name="m") -> None:
        async def main() -> None:
            async with talking(launcher, name) as talk:
                test(talk)

        with caplog.at_level(logging.INFO, "merrow"):
            asyncio.run(main())

    return run


def encode(talk: Talk, number: int, *requests: Request) -> bytes:
    return BatchCodec("m", 1).encode(number, requests, talk.arenas.store)


def decode(message: bytes, *requests: Request, open_block=None):
    codec = AnswerCodec("m", 1)
    return codec.decode(message, HEADER_SIZE, len(message), requests, open_block or nothing_large).outcomes


def nothing_large(*where: int) -> memoryview:
    raise AssertionError(f"nothing large here, and not at {where}")


def exit_code(talk: Talk) -> int:
    return talk.child.process.exited.result(10)


def test_batches_are_answered_in_their_order(run):
    def test(talk):
        talk.say(b"".join(encode(talk, number, make_request({"A": FLOATS + number})) for number in range(1, 4)))
        for expected in range(1, 4):
            kind, count, number, message = talk.hear()
            assert (kind, count, number) == (ANSWER, 1, expected)
            (outcome,) = decode(message, make_request())
            assert outputs_of(outcome)["A"].tolist() == (FLOATS + expected).tolist()

    run(test)


def test_each_request_of_a_batch_has_its_outcome(run):
    def test(talk):
        requests = [make_request(do=do) for do in ("echo", "defer", "error", "fail")]
        talk.say(encode(talk, 1, *requests))
        kind, count, number, message = talk.hear()
        assert (kind, count, number) == (ANSWER, 4, 1)
        echoed, deferred, answered, failed = decode(message, *requests)
        assert echoed.outputs == []
        assert deferred is Deferral.DEFERRED
        assert isinstance(answered.error, NotFoundError)
        assert failed.message == "come again"

    run(test)


def test_a_message_may_come_in_pieces(run):
    def test(talk):
        message = encode(talk, 1, make_request({"A": FLOATS})) + encode(talk, 2, make_request({"A": FLOATS}))
        for start in range(0, len(message), 7):
            talk.say(message[start : start + 7])
        assert [talk.hear()[2], talk.hear()[2]] == [1, 2]

    run(test)


def test_the_first_answers_leave_before_the_last_batch_is_done(run):
    def test(talk):
        batches = [encode(talk, number, make_request()) for number in range(1, FIRST_FLUSH_COUNT + 1)]
        endless = encode(talk, FIRST_FLUSH_COUNT + 1, make_request(do="wait until cancelled"))
        talk.say(b"".join(batches) + endless)
        assert [talk.hear()[2] for _ in batches] == list(range(1, FIRST_FLUSH_COUNT + 1))
        talk.child.cancellations[FIRST_FLUSH_COUNT + 1] = FIRST_FLUSH_COUNT + 1
        *_, message = talk.hear()
        assert text_of(decode(message, make_request())[0]) == "cancelled"

    run(test)


def test_an_output_that_lies_in_an_input_is_answered_by_reference(run):
    def test(talk):
        opened = []

        def open_block(*where):
            opened.append(where)
            return memoryview(bytes(where[3]))

        for do, offset, size in (("echo", 0, 40_000), ("tail", 4, 39_996)):
            talk.say(encode(talk, 1, make_request({"A": LARGE}, do)))
            kind, _, _, message = talk.hear()
            assert kind == ANSWER
            decode(message, make_request(), open_block=open_block)
            assert opened == [(RECEIVER_ARENA, 0, offset, size)]
            opened.clear()
            talk.arenas.own.free((0, 0), now_ns=0)

    run(test)


def test_a_block_that_the_model_keeps_is_told_of_and_its_output_copied(run):
    def test(talk):
        talk.say(encode(talk, 1, make_request({"A": LARGE}, "keep")))
        kind, count, number, message = talk.hear()
        assert (kind, count, number) == (KEEP, 1, 1)
        assert decode_blocks(message, HEADER_SIZE, len(message), 1) == [(0, 0)]
        kind, _, number, message = talk.hear()
        assert (kind, number) == (ANSWER, 1)
        talk.take_segments()
        (outcome,) = decode(message, make_request(), open_block=talk.arenas.lend)
        assert np.array_equal(outputs_of(outcome)["A"], LARGE)

        # It is told of again when the model has let go, before anything else is said.
        talk.say(encode(talk, 2, make_request(do="drop_kept")))
        heard = [talk.hear() for _ in range(2)]
        assert sorted(kind for kind, *_ in heard) == sorted([ANSWER, FREE])
        (released,) = [message for kind, _, _, message in heard if kind == FREE]
        assert decode_blocks(released, HEADER_SIZE, len(released), 1) == [(0, 0)]
        del outcome
        gc.collect()
        talk.arenas.release()

    run(test)


def test_a_block_that_was_given_back_is_used_again(run):
    def test(talk):
        places = []

        def open_block(location, segment, offset, size):
            places.append((location, segment, offset))
            if segment not in talk.arenas.peer:
                talk.take_segments()
            return talk.arenas.lend(location, segment, offset, size)

        for number in range(1, 4):
            talk.say(encode(talk, number, make_request({"A": LARGE + number}, "double")))
            *_, message = talk.hear()
            (outcome,) = decode(message, make_request(), open_block=open_block)
            assert np.array_equal(outputs_of(outcome)["A"], (LARGE + number) * 2)
            del outcome
            gc.collect()
            talk.arenas.release()
        assert places == [(SENDER_ARENA, 0, 0)] * 3

    run(test)


def test_an_answer_that_fits_no_message_fails_and_takes_no_memory(run):
    def test(talk):
        talk.say(encode(talk, 1, make_request({"A": LARGE}, do="long name")))
        *_, message = talk.hear()
        (outcome,) = decode(message, make_request())
        assert isinstance(outcome, InternalError)
        talk.say(encode(talk, 2, make_request({"A": LARGE}, do="double")))
        *_, message = talk.hear()
        talk.take_segments()
        places = []
        decode(message, make_request(), open_block=lambda *where: places.append(where) or memoryview(b""))
        assert places == [(SENDER_ARENA, 0, 0, 40_000)]

    run(test)


def test_a_request_to_close_is_obeyed_after_what_was_sent_before(run):
    def test(talk):
        talk.say(encode(talk, 1, make_request()) + frame(CLOSE))
        assert talk.hear()[0] == ANSWER
        assert talk.hear()[0] == 0
        assert exit_code(talk) == 0

    run(test)


def test_a_process_whose_server_is_gone_ends(run):
    def test(talk):
        talk.child.data.close()
        talk.child.control.close()
        assert exit_code(talk) == 0

    run(test)


def test_a_model_that_cannot_be_closed_is_told_of_and_the_process_ends_all_the_same(run):
    def test(talk):
        talk.say(frame(CLOSE))
        assert exit_code(talk) == 0
        while not any(message.kind == LOG for message in talk.control):
            talk.take_segments()
        (log,) = [decode_log(message.body) for message in talk.control if message.kind == LOG]
        assert log[0] == logging.ERROR
        assert log[5].startswith("closing instance 'm_0_0' failed\nTraceback")
        assert "ValueError: still here" in log[5]

    run(test, "cannot be closed")


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (frame(99), "a message of kind 99"),
        (frame(ANSWER), "a message of kind 3"),
        (encode_blocks(FREE, 0, [(0, 0)]), "KeyError: 0"),
        (frame(FREE, 0, bytes(16), 2), "2 blocks in 16 bytes"),
        (frame(BATCH, 1, bytes(8), 1), "struct.error"),
        (b"\x04\0\0\0" + bytes(12), "a message of 4 bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_server_that_says_something_senseless_has_no_child_any_more(run, caplog, message, text):
    def test(talk):
        talk.say(message)
        assert exit_code(talk) == 1 << 8

    run(test)
    assert text in caplog.text


@pytest.mark.parametrize("location", [0, RECEIVER_ARENA, 9])
def test_an_input_is_in_the_servers_arena_or_a_clients_file(run, caplog, location):
    def test(talk):
        request = make_request({"A": LARGE})
        talk.say(BatchCodec("m", 1).encode(1, [request], lambda data: (location, 0, 0)))
        assert exit_code(talk) == 1 << 8

    assert location != CLIENT_MEMORY
    run(test)
    assert f"a tensor in location {location}" in caplog.text


def test_a_block_outside_its_segment_is_not_read(run, caplog):
    def test(talk):
        _, segment, _ = talk.arenas.store(b"x")
        request = make_request({"A": LARGE})
        talk.say(BatchCodec("m", 1).encode(1, [request], lambda data: (SENDER_ARENA, segment, 1 << 16)))
        assert exit_code(talk) == 1 << 8

    run(test)
    assert "no block of 40000 bytes at 65536 in segment 0" in caplog.text


def test_a_segment_that_is_dropped_is_known_no_more(run, caplog):
    def test(talk):
        where = talk.arenas.store(bytes(40_000))
        talk.say(frame(DROP, where[1]) + frame(DROP, where[1] + 1))
        # The second was never announced: the child waits for that, until the server is gone.
        talk.child.control.connection.close()
        assert exit_code(talk) == 0

    run(test)


def test_a_killed_child_is_no_wiser(run):
    def test(talk):
        talk.say(encode(talk, 1, make_request(do="kill")))
        assert talk.hear()[0] == 0
        assert exit_code(talk) == signal.SIGKILL

    run(test)


def test_requests_have_the_numbers_that_cancellations_are_told_by(run):
    def test(talk):
        requests = [make_request(do="wait until cancelled") for _ in range(2)]
        talk.say(encode(talk, 600, *requests))
        # The slots of 600 and 601.
        talk.child.cancellations[88:90] = memoryview(struct.pack("<QQ", 600, 601)).cast("Q")
        *_, message = talk.hear()
        assert [text_of(outcome) for outcome in decode(message, *requests)] == ["cancelled"] * 2

    run(test)


def test_a_small_input_is_the_models_own(run):
    def test(talk):
        tensor = Tensor.from_numpy("A", FLOATS.copy())
        talk.say(encode(talk, 1, Request("m", 1, None, {"A": tensor}, parameters={"do": "keep"})))
        # Nothing to keep for the server.
        assert talk.hear()[0] == ANSWER
        talk.say(encode(talk, 2, make_request(do="spoil_kept")) + encode(talk, 3, make_request({"A": FLOATS})))
        talk.hear()
        *_, message = talk.hear()
        assert outputs_of(decode(message, make_request())[0])["A"].tolist() == FLOATS.tolist()

    run(test)
