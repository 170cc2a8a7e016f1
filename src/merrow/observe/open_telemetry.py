"""Traces as spans for an OpenTelemetry collector (mode `opentelemetry`), through the official SDK.

    InferRequest              the front door, from its first to its last record
      <name of the model>     the request in the core: triton.* attributes, REQUEST_START, QUEUE_START, REQUEST_END
        <activity of it>      what the model recorded, from X_START to X_END; may hold others
        compute               the execution, with the COMPUTE_* records
        <name of the model>   a step of an ensemble, or a request of business logic scripting

Where a trace belongs is known when it begins, so that a model can hand it on; the spans are made when it is over, from
the recorded times. So the numbers of traces and spans are ours, and the SDK is given them.

Source: Triton, tracer.cc; docs/user_guide/trace.md; the spans of a running server.
"""

import logging
import random
from collections.abc import Mapping, Sequence

from merrow.core.clock import Clock
from merrow.observe.trace import BATCH_CUT_PREFIX, Activity, FinishedTrace, SpanContext
from merrow.observe.trace_settings import TraceSetting
from merrow.settings import SettingsError, TraceSettings

try:
    from opentelemetry import trace as api
    from opentelemetry.context import Context
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.id_generator import IdGenerator
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON
except ImportError as import_error:
    raise SettingsError(
        "--trace-config mode=opentelemetry needs the packages of merrow's extra 'otel' (pip install 'merrow[otel]'): "
        f"{import_error}"
    ) from import_error

_LOG = logging.getLogger("merrow.observe.open_telemetry")
_SDK_LOG = logging.getLogger("opentelemetry")

SCOPE = "triton-server"
DEFAULT_URL = "http://localhost:4318/v1/traces"
DEFAULT_SERVICE_NAME = "triton-inference-server"
EXPORT_TIMEOUT_SECONDS = 10.0

_ROOT_SPAN = "InferRequest"
_COMPUTE_SPAN = "compute"
_CORE_EVENTS = frozenset({"REQUEST_START", "QUEUE_START", "REQUEST_END"})
_COMPUTE_PREFIX = "COMPUTE_"
_START, _END = "_START", "_END"

Event = tuple[str, int]


