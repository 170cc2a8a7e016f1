"""The child's end of the services socket: what a model says and asks while it executes, on any of its threads.

Sending happens on the thread that has something to say, under one lock; whoever waits for an answer waits there.
Receiving happens on a thread of its own, which starts when there is first something to receive, so that models which
only answer their batches have no second thread. What may happen in the middle of anything (the collector finds an
object that the server must be told of) is left in a queue, and a byte in a pipe wakes that thread to send it.

The shared memory here is apart from that of batches, whose bookkeeping belongs to the main thread.
"""

import logging
import os
import select
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue

from merrow.backends.base import Answer, DropMetric, DropMetricFamily, PrivateTensor, Question, ShareCounter
from merrow.core.errors import InternalError, ServerError, UnsupportedError
from merrow.core.request import Request
from merrow.core.response import Response
from merrow.core.tensor import Tensor
from merrow.places.guard import ask_guarded
from merrow.places.process.answers import ResponseCodec
from merrow.places.process.arena_pair import ArenaPair
from merrow.places.process.channel import (
    CALL_CANCEL,
    CALL_CONSUMED,
    CALL_RESPONSE,
    CANCEL,
    CANCELLATION_SLOTS,
    CHECK_READINESS,
    CONSUMED,
    DROP,
    FREE,
    MALFORMED,
    READINESS,
    REPLY,
    RESPONSE,
    SEGMENT,
    SEGMENT_BYTE_SIZE,
    ProtocolError,
    encode_failure,
    frame,
)
from merrow.places.process.control import ControlMessage, ControlSocket
from merrow.places.process.service_messages import ServiceCodec, decode_reply
from merrow.places.process.system import SharedMemoryError
from merrow.places.stream_window import StreamWindow

_LOG = logging.getLogger("merrow.python")

_IS_READY = 1
_FAILED = 2


class ChildRequest(Request):
    """A request in the child; whether it was cancelled is read from shared memory whenever someone asks.

    The server's number of it says where. A slot serves one number after another, so what lives longer than its batch
    is told of its cancellation, too: `was_cancelled`.
    """

    __slots__ = ("__weakref__", "cancellations", "number", "was_cancelled")
    cancellations: memoryview
    number: int
    was_cancelled: bool

    @property
    def is_cancelled(self) -> bool:
        if not self.was_cancelled and self.cancellations[self.number % CANCELLATION_SLOTS] == self.number:
            self.was_cancelled = True
        return self.was_cancelled

    @is_cancelled.setter
    def is_cancelled(self, value: bool) -> None:
        """The base class initialises it."""
        self.was_cancelled = value


