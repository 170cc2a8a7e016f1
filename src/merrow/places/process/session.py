"""One child's life, as the loop sees it: batches out, answers in, and the memory of both.

Everything here happens on the loop's thread, except that blocks of memory may be let go on any thread and that large
tensors are copied on threads of their own. A batch is in flight from `submit` until its answer was read, or the
session is lost (its child died, or said something that makes no sense); then `on_lost` gets every batch in flight,
once, and nothing is reported any more. `open_requests` knows what is in flight, `outbox` when a message is sent.

A request may outlive its batch: it is deferred, and its responses come by the services socket (`service_session`). What
the child sent there before it answered the batch is read before the answer is reported. `on_lost` gets these, too.
"""

import asyncio
import logging
import socket
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from merrow.backends.base import Execution
from merrow.core.errors import InternalError
from merrow.core.request import Request
from merrow.core.response import Response
from merrow.core.tensor import Buffer
from merrow.places.loop_calls import call_on_loop
from merrow.places.process.answers import AnswerCodec
from merrow.places.process.arena import TRIM_AFTER_NS, BlockKey, Bytes, Loans
from merrow.places.process.arena_pair import ArenaPair
from merrow.places.process.batches import BatchCodec
from merrow.places.process.channel import (
    ANSWER,
    CANCELLATION_SLOTS,
    CLOSE,
    DROP,
    FREE,
    KEEP,
    LOG,
    MALFORMED,
    SEGMENT,
    ProtocolError,
    decode_blocks,
    decode_log,
    frame,
    split_frames,
    whole_size,
)
from merrow.places.process.client_files import ClientFiles
from merrow.places.process.control import ControlMessage, ControlSocket
from merrow.places.process.copies import Copy, copy_all, copy_on_thread, take_long
from merrow.places.process.fork_client import ChildProcess
from merrow.places.process.open_requests import LentBlock, OpenRequests
from merrow.places.process.outbox import Outbox
from merrow.places.process.sections import SENDER_ARENA
from merrow.places.process.service_session import ServiceSession
from merrow.places.process.system import SharedMemoryError

