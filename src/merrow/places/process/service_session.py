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
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from merrow.backends.base import Answer
from merrow.core.errors import InternalError, ServerError
from merrow.core.request import Request
from merrow.core.response import Response
from merrow.core.tensor import Buffer
from merrow.places.base import Caller, ModelCall, ServerServices
from merrow.places.process.arena import TRIM_AFTER_NS, Arena, Bytes, Loans, PeerArena
from merrow.places.process.batches import SENDER_ARENA, ResponseCodec
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
    decode_blocks,
    decode_failure,
    encode_blocks,
    frame,
)
from merrow.places.process.control import ControlMessage, ControlSocket
from merrow.places.process.service_messages import ServiceCodec, encode_reply
from merrow.places.process.system import SharedMemoryError, map_shared_memory, send_with_descriptors

_LOG = logging.getLogger("merrow.places")

# Copying this much takes longer than the loop should stand still.
COPY_ON_THREAD_BYTE_SIZE = 1 << 20

# More than a socket holds: a child that talks without end must leave time for others.
_MAX_READS = 64

_IS_READY = 1
_FAILED = 2


class OpenRequests(Protocol):
    """The requests that the child has, as its session knows them."""

    def find_request(self, number: int) -> Request | None:
        """The request of this number, unless it is over."""

    def executing_batch(self, number: int) -> Sequence[Request]:
        """The batch with this request, or, for 0, the one that is being executed; empty if there is none."""

    def on_response(self, number: int, request: Request, response: Response) -> None:
        """A response of a deferred request came."""


class NoRequests:
    """Of a child that has not been given any."""

    def find_request(self, number: int) -> Request | None:
        return None

    def executing_batch(self, number: int) -> Sequence[Request]:
        return ()

    def on_response(self, number: int, request: Request, response: Response) -> None:
        raise AssertionError("there are no requests")


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
        self._requests: OpenRequests = NoRequests()
        self._responses = ResponseCodec(caller.model_name, caller.model_version)
        self._codec = ServiceCodec()
        self._call_responses = ResponseCodec("", -1)
        self._arena = Arena(arena_initial_byte_size, self._announce, self._retire)
        self._peer = PeerArena()
        self._peer_loans = Loans(self._collect_later)
        self._is_collecting = False
        self._trimming: asyncio.TimerHandle | None = None
        # Of the response being encoded.
        self._copies: list[tuple[Bytes, Buffer]] = []
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

    def attach(self, requests: OpenRequests, on_broken: Callable[[], None]) -> None:
        """The child is ready, and has a session for its batches."""
        self._requests = requests
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
        self._arena.close()
        self._peer.close()
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
            question = self._codec.decode_question(body, self._open_block)
            reply = self._ignore if number == 0 else lambda answer: self._send(encode_reply(number, answer))
            self._services.ask(self.caller, question, reply)
        elif kind == READINESS:
            self._take_readiness(message.count, body)
        elif kind == FREE:
            now_ns = time.monotonic_ns()
            for key in decode_blocks(body, 0, len(body), message.count):
                self._arena.free(key, now_ns)
            self._trim_later()
        elif kind == SEGMENT and message.descriptor is not None:
            (byte_size,) = SEGMENT_BYTE_SIZE.unpack_from(body)
            self._peer.add(number, map_shared_memory(message.descriptor, byte_size), byte_size)
        elif kind == DROP:
            self._peer.drop(number)
        else:
            raise ProtocolError(f"a services message of kind {kind}")

    def _take_response(self, number: int, flags: int, body: bytes) -> None:
        request = self._requests.find_request(number)
        if request is None:
            # Late: the request failed otherwise, or goes on under another number. What it took is given back.
            stranger = Request(self.caller.model_name, self.caller.model_version, _NO_SINK, {})
            late = self._responses.decode(body, 0, len(body), flags, stranger, self._open_block)
            self._send(frame(CONSUMED, number, SEGMENT_BYTE_SIZE.pack(late.weight)))
            return
        response = self._responses.decode(body, 0, len(body), flags, request, self._open_block)
        weight = response.weight
        self._requests.on_response(number, request, response)
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
        head, request = self._codec.decode_call(body, self._open_block)
        if number in self.calls:
            raise ProtocolError(f"two calls {number}")
        parents = [self._requests.find_request(parent) for parent in head.parents]
        executing = self._requests.executing_batch(head.parents[0] if head.parents else 0)
        call = ModelCall(
            self.caller,
            request,
            head.is_decoupled,
            [parent for parent in parents if parent is not None],
            executing,
            self._requests.find_request(head.trace) if head.trace else None,
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

    def _open_block(self, location: int, segment: int, offset: int, byte_size: int) -> memoryview:
        if location != SENDER_ARENA:
            raise ProtocolError(f"a tensor in location {location}")
        return self._peer.lend(self._peer_loans, segment, offset, byte_size)

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
        if sum([len(array) for array, _ in copies]) >= COPY_ON_THREAD_BYTE_SIZE:
            entry = _Outgoing(message, None, False)
            self._out.append(entry)
            # A thread for each is cheap beside copying megabytes, and there are never many.
            threading.Thread(target=self._copy_on_thread, args=(copies, entry), daemon=True).start()
            return
        _copy_all(copies)
        self._send(message)

    def _send(self, message: bytes, descriptor: int | None = None) -> None:
        if self._is_closed:
            if descriptor is not None:
                os.close(descriptor)
            return
        self._out.append(_Outgoing(message, descriptor, True))
        if not self._is_reading:
            self._flush()

    def _copy_on_thread(self, copies: Sequence[tuple[Bytes, Buffer]], entry: _Outgoing) -> None:
        _copy_all(copies)

        def send() -> None:
            entry.is_ready = True
            if not self._is_closed:
                self._flush()

        self._call_on_loop(send)

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
        mapping, segment, offset = self._arena.allocate(len(data))
        self._copies.append((np.frombuffer(mapping, np.uint8, len(data), offset), data))
        return SENDER_ARENA, segment, offset

    def _announce(self, segment: int, descriptor: int, byte_size: int) -> None:
        self._send(frame(SEGMENT, segment, SEGMENT_BYTE_SIZE.pack(byte_size)), os.dup(descriptor))

    def _retire(self, segment: int) -> None:
        self._send(frame(DROP, segment))

    def _collect_later(self) -> None:
        """A block was let go, on some thread. The child can use it again soon: streams go through few blocks."""
        if not self._is_collecting and not self._is_closed:
            self._is_collecting = True
            self._call_on_loop(self._collect)

    def _collect(self) -> None:
        self._is_collecting = False
        returned = self._peer_loans.returned
        keys = [returned.popleft() for _ in range(len(returned))]
        self._send(encode_blocks(FREE, 0, keys))

    def _trim_later(self) -> None:
        if self._trimming is None and self._arena.has_surplus and not self._is_closed:
            self._trimming = self._loop.call_later(TRIM_AFTER_NS / 1e9, self._trim)

    def _trim(self) -> None:
        self._trimming = None
        self._arena.trim(time.monotonic_ns())
        self._trim_later()

    def _call_on_loop(self, callback: Callable[[], object]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            # The loop is closed: the server has ended, and nobody waits.
            pass


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


def _copy_all(copies: Sequence[tuple[Bytes, Buffer]]) -> None:
    for array, data in copies:
        # Releases the GIL where the tensor is large.
        np.copyto(array, np.frombuffer(data, np.uint8))
