"""One child's life, as the loop sees it: batches out, answers in, and the memory of both.

Everything here happens on the loop's thread, except that blocks of memory may be let go on any thread and that large
tensors are copied on threads of their own. A batch is in flight from `submit` until its answer was read, or the
session is lost (its child died, or said something that makes no sense); then `on_lost` gets every batch in flight,
once, and nothing is reported any more.

A request may outlive its batch: it is deferred, and its responses come by the services socket (`service_session`). What
the child sent there before it answered the batch is read before the answer is reported. `on_lost` gets these, too.

Batches are sent once per pass of the loop, all together; but at once where they come one by one, and the child is
idle: then there is nothing to wait for. Where many come to an idle child, it gets the first few in the middle of the
pass, so that both sides work at the same time; it sends its answers in the same way.
"""

import asyncio
import logging
import socket
import struct
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from merrow.backends.base import Deferral, Execution
from merrow.core.errors import InternalError
from merrow.core.region import RegionFile
from merrow.core.request import Request
from merrow.core.response import Response
from merrow.core.tensor import Buffer
from merrow.places.process.arena import TRIM_AFTER_NS, Arena, BlockKey, Bytes, Loans, PeerArena
from merrow.places.process.batches import SENDER_ARENA, AnswerCodec, BatchCodec
from merrow.places.process.channel import (
    ANSWER,
    CANCELLATION_SLOTS,
    CLIENT_FILE,
    CLOSE,
    DROP,
    DROP_CLIENT_FILE,
    FIRST_FLUSH_COUNT,
    FREE,
    KEEP,
    LOG,
    MALFORMED,
    SEGMENT,
    SEGMENT_BYTE_SIZE,
    ProtocolError,
    decode_blocks,
    decode_log,
    encode_blocks,
    frame,
    split_frames,
    whole_size,
)
from merrow.places.process.control import ControlMessage, ControlSocket
from merrow.places.process.fork_client import ChildProcess
from merrow.places.process.service_session import ServiceSession
from merrow.places.process.system import SharedMemoryError, map_shared_memory

_LOG = logging.getLogger("merrow.places")

# Copying this much takes longer than the loop should stand still.
COPY_ON_THREAD_BYTE_SIZE = 1 << 20

_COLLECT_AFTER_SECONDS = 1.0


@dataclass(slots=True)
class LaunchedChild:
    """A child, and this side of what joins it to the server. One that is to take batches has services."""

    process: ChildProcess
    data: socket.socket
    control: ControlSocket
    cancellations: memoryview
    services: ServiceSession | None = None
    # Whether the instance has something to say about its readiness.
    has_readiness_check: bool = False


@dataclass(frozen=True, slots=True)
class SessionEnvironment:
    """What every session of a place shares."""

    loop: asyncio.AbstractEventLoop
    # Where reading puts what came; used within one callback only, so one is enough for all.
    receive_buffer: memoryview
    arena_initial_byte_size: int


@dataclass(frozen=True, slots=True)
class _Block:
    """A block of this side's arena that was lent with a batch."""

    segment: int
    offset: int
    array: Bytes


OnAnswer = Callable[[Sequence[Request], Execution], None]
OnResponse = Callable[[Request, Response], None]
OnLost = Callable[[list[Sequence[Request]], list[Request]], None]