_LOG = logging.getLogger("merrow.places")

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
        self.requests = OpenRequests()
        self._in_flight = self.requests.in_flight
        self._next_number = 1
        self._outbox = Outbox(child.data, environment.loop, self._in_flight, self.lose)
        self._client_files = ClientFiles(child.control, environment.loop, self._outbox.send)
        self._batches = BatchCodec(model_name, model_version, self._client_files.share)
        self._answers = AnswerCodec(model_name, model_version)
        # The parts of a message that has not come whole yet.
        self._rest: list[bytes] = []
        self._rest_size = 0
        self._awaited_size = 0
        self._is_lost = False
        self._is_ending = False
        self._drained: asyncio.Event | None = None
        self._arenas = ArenaPair(
            environment.arena_initial_byte_size,
            child.control.send_frame,
            self._outbox.messages.append,
            self._collect_later,
        )
        self._peer_loans = self._arenas.peer_loans
        # Blocks of this side's arena: the child lends its inputs from there, and answers may lie in them.
        self._loans = Loans(self._collect_later)
        self._is_collecting = False
        # Blocks that the model still sees although their batch was answered.
        self._kept: dict[BlockKey, Bytes] = {}
        # Of the batch being encoded, or of the answer being decoded.
        self._blocks: Sequence[LentBlock] = ()
        self._copies: list[Copy] = []

    def start(self) -> None:
        """Begin to listen."""
        self._socket.setblocking(False)
        self._control.connection.setblocking(False)
        self._loop.add_reader(self._socket.fileno(), self._on_readable)
        self._loop.add_reader(self._control.connection.fileno(), self._on_control_readable)
        self.services.attach(self.requests, self._take_response, self.lose)
        self.child.process.exited.add_done_callback(lambda _: call_on_loop(self._loop, self._on_exit))

    def submit(self, requests: Sequence[Request]) -> None:
        """Hand over a batch. The session must not be lost."""
        if self._loans.returned:
            self._reclaim()
        number = self._next_number
        blocks: list[LentBlock] = []
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
            if take_long(copies):
                copy_on_thread(copies, self._loop, self._send_copied, message)
                return
            copy_all(copies)
        if self._peer_loans.returned:
            self._arenas.release()
        self._outbox.send(message, was_idle)

    def cancel(self, request: Request) -> bool:
        """Let the model see that a request that it has was cancelled; False if it does not have it."""
        number = self.requests.number_of(request)
        if number is None:
            return False
        self.child.cancellations[number % CANCELLATION_SLOTS] = number
        if self.services.is_active:
            self.services.cancel(number)
        return True

    def resume(self, request: Request) -> None:
        """The client of a request that was congested takes responses again."""
        number = self.requests.number_of(request)
        if number is not None:
            self.services.resume(number)

    async def check_readiness(self, timeout_seconds: float) -> bool:
        """Ask the model; see `places.base.PlacedInstance`."""
        return await self.services.check_readiness(timeout_seconds)

    async def close(self, timeout_seconds: float) -> None:
        """Wait for what is in flight, let the child finalize, and see it end; each for so long, then kill it."""
        if not self.requests.is_empty and not self._is_lost:
            self._drained = asyncio.Event()
            try:
                await asyncio.wait_for(self._drained.wait(), timeout_seconds)
            except asyncio.TimeoutError:
                # What it still executes fails now.
                self.lose()
        if not self._is_lost:
            self._is_ending = True
            self._outbox.messages.append(frame(CLOSE))
            self._outbox.flush()
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
        self._outbox.close()
        self._loop.remove_reader(self._control.connection.fileno())
        self._read_last_logs()
        self.services.read()
        self._socket.close()
        self._control.close()
        self.services.close()
        if not self._is_ending:
            self.child.process.kill()
        batches, deferred = self.requests.clear()
        self._kept.clear()
        self._client_files.close()
        # Memory goes now, and not when a collection finds the circles that this is part of.
        self._blocks = ()
        self._arenas.close()
        self.child.cancellations.release()
        if self._drained is not None:
            self._drained.set()
        self._on_lost(batches, deferred)

    # Sending.

    def _send_copied(self, message: bytes) -> None:
        """The tensors of a batch were copied; if the child died meanwhile, the batch was reported then."""
        if self._is_lost:
            return
        if self._peer_loans.returned:
            self._arenas.release()
        self._outbox.send(message, True)

    def _place(self, data: Buffer) -> tuple[int, int, int]:
        size = len(data)
        mapping, segment, offset = self._arenas.own.allocate(size)
        array = self._loans.lend(mapping, segment, offset, size)
        assert isinstance(self._blocks, list)
        self._blocks.append(LentBlock(segment, offset, array))
        self._copies.append((array, data))
        return SENDER_ARENA, segment, offset

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
                        self._settle(number, requests, execution)
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
        outbox = self._outbox
        outbox.is_held = True
        on_answer = self._on_answer
        for requests, execution in answers:
            on_answer(requests, execution)
        outbox.is_held = False
        if not is_sane:
            self.lose()
            return
        if outbox.messages and not self._is_lost:
            outbox.flush()
        self._check_drained()

    def _settle(self, number: int, requests: Sequence[Request], execution: Execution) -> None:
        for over in self.requests.settle(number, requests, execution.outcomes):
            self.services.forget(over)
        if self.requests.has_deferred:
            self.services.is_active = True

    def _take_response(self, number: int, request: Request, response: Response) -> None:
        """Of a deferred request; on the services socket."""
        if response.is_final:
            self.services.forget(number)
        self.requests.take_response(number, response.is_final)
        self._on_response(request, response)
        self._check_drained()

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
            self._arenas.peer.drop(number)
        else:
            raise ProtocolError(f"a message of kind {kind}")

    def _open_block(self, location: int, segment: int, offset: int, byte_size: int) -> memoryview:
        if location == SENDER_ARENA:
            self._find_segment(segment)
            return self._arenas.lend(location, segment, offset, byte_size)
        for block in self._blocks:
            start = offset - block.offset
            if block.segment == segment and start >= 0 and start + byte_size <= len(block.array):
                view = memoryview(block.array)  # type: ignore[arg-type,unused-ignore]
                return view[start : start + byte_size]
        raise ProtocolError(f"a reference to {byte_size} bytes at {offset} in segment {segment}, which were not lent")

    def _find_segment(self, segment: int) -> None:
        """Read its announcement, which was sent before it was first mentioned, and so is there."""
        while segment not in self._arenas.peer:
            try:
                messages = self._control.receive()
            except BlockingIOError:
                messages = None
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
            elif message.kind == SEGMENT:
                self._arenas.take_segment(message.number, message.body, message.descriptor)
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
        if self._drained is not None and self.requests.is_empty:
            self._drained.set()

    # Memory.

    def _reclaim(self) -> None:
        now_ns = time.monotonic_ns()
        returned = self._loans.returned
        while returned:
            self._arenas.own.free(returned.popleft(), now_ns)

    def _collect_later(self) -> None:
        """A block was let go, on some thread. Most are collected when the next batch is sent; this is for the last."""
        if not self._is_collecting and not self._is_lost:
            self._is_collecting = True
            call_on_loop(self._loop, self._loop.call_later, _COLLECT_AFTER_SECONDS, self._collect)

    def _collect(self) -> None:
        self._is_collecting = False
        if self._is_lost:
            return
        self._reclaim()
        self._arenas.release()
        self._arenas.own.trim(time.monotonic_ns())
        if self._outbox.messages:
            self._outbox.flush()
        if self._arenas.own.has_surplus:
            self._is_collecting = True
            self._loop.call_later(TRIM_AFTER_NS / 1e9, self._collect)


def relay_log(body: bytes, origin: str) -> None:
    """Log what was logged in a child, as of there; `origin` names the model and its instance."""
    level, line, process_id, name, file, text = decode_log(body)
    logger = logging.getLogger(name if name.startswith("merrow.") else _LOG.name)
    if logger.isEnabledFor(level):
        record = logger.makeRecord(name, level, file, line, f"[{origin}] {text}", (), None)
        record.process = process_id
        logger.handle(record)