class ServiceClient:
    """The `InstanceHost` of this process. See the module."""

    copies_tensors = True

    def __init__(
        self,
        connection: socket.socket,
        model_name: str,
        model_version: int,
        arena_initial_byte_size: int,
        window_byte_size: int,
    ) -> None:
        self._socket = ControlSocket(connection, frozenset((SEGMENT,)))
        self._window_byte_size = window_byte_size
        # Guards everything that is sent, the arena, and the codecs that encode.
        self._lock = threading.Lock()
        self._responses = ResponseCodec(model_name, model_version)
        self._codec = ServiceCodec()
        self._arenas = ArenaPair(arena_initial_byte_size, self._socket.send_frame, self._socket.send_frame, self._wake)
        self._next_number = 1
        self._is_gone = False
        self._windows: dict[int, StreamWindow] = {}
        self._calls: dict[int, Request] = {}
        self._numbers: dict[Request, int] = {}
        self._questions: dict[int, SimpleQueue[Answer | ServerError]] = {}
        # Of the thread that receives.
        self._reader: threading.Thread | None = None
        self._call_responses = ResponseCodec("", -1)
        self._deferred: weakref.WeakValueDictionary[int, ChildRequest] = weakref.WeakValueDictionary()
        self._later: deque[bytes] = deque()
        self._waker, self._wakes = os.pipe()
        os.set_blocking(self._wakes, False)
        self._is_awake = False
        self._is_ready: Callable[[], bool] | None = None

    # What models do, on any thread: see `backends.base.InstanceHost`.

    def can_wait(self) -> bool:
        return True

    def send(self, request: Request, response: Response) -> None:
        assert isinstance(request, ChildRequest)
        number = request.number
        window = self._windows.get(number)
        if window is None:
            self.start()
            # Two threads may send the first response of a request at once.
            window = self._windows.setdefault(number, StreamWindow(self._window_byte_size))
        window.reserve(response.weight)
        try:
            self._send(lambda: self._responses.encode(RESPONSE, number, response, self._arenas.store))
        except ServerError:
            # It is not on its way, and must not hold back what the model says instead.
            window.release(response.weight)
            raise
        if response.is_final:
            self._windows.pop(number, None)

    def infer(self, request: Request, is_decoupled: bool, parents: Sequence[Request], trace: Request | None) -> None:
        self.start()
        numbers = [parent.number for parent in parents if isinstance(parent, ChildRequest)]
        trace_number = trace.number if isinstance(trace, ChildRequest) else 0
        with self._lock:
            number = self._next_number
            self._next_number += 1
        self._calls[number] = request
        self._numbers[request] = number
        try:
            self._send(
                lambda: self._codec.encode_call(
                    number, request, is_decoupled, trace_number, numbers, self._arenas.store
                )
            )
        except ServerError as error:
            self._end_call(number, Response("", -1, error=error))

    def cancel(self, request: Request) -> None:
        number = self._numbers.get(request)
        if number is not None:
            # Not now: this may be a destructor.
            self._send_later(frame(CALL_CANCEL, number))

    def consume(self, request: Request, byte_size: int) -> None:
        number = self._numbers.get(request)
        if number is not None:
            self._send_later(frame(CALL_CONSUMED, number, SEGMENT_BYTE_SIZE.pack(byte_size)))

    def ask(self, question: Question) -> Answer:
        if isinstance(question, ShareCounter):
            raise UnsupportedError("the server cannot read a counter in a model's own process; increment the metric")
        self.start()
        replies: SimpleQueue[Answer | ServerError] = SimpleQueue()
        with self._lock:
            number = self._next_number
            self._next_number += 1
        self._questions[number] = replies
        try:
            self._send(lambda: self._codec.encode_question(number, question, self._arenas.store))
            answer = replies.get()
        finally:
            self._questions.pop(number, None)
        if isinstance(answer, ServerError):
            raise answer
        return answer

    def drop(self, question: DropMetric | DropMetricFamily) -> None:
        # Nothing large is in it, so nothing is placed.
        self._send_later(ServiceCodec().encode_question(0, question, self._arenas.store))

    # What the process does.

    def start(self, is_ready: Callable[[], bool] | None = None) -> None:
        """Begin to receive, if that has not begun. `is_ready` answers the server's question of that name."""
        if is_ready is not None:
            self._is_ready = is_ready
        if self._reader is None:
            with self._lock:
                if self._reader is None:
                    self._reader = threading.Thread(target=self._receive, name="server's answers", daemon=True)
                    self._reader.start()

    def defer(self, request: ChildRequest) -> None:
        """A request outlives its batch: it must hear of its cancellation."""
        self.start()
        self._deferred[request.number] = request

    def forget(self, request: ChildRequest) -> None:
        """A request is over, or goes on under another number."""
        self._windows.pop(request.number, None)

    # Sending.

    def _send(self, encode: Callable[[], bytes]) -> None:
        """Send one message, whole.

        Raises:
            ServerError: it cannot be encoded, or the server is gone.
        """
        with self._lock:
            if self._is_gone:
                raise InternalError("the server is gone")
            self._send_waiting()
            self._arenas.stored.clear()
            try:
                self._socket.send_frame(encode())
            except Exception as error:
                # A name of 100,000 letters, no memory for a tensor, no server. What is encoded is the model's own, so
                # this is a call into a model: nobody can say what its objects raise.
                self._arenas.discard()
                raise InternalError(f"{type(error).__name__}: {error}") from None

    def _send_later(self, message: bytes) -> None:
        """Send from another thread, because this one may hold the lock."""
        self._later.append(message)
        self._wake()

    def _send_waiting(self) -> None:
        """The lock is held."""
        while self._later:
            self._socket.send_frame(self._later.popleft())
        if self._arenas.peer_loans.returned:
            self._arenas.release()

    # Receiving, on the reader's thread.

    def _wake(self) -> None:
        """On any thread, in the middle of anything. The reader sends what waits."""
        if not self._is_awake:
            self._is_awake = True
            try:
                os.write(self._wakes, b"\0")
            except OSError:
                # The pipe is full, which wakes as well.
                pass

    def _receive(self) -> None:
        poll = select.poll()
        connection = self._socket.connection
        poll.register(connection, select.POLLIN)
        poll.register(self._waker, select.POLLIN)
        try:
            while True:
                timeout_ms = 1000 if self._arenas.own.has_surplus else None
                events = dict(poll.poll(timeout_ms))
                if self._waker in events:
                    os.read(self._waker, 4096)
                    self._is_awake = False
                if connection.fileno() in events:
                    messages = self._socket.receive()
                    if messages is None:
                        break
                    for message in messages:
                        self._take(message)
                with self._lock:
                    self._send_waiting()
                    self._arenas.own.trim(time.monotonic_ns())
        except OSError:
            # The server is gone.
            pass
        except (*MALFORMED, SharedMemoryError):
            _LOG.exception("the connection to the server is broken")
        finally:
            # Whatever it was: nobody reads any more.
            self._give_up()

    def _give_up(self) -> None:
        """The server is gone: nobody may wait any longer."""
        with self._lock:
            self._is_gone = True
        error = InternalError("the server is gone")
        for window in list(self._windows.values()):
            window.open()
        for number in list(self._calls):
            self._end_call(number, Response("", -1, error=error))
        for replies in list(self._questions.values()):
            replies.put(error)

    def _take(self, message: ControlMessage) -> None:
        kind, number, body = message.kind, message.number, message.body
        if kind == CONSUMED:
            window = self._windows.get(number)
            if window is not None:
                window.release(SEGMENT_BYTE_SIZE.unpack_from(body)[0])
        elif kind == CALL_RESPONSE:
            request = self._calls.get(number)
            if request is None:
                raise ProtocolError(f"a response to call {number}, which there is not")
            response = self._call_responses.decode(body, 0, len(body), message.count, request, self._arenas.lend)
            response.outputs = [_private(tensor) for tensor in response.outputs]
            if response.is_final:
                self._end_call(number, response)
            else:
                request.sink.on_response(response)
        elif kind == REPLY:
            self._questions[number].put(decode_reply(message.count, body))
        elif kind == CANCEL:
            deferred = self._deferred.get(number)
            if deferred is not None:
                deferred.was_cancelled = True
        elif kind == CHECK_READINESS:
            threading.Thread(target=self._answer_readiness, args=(number,), daemon=True).start()
        elif kind == FREE:
            with self._lock:
                self._arenas.take_free(body, 0, len(body), message.count)
        elif kind == SEGMENT:
            self._arenas.take_segment(number, body, message.descriptor)
        elif kind == DROP:
            self._arenas.peer.drop(number)
        else:
            raise ProtocolError(f"a services message of kind {kind}")

    def _end_call(self, number: int, response: Response) -> None:
        request = self._calls.pop(number, None)
        if request is not None:
            self._numbers.pop(request, None)
            request.sink.on_response(response)

    def _answer_readiness(self, number: int) -> None:
        """On a thread of its own: the model's check may take its time."""
        assert self._is_ready is not None
        answer = ask_guarded(self._is_ready)
        if isinstance(answer, ServerError):
            count, body = _FAILED, encode_failure(answer)
        else:
            count, body = (_IS_READY if answer else 0), b""
        try:
            self._send(lambda: frame(READINESS, number, body, count))
        except ServerError:
            # The server is gone.
            pass


def _private(tensor: Tensor) -> Tensor:
    """A tensor of a response, which this side alone sees from now on: the model may write to it."""
    data = tensor.data if isinstance(tensor.data, memoryview) else bytearray(tensor.data)
    return PrivateTensor(tensor.name, tensor.datatype, tensor.shape, data)
