"""The process of one model instance: takes batches from the data socket, executes them, answers.

Batches are executed on the main thread, which is what models expect. What a model says besides its answers, on any of
its threads, goes through `service_client`. Reading takes whatever has gathered; the batches in it are executed one
after another, and answered together when none is left, or when the first answer has waited `FLUSH_AFTER_NS`; models
that are slow now and then answer batch by batch.

Inputs too large for a message are views of the server's arena. When a batch is done, the views should be gone; a block
that the model still sees is reported (KEEP), and reported again when it is gone (FREE), so that what a model keeps
never changes under it. An output that lies in such an input is answered by reference, unless the model kept the input:
then it could still change, and is copied.
"""

import faulthandler
import importlib
import json
import logging
import os
import select
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from merrow.backends.base import Backend, Deferral, Execution, Instance, InstanceDescription, ModelContext
from merrow.core.errors import InternalError, ServerError
from merrow.core.plain_values import decode_plain, encode_plain
from merrow.core.region import RegionSlice, RegionTensor
from merrow.core.response import Response
from merrow.core.tensor import Buffer
from merrow.places.affinity import bind_to_cores
from merrow.places.client_memory import read_file, write_file
from merrow.places.guard import execute_guarded
from merrow.places.process.answers import AnswerCodec
from merrow.places.process.arena import TRIM_AFTER_NS, BlockKey
from merrow.places.process.arena_pair import ArenaPair
from merrow.places.process.batches import BatchCodec
from merrow.places.process.channel import (
    BATCH,
    CANCELLATION_SLOTS,
    CLIENT_FILE,
    CLOSE,
    COMPLETED,
    DROP,
    DROP_CLIENT_FILE,
    FAILED,
    FIRST_FLUSH_COUNT,
    FREE,
    HAS_READINESS_CHECK,
    KEEP,
    LOG,
    READY,
    RECEIVE_BYTE_SIZE,
    SEGMENT,
    SERVICES,
    SETUP,
    STARTED,
    ProtocolError,
    encode_blocks,
    encode_failure,
    encode_log,
    split_frames,
    whole_size,
)
from merrow.places.process.control import ControlSocket
from merrow.places.process.forks import cut_off_forks
from merrow.places.process.sections import (
    CLIENT_MEMORY,
    INLINE_LIMIT,
    RECEIVER_ARENA,
    SENDER_ARENA,
    Reference,
    relocate,
)
from merrow.places.process.service_client import ChildRequest, ServiceClient
from merrow.places.process.system import buffer_c_output_by_line, limit_memory, map_shared_memory, volunteer_for_oom

_LOG = logging.getLogger("merrow.python")

FLUSH_AFTER_NS = 150_000

# An execution this long while answers wait would hold them up. Once there was one, answers are sent singly for a while.
SLOW_NS = 1_000_000
SLOW_MEMORY = 1000


def preload(backend_factory: str) -> None:
    """Import what most children will need; runs once, in the fork server."""
    try:
        _resolve(backend_factory)("python")
    except ServerError:
        # A factory without Python models; it will say so when it is asked for something that it should have.
        pass


def run_child(data: socket.socket, control: socket.socket, backend_factory: str) -> None:
    """Be the process that the first message of the control socket describes; returns when it is to end."""
    _renew_process_state()
    cut_off_forks((data, control))
    process_id = os.getpid()
    connection = ControlSocket(control, frozenset((SETUP, SEGMENT, SERVICES, CLIENT_FILE)))
    setup, *more = _read_control(connection)
    connection.send(STARTED, os.getpid())
    content = json.loads(setup.body.rstrip(b"\0"))
    limit_memory(content["memory_limit_byte_size"])
    context = decode_plain(ModelContext, content["context"])
    _send_logs_to(connection, content["log_level"])
    cancellations = memoryview(map_shared_memory(setup.descriptor, CANCELLATION_SLOTS * 8)).cast("Q")
    try:
        backend = _resolve(backend_factory)(content["backend"])
        if content["instance"] is None:
            config = backend.auto_complete(context)
            connection.send(COMPLETED, body=json.dumps(encode_plain(config)).encode())
            return
        description = decode_plain(InstanceDescription, content["instance"])
        (services,) = more or _read_control(connection)
        service_socket = socket.socket(fileno=services.descriptor)
        cut_off_forks((service_socket,))
        client = ServiceClient(
            service_socket,
            context.name,
            context.version,
            content["arena_initial_byte_size"],
            content["stream_window_byte_size"],
        )
        bind_to_cores(description.cpu_cores)
        instance = backend.create_instance(context, description, client)
    except ServerError as error:
        connection.send(FAILED, body=encode_failure(error))
        return
    except Exception as error:
        _LOG.exception("loading model '%s' failed", context.name)
        connection.send(FAILED, body=encode_failure(InternalError(f"{type(error).__name__}: {error}")))
        return
    server = ChildServer(
        data, connection, client, context, description.name, instance, content["arena_initial_byte_size"], cancellations
    )
    if instance.has_readiness_check:
        client.start(instance.is_ready)
    connection.send(READY, count=HAS_READINESS_CHECK if instance.has_readiness_check else 0)
    try:
        server.serve()
    except (BrokenPipeError, ConnectionResetError):
        # The server is gone, or has given this process up.
        pass
    if os.getpid() != process_id:
        # The model forked, and let the copy of this process come back here: it is nobody's model.
        print("a process that the model forked returned from it, and ends here", file=sys.stderr, flush=True)
        os._exit(1)
    try:
        instance.close()
    except Exception:
        _LOG.exception("closing instance '%s' failed", description.name)