class Session:
    """See the module."""

    def __init__(
        self,
        child: LaunchedChild,
        model_name: str,
        model_version: int,
        environment: SessionEnvironment,
        on_answer: OnAnswer,
        on_response: OnResponse,
        on_lost: OnLost,
    ) -> None:
        self.child = child
        self._socket = child.data
        self._control = child.control
        self._loop = environment.loop
        self._buffer = environment.receive_buffer
        assert child.services is not None
        self.services = child.services
        self._on_answer = on_answer
        self._on_response = on_response
        self._on_lost = on_lost
        self._batches = BatchCodec(model_name, model_version, self._share_file)
        # The files of clients' shared memory that the child has, by number, and what tells that one is gone.
        self._shared_files: dict[int, weakref.finalize[..., RegionFile]] = {}
        self._answers = AnswerCodec(model_name, model_version)
        # By the number of their first request.
        self._in_flight: dict[int, tuple[Sequence[Request], Sequence[_Block]]] = {}
        self._next_number = 1
        # By number: requests whose batch came back without their end.
        self._deferred: dict[int, Request] = {}
        # By number: since when deferred requests have had no response, as `longest_silence_ns` saw it.
        self._silent_since_ns: dict[int, int] = {}
        # Of those in flight, the numbers of which the last response has come.
        self._ended: set[int] = set()
        self._out: list[bytes] = []
        self._unsent: memoryview | None = None
        # The parts of a message that has not come whole yet.
        self._rest: list[bytes] = []
        self._rest_size = 0
        self._awaited_size = 0
        self._is_reading = False
        self._is_flush_scheduled = False
        # Batches come several in a pass of the loop, of late.
        self._is_crowded = False
        self._has_sent_first = False
        self._is_lost = False
        self._is_ending = False
        self._drained: asyncio.Event | None = None
        self._arena = Arena(environment.arena_initial_byte_size, self._announce, self._retire)
        self._loans = Loans(self._collect_later)
        self._peer = PeerArena()
        self._peer_loans = Loans(self._collect_later)
        self._is_collecting = False
        # Blocks that the model still sees although their batch was answered.
        self._kept: dict[BlockKey, Bytes] = {}
        # Of the batch being encoded, or of the answer being decoded.
        self._blocks: Sequence[_Block] = ()
        self._copies: list[tuple[Bytes, Buffer]] = []

    @property
    def oldest_batch(self) -> int | None:
        """The number of the batch that was handed over first of those in flight; None if there are none."""
        return next(iter(self._in_flight), None)

    @property
    def has_deferred(self) -> bool:
        """Whether there are requests whose batch came back without their end."""
        return bool(self._deferred)

    def longest_silence_ns(self, now_ns: int) -> int:
        """For how long the deferred request that has waited longest has had no response; 0 if there are none.

        A request's time begins with the first call after it was deferred, or after its last response.
        """
        since_ns = self._silent_since_ns
        return max([now_ns - since_ns.setdefault(number, now_ns) for number in self._deferred], default=0)

    def forgive_silence(self) -> None:
        """The time of deferred requests begins anew."""
        self._silent_since_ns.clear()

    def start(self) -> None:
        """Begin to listen."""
        self._socket.setblocking(False)
        self._control.connection.setblocking(False)
        self._loop.add_reader(self._socket.fileno(), self._on_readable)
        self._loop.add_reader(self._control.connection.fileno(), self._on_control_readable)
        self.services.attach(self, self.lose)
        self.child.process.exited.add_done_callback(lambda _: self._call_on_loop(self._on_exit))

    def submit(self, requests: Sequence[Request]) -> None:
        """Hand over a batch. The session must not be lost."""
        if self._loans.returned:
            self._reclaim()
        number = self._next_number
        blocks: list[_Block] = []
        self._blocks = blocks
        try:
            message = self._batches.encode(number, requests, self._place)
        except (OSError, struct.error, UnicodeError) as error:
            # No memory, or a number that fits no message. Not the child's fault.
            self._copies.clear()
            _LOG.error("a batch for process %s could not be encoded: %s", self.child.process.process_id, repr(error))
            self._in_flight[number] = (requests, ())
            self._next_number = number + len(requests)
            self._loop.call_soon(self._fail_batch, number, InternalError(f"{type(error).__name__}: {error}"))
            return
        self._next_number = number + len(requests)
        was_idle = not self._in_flight
        self._in_flight[number] = (requests, blocks)
        if self._copies:
            copies, self._copies = self._copies, []
            if sum([len(array) for array, _ in copies]) >= COPY_ON_THREAD_BYTE_SIZE:
                # A thread for each is cheap beside copying megabytes, and there are never many.
                threading.Thread(target=self._copy_and_send, args=(copies, message), daemon=True).start()
                return
            _copy_all(copies)
        self._send(message, was_idle)

    def cancel(self, request: Request) -> bool:
        """Let the model see that a request that it has was cancelled; False if it does not have it."""
        number = self._number_of(request)
        if number is None:
            return False
        self.child.cancellations[number % CANCELLATION_SLOTS] = number
        if self.services.is_active:
            self.services.cancel(number)
        return True

    def resume(self, request: Request) -> None:
        """The client of a request that was congested takes responses again."""
        number = self._number_of(request)
        if number is not None:
            self.services.resume(number)

    # The requests that the child has: see `service_session.OpenRequests`.

    def find_request(self, number: int) -> Request | None:
        """The request of this number, unless it is over."""
        if number in self._ended:
            return None
        deferred = self._deferred.get(number)
        if deferred is not None:
            return deferred
        for first, (requests, _) in self._in_flight.items():
            if first <= number < first + len(requests):
                return requests[number - first]
        return None

    def executing_batch(self, number: int) -> Sequence[Request]:
        """The batch with this request, or, for 0, the one that is being executed; empty if there is none."""
        for first, (requests, _) in self._in_flight.items():
            if not number or first <= number < first + len(requests):
                return requests
        return ()

    def on_response(self, number: int, request: Request, response: Response) -> None:
        """A response of a deferred request came."""
        if self._silent_since_ns:
            self._silent_since_ns.pop(number, None)
        if response.is_final:
            self.services.forget(number)
            if self._deferred.pop(number, None) is None:
                self._ended.add(number)
        self._on_response(request, response)
        self._check_drained()

    def _number_of(self, request: Request) -> int | None:
        for number, (requests, _) in self._in_flight.items():
            for index, each in enumerate(requests):
                if each is request:
                    return number + index
        for number, each in self._deferred.items():
            if each is request:
                return number
        return None

    async def check_readiness(self, timeout_seconds: float) -> bool:
        """Ask the model; see `places.base.PlacedInstance`."""
        return await self.services.check_readiness(timeout_seconds)

    async def close(self, timeout_seconds: float) -> None:
        """Wait for what is in flight, let the child finalize, and see it end; each for so long, then kill it."""
        if (self._in_flight or self._deferred) and not self._is_lost:
            self._drained = asyncio.Event()
            try:
                await asyncio.wait_for(self._drained.wait(), timeout_seconds)
            except asyncio.TimeoutError:
                # What it still executes fails now.
                self.lose()
        if not self._is_lost:
            self._is_ending = True
            self._out.append(frame(CLOSE))
            self._flush()
        exited = asyncio.wrap_future(self.child.process.exited)
        done, _ = await asyncio.wait([exited], timeout=timeout_seconds)
        if not done:
            _LOG.warning(
                "process %s did not end within %g s and is killed", self.child.process.process_id, timeout_seconds
            )
            self.child.process.kill()
            await exited
        self.lose()

    def lose(self) -> None:
        """Give the child up, whatever its state, and hand every batch in flight to `on_lost`. Once."""
        if self._is_lost:
            return
        self._is_lost = True
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        self._loop.remove_reader(self._control.connection.fileno())
        self._read_last_logs()
        self.services.read()
        self._socket.close()
        self._control.close()
        self.services.close()
        if not self._is_ending:
            self.child.process.kill()
        batches = [requests for requests, _ in self._in_flight.values()]
        deferred = list(self._deferred.values())
        self._in_flight.clear()
        self._deferred.clear()
        self._kept.clear()
        for finalizer in self._shared_files.values():
            finalizer.detach()
        self._shared_files.clear()
        # Memory goes now, and not when a collection finds the circles that this is part of.
        self._blocks = ()
        self._arena.close()
        self._peer.close()
        self.child.cancellations.release()
        if self._drained is not None:
            self._drained.set()
        self._on_lost(batches, deferred)

    # Sending.

    def _send(self, message: bytes, is_urgent: bool) -> None:
        if self._is_lost:
            # It was being copied when the child died; its failure was reported then.
            return
        if self._peer_loans.returned:
            self._release_peer_blocks()
        out = self._out
        out.append(message)
        if self._is_reading:
            return
        if self._is_flush_scheduled:
            if len(out) == FIRST_FLUSH_COUNT and len(self._in_flight) < 2 * FIRST_FLUSH_COUNT:
                # The child has next to nothing else to do.
                self._has_sent_first = True
                self._flush()
            return
        if is_urgent and not self._is_crowded:
            self._flush()
        else:
            self._is_flush_scheduled = True
            self._loop.call_soon(self._flush_scheduled)

    def _copy_and_send(self, copies: Sequence[tuple[Bytes, Buffer]], message: bytes) -> None:
        """On a thread of its own."""
        _copy_all(copies)
        self._call_on_loop(lambda: self._send(message, True))

    def _flush_scheduled(self) -> None:
        self._is_flush_scheduled = False
        self._is_crowded = self._has_sent_first or len(self._out) > 1
        self._has_sent_first = False
        if self._out and not self._is_lost:
            self._flush()

    def _flush(self) -> None:
        if self._unsent is not None:
            return
        out = self._out
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        self._write(memoryview(data) if len(data) > 65536 else data)

    def _write(self, data: Buffer) -> None:
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            # Not here: the caller may be in the middle of handing out batches.
            self._loop.call_soon(self.lose)
            return
        if sent < len(data):
            self._unsent = memoryview(data)[sent:]
            self._loop.add_writer(self._socket.fileno(), self._on_writable)

    def _on_writable(self) -> None:
        unsent, self._unsent = self._unsent, None
        self._loop.remove_writer(self._socket.fileno())
        if unsent is not None:
            self._write(unsent)
        if self._out and self._unsent is None:
            self._flush()

    def _place(self, data: Buffer) -> tuple[int, int, int]:
        size = len(data)
        mapping, segment, offset = self._arena.allocate(size)
        array = self._loans.lend(mapping, segment, offset, size)
        assert isinstance(self._blocks, list)
        self._blocks.append(_Block(segment, offset, array))
        self._copies.append((array, data))
        return SENDER_ARENA, segment, offset

    def _share_file(self, file: RegionFile) -> None:
        number = file.number
        if number in self._shared_files:
            return
        self._control.send(CLIENT_FILE, number, descriptor=file.descriptor)
        # It is gone when the region was unregistered, and the last request that uses it is over.
        finalizer = weakref.finalize(file, self._call_on_loop, lambda: self._drop_file(number))
        finalizer.atexit = False
        self._shared_files[number] = finalizer

    def _drop_file(self, number: int) -> None:
        if self._shared_files.pop(number, None) is not None and not self._is_lost:
            self._send(frame(DROP_CLIENT_FILE, number), True)

    def _fail_batch(self, number: int, error: InternalError) -> None:
        batch = self._in_flight.pop(number, None)
        if batch is not None:
            now_ns = time.monotonic_ns()
            self._on_answer(batch[0], Execution([error] * len(batch[0]), now_ns, now_ns, now_ns, now_ns))
            self._check_drained()

    # Receiving.

    def _on_readable(self) -> None:
        """Read what is there, and report it."""
        try:
            size = self._socket.recv_into(self._buffer)
        except BlockingIOError:
            return
        except OSError:
            size = 0
        if not size:
            self.lose()
            return
        chunk = bytes(self._buffer[:size])
        if self._rest:
            # Of a long message, the parts are put together once.
            self._rest.append(chunk)
            self._rest_size += size
            if self._rest_size < self._awaited_size:
                return
            chunk = b"".join(self._rest)
            self._rest.clear()
        answers: list[tuple[Sequence[Request], Execution]] = []
        is_sane = True
        codec, services = self._answers, self.services
        try:
            frames, position = split_frames(chunk)
            if position < len(chunk):
                rest = chunk[position:]
                self._rest.append(rest)
                self._rest_size, self._awaited_size = len(rest), whole_size(rest)
            for kind, count, number, start, end in frames:
                if kind == ANSWER:
                    requests, self._blocks = self._in_flight[number]
                    if count != len(requests):
                        raise ProtocolError(f"{count} outcomes for {len(requests)} requests")
                    execution = codec.decode(chunk, start, end, requests, self._open_block)
                    if codec.has_exceptions:
                        # Responses that were sent before, on the other socket, come before.
                        services.read()
                        self._keep_deferred(number, requests, execution)
                        codec.has_exceptions = False
                    del self._in_flight[number]
                    if services.calls:
                        services.end_batch(requests)
                    answers.append((requests, execution))
                else:
                    self._take_notice(kind, count, number, chunk, start, end)
        except (*MALFORMED, SharedMemoryError, OSError) as error:
            _LOG.error("process %s is no longer trusted: %s", self.child.process.process_id, repr(error))
            is_sane = False
        self._blocks = ()
        # Batches that the reports bring are sent together, afterwards.
        self._is_reading = True
        on_answer = self._on_answer
        for requests, execution in answers:
            on_answer(requests, execution)
        self._is_reading = False
        if not is_sane:
            self.lose()
            return
        if self._out and not self._is_lost:
            self._flush()
        self._check_drained()

    def _keep_deferred(self, number: int, requests: Sequence[Request], execution: Execution) -> None:
        """Keep the requests of a batch that are not over; the numbers of the others mean nothing any more."""
        for index, (request, outcome) in enumerate(zip(requests, execution.outcomes, strict=True), number):
            if index in self._ended:
                self._ended.discard(index)
            elif outcome is Deferral.DEFERRED:
                self._deferred[index] = request
                self.services.is_active = True
            else:
                self.services.forget(index)

    def _take_notice(self, kind: int, count: int, number: int, chunk: bytes, start: int, end: int) -> None:
        if kind == KEEP:
            blocks = {(block.segment, block.offset): block.array for block in self._in_flight[number][1]}
            for key in decode_blocks(chunk, start, end, count):
                self._kept[key] = blocks[key]
        elif kind == FREE:
            for key in decode_blocks(chunk, start, end, count):
                del self._kept[key]
        elif kind == DROP:
            self._find_segment(number)
            self._peer.drop(number)
        else:
            raise ProtocolError(f"a message of kind {kind}")

    def _open_block(self, location: int, segment: int, offset: int, byte_size: int) -> memoryview:
        if location == SENDER_ARENA:
            self._find_segment(segment)
            return self._peer.lend(self._peer_loans, segment, offset, byte_size)
        for block in self._blocks:
            start = offset - block.offset
            if block.segment == segment and start >= 0 and start + byte_size <= len(block.array):
                view = memoryview(block.array)  # type: ignore[arg-type]
                return view[start : start + byte_size]
        raise ProtocolError(f"a reference to {byte_size} bytes at {offset} in segment {segment}, which were not lent")

    def _find_segment(self, segment: int) -> None:
        """Read its announcement, which was sent before it was first mentioned, and so is there."""
        while segment not in self._peer:
            messages = self._control.receive()
            if messages is None:
                raise ProtocolError(f"segment {segment} was never announced")
            self._take_control_messages(messages)

    def _on_control_readable(self) -> None:
        try:
            messages = self._control.receive()
            if messages is None:
                # The data socket ends as well, or the exit is reported.
                self._loop.remove_reader(self._control.connection.fileno())
            else:
                self._take_control_messages(messages)
        except BlockingIOError:
            pass
        except (*MALFORMED, SharedMemoryError, OSError) as error:
            _LOG.error("process %s is no longer trusted: %s", self.child.process.process_id, repr(error))
            self.lose()

    def _take_control_messages(self, messages: Sequence[ControlMessage]) -> None:
        for message in messages:
            if message.kind == LOG:
                relay_log(message.body, self.child.process.output.origin)
            elif message.kind == SEGMENT and message.descriptor is not None:
                (byte_size,) = SEGMENT_BYTE_SIZE.unpack_from(message.body)
                self._peer.add(message.number, map_shared_memory(message.descriptor, byte_size), byte_size)
            else:
                raise ProtocolError(f"a control message of kind {message.kind}")

    def _on_exit(self) -> None:
        """The child is gone: what it had answered is still in the socket, whoever else may hold its other end."""
        while not self._is_lost:
            try:
                self._socket.recv(1, socket.MSG_PEEK)
            except OSError:
                break
            self._on_readable()
        self.lose()

    def _read_last_logs(self) -> None:
        try:
            while (messages := self._control.receive()) is not None:
                self._take_control_messages(messages)
        except (*MALFORMED, SharedMemoryError, OSError):
            pass

    def _check_drained(self) -> None:
        if self._drained is not None and not self._in_flight and not self._deferred:
            self._drained.set()

    # Memory.

    def _announce(self, segment: int, descriptor: int, byte_size: int) -> None:
        self._control.send(SEGMENT, segment, SEGMENT_BYTE_SIZE.pack(byte_size), descriptor)

    def _retire(self, segment: int) -> None:
        self._out.append(frame(DROP, segment))

    def _reclaim(self) -> None:
        now_ns = time.monotonic_ns()
        returned = self._loans.returned
        while returned:
            self._arena.free(returned.popleft(), now_ns)

    def _release_peer_blocks(self) -> None:
        returned = self._peer_loans.returned
        keys = [returned.popleft() for _ in range(len(returned))]
        self._out.append(encode_blocks(FREE, 0, keys))

    def _collect_later(self) -> None:
        """A block was let go, on some thread. Most are collected when the next batch is sent; this is for the last."""
        if not self._is_collecting and not self._is_lost:
            self._is_collecting = True
            self._call_on_loop(lambda: self._loop.call_later(_COLLECT_AFTER_SECONDS, self._collect))

    def _collect(self) -> None:
        self._is_collecting = False
        if self._is_lost:
            return
        self._reclaim()
        if self._peer_loans.returned:
            self._release_peer_blocks()
        self._arena.trim(time.monotonic_ns())
        if self._out:
            self._flush()
        if self._arena.has_surplus:
            self._is_collecting = True
            self._loop.call_later(TRIM_AFTER_NS / 1e9, self._collect)

    def _call_on_loop(self, callback: Callable[[], object]) -> None:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            # The loop is closed: the server has ended, and nobody waits.
            pass


def relay_log(body: bytes, origin: str) -> None:
    """Log what was logged in a child, as of there; `origin` names the model and its instance."""
    level, line, process_id, name, file, text = decode_log(body)
    logger = logging.getLogger(name if name.startswith("merrow.") else _LOG.name)
    if logger.isEnabledFor(level):
        record = logger.makeRecord(name, level, file, line, f"[{origin}] {text}", (), None)
        record.process = process_id
        logger.handle(record)


def _copy_all(copies: Sequence[tuple[Bytes, Buffer]]) -> None:
    for array, data in copies:
        # Releases the GIL where the tensor is large.
        np.copyto(array, np.frombuffer(data, np.uint8))
