"""The child's end of the services socket; a test plays the server's. See also `test_streams` and `test_services`."""

import os
import socket
import struct
import threading
from collections.abc import Callable
from queue import SimpleQueue

import numpy as np
import pytest

from merrow.backends.base import DropMetric, IsModelReady, ReadMetric, ShareCounter
from merrow.core.errors import InternalError, NotFoundError, ServerError, UnavailableError, UnsupportedError
from merrow.core.request import Request
from merrow.core.response import Response
from merrow.core.tensor import Tensor
from merrow.places.process.answers import ResponseCodec
from merrow.places.process.arena_pair import ArenaPair
from merrow.places.process.channel import (
    CALL,
    CALL_CANCEL,
    CALL_CONSUMED,
    CALL_RESPONSE,
    CANCEL,
    CANCELLATION_SLOTS,
    CHECK_READINESS,
    CONSUMED,
    FREE,
    QUESTION,
    READINESS,
    RESPONSE,
    SEGMENT,
    decode_failure,
    encode_blocks,
    frame,
)
from merrow.places.process.control import ControlMessage, ControlSocket
from merrow.places.process.service_client import ChildRequest, ServiceClient
from merrow.places.process.service_messages import ServiceCodec, encode_reply
from tests.places.process.codec_values import request_of
from tests.places.process.place_harness import Sink

WINDOW = 4000