class ChildServer:
    """See the module."""

    def __init__(
        self,
        data: socket.socket,
        control: ControlSocket,
        client: ServiceClient,
        context: ModelContext,
        instance_name: str,
        instance: Instance,
        arena_initial_byte_size: int,
        cancellations: memoryview,
    ) -> None:
        self._data = data
        self._control = control
        self._client = client
        self._instance_name = instance_name
        self._instance = instance
        self._cancellations = cancellations
        self._batches = BatchCodec(context.name, context.version)
        self._answers = AnswerCodec(context.name, context.version)
        self._buffer = memoryview(bytearray(RECEIVE_BYTE_SIZE))
        # To wait in `recv` itself would mean to be woken twice: whoever waits on a Unix socket is also told that there
        # is space to write again, once the server has read the last answer.
        poll = select.poll()
        poll.register(data, select.POLLIN)
        self._wait_for_data = poll.poll
        self._out: list[bytes] = []
        self._out_since_ns = 0
        self._flush_count = FIRST_FLUSH_COUNT
        self._unbuffered_count = 0
        self._arenas = ArenaPair(arena_initial_byte_size, control.send_frame, self._out.append, self._on_return)
        self._loans = self._arenas.peer_loans
        # Files of clients' shared memory, by number.
        self._files: dict[int, int] = {}
        # Of the batch being executed: address, size, segment and offset of its blocks.
        self._lent: list[tuple[int, int, int, int]] = []
        # Blocks of earlier batches that the model still sees.
        self._kept: set[BlockKey] = set()
        # A pipe that wakes this thread when one of those is let go; there once there was one.
        self._waker: tuple[int, int] | None = None

    def serve(self) -> None:
        """Until the server says CLOSE or is gone."""
        rest = b""
        while True:
            chunk = self._receive(rest)
            if not chunk:
                return
            # What models see of small tensors: they may write to it and keep it, so it is never used again.
            data = memoryview(bytearray(chunk))
            frames, position = split_frames(chunk)
            rest = chunk[position:]
            self._flush_count = FIRST_FLUSH_COUNT
            for kind, count, number, start, end in frames:
                if kind == BATCH:
                    self._execute(chunk, data, start, end, count, number)
                elif kind == FREE:
                    self._arenas.take_free(chunk, start, end, count)
                elif kind == DROP:
                    self._await_segment(number)
                    self._arenas.peer.drop(number)
                elif kind == DROP_CLIENT_FILE:
                    self._await_file(number)
                    os.close(self._files.pop(number))
                elif kind == CLOSE:
                    self._flush()
                    return
                else:
                    raise ProtocolError(f"a message of kind {kind}")
            if self._loans.returned:
                self._release_returned()
            if self._out:
                self._flush()

    def _receive(self, rest: bytes) -> bytes:
        """What has gathered, behind what was left of it last time, and at least one message; nothing at the end."""
        if self._arenas.own.has_surplus or self._kept:
            self._tidy_while_idle()
        self._wait_for_data()
        size = self._data.recv_into(self._buffer)
        chunk = bytes(self._buffer[:size])
        if not rest or not size:
            return chunk
        parts, received, awaited = [rest, chunk], len(rest) + size, whole_size(rest)
        while size and received < awaited:
            size = self._data.recv_into(self._buffer)
            parts.append(bytes(self._buffer[:size]))
            received += size
        return b"".join(parts) if size else b""

    def _tidy_while_idle(self) -> None:
        """Until there is something to read, or nothing to tidy: give memory back that is not used any more."""
        poll = select.poll()
        poll.register(self._data, select.POLLIN)
        if self._kept:
            poll.register(self._open_waker(), select.POLLIN)
        while self._arenas.own.has_surplus or self._kept:
            # What the model let go of before there was a waker, or since.
            self._release_returned()
            if self._out:
                self._flush()
            events = dict(poll.poll(TRIM_AFTER_NS // 1_000_000 if self._arenas.own.has_surplus else None))
            if self._data.fileno() in events:
                return
            if events:
                assert self._waker is not None
                os.read(self._waker[0], 4096)
            self._arenas.own.trim(time.monotonic_ns())

    def _open_waker(self) -> int:
        if self._waker is None:
            self._waker = os.pipe()
            os.set_blocking(self._waker[1], False)
        return self._waker[0]

    def _on_return(self) -> None:
        """A block was let go, on some thread, in the middle of anything. Only of kept ones must this thread be told."""
        if self._kept and self._waker is not None:
            try:
                os.write(self._waker[1], b"\0")
            except OSError:
                # The pipe is full, which wakes as well.
                pass

    def _flush(self) -> None:
        out = self._out
        self._data.sendall(out[0] if len(out) == 1 else b"".join(out))
        out.clear()

    def _execute(self, chunk: bytes, data: memoryview, start: int, end: int, count: int, number: int) -> None:
        requests = self._batches.decode(chunk, data, start, end, count, _NO_SINK, self._open_block, ChildRequest)
        has_regions = False
        for index, request in enumerate(requests, number):
            request.cancellations = self._cancellations
            request.number = index
            if request.output_regions is not None:
                has_regions = True
        execution = execute_guarded(self._instance, self._instance_name, requests)
        start_ns, end_ns = execution.start_ns, execution.end_ns
        self._arenas.stored.clear()
        if has_regions:
            self._write_to_clients(requests, execution)
        try:
            message, references = self._answers.encode(number, execution, self._place)
        except Exception as error:
            # What the model answered cannot be said in a message: a name of 100,000 letters, no memory for a tensor.
            # The answer is the model's own, so this is a call into a model: nobody can say what its objects raise.
            _LOG.exception("the answer of instance '%s' cannot be sent", self._instance_name)
            self._arenas.discard()
            failure = InternalError(f"{type(error).__name__}: {error}")
            execution = Execution([failure] * count, start_ns, end_ns, end_ns, end_ns)
            message, references = self._answers.encode(number, execution, self._place)
        if self._answers.has_exceptions:
            self._answers.has_exceptions = False
            self._tell_of_exceptions(requests, execution)
        out = self._out
        if self._lent:
            # Nothing here may see the blocks any more, so that whoever still does is the model.
            del request, execution
            requests.clear()
            message = self._settle_loans(number, message, references)
        if not out:
            self._out_since_ns = end_ns
        out.append(message)
        if end_ns - start_ns > SLOW_NS:
            self._unbuffered_count = SLOW_MEMORY
        if self._unbuffered_count:
            self._unbuffered_count -= 1
            self._flush()
        elif len(out) == self._flush_count:
            # The server works on these meanwhile, and has ever more to do.
            self._flush_count *= 2
            self._flush()
        elif end_ns - self._out_since_ns > FLUSH_AFTER_NS:
            self._flush()

    def _tell_of_exceptions(self, requests: Sequence[ChildRequest], execution: Execution) -> None:
        for request, outcome in zip(requests, execution.outcomes, strict=True):
            if outcome is Deferral.DEFERRED:
                self._client.defer(request)
            else:
                self._client.forget(request)

    def _write_to_clients(self, requests: Sequence[ChildRequest], execution: Execution) -> None:
        for request, outcome in zip(requests, execution.outcomes, strict=True):
            if request.output_regions and isinstance(outcome, Response):
                self._write_outputs(request.output_regions, outcome)

    def _write_outputs(self, regions: Mapping[str, RegionSlice], response: Response) -> None:
        """Put large outputs where the client wants them. With what cannot be put there the server deals."""
        outputs = list(response.outputs)
        for index, output in enumerate(outputs):
            region = regions.get(output.name)
            if region is None or region.file is None or not INLINE_LIMIT < output.byte_size <= region.byte_size:
                continue
            try:
                write_file(self._await_file(region.file.number), region.file_offset, output.data)
            except OSError:
                continue
            outputs[index] = RegionTensor(output.name, output.datatype, output.shape, region, output.byte_size)
        response.outputs = outputs

    def _open_block(self, location: int, segment: int, offset: int, byte_size: int) -> memoryview:
        if location == CLIENT_MEMORY:
            return read_file(self._await_file(segment), offset, byte_size)
        if location == SENDER_ARENA:
            self._await_segment(segment)
        block = self._arenas.lend(location, segment, offset, byte_size)
        self._lent.append((_address_of(np.frombuffer(block, np.uint8)), byte_size, segment, offset))
        return block

    def _await_segment(self, segment: int) -> None:
        """Read its announcement, which was sent before it was first mentioned."""
        while segment not in self._arenas.peer:
            self._read_announcements()

    def _await_file(self, number: int) -> int:
        """The descriptor of a client's shared memory, which was sent before it was first mentioned."""
        while number not in self._files:
            self._read_announcements()
        return self._files[number]

    def _read_announcements(self) -> None:
        for message in _read_control(self._control):
            if message.kind == SEGMENT:
                self._arenas.take_segment(message.number, message.body, message.descriptor)
            elif message.kind == CLIENT_FILE:
                self._files[message.number] = message.descriptor
            else:
                raise ProtocolError(f"a control message of kind {message.kind}")

    def _place(self, data: Buffer) -> tuple[int, int, int]:
        """Where the data of a large output is: in a block of this batch's inputs, or else copied to the arena."""
        array = np.frombuffer(data, np.uint8)
        if self._lent:
            address, size = _address_of(array), len(array)
            for block_address, block_size, segment, offset in self._lent:
                if block_address <= address and address + size <= block_address + block_size:
                    return RECEIVER_ARENA, segment, offset + address - block_address
        return self._arenas.store(data)

    def _settle_loans(self, number: int, message: bytes, references: Sequence[Reference]) -> bytes:
        """Tell which blocks of the batch the model keeps, and make copies of what was to be referenced there."""
        self._release_returned()
        lent, self._lent = self._lent, []
        kept = [(segment, offset) for _, _, segment, offset in lent if self._loans.is_out((segment, offset))]
        if not kept:
            return message
        self._kept.update(kept)
        answer = bytearray(message)
        for reference in references:
            for _, block_size, segment, offset in lent:
                is_inside = segment == reference.segment and offset <= reference.offset < offset + block_size
                if is_inside and (segment, offset) in self._kept:
                    mapping = self._arenas.peer.check(segment, reference.offset, reference.byte_size)
                    data = memoryview(mapping)[reference.offset : reference.offset + reference.byte_size]
                    relocate(answer, reference, *self._arenas.store(data))
        return encode_blocks(KEEP, number, kept) + bytes(answer)

    def _release_returned(self) -> None:
        """Tell of blocks kept by the model and now gone; others were given back with their batch's answer."""
        returned = self._loans.returned
        released: list[BlockKey] = []
        while returned:
            key = returned.popleft()
            if key in self._kept:
                self._kept.discard(key)
                released.append(key)
        if released:
            self._out.append(encode_blocks(FREE, 0, released))


class ControlLogHandler(logging.Handler):
    """Sends what is logged in the child to the server's log."""

    def __init__(self, control: ControlSocket) -> None:
        super().__init__()
        self._control = control

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.exc_info:
            text = f"{text}\n{''.join(traceback.format_exception(*record.exc_info))}"
        try:
            body = encode_log(record.levelno, record.lineno, os.getpid(), record.name, record.pathname, text)
            self._control.send(LOG, body=body)
        except OSError:
            # The server is gone.
            pass


class _NoSink:
    """Requests in a child are answered by what `execute` returns."""

    def on_response(self, response: Response) -> None:
        raise AssertionError("a request in a model's process has no sink")


_NO_SINK = _NoSink()


def _resolve(backend_factory: str) -> Callable[[str], Backend]:
    """The function that `module:function` names."""
    module, _, function = backend_factory.partition(":")
    factory: Callable[[str], Backend] = getattr(importlib.import_module(module), function)
    return factory


def _renew_process_state() -> None:
    """What must not be the same in two children of one parent, or is not fit for a model's process."""
    if "numpy.random" in sys.modules:
        np.random.seed()
    volunteer_for_oom()
    buffer_c_output_by_line()
    if sys.stderr is not None:
        # A crash shows where the model was.
        faulthandler.enable()
    for stream in (sys.stdout, sys.stderr):
        # A model's print must reach the log when it happens, not when 8 KiB have gathered.
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(line_buffering=True)


def _send_logs_to(control: ControlSocket, level: int) -> None:
    logger = logging.getLogger("merrow")
    logger.setLevel(level)
    # What models log is sent whatever its level, as Triton's stub does: the server may be told to log it at any time.
    _LOG.setLevel(logging.DEBUG)
    logger.addHandler(ControlLogHandler(control))
    logger.propagate = False


def _read_control(control: ControlSocket) -> "list[Any]":
    """The next messages; the process ends if there are none to come."""
    while True:
        messages = control.receive()
        if messages is None:
            raise SystemExit(0)
        if messages:
            return list(messages)


def _address_of(array: "np.ndarray[Any, np.dtype[np.uint8]]") -> int:
    address: int = array.__array_interface__["data"][0]
    return address
