"""Traces of requests: what is recorded of one, and who writes it down.

    front door   Tracer.sample -> Trace or None; `record` for what it does itself; `finish` after the last answer
    engine       Trace.begin, record_queued, record_execution, record_response; child() for what it causes
    model        Trace.record_activity

A trace collects on the loop's thread and costs a few appends; only activities come on a model's own. When the front
door is done with it, it goes with its children to the writer: one thread that formats and writes, so that the loop
waits for no disk and no collector. Contents of tensors are copied when they are recorded, since the memory they lie in
is reused.

Source: Triton, tracer.cc, infer_trace.cc.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from typing import Protocol

from merrow.core.clock import Clock
from merrow.core.errors import ServerError
from merrow.core.request import Request
from merrow.core.response import Response
from merrow.core.tensor import Tensor
from merrow.observe.trace_settings import TraceChanges, TraceLevel, TraceSetting, TraceTable, TraceValues
from merrow.settings import TraceMode, TraceSettings

_LOG = logging.getLogger("merrow.observe.trace")

# What a trace takes while it waits for the writer, besides the contents of its tensors.
_TRACE_BYTE_SIZE = 1024

BATCH_CUT_PREFIX = "BATCH_CUT_"
REQUEST_START = "REQUEST_START"
"""The first record of the core; the model and the request's id are known from then on."""


class Activity(str):
    """The name of something that a model recorded, and not the server."""

    __slots__ = ()


Timestamp = tuple[str, int]
TensorRecord = tuple[str, Tensor]


class SpanContext:
    """Where a trace stands among those of other services (W3C Trace Context)."""

    __slots__ = ("parent_span_id", "span_id", "trace_id", "trace_state")

    def __init__(self, trace_id: int, span_id: int, parent_span_id: int, trace_state: str) -> None:
        self.trace_id = trace_id
        self.span_id = span_id
        # 0 for none.
        self.parent_span_id = parent_span_id
        self.trace_state = trace_state


class Trace:
    """The trace of one request; implements `core.request.RequestTrace`.

    `records` are timestamps and tensors, in the order in which they were recorded. `parent_id` is 0 for the request of
    a client. `door_context` and `context` are those of the spans of the front door and of the model.
    """

    __slots__ = (
        "_family",
        "context",
        "door_context",
        "id",
        "model_name",
        "model_version",
        "parent_id",
        "records",
        "request_id",
    )

    def __init__(self, family: "_Family", id: int, parent_id: int, model_name: str, model_version: int) -> None:
        self._family = family
        self.id = id
        self.parent_id = parent_id
        self.model_name = model_name
        self.model_version = model_version
        self.request_id = ""
        self.records: list[Timestamp | TensorRecord] = []
        self.door_context: SpanContext | None = None
        self.context: SpanContext | None = None

    # The engine's side.

    def begin(self, request: Request) -> None:
        """The core accepted the request."""
        self.request_id = request.id
        self.records.append((REQUEST_START, request.arrival_ns))
        if self._family.has_tensors:
            for tensor in request.inputs.values():
                self._record_tensor("TENSOR_QUEUE_INPUT", tensor)

    def record_queued(self, queue_ns: int) -> None:
        self.records.append(("QUEUE_START", queue_ns))

    def record_batch(self, cut: str, now_ns: int) -> None:
        """Merrow's own event: why the batch is no larger, and when it was handed over."""
        self.records.append((f"{BATCH_CUT_PREFIX}{cut}", now_ns))

    def record_activity(self, name: str, now_ns: int) -> None:
        self.records.append((Activity(name), now_ns))

    def record_execution(self, start_ns: int, input_end_ns: int, output_start_ns: int, end_ns: int) -> None:
        self.records += (
            ("COMPUTE_START", start_ns),
            ("COMPUTE_INPUT_END", input_end_ns),
            ("COMPUTE_OUTPUT_START", output_start_ns),
            ("COMPUTE_END", end_ns),
        )

    def record_response(self, response: Response, now_ns: int) -> None:
        if self._family.has_tensors:
            for tensor in response.outputs:
                self._record_tensor("TENSOR_BACKEND_OUTPUT", tensor)
        if not self.parent_id and not response.is_empty:
            self.records.append(("INFER_RESPONSE_COMPLETE", now_ns))
        if response.is_final:
            self.records.append(("REQUEST_END", now_ns))

    def child(self, model_name: str, model_version: int) -> "Trace":
        return self._family.add(model_name, model_version, self)

    def context_text(self) -> str:
        """The trace for another service to go on with: W3C headers as a JSON object, "" without OpenTelemetry."""
        context = self.context
        if context is None:
            return ""
        headers = {"traceparent": f"00-{context.trace_id:032x}-{context.span_id:016x}-01"}
        if context.trace_state:
            headers["tracestate"] = context.trace_state
        return json.dumps(headers, separators=(",", ":"))

    # The front door's side.

    def record(self, name: str, now_ns: int) -> None:
        """Something happened outside of the engine."""
        self.records.append((name, now_ns))

    def finish(self) -> None:
        """The front door is done with the request, whatever became of it. Once, for a client's request only."""
        self._family.finish()

    def _record_tensor(self, activity: str, tensor: Tensor) -> None:
        try:
            data = bytes(tensor.data)
        except ServerError:
            # Memory of a client's that cannot be read; the request itself will say so.
            data = b""
        copy = Tensor(tensor.name, tensor.datatype, tuple(tensor.shape), data)
        self._family.byte_size += len(copy.data)
        self.records.append((activity, copy))