class OpenTelemetryOutput:
    """A `TraceOutput` that exports spans over OTLP/HTTP.

    Args:
        clock, wall_clock: the time now, by the clock of the records and since 1970; in nanoseconds.
    """

    def __init__(
        self,
        settings: TraceSettings,
        clock: Clock,
        wall_clock: Clock,
        export_timeout_seconds: float = EXPORT_TIMEOUT_SECONDS,
    ) -> None:
        options = dict(settings.opentelemetry)
        resource = {"service.name": DEFAULT_SERVICE_NAME}
        for name, value in settings.opentelemetry:
            if name == "resource":
                key, _, text = value.partition("=")
                resource[key] = text
        self._offset_ns = wall_clock() - clock()
        self._random = random.SystemRandom()
        self._ids = _GivenIds()
        self._provider = TracerProvider(
            sampler=ALWAYS_ON, resource=Resource.create(resource), shutdown_on_exit=False, id_generator=self._ids
        )
        exporter = OTLPSpanExporter(endpoint=options.get("url", DEFAULT_URL), timeout=export_timeout_seconds)
        # What is not given here, the SDK takes from the environment (OTEL_BSP_*).
        processor = BatchSpanProcessor(
            exporter,
            max_queue_size=_integer(options, "bsp_max_queue_size"),
            schedule_delay_millis=_integer(options, "bsp_schedule_delay"),
            max_export_batch_size=_integer(options, "bsp_max_export_batch_size"),
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer(SCOPE)
        self._troubles = _Troubles()
        _SDK_LOG.addHandler(self._troubles)
        _SDK_LOG.propagate = False

    def new_context(self, parent: SpanContext | None) -> SpanContext:
        span_id = self._random.getrandbits(64) or 1
        if parent is None:
            return SpanContext(self._random.getrandbits(128) or 1, span_id, 0, "")
        return SpanContext(parent.trace_id, span_id, parent.span_id, parent.trace_state)

    def write(self, setting: TraceSetting, traces: Sequence[FinishedTrace], is_last: bool) -> None:
        # Children end before what caused them.
        for trace in reversed(traces):
            self._write_trace(trace)

    def end_setting(self, setting: TraceSetting) -> None:
        """Spans leave with their batch, whichever setting they came under."""

    def close(self) -> None:
        self._provider.shutdown()
        _SDK_LOG.removeHandler(self._troubles)
        _SDK_LOG.propagate = True

    def _write_trace(self, trace: FinishedTrace) -> None:
        context = trace.context
        assert context is not None
        core: list[Event] = []
        compute: list[Event] = []
        door: list[Event] = []
        activities: list[Event] = []
        for name, time_ns in trace.records:
            if isinstance(name, Activity) and isinstance(time_ns, int):
                activities.append((name, time_ns))
            elif isinstance(time_ns, int):
                is_core = name in _CORE_EVENTS or name.startswith(BATCH_CUT_PREFIX)
                events = compute if name.startswith(_COMPUTE_PREFIX) else core if is_core else door
                events.append((name, time_ns))
        # A request that is executed several times has a span for each.
        for start in range(0, len(compute), 4):
            inner = SpanContext(
                context.trace_id, self._random.getrandbits(64) or 1, context.span_id, context.trace_state
            )
            self._write_span(_COMPUTE_SPAN, inner, compute[start : start + 4], {})
        core += self._write_activities(context, activities)
        if core:
            attributes: dict[str, str | int] = {
                "triton.model_name": trace.model_name,
                "triton.model_version": trace.model_version,
                "triton.trace_id": trace.id,
                "triton.trace_parent_id": trace.parent_id,
            }
            if trace.request_id:
                attributes["triton.request_id"] = trace.request_id
            self._write_span(trace.model_name, context, core, attributes)
        if trace.door_context is not None and door:
            # The front door has received before, and sends after, what the core records.
            self._write_span(_ROOT_SPAN, trace.door_context, door, {})

    def _write_activities(self, parent: SpanContext, activities: Sequence[Event]) -> list[Event]:
        """From X_START to X_END is span X, in whatever span is open then; returns the events outside of all."""
        outside: list[Event] = []
        # Name, context and events of the open spans.
        spans: list[tuple[str, SpanContext, list[Event]]] = []
        for name, time_ns in activities:
            if name.endswith(_START):
                above = spans[-1][1] if spans else parent
                inner = SpanContext(above.trace_id, self._random.getrandbits(64) or 1, above.span_id, above.trace_state)
                spans.append((name[: -len(_START)], inner, []))
            (spans[-1][2] if spans else outside).append((name, time_ns))
            if spans and name == f"{spans[-1][0]}{_END}":
                self._write_span(*spans.pop(), {})
        # What has no end, ends with its last event.
        while spans:
            self._write_span(*spans.pop(), {})
        return outside

    def _write_span(
        self, name: str, context: SpanContext, events: Sequence[Event], attributes: Mapping[str, str | int]
    ) -> None:
        times = [time_ns + self._offset_ns for _, time_ns in events]
        span = self._tracer.start_span(
            name,
            self._ids.expect(context),
            kind=api.SpanKind.SERVER,
            attributes=attributes,
            start_time=min(times),
        )
        for (event, _), time_ns in zip(events, times, strict=True):
            span.add_event(event, timestamp=time_ns)
        span.end(max(times))


class _Troubles(logging.Handler):
    """Logs what the SDK says of a collector once; it says it again with each batch, as a traceback."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._has_spoken = False

    def emit(self, record: logging.LogRecord) -> None:
        if not self._has_spoken:
            self._has_spoken = True
            _LOG.warning("traces cannot be exported, and are lost: %s", record.getMessage())


class _GivenIds(IdGenerator):
    """Gives the SDK the numbers of the span that is made next."""

    def __init__(self) -> None:
        self._trace_id = 0
        self._span_id = 0

    def expect(self, context: SpanContext) -> Context:
        """The next span is this one; returns what tells the SDK of its parent."""
        self._trace_id = context.trace_id
        self._span_id = context.span_id
        if not context.parent_span_id:
            return Context()
        parent = api.SpanContext(
            context.trace_id,
            context.parent_span_id,
            is_remote=True,
            trace_flags=api.TraceFlags(api.TraceFlags.SAMPLED),
            trace_state=api.TraceState.from_header([context.trace_state]) if context.trace_state else None,
        )
        return api.set_span_in_context(api.NonRecordingSpan(parent), Context())

    def generate_span_id(self) -> int:
        return self._span_id

    def generate_trace_id(self) -> int:
        return self._trace_id


def _integer(options: Mapping[str, str], name: str) -> int | None:
    return int(options[name]) if name in options else None
