"""The server's end of a child's services socket: responses of deferred requests, calls of other models, questions.

Everything happens on the loop's thread, except that blocks of memory may be let go on any thread and that large tensors
are copied on threads of their own; what is sent keeps its order all the same. It begins before the model is loaded,
because `initialize` may already ask, and ends with the child, or with what is no longer trusted.

Back-pressure goes both ways. The bytes of a deferred request's responses are given back to the child (CONSUMED) when
they were handed on and the client is not slow. A caller that does not use the responses of its call makes the request
of that call congested, which holds back the model that was called.
"""

import asyncio
import logging
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from merrow.backends.base import Answer
from merrow.core.errors import InternalError, ServerError
from merrow.core.request import Request
from merrow.core.response import Response
from merrow.core.tensor import Buffer
from merrow.places.base import Caller, ModelCall, ServerServices
from merrow.places.loop_calls import call_on_loop
from merrow.places.process.answers import ResponseCodec
from merrow.places.process.arena import TRIM_AFTER_NS
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
    MALFORMED,
    QUESTION,
    READINESS,
    RESPONSE,
    SEGMENT,
    SEGMENT_BYTE_SIZE,
    ProtocolError,
    decode_failure,
    frame,
)
from merrow.places.process.control import ControlMessage, ControlSocket
from merrow.places.process.copies import Copy, copy_all, copy_on_thread, take_long
from merrow.places.process.open_requests import OpenRequests
from merrow.places.process.sections import SENDER_ARENA
from merrow.places.process.service_messages import ServiceCodec, encode_reply
from merrow.places.process.system import SharedMemoryError, send_with_descriptors

_LOG = logging.getLogger("merrow.places")

# More than a socket holds: a child that talks without end must leave time for others.
_MAX_READS = 64

_IS_READY = 1
_FAILED = 2


OnResponse = Callable[[int, Request, Response], None]
"""Number, request, response."""


class _Outgoing:
    """A message on its way out; what it refers to may still be being copied."""

    __slots__ = ("data", "descriptor", "is_ready")

    def __init__(self, data: bytes, descriptor: int | None, is_ready: bool) -> None:
        self.data = data
        self.descriptor = descriptor
        self.is_ready = is_ready