class _Family:
    """A client's request and those made on its behalf. It is over when its front door is done with it."""

    __slots__ = ("_tracer", "byte_size", "has_tensors", "setting", "traces")

    def __init__(self, tracer: "Tracer", setting: TraceSetting) -> None:
        self._tracer = tracer
        self.setting = setting
        self.has_tensors = bool(setting.values.level & TraceLevel.TENSORS) and tracer.mode is TraceMode.TRITON
        self.traces: list[Trace] = []
        self.byte_size = 0

    def add(self, model_name: str, model_version: int, parent: Trace | None) -> Trace:
        trace = self._tracer.new_trace(self, model_name, model_version, parent)
        self.traces.append(trace)
        self.byte_size += _TRACE_BYTE_SIZE
        return trace

    def finish(self) -> None:
        traces = tuple(FinishedTrace(trace) for trace in self.traces)
        self._tracer.on_finished(self.setting, traces, self.byte_size)


class FinishedTrace:
    """What was recorded of one request; nothing changes it any more."""

    __slots__ = (
        "context",
        "door_context",
        "id",
        "model_name",
        "model_version",
        "parent_id",
        "records",
        "request_id",
    )

    def __init__(self, trace: Trace) -> None:
        self.id = trace.id
        self.parent_id = trace.parent_id
        self.model_name = trace.model_name
        self.model_version = trace.model_version
        self.request_id = trace.request_id
        # What runs on for a request that was answered (a model may do that) records to the trace, and not to this.
        self.records = tuple(trace.records)
        self.context = trace.context
        self.door_context = trace.door_context


class TraceOutput(Protocol):
    """Where traces are written. One thread calls it, one call at a time."""

    def new_context(self, parent: SpanContext | None) -> SpanContext | None:
        """A span's place below its parent, None below nothing; None where there are no spans. On the loop's thread."""

    def write(self, setting: TraceSetting, traces: Sequence[FinishedTrace], is_last: bool) -> None:
        """A client's trace and its children, that one first. `is_last`: the setting's count is used up by it."""

    def end_setting(self, setting: TraceSetting) -> None:
        """No more traces will come under a setting."""

    def close(self) -> None:
        """No more traces will come, under any setting."""


