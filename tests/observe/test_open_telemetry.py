"""Spans at a collector, against those of Triton 2.51."""

import builtins
import importlib
import sys

import pytest

from merrow.core.request import Request
from merrow.core.response import Response
from merrow.observe.open_telemetry import OpenTelemetryOutput
from merrow.observe.trace import FinishedTrace, SpanContext, Trace
from merrow.settings import SettingsError, TraceMode, TraceSettings
from tests.observe.otlp_collector import Collector

SERVER = 2
WALL_NS = 1_795_657_176_000_000_000


@pytest.fixture
def collector():
    with Collector() as started:
        yield started


def make_output(collector, *options):
    settings = TraceSettings(mode=TraceMode.OPENTELEMETRY, opentelemetry=(("url", collector.url), *options))
    return OpenTelemetryOutput(settings, lambda: 1000, lambda: WALL_NS + 1000)


class Family:
    has_tensors = False


def make_trace(output, id=1, parent=None, name="ident", caller=None):
    trace = Trace(Family(), id, 0 if parent is None else parent.id, name, 1)
    if parent is None:
        trace.door_context = output.new_context(caller)
    trace.context = output.new_context(trace.door_context if parent is None else parent.context)
    return trace


def record(trace, base, request_id="x", is_executed=True):
    request = Request(trace.model_name, 1, None, {}, id=request_id)
    request.arrival_ns = base + 1
    trace.begin(request)
    trace.record_queued(base + 2)
    if is_executed:
        trace.record_execution(base + 3, base + 4, base + 5, base + 6)
    trace.record_response(Response(trace.model_name, 1), base + 7)


def events(*names_and_times):
    return [(name, WALL_NS + time) for name, time in names_and_times]


def test_a_request_is_three_spans(collector):
    output = make_output(collector)
    trace = make_trace(output)
    trace.record("HTTP_RECV_START", 0)
    record(trace, 0)
    trace.record("HTTP_SEND_START", 8)
    trace.record("HTTP_SEND_END", 9)
    output.write(None, [FinishedTrace(trace)], False)
    output.close()

    root, request, compute = collector.spans()
    assert [(span["scope"], span["kind"]) for span in (root, request, compute)] == [("triton-server", SERVER)] * 3
    assert (root["name"], root["parent"], root["attributes"]) == ("InferRequest", "", {})
    assert (root["start"], root["end"]) == (WALL_NS, WALL_NS + 9)
    assert root["events"] == events(
        ("HTTP_RECV_START", 0), ("INFER_RESPONSE_COMPLETE", 7), ("HTTP_SEND_START", 8), ("HTTP_SEND_END", 9)
    )
    assert (request["name"], request["parent"]) == ("ident", root["id"])
    assert request["attributes"] == {
        "triton.model_name": "ident",
        "triton.model_version": 1,
        "triton.trace_id": 1,
        "triton.trace_parent_id": 0,
        "triton.request_id": "x",
    }
    assert request["events"] == events(("REQUEST_START", 1), ("QUEUE_START", 2), ("REQUEST_END", 7))
    assert (compute["name"], compute["parent"], compute["attributes"]) == ("compute", request["id"], {})
    assert compute["events"] == events(
        ("COMPUTE_START", 3), ("COMPUTE_INPUT_END", 4), ("COMPUTE_OUTPUT_START", 5), ("COMPUTE_END", 6)
    )
    assert len({span["trace"] for span in (root, request, compute)}) == 1
    assert collector.paths == ["/v1/traces"]


def test_activities_of_a_model_are_spans_and_events(collector):
    output = make_output(collector)
    trace = make_trace(output)
    names = ["A_START", "B_START", "TICK", "B_END", "A_END", "TOCK", "C_START", "D_END"]
    for time, name in enumerate(names, 10):
        trace.record_activity(name, time)
    record(trace, 0)
    output.write(None, [FinishedTrace(trace)], False)
    output.close()

    spans = {span["name"]: span for span in collector.spans()}
    model = spans["ident"]
    assert (spans["A"]["parent"], spans["B"]["parent"]) == (model["id"], spans["A"]["id"])
    assert spans["A"]["events"] == events(("A_START", 10), ("A_END", 14))
    assert spans["B"]["events"] == events(("B_START", 11), ("TICK", 12), ("B_END", 13))
    # It did not end; what else ended was never begun.
    assert (spans["C"]["parent"], spans["C"]["events"]) == (model["id"], events(("C_START", 16), ("D_END", 17)))
    assert ("TOCK", WALL_NS + 15) in model["events"]