class ServiceSession:
    """See the module. `start` and everything after it is on the loop's thread; `close` ends it, once or more."""

    def __init__(
        self,
        connection: socket.socket,
        caller: Caller,
        services: ServerServices,
        loop: asyncio.AbstractEventLoop,
        arena_initial_byte_size: int,
        window_byte_size: int,
        on_broken: Callable[[], None],
    ) -> None:
        """
        Args:
            on_broken: called when the child is no longer trusted.
        """
        self.caller = caller
        self._socket = ControlSocket(connection, frozenset((SEGMENT,)))
        self._services = services
        self._loop = loop
        self._window_byte_size = window_byte_size
        self._on_broken = on_broken
        # A child that is being loaded has been given none.
        self._requests = OpenRequests()
        self._on_response: OnResponse | None = None
        self._responses = ResponseCodec(caller.model_name, caller.model_version)
        self._codec = ServiceCodec()
        self._call_responses = ResponseCodec("", -1)
        self._arenas = ArenaPair(arena_initial_byte_size, self._announce, self._send, self._collect_later)
        self._is_collecting = False
        self._trimming: asyncio.TimerHandle | None = None
        # Of the response being encoded.
        self._copies: list[Copy] = []
        self._out: deque[_Outgoing] = deque()
        self._unsent: memoryview | None = None
        self._is_reading = False
        self._is_closed = False
        # Whether the child listens, as it does once it has said something here or deferred a request.
        self.is_active = False
        # Whether the model has ever called another.
        self.has_made_calls = False
        # What the clients have of requests' responses, and the child does not know yet.
        self._unreported: dict[int, int] = {}
        # Open calls: the instance may wait for them.
        self.calls: dict[int, _OpenCall] = {}
        self._readiness: list[asyncio.Future[bool]] = []
        self._is_checking_readiness = False

    def attach(self, requests: OpenRequests, on_response: OnResponse, on_broken: Callable[[], None]) -> None:
        """The child is ready, and has a session for its batches, which knows of `requests`.

        Args:
            on_response: gets each response of a request that is not over.
        """
        self._requests = requests
        self._on_response = on_response
        self._on_broken = on_broken
        self.caller.is_loading = False

    def start(self) -> None:
        """Begin to listen."""
        if not self._is_closed:
            self._socket.connection.setblocking(False)
            # Once each time: the loop calls again while there is more.
            self._loop.add_reader(self._socket.connection.fileno(), self.read, 1)

    def read(self, max_reads: int = _MAX_READS) -> None:
        """Take what has come; by default all of it, because it came before something else."""
        if self._is_closed or self._is_reading:
            return
        self._is_reading = True
        try:
            for _ in range(max_reads):
                messages = self._socket.receive()
                if messages is None:
                    # The child is gone, which its exit and the data socket say, too.
                    self._loop.remove_reader(self._socket.connection.fileno())
                    break
                self.is_active = True
                for message in messages:
                    self._take(message)
        except BlockingIOError:
            pass
        except (*MALFORMED, SharedMemoryError, OSError) as error:
            if not self._is_closed:
                _LOG.error("process of instance '%s' is no longer trusted: %s", self.caller.instance_name, repr(error))
                self._loop.remove_reader(self._socket.connection.fileno())
                # Not here: the caller may be in the middle of handing out answers.
                self._loop.call_soon(self._on_broken)
        self._is_reading = False
        if self._out:
            self._flush()

    def cancel(self, number: int) -> None:
        """A request of the child's was cancelled: it hears of it, and so do the calls that were made for it."""
        self._send(frame(CANCEL, number))
        self._report(number)
        for call in [each.call for each in self.calls.values()]:
            if call.parents and all(parent.is_cancelled for parent in call.parents):
                self._services.cancel(call)

    def resume(self, number: int) -> None:
        """The client of a request takes responses again."""
        self._report(number)

    @property
    def is_holding_back(self) -> bool:
        """Whether a slow client's window is full, so that the model waits in `send`, or will."""
        return any(byte_size >= self._window_byte_size for byte_size in self._unreported.values())

    def end_batch(self, requests: Sequence[Request]) -> None:
        """A batch came back: calls that are still open do not hold the instance any more."""
        for each in self.calls.values():
            if each.call.executing is requests:
                each.call.executing = ()
                self._services.release(each.call)

    def forget(self, number: int) -> None:
        """A request is over."""
        self._unreported.pop(number, None)

    async def check_readiness(self, timeout_seconds: float) -> bool:
        """Ask the instance whether it is ready. Questions at the same time are one.

        Raises:
            ServerError: it cannot say.
            asyncio.TimeoutError: it does not say in time.
        """
        answer: asyncio.Future[bool] = self._loop.create_future()
        self._readiness.append(answer)
        if not self._is_checking_readiness:
            self._is_checking_readiness = True
            self._send(frame(CHECK_READINESS))
        return await asyncio.wait_for(answer, timeout_seconds)

    def close(self) -> None:
        """Let go of everything; what the child had said before is read by then (`read`)."""
        if self._is_closed:
            return
        self._is_closed = True
        connection = self._socket.connection
        self._loop.remove_reader(connection.fileno())
        self._loop.remove_writer(connection.fileno())
        self._socket.close()
        for entry in self._out:
            if entry.descriptor is not None:
                os.close(entry.descriptor)
        self._out.clear()
        if self._trimming is not None:
            self._trimming.cancel()
        self.calls.clear()
        self._arenas.close()
        waiting, self._readiness = self._readiness, []
        for answer in waiting:
            if not answer.done():
                answer.set_exception(InternalError(f"Stub process '{self.caller.instance_name}' is not healthy."))
        self._services.close(self.caller)

    # Receiving.

    def _take(self, message: ControlMessage) -> None:
        kind, number, body = message.kind, message.number, message.body
        if kind == RESPONSE:
            self._take_response(number, message.count, body)
        elif kind == CALL:
            self._take_call(number, body)
        elif kind == CALL_CANCEL:
            if number in self.calls:
                self._services.cancel(self.calls[number].call)
        elif kind == CALL_CONSUMED:
            if number in self.calls:
                self._consume(self.calls[number], SEGMENT_BYTE_SIZE.unpack_from(body)[0])
        elif kind == QUESTION:
            question = self._codec.decode_question(body, self._arenas.lend)
            reply = self._ignore if number == 0 else lambda answer: self._send(encode_reply(number, answer))
            self._services.ask(self.caller, question, reply)
        elif kind == READINESS:
            self._take_readiness(message.count, body)
        elif kind == FREE:
            self._arenas.take_free(body, 0, len(body), message.count)
            self._trim_later()
        elif kind == SEGMENT:
            self._arenas.take_segment(number, body, message.descriptor)
        elif kind == DROP:
            self._arenas.peer.drop(number)
        else:
            raise ProtocolError(f"a services message of kind {kind}")

    def _take_response(self, number: int, flags: int, body: bytes) -> None:
        request = self._requests.find(number)
        if request is None:
            # Late: the request failed otherwise, or goes on under another number. What it took is given back.
            stranger = Request(self.caller.model_name, self.caller.model_version, _NO_SINK, {})
            late = self._responses.decode(body, 0, len(body), flags, stranger, self._arenas.lend)
            self._send(frame(CONSUMED, number, SEGMENT_BYTE_SIZE.pack(late.weight)))
            return
        response = self._responses.decode(body, 0, len(body), flags, request, self._arenas.lend)
        weight = response.weight
        assert self._on_response is not None, "a child that has a request has a session"
        self._on_response(number, request, response)
        if not response.is_final:
            unreported = self._unreported.get(number, 0) + weight
            self._unreported[number] = unreported
            # Short streams need no message at all.
            is_slow = request.is_congested and not request.is_cancelled
            if unreported * 4 >= self._window_byte_size and not is_slow:
                self._report(number)

    def _report(self, number: int) -> None:
        """Tell the child what it may send again."""
        unreported = self._unreported.pop(number, 0)
        if unreported:
            self._send(frame(CONSUMED, number, SEGMENT_BYTE_SIZE.pack(unreported)))

    def _take_call(self, number: int, body: bytes) -> None:
        head, request = self._codec.decode_call(body, self._arenas.lend)
        if number in self.calls:
            raise ProtocolError(f"two calls {number}")
        parents = [self._requests.find(parent) for parent in head.parents]
        executing = self._requests.executing_batch(head.parents[0] if head.parents else 0)
        call = ModelCall(
            self.caller,
            request,
            head.is_decoupled,
            [parent for parent in parents if parent is not None],
            executing,
            self._requests.find(head.trace) if head.trace else None,
        )
        open_call = _OpenCall(self, number, call)
        request.sink = open_call
        self.calls[number] = open_call
        self.has_made_calls = True
        self._services.infer(call)

    def _take_readiness(self, count: int, body: bytes) -> None:
        self._is_checking_readiness = False
        waiting, self._readiness = self._readiness, []
        for answer in waiting:
            if not answer.done():
                if count == _FAILED:
                    answer.set_exception(decode_failure(body, 0, len(body)))
                else:
                    answer.set_result(count == _IS_READY)

    def _consume(self, open_call: "_OpenCall", byte_size: int) -> None:
        open_call.outstanding -= byte_size
        request = open_call.call.request
        if request.is_congested and open_call.outstanding < self._window_byte_size:
            request.is_congested = False
            self._services.resume(open_call.call)

    # Sending.

    def send_call_response(self, open_call: "_OpenCall", response: Response) -> None:
        """A response to a call; also the sink of its request."""
        if self._is_closed:
            return
        number = open_call.number
        try:
            message = self._call_responses.encode(CALL_RESPONSE, number, response, self._place)
        except (OSError, struct.error, UnicodeError) as error:
            # No memory, or a number that fits no message.
            self._copies.clear()
            self._services.cancel(open_call.call)
            response = Response("", -1, error=InternalError(f"{type(error).__name__}: {error}"))
            message = self._call_responses.encode(CALL_RESPONSE, number, response, self._place)
        if response.is_final:
            self.calls.pop(number, None)
        else:
            open_call.outstanding += response.weight
            open_call.call.request.is_congested = open_call.outstanding >= self._window_byte_size
        copies, self._copies = self._copies, []
        if take_long(copies):
            entry = _Outgoing(message, None, False)
            self._out.append(entry)
            copy_on_thread(copies, self._loop, self._send_copied, entry)
            return
        copy_all(copies)
        self._send(message)

    def _send(self, message: bytes, descriptor: int | None = None) -> None:
        if self._is_closed:
            if descriptor is not None:
                os.close(descriptor)
            return
        self._out.append(_Outgoing(message, descriptor, True))
        if not self._is_reading:
            self._flush()

    def _send_copied(self, entry: _Outgoing) -> None:
        entry.is_ready = True
        if not self._is_closed:
            self._flush()

    def _flush(self) -> None:
        while self._unsent is None and self._out and self._out[0].is_ready:
            entry = self._out.popleft()
            data = entry.data
            if entry.descriptor is None:
                # What needs no descriptor goes together.
                parts = [data]
                while self._out and self._out[0].is_ready and self._out[0].descriptor is None:
                    parts.append(self._out.popleft().data)
                data = b"".join(parts)
            self._write(data, entry.descriptor)

    def _write(self, data: Buffer, descriptor: int | None) -> None:
        connection = self._socket.connection
        try:
            if descriptor is None:
                sent = connection.send(data)
            else:
                sent = send_with_descriptors(connection, bytes(data), [descriptor])
        except BlockingIOError:
            if descriptor is not None:
                # A segment is rare: it waits as it came.
                self._out.appendleft(_Outgoing(bytes(data), descriptor, True))
                self._loop.add_writer(connection.fileno(), self._on_writable)
                self._unsent = memoryview(b"")
                return
            sent = 0
        except OSError:
            # The child is gone; its exit is reported.
            sent = len(data)
        if descriptor is not None:
            os.close(descriptor)
        if sent < len(data):
            self._unsent = memoryview(data)[sent:]
            self._loop.add_writer(connection.fileno(), self._on_writable)

    def _on_writable(self) -> None:
        unsent, self._unsent = self._unsent, None
        self._loop.remove_writer(self._socket.connection.fileno())
        if unsent:
            self._write(unsent, None)
        if self._unsent is None:
            self._flush()

    def _ignore(self, answer: Answer | ServerError) -> None:
        """Nobody waits for it."""

    # Memory.

    def _place(self, data: Buffer) -> tuple[int, int, int]:
        mapping, segment, offset = self._arenas.own.allocate(len(data))
        self._copies.append((np.frombuffer(mapping, np.uint8, len(data), offset), data))
        return SENDER_ARENA, segment, offset

    def _announce(self, message: bytes, descriptor: int) -> None:
        # It may have to wait for its turn.
        self._send(message, os.dup(descriptor))

    def _collect_later(self) -> None:
        """A block was let go, on some thread. The child can use it again soon: streams go through few blocks."""
        if not self._is_collecting and not self._is_closed:
            self._is_collecting = True
            call_on_loop(self._loop, self._collect)

    def _collect(self) -> None:
        self._is_collecting = False
        self._arenas.release()

    def _trim_later(self) -> None:
        if self._trimming is None and self._arenas.own.has_surplus and not self._is_closed:
            self._trimming = self._loop.call_later(TRIM_AFTER_NS / 1e9, self._trim)

    def _trim(self) -> None:
        self._trimming = None
        self._arenas.own.trim(time.monotonic_ns())
        self._trim_later()


class _OpenCall:
    """A call that the child made; the sink of its request."""

    __slots__ = ("call", "number", "outstanding", "session")

    def __init__(self, session: ServiceSession, number: int, call: ModelCall) -> None:
        self.session = session
        self.number = number
        self.call = call
        # Bytes of responses that the caller has not used.
        self.outstanding = 0

    def on_response(self, response: Response) -> None:
        self.session.send_call_response(self, response)


class _NoSink:
    def on_response(self, response: Response) -> None:
        raise AssertionError("nobody answers this request")


_NO_SINK = _NoSink()