class Tracer:
    """Samples requests, and hands what was recorded to the writer. Everything but the writing is on the loop's thread.

    `is_on` is all that a front door looks at while nothing is traced.

    Args:
        output: where traces are written.
    """

    def __init__(self, settings: TraceSettings, output: TraceOutput, clock: Clock) -> None:
        level = TraceLevel.OFF
        level |= TraceLevel.TIMESTAMPS if settings.timestamps else TraceLevel.OFF
        level |= TraceLevel.TENSORS if settings.tensors else TraceLevel.OFF
        start = TraceValues(level, settings.rate, settings.count, settings.log_frequency)
        self.settings = settings
        self.mode = settings.mode
        self.clock = clock
        self._table = TraceTable(start, settings.mode, bool(settings.file))
        self._output = output
        self._ids = count(1)
        self._writer = ThreadPoolExecutor(1, "trace")
        # Each is written on one thread: the loop's, and the writer's.
        self._submitted_byte_size = 0
        self._written_byte_size = 0
        self._has_dropped = False
        self._is_closed = False
        self.is_on = self._table.may_sample
        self._warn_of_tensors()

    def values(self, model_name: str = "") -> TraceValues:
        """The setting of a model, or of the server, as it is now."""
        return self._table.find(model_name).current()

    def change(self, model_name: str, changes: TraceChanges) -> None:
        """Change a model's setting, or the server's ("").

        Raises:
            InvalidArgumentError: as `TraceTable.change`.
        """
        for setting in self._table.change(model_name, changes):
            if not setting.open_count:
                self._submit(self._output.end_setting, setting)
        self._warn_of_tensors()
        self.is_on = self._table.may_sample

    async def flush(self) -> None:
        """Wait until everything so far has been written."""
        await asyncio.wrap_future(self._writer.submit(lambda: None))

    def sample(
        self, model_name: str, model_version: int, trace_parent: bytes | None, trace_state: bytes | None
    ) -> Trace | None:
        """The trace of a client's request, if it is to be traced; the caller owes it `finish`.

        Args:
            trace_parent: the W3C header of this name, with which the request is traced whatever the rate
                (OpenTelemetry only).
        """
        parent = None
        if self.mode is TraceMode.OPENTELEMETRY and trace_parent is not None:
            parent = parse_trace_parent(trace_parent, trace_state or b"")
        setting = self._table.find(model_name)
        if not setting.sample(is_forced=parent is not None):
            return None
        if not setting.may_sample:
            self.is_on = self._table.may_sample
        family = _Family(self, setting)
        trace = family.add(model_name, model_version, None)
        trace.door_context = self._output.new_context(parent)
        trace.context = self._output.new_context(trace.door_context)
        return trace

    def new_trace(self, family: _Family, model_name: str, model_version: int, parent: Trace | None) -> Trace:
        """A trace with a number of its own."""
        parent_id = 0 if parent is None else parent.id
        trace = Trace(family, next(self._ids), parent_id, model_name, model_version)
        if parent is not None:
            trace.context = self._output.new_context(parent.context)
        return trace

    def on_finished(self, setting: TraceSetting, traces: Sequence[FinishedTrace], byte_size: int) -> None:
        """A client's request is over."""
        setting.open_count -= 1
        if self._is_closed:
            return
        if self._submitted_byte_size - self._written_byte_size + byte_size > self.settings.max_waiting_byte_size:
            if not self._has_dropped:
                self._has_dropped = True
                _LOG.warning("traces are dropped: they come faster than they can be written")
        else:
            self._submitted_byte_size += byte_size
            is_last = setting.remaining == 0 and not setting.open_count
            self._submit(self._write, setting, traces, is_last, byte_size)
        if setting.is_retired and not setting.open_count:
            self._submit(self._output.end_setting, setting)

    async def close(self) -> None:
        """Write what is left, and end the writer. Requests that finish later leave no trace."""
        self.is_on = False
        self._is_closed = True
        await asyncio.wrap_future(self._submit(self._output.close))
        self._writer.shutdown()

    def _warn_of_tensors(self) -> None:
        if self.mode is not TraceMode.TRITON and any(
            setting.values.level & TraceLevel.TENSORS for setting in self._table.settings()
        ):
            _LOG.error("Tensor level tracing is not supported by the mode: %s", self.mode.value)

    def _write(self, setting: TraceSetting, traces: Sequence[FinishedTrace], is_last: bool, byte_size: int) -> None:
        try:
            self._output.write(setting, traces, is_last)
        finally:
            self._written_byte_size += byte_size

    def _submit(self, function: Callable[..., None], *arguments: object) -> "Future[None]":
        return self._writer.submit(_log_errors, function, *arguments)


def _log_errors(function: Callable[..., None], *arguments: object) -> None:
    try:
        function(*arguments)
    except OSError as error:
        _LOG.error("failed creating trace file: %s", error)
    except Exception:
        # An output may be another project's (OpenTelemetry); what is not logged here, nobody would hear of.
        _LOG.exception("unexpected error while writing a trace")


def parse_trace_parent(trace_parent: bytes, trace_state: bytes) -> SpanContext | None:
    """The caller's place in its own trace; None if the header is none.

    Source: W3C Trace Context, section 3.2.
    """
    parts = trace_parent.strip().split(b"-")
    if len(parts) < 4 or [len(part) for part in parts[:4]] != [2, 32, 16, 2] or parts[0] == b"ff":
        return None
    if parts[0] == b"00" and len(parts) > 4:
        return None
    try:
        _, trace_id, span_id, _ = (int(part, 16) for part in parts[:4])
    except ValueError:
        return None
    if trace_parent.lower() != trace_parent or not trace_id or not span_id:
        return None
    return SpanContext(trace_id, span_id, 0, trace_state.decode("latin-1").strip())