def test_requests_of_requests_are_below_them(collector):
    output = make_output(collector)
    ensemble = make_trace(output, name="ensemble")
    record(ensemble, 0, is_executed=False)
    ensemble.record("HTTP_SEND_END", 90)
    step = make_trace(output, 2, ensemble, "step")
    record(step, 10, request_id="")
    output.write(None, [FinishedTrace(ensemble), FinishedTrace(step)], False)
    output.close()

    spans = {span["name"]: span for span in collector.spans()}
    assert set(spans) == {"InferRequest", "ensemble", "step", "compute"}
    assert spans["step"]["parent"] == spans["ensemble"]["id"]
    assert spans["compute"]["parent"] == spans["step"]["id"]
    assert spans["step"]["attributes"]["triton.trace_parent_id"] == 1
    assert "triton.request_id" not in spans["step"]["attributes"]


def test_a_caller_s_trace_goes_on(collector):
    output = make_output(collector)
    caller = SpanContext(0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331, 0, "a=b")
    trace = make_trace(output, caller=caller)
    record(trace, 0)
    trace.record("HTTP_SEND_END", 9)
    output.write(None, [FinishedTrace(trace)], False)
    output.close()

    spans = collector.spans()
    assert {span["trace"] for span in spans} == {"0af7651916cd43dd8448eb211c80319c"}
    (root,) = (span for span in spans if span["name"] == "InferRequest")
    assert (root["parent"], root["state"]) == ("b7ad6b7169203331", "a=b")


def test_a_request_that_is_executed_again_has_a_span_for_each(collector):
    output = make_output(collector)
    trace = make_trace(output)
    record(trace, 0)
    trace.record_execution(20, 21, 22, 23)
    output.write(None, [FinishedTrace(trace)], False)
    output.close()

    assert [span["start"] - WALL_NS for span in collector.spans() if span["name"] == "compute"] == [3, 20]


def test_a_request_that_was_refused_is_its_front_door_alone(collector):
    output = make_output(collector)
    trace = make_trace(output)
    trace.record("HTTP_SEND_END", 9)
    output.write(None, [FinishedTrace(trace)], False)
    output.end_setting(None)
    output.close()

    assert [span["name"] for span in collector.spans()] == ["InferRequest"]


def test_the_resource_is_named(collector):
    output = make_output(
        collector, ("resource", "service.name=svc"), ("resource", "a.b=c=d"), ("bsp_schedule_delay", "50")
    )
    trace = make_trace(output)
    record(trace, 0)
    output.write(None, [FinishedTrace(trace)], False)
    # The delay is over before the end.
    collector.wait_for_spans(2)
    output.close()

    assert collector.resource["service.name"] == "svc"
    assert collector.resource["a.b"] == "c=d"


def test_a_resource_without_a_name_is_triton(collector):
    output = make_output(collector, ("bsp_max_queue_size", "10"), ("bsp_max_export_batch_size", "5"))
    trace = make_trace(output)
    record(trace, 0)
    output.write(None, [FinishedTrace(trace)], False)
    output.close()

    assert collector.resource["service.name"] == "triton-inference-server"


def test_a_collector_that_is_not_there_is_logged_once(caplog):
    with Collector() as gone:
        url = gone.url
    settings = TraceSettings(
        mode=TraceMode.OPENTELEMETRY, opentelemetry=(("url", url), ("bsp_max_export_batch_size", "1"))
    )
    output = OpenTelemetryOutput(settings, lambda: 0, lambda: WALL_NS, export_timeout_seconds=0.05)
    for number in (1, 2, 3):
        trace = make_trace(output, number)
        record(trace, 0)
        output.write(None, [FinishedTrace(trace)], False)
    output.close()

    assert caplog.text.count("traces cannot be exported") == 1


def test_without_the_packages_the_error_names_them(monkeypatch):
    original = builtins.__import__

    def refuse(name, *arguments):
        if name.startswith("opentelemetry"):
            raise ImportError(f"No module named '{name}'")
        return original(name, *arguments)

    monkeypatch.delitem(sys.modules, "merrow.observe.open_telemetry")
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(
        SettingsError, match=r"needs the packages of merrow's extra 'otel' \(pip install 'merrow\[otel\]'\)"
    ):
        importlib.import_module("merrow.observe.open_telemetry")
