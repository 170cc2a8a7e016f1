"""The server's end of the services socket; a test plays the child's. See also `test_streams` and `test_services`."""

import asyncio
import os
import socket
import struct
from collections.abc import Callable, Coroutine

import numpy as np
import pytest

from merrow.backends.base import IsModelReady
from merrow.core.errors import InternalError, NotFoundError
from merrow.core.request import Request
from merrow.core.response import Response
from merrow.core.tensor import Tensor
from merrow.places.base import Caller
from merrow.places.process.answers import ResponseCodec
from merrow.places.process.arena_pair import ArenaPair
from merrow.places.process.channel import (
    CALL,
    CALL_CANCEL,
    CALL_CONSUMED,
    CALL_RESPONSE,
    CANCEL,
    CHECK_READINESS,
    CONSUMED,
    DROP,
    FREE,
    READINESS,
    REPLY,
    RESPONSE,
    SEGMENT,
    encode_blocks,
    encode_failure,
    frame,
)
from merrow.places.process.control import ControlMessage, ControlSocket
from merrow.places.process.open_requests import OpenRequests
from merrow.places.process.service_messages import ServiceCodec, decode_reply
from merrow.places.process.service_session import ServiceSession
from tests.places.process.codec_values import request_of
from tests.places.recording_services import RecordingServices

WINDOW = 4000