class Server:
    """A client, and the server's end of its socket."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        ours.settimeout(10)
        self.connection = ControlSocket(ours, frozenset((SEGMENT,)))
        self.client = ServiceClient(theirs, "m", 1, 1 << 16, WINDOW)
        self.arenas = ArenaPair(1 << 16, self.connection.send_frame, self.connection.send_frame, lambda: None)
        self.page = memoryview(bytearray(8 * CANCELLATION_SLOTS)).cast("Q")
        self._heard: list[ControlMessage] = []

    def request(self, number: int) -> ChildRequest:
        request = ChildRequest("m", 1, Sink(), {})
        request.cancellations, request.number = self.page, number
        return request

    def hear(self) -> ControlMessage:
        """The next message; segments are taken."""
        while not self._heard:
            for message in self.connection.receive() or []:
                if message.kind == SEGMENT:
                    self.arenas.take_segment(message.number, message.body, message.descriptor)
                else:
                    self._heard.append(message)
        return self._heard.pop(0)

    def say(self, message: bytes) -> None:
        self.connection.send_frame(message)

    def leave(self) -> None:
        """The server is gone; returns when the client knows."""
        self.connection.connection.shutdown(socket.SHUT_RDWR)
        if self.client._reader is not None:
            self.client._reader.join(10)

    def close(self) -> None:
        self.leave()
        self.connection.close()
        self.arenas.close()
        # Nothing else closes these: they end with the process.
        self.client._socket.close()
        self.client._arenas.close()
        os.close(self.client._waker)
        os.close(self.client._wakes)


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


class Sinks:
    """Of a call: the responses as they come."""

    def __init__(self) -> None:
        self.responses: SimpleQueue[Response] = SimpleQueue()

    def on_response(self, response: Response) -> None:
        self.responses.put(response)


def in_thread(function: Callable[[], object]) -> "SimpleQueue[object]":
    """What the function returns, or the error that it raises, in a while."""
    results: SimpleQueue[object] = SimpleQueue()

    def run() -> None:
        try:
            results.put(function())
        except ServerError as error:
            results.put(error)

    threading.Thread(target=run, daemon=True).start()
    return results


def response_of(size: int, is_final: bool = False) -> Response:
    return Response("m", 1, outputs=[Tensor("X", "UINT8", (size,), bytes(size))], is_final=is_final)


def call_of(server: Server) -> tuple[Request, Sinks]:
    sink = Sinks()
    call = Request("other", 2, sink, {})
    server.client.infer(call, True, [server.request(7)], server.request(8))
    return call, sink


def test_a_response_is_sent_with_its_number(server):
    server.client.send(server.request(7), response_of(3))
    message = server.hear()
    response = ResponseCodec("m", 1).decode(
        message.body, 0, len(message.body), message.count, request_of(), server.arenas.lend
    )

    assert (message.kind, message.number) == (RESPONSE, 7)
    assert bytes(response.outputs[0].data) == bytes(3)
    assert not response.is_final


def test_a_model_that_only_answers_has_no_second_thread(server):
    assert server.client._reader is None
    server.client.forget(server.request(7))
    assert server.client._reader is None
    server.client.defer(server.request(7))
    assert server.client._reader is not None


def test_a_full_window_is_waited_for(server):
    request = server.request(7)
    server.client.send(request, response_of(WINDOW))
    sent = in_thread(lambda: server.client.send(request, response_of(1)))
    assert server.hear().number == 7
    assert sent.empty()

    server.say(frame(CONSUMED, 7, struct.pack("<Q", WINDOW)))
    assert server.hear().number == 7
    assert sent.get(timeout=10) is None
    # Of a request that is over, nobody waits for anything.
    server.client.send(request, response_of(0, is_final=True))
    server.say(frame(CONSUMED, 7, struct.pack("<Q", 1)))
    server.hear()


def test_a_question_waits_for_its_answer(server):
    asked = in_thread(lambda: server.client.ask(ReadMetric(3)))
    message = server.hear()
    assert message.kind == QUESTION
    assert ServiceCodec().decode_question(message.body, server.arenas.lend) == ReadMetric(3)
    server.say(encode_reply(message.number, 1.5))
    assert asked.get(timeout=10) == 1.5

    asked = in_thread(lambda: server.client.ask(IsModelReady("x")))
    server.say(encode_reply(server.hear().number, NotFoundError("no x")))
    error = asked.get(timeout=10)
    assert isinstance(error, NotFoundError)
    assert error.message == "no x"


def test_a_counter_of_this_process_cannot_be_shared(server):
    with pytest.raises(UnsupportedError, match=r"^the server cannot read a counter in a model's own process"):
        server.client.ask(ShareCounter(1, lambda: 1.0))


def test_what_is_dropped_is_sent_by_another_thread_once_there_is_one(server):
    server.client.drop(DropMetric(3))
    server.client.start()
    message = server.hear()

    assert (message.kind, message.number) == (QUESTION, 0)
    assert ServiceCodec().decode_question(message.body, server.arenas.lend) == DropMetric(3)
    server.client.drop(DropMetric(4))
    assert ServiceCodec().decode_question(server.hear().body, server.arenas.lend) == DropMetric(4)


def test_a_call_is_told_with_its_parents_and_its_responses_reach_its_sink(server):
    call, sink = call_of(server)
    message = server.hear()
    head, request = ServiceCodec().decode_call(message.body, server.arenas.lend)
    assert message.kind == CALL
    assert (head.model_name, head.model_version, head.is_decoupled, head.trace) == ("other", 2, True, 8)
    assert head.parents == (7,)
    assert request.inputs == {}

    codec = ResponseCodec("", -1)
    server.say(codec.encode(CALL_RESPONSE, message.number, response_of(3), server.arenas.store))
    first = sink.responses.get(timeout=10)
    # It is the model's own.
    first.outputs[0].as_numpy()[:] = 1
    server.client.consume(call, 3)
    consumed = server.hear()
    assert (consumed.kind, consumed.number, consumed.body) == (CALL_CONSUMED, message.number, struct.pack("<Q", 3))
    server.client.cancel(call)
    cancelled = server.hear()
    assert (cancelled.kind, cancelled.number) == (CALL_CANCEL, message.number)
    server.say(codec.encode(CALL_RESPONSE, message.number, Response("", -1, is_empty=True), server.arenas.store))
    assert sink.responses.get(timeout=10).is_final
    # Of a call that is over, nothing is told.
    server.client.cancel(call)
    server.client.consume(call, 1)
    server.client.drop(DropMetric(1))
    assert server.hear().kind == QUESTION


def test_a_large_response_is_read_from_the_servers_memory_which_it_gets_back(server):
    call, sink = call_of(server)
    number = server.hear().number
    data = np.arange(50_000, dtype=np.uint8)
    output = Tensor.from_numpy("Y", data)
    response = Response("other", 2, outputs=[output], is_final=False)
    server.say(ResponseCodec("", -1).encode(CALL_RESPONSE, number, response, server.arenas.store))
    received = sink.responses.get(timeout=10)
    assert np.array_equal(received.outputs[0].as_numpy(), data)

    del received
    message = server.hear()
    assert (message.kind, message.count) == (FREE, 1)
    server.arenas.take_free(message.body, 0, len(message.body), 1)
    assert server.arenas.own.allocate(1)[1:] == (0, 0)
    del call


def test_what_cannot_be_sent_is_an_error_and_takes_no_memory(server):
    request = server.request(7)
    # More than a window, so that whatever is sent afterwards would wait for it.
    large = Tensor.from_numpy("X", np.ones(9000, np.uint8))
    with pytest.raises(InternalError, match="error: "):
        server.client.send(request, Response("m", 1, outputs=[large, Tensor("n" * 100_000, "FP32", (0,), b"")]))
    sink = Sinks()
    server.client.infer(Request("o" * 100, 2**70, sink, {"X": large}), False, [], None)
    assert isinstance(sink.responses.get(timeout=10).error, InternalError)

    server.client.send(request, Response("m", 1, outputs=[large]))
    message = server.hear()
    response = ResponseCodec("m", 1).decode(
        message.body, 0, len(message.body), message.count, request_of(), server.arenas.lend
    )
    # The first block of all.
    assert [loan.key for loan in server.arenas.peer_loans._out] == [(0, 0)]
    server.say(encode_blocks(FREE, 0, [(0, 0)]))
    del response


def test_a_cancellation_is_seen_in_the_page_and_heard_of_later(server):
    request, other = server.request(7), server.request(7 + CANCELLATION_SLOTS)
    assert not request.is_cancelled
    server.page[7] = 7
    assert request.is_cancelled
    assert not other.is_cancelled
    # The slot serves another number, and what was cancelled stays so.
    server.page[7] = 7 + CANCELLATION_SLOTS
    assert request.is_cancelled
    assert other.is_cancelled

    deferred = server.request(9)
    server.client.defer(deferred)
    server.say(frame(CANCEL, 8) + frame(CANCEL, 9) + frame(CHECK_READINESS))
    server.client.start(lambda: deferred.is_cancelled)
    assert server.hear().count == 1


def raise_(error: Exception) -> bool:
    raise error


@pytest.mark.parametrize(("answer", "count"), [(True, 1), (False, 0)])
def test_the_model_is_asked_whether_it_is_ready(server, answer, count):
    server.client.start(lambda: answer)
    server.say(frame(CHECK_READINESS))
    message = server.hear()

    assert (message.kind, message.count, message.body) == (READINESS, count, b"")


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (UnavailableError("not yet"), UnavailableError, "not yet"),
        (ValueError("boom"), InternalError, "ValueError: boom"),
    ],
)
def test_a_check_of_readiness_that_fails_is_answered_all_the_same(server, error, kind, text):
    server.client.start(lambda: raise_(error))
    server.say(frame(CHECK_READINESS))
    message = server.hear()
    failure = decode_failure(message.body, 0, len(message.body))

    assert (message.kind, message.count) == (READINESS, 2)
    assert type(failure) is kind
    assert failure.message == text


def test_nobody_waits_for_a_server_that_is_gone(server):
    request = server.request(7)
    server.client.send(request, response_of(WINDOW))
    sending = in_thread(lambda: server.client.send(request, response_of(1)))
    asking = in_thread(lambda: server.client.ask(ReadMetric(3)))
    _, sink = call_of(server)
    for _ in range(3):
        server.hear()
    server.leave()

    for error in (sending.get(timeout=10), asking.get(timeout=10), sink.responses.get(timeout=10).error):
        assert isinstance(error, InternalError)
        assert error.message == "the server is gone"
    with pytest.raises(InternalError, match=r"^the server is gone$"):
        server.client.send(request, response_of(1))


@pytest.mark.parametrize(
    "message",
    [
        frame(99),
        frame(FREE, 0, bytes(16), 1),
        frame(CALL_RESPONSE, 5, bytes(8)),
        encode_reply(5, None),
        frame(CONSUMED, 7, b""),
        frame(SEGMENT, 0, bytes(8)),
    ],
    ids=["kind", "block", "call", "reply", "body", "segment"],
)
def test_a_server_that_says_nonsense_is_given_up(server, caplog, message):
    server.client.send(server.request(7), response_of(1))
    asking = in_thread(lambda: server.client.ask(ReadMetric(3)))
    server.hear()
    server.hear()
    server.say(message)

    assert isinstance(asking.get(timeout=10), InternalError)
    assert "the connection to the server is broken" in caplog.text