class Child:
    """A session, and the child's end of its socket."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        self.connection = ControlSocket(theirs, frozenset((SEGMENT,)))
        self.arenas = ArenaPair(1 << 16, self.connection.send_frame, self.connection.send_frame, lambda: None)
        self.services = RecordingServices()
        self.requests = OpenRequests()
        self.responses: list[tuple[int, Response]] = []
        self.broken = 0
        self.session = ServiceSession(
            ours, Caller("m", 1, "m_0_0"), self.services, asyncio.get_running_loop(), 1 << 16, WINDOW, self._break
        )
        self.session.start()
        self.session.attach(self.requests, self._take_response, self._break)

    def give(self, number: int, *requests: Request) -> None:
        self.requests.in_flight[number] = (requests, ())

    def say(self, message: bytes) -> None:
        """Say something, which is heard when this returns."""
        self.connection.send_frame(message)
        self.session.read()

    def respond(self, number: int, response: Response) -> None:
        self.say(ResponseCodec("m", 1).encode(RESPONSE, number, response, self.arenas.store))

    def call(self, number: int, *parents: int) -> None:
        request = Request("other", -1, None, {})
        self.say(ServiceCodec().encode_call(number, request, True, 0, parents, self.arenas.store))

    async def hear(self, count: int = 1) -> list[ControlMessage]:
        """The next messages; segments are taken and not counted."""
        heard: list[ControlMessage] = []
        while len(heard) < count:
            await asyncio.sleep(0)
            try:
                messages = self.connection.receive() or []
            except BlockingIOError:
                continue
            for message in messages:
                if message.kind == SEGMENT:
                    self.arenas.take_segment(message.number, message.body, message.descriptor)
                else:
                    heard.append(message)
        assert len(heard) == count, heard
        return heard

    async def hear_nothing(self) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        with pytest.raises(BlockingIOError):
            self.connection.receive()

    def close(self) -> None:
        self.session.close()
        self.connection.close()
        self.arenas.close()

    def _take_response(self, number: int, request: Request, response: Response) -> None:
        assert self.requests.find(number) is request
        self.responses.append((number, response))

    def _break(self) -> None:
        self.broken += 1


def run(test: Callable[[Child], Coroutine[None, None, None]]) -> None:
    async def main() -> None:
        child = Child()
        try:
            await asyncio.wait_for(test(child), 10)
        finally:
            child.close()

    asyncio.run(main())


def response_of(size: int, is_final: bool = False) -> Response:
    return Response("m", 1, outputs=[Tensor("X", "UINT8", (size,), bytes(size))], is_final=is_final)


def contents(message: ControlMessage) -> tuple[int, int, int]:
    """Kind, number and the number in the body."""
    return message.kind, message.number, struct.unpack_from("<Q", message.body)[0]


def test_a_response_goes_to_its_request():
    async def test(child):
        child.give(5, request_of(id="five"), request_of(id="six"))
        child.respond(6, response_of(3))

        ((number, response),) = child.responses
        assert (number, response.id, response.is_final) == (6, "six", False)
        assert bytes(response.outputs[0].data) == bytes(3)
        assert child.session.is_active

    run(test)


def test_the_child_hears_what_was_consumed_when_it_is_a_quarter_of_the_window():
    async def test(child):
        child.give(5, request_of())
        for _ in range(2):
            child.respond(5, response_of(WINDOW // 10))
        await child.hear_nothing()
        child.respond(5, response_of(WINDOW // 10))
        (message,) = await child.hear()
        weight = sum(response.weight for _, response in child.responses)
        assert contents(message) == (CONSUMED, 5, weight)

    run(test)


def test_a_slow_client_holds_the_window_until_it_resumes_or_leaves():
    async def test(child):
        slow, leaving = request_of(), request_of()
        slow.is_congested = leaving.is_congested = True
        child.give(5, slow, leaving)
        for number in (5, 6):
            child.respond(number, response_of(WINDOW))
        await child.hear_nothing()
        assert child.session.is_holding_back

        child.session.resume(5)
        (message,) = await child.hear()
        assert contents(message)[:2] == (CONSUMED, 5)
        assert child.session.is_holding_back
        leaving.is_cancelled = True
        child.session.cancel(6)
        cancelled, consumed = await child.hear(2)
        assert (cancelled.kind, cancelled.number) == (CANCEL, 6)
        assert contents(consumed)[:2] == (CONSUMED, 6)
        assert not child.session.is_holding_back

    run(test)


def test_a_response_that_comes_too_late_is_given_back_at_once():
    async def test(child):
        child.respond(9, response_of(10))
        (message,) = await child.hear()
        assert contents(message)[:2] == (CONSUMED, 9)
        assert child.responses == []

    run(test)


def test_a_large_response_is_read_from_the_childs_memory_which_it_gets_back():
    async def test(child):
        child.give(5, request_of())
        data = np.arange(50_000, dtype=np.uint8)
        child.respond(5, Response("m", 1, outputs=[Tensor.from_numpy("X", data)]))
        _, response = child.responses.pop()
        assert np.array_equal(response.outputs[0].as_numpy(), data)
        await child.hear_nothing()
        del response
        (message,) = await child.hear()
        assert (message.kind, message.count) == (FREE, 1)

    run(test)


def test_a_call_is_made_for_its_parents_and_answered():
    async def test(child):
        first, second = request_of(), request_of()
        child.give(5, first, second)
        child.call(1, 6)
        (call,) = child.services.calls
        assert list(call.parents) == [second]
        assert list(call.executing) == [first, second]
        assert child.session.has_made_calls

        call.request.sink.on_response(Response("other", 2, outputs=[Tensor("Y", "UINT8", (1,), b"y")]))
        (message,) = await child.hear()
        assert (message.kind, message.number) == (CALL_RESPONSE, 1)
        assert not child.session.calls

    run(test)


def test_large_and_small_responses_to_calls_keep_their_order():
    async def test(child):
        child.give(5, request_of())
        child.call(1, 5)
        (call,) = child.services.calls
        sizes = [3, 3_000_000, 5, 20_000, 7]
        for size in sizes:
            output = Tensor.from_numpy("Y", np.full(size, size % 251, np.uint8))
            call.request.sink.on_response(Response("other", 2, outputs=[output], is_final=False))
        codec = ResponseCodec("", -1)
        for size, message in zip(sizes, await child.hear(len(sizes)), strict=True):
            response = codec.decode(message.body, 0, len(message.body), message.count, call.request, child.arenas.lend)
            assert np.array_equal(response.outputs[0].as_numpy(), np.full(size, size % 251, np.uint8))

    run(test)


def test_a_caller_that_lags_behind_congests_its_call_until_it_has_used_enough():
    async def test(child):
        child.give(5, request_of())
        child.call(1, 5)
        (call,) = child.services.calls
        response = response_of(WINDOW)
        call.request.sink.on_response(response)
        assert call.request.is_congested
        child.say(frame(CALL_CONSUMED, 1, struct.pack("<Q", response.weight)))
        assert not call.request.is_congested
        assert child.services.resumed == [call]

    run(test)


def test_a_call_whose_requests_are_all_cancelled_is_cancelled():
    async def test(child):
        first, second = request_of(), request_of()
        child.give(5, first, second)
        child.call(1, 5, 6)
        (call,) = child.services.calls
        first.is_cancelled = True
        child.session.cancel(5)
        assert child.services.cancelled == []
        second.is_cancelled = True
        child.session.cancel(6)
        assert child.services.cancelled == [call]
        child.say(frame(CALL_CANCEL, 1))
        assert child.services.cancelled == [call, call]
        # Calls that are over may still be talked of.
        child.say(frame(CALL_CANCEL, 2) + frame(CALL_CONSUMED, 2, bytes(8)))
        assert child.broken == 0

    run(test)


def test_a_response_that_fits_no_message_ends_its_call_with_an_error():
    async def test(child):
        child.give(5, request_of())
        child.call(1, 5)
        (call,) = child.services.calls
        call.request.sink.on_response(
            Response("other", 2, outputs=[Tensor("n" * 100_000, "UINT8", (0,), b"")], is_final=False)
        )
        (message,) = await child.hear()
        response = ResponseCodec("", -1).decode(
            message.body, 0, len(message.body), message.count, call.request, child.arenas.lend
        )
        assert isinstance(response.error, InternalError)
        assert child.services.cancelled == [call]

    run(test)


def test_questions_are_answered_but_for_those_that_want_no_answer():
    async def test(child):
        codec = ServiceCodec()
        child.services.on_question = lambda question: NotFoundError("no model")
        child.say(codec.encode_question(0, IsModelReady("a"), child.arenas.store))
        child.say(codec.encode_question(3, IsModelReady("b"), child.arenas.store))
        (message,) = await child.hear()
        assert (message.kind, message.number) == (REPLY, 3)
        reply = decode_reply(message.count, message.body)
        assert isinstance(reply, NotFoundError)
        assert reply.message == "no model"
        assert [question.name for _, question in child.services.questions] == ["a", "b"]

    run(test)


@pytest.mark.parametrize(
    ("count", "body", "expected"), [(1, b"", True), (0, b"", False), (2, encode_failure(NotFoundError("lost")), "lost")]
)
def test_everyone_who_asks_for_readiness_gets_the_one_answer(count, body, expected):
    async def test(child):
        asking = [asyncio.ensure_future(child.session.check_readiness(10)) for _ in range(3)]
        (message,) = await child.hear()
        assert message.kind == CHECK_READINESS
        child.say(frame(READINESS, 0, body, count))
        for answer in await asyncio.gather(*asking, return_exceptions=True):
            assert (answer.message if isinstance(answer, NotFoundError) else answer) == expected
        # The next question is another one.
        asking = [asyncio.ensure_future(child.session.check_readiness(10))]
        await child.hear()
        child.say(frame(READINESS, 0, b"", 1))
        assert await asking[0] is True

    run(test)


def test_a_check_that_is_not_answered_fails_when_the_session_ends():
    async def test(child):
        asking = asyncio.ensure_future(child.session.check_readiness(10))
        await child.hear()
        child.session.close()
        with pytest.raises(InternalError, match=r"^Stub process 'm_0_0' is not healthy\.$"):
            await asking
        assert child.services.closed == [child.session.caller]

    run(test)


@pytest.mark.parametrize(
    "message",
    [
        frame(99),
        frame(RESPONSE, 5, bytes(8)),
        frame(FREE, 0, bytes(16), 1),
        frame(CALL, 1, bytes(8)),
        frame(SEGMENT, 0, bytes(8)),
        b"\x04\0\0\0" + bytes(12),
    ],
    ids=["kind", "response", "block", "call", "segment", "length"],
)
def test_nonsense_is_told_of_once_and_later(message):
    async def test(child):
        child.give(5, request_of())
        child.say(message)
        assert child.broken == 0
        await asyncio.sleep(0)
        assert child.broken == 1

    run(test)


def test_two_calls_of_one_number_are_nonsense(caplog):
    async def test(child):
        child.give(5, request_of())
        child.call(1, 5)
        child.call(1, 5)
        await asyncio.sleep(0)
        assert child.broken == 1

    run(test)
    assert "two calls 1" in caplog.text


def test_what_the_child_does_not_read_waits_and_comes_in_order():
    async def test(child):
        child.give(5, request_of())
        child.call(1, 5)
        (call,) = child.services.calls
        # More than the socket holds, and a segment in the middle.
        small = Tensor("Y", "UINT8", (8000,), bytes(8000))
        large = Tensor.from_numpy("Y", np.ones(70_000, np.uint8))
        for index in range(200):
            outputs = [large if index == 150 else small]
            call.request.sink.on_response(
                Response("other", 2, outputs=outputs, parameters={"i": index}, is_final=False)
            )
        codec = ResponseCodec("", -1)
        for index, message in enumerate(await child.hear(200)):
            response = codec.decode(message.body, 0, len(message.body), message.count, call.request, child.arenas.lend)
            assert response.parameters == {"i": index}

    run(test)


def test_a_batch_that_came_back_waits_for_no_call():
    async def test(child):
        batch = (request_of(),)
        child.requests.in_flight[5] = (batch, ())
        child.call(1, 5)
        (call,) = child.services.calls
        child.session.end_batch((request_of(),))
        assert child.services.released == []
        child.session.end_batch(batch)
        assert child.services.released == [call]
        assert list(call.executing) == []

    run(test)


def test_memory_that_a_burst_took_is_given_back(monkeypatch):
    monkeypatch.setattr("merrow.places.process.arena.TRIM_AFTER_NS", 0)
    monkeypatch.setattr("merrow.places.process.service_session.TRIM_AFTER_NS", 1_000_000)

    async def test(child):
        child.give(5, request_of())
        child.call(1, 5)
        (call,) = child.services.calls
        output = Tensor.from_numpy("Y", np.ones(500_000, np.uint8))
        call.request.sink.on_response(Response("other", 2, outputs=[output]))
        await child.hear()
        assert 0 in child.arenas.peer
        child.say(encode_blocks(FREE, 0, [(0, 0)]))
        (message,) = await child.hear()
        assert (message.kind, message.number) == (DROP, 0)

    run(test)


def test_a_segment_that_the_child_removed_is_known_no_more():
    async def test(child):
        child.give(5, request_of())
        where = child.arenas.store(bytes(9000))
        child.say(frame(DROP, where[1]))
        assert child.broken == 0
        child.respond(5, Response("m", 1, outputs=[Tensor.from_numpy("X", np.ones(9000, np.uint8))]))
        await asyncio.sleep(0)
        assert child.broken == 1

    run(test)


def test_a_child_that_is_gone_hears_nothing_and_is_reported_by_others():
    async def test(child):
        child.give(5, request_of())
        child.respond(5, response_of(WINDOW))
        child.connection.connection.shutdown(socket.SHUT_RDWR)
        child.session.read()
        child.session.cancel(5)
        await asyncio.sleep(0)
        assert child.broken == 0

    run(test)


def test_closing_with_something_unsent_closes_its_descriptors():
    async def test(child):
        child.give(5, request_of())
        child.call(1, 5)
        (call,) = child.services.calls
        before = len(os.listdir("/proc/self/fd"))
        small = Tensor("Y", "UINT8", (8000,), bytes(8000))
        for _ in range(100):
            call.request.sink.on_response(Response("other", 2, outputs=[small], is_final=False))
        call.request.sink.on_response(Response("other", 2, outputs=[Tensor.from_numpy("Y", np.ones(9000, np.uint8))]))
        # The mapping, and what waits to be sent.
        assert len(os.listdir("/proc/self/fd")) == before + 2
        child.session.close()
        # What comes after goes nowhere.
        call.request.sink.on_response(Response("other", 2))
        child.session.cancel(5)

    run(test)
