"""What a trace records, and how it gets to the writer."""

import asyncio
import json
import threading

import numpy as np
import pytest

from merrow.core.errors import InternalError
from merrow.core.request import Request
from merrow.core.response import Response
from merrow.core.tensor import Tensor
from merrow.observe.trace import Activity, SpanContext, Tracer, parse_trace_parent
from merrow.settings import TraceMode, TraceSettings
from merrow.testing.manual_clock import ManualClock


class RecordingOutput:
    """Remembers what it was told, on the writer's thread."""

    def __init__(self):
        self.written = []
        self.ended = []
        self.is_closed = False
        self.threads = set()
        self.may_write = threading.Event()
        self.may_write.set()

    def new_context(self, parent):
        return SpanContext(1 if parent is None else parent.trace_id, 2, 0 if parent is None else parent.span_id, "")

    def write(self, setting, traces, is_last):
        self.may_write.wait(5)
        self.threads.add(threading.current_thread().name)
        self.written.append((traces, is_last))

    def end_setting(self, setting):
        self.ended.append(setting)

    def close(self):
        self.is_closed = True


def run(body, **settings):
    """Run `body(tracer, output)` and close the tracer; returns the output."""

    async def main():
        output = RecordingOutput()
        clock = ManualClock()
        tracer = Tracer(TraceSettings(**{"timestamps": True, "rate": 1, "file": "/f", **settings}), output, clock)
        result = body(tracer, output)
        if asyncio.iscoroutine(result):
            await result
        await tracer.close()
        assert output.is_closed
        return output

    return asyncio.run(main())


def sample(tracer, model="m", parent=None):
    return tracer.sample(model, 1, parent, None)


def request(name="m", request_id="x"):
    made = Request(name, 1, None, {"I": Tensor.from_numpy("I", np.array([1, 2], np.int32))}, id=request_id)
    made.arrival_ns = 10
    return made


def names(trace):
    return [name for name, _ in trace.records]


def test_a_request_is_recorded_from_door_to_door():
    def body(tracer, output):
        trace = sample(tracer)
        trace.record("HTTP_RECV_START", 5)
        trace.begin(request())
        trace.record_queued(11)
        trace.record_execution(12, 13, 14, 15)
        trace.record_response(Response("m", 1), 16)
        trace.record("HTTP_SEND_START", 17)
        trace.finish()

    output = run(body)

    ((traces, is_last),) = output.written
    (trace,) = traces
    assert (trace.id, trace.parent_id, trace.model_name, trace.model_version, trace.request_id) == (1, 0, "m", 1, "x")
    assert trace.records == (
        ("HTTP_RECV_START", 5),
        ("REQUEST_START", 10),
        ("QUEUE_START", 11),
        ("COMPUTE_START", 12),
        ("COMPUTE_INPUT_END", 13),
        ("COMPUTE_OUTPUT_START", 14),
        ("COMPUTE_END", 15),
        ("INFER_RESPONSE_COMPLETE", 16),
        ("REQUEST_END", 16),
        ("HTTP_SEND_START", 17),
    )
    assert not is_last
    assert output.threads == {"trace_0"}


def test_why_a_batch_was_cut_is_an_event_of_our_own():
    def body(tracer, output):
        trace = tracer.sample("m", 1, None, None)
        trace.record_batch("FULL", 12)
        trace.finish()

    ((traces, _),) = run(body).written
    assert traces[0].records == (("BATCH_CUT_FULL", 12),)


def test_a_model_records_activities_of_its_own():
    def body(tracer, output):
        trace = sample(tracer)
        trace.record_activity("X_START", 5)
        trace.finish()

    (((trace,), _),) = run(body).written
    assert trace.records == (("X_START", 5),)
    assert isinstance(trace.records[0][0], Activity)


def test_tensors_are_copied_when_they_are_recorded():
    memory = bytearray(b"\1\0\0\0")

    def body(tracer, output):
        trace = sample(tracer)
        made = request()
        made.inputs = {"I": Tensor("I", "INT32", [1], memoryview(memory))}
        trace.begin(made)
        memory[0] = 9
        trace.record_response(Response("m", 1, outputs=[Tensor("O", "INT32", [1], b"\2\0\0\0")]), 16)
        trace.finish()

    (((trace,), _),) = run(body, tensors=True).written

    tensors = [(name, content.name, content.data) for name, content in trace.records if isinstance(content, Tensor)]
    assert tensors == [("TENSOR_QUEUE_INPUT", "I", b"\1\0\0\0"), ("TENSOR_BACKEND_OUTPUT", "O", b"\2\0\0\0")]


class UnreadableTensor(Tensor):
    """In a client's memory, which is gone."""

    @property
    def data(self):
        raise InternalError("gone")

    @data.setter
    def data(self, data):
        pass


def test_a_tensor_that_cannot_be_read_is_recorded_without_its_contents():
    def body(tracer, output):
        trace = sample(tracer)
        trace.record_response(Response("m", 1, outputs=[UnreadableTensor("O", "INT32", [1], b"")]), 1)
        trace.finish()

    (((trace,), _),) = run(body, tensors=True).written

    ((_, copy), *_) = trace.records
    assert (copy.name, copy.data) == ("O", b"")


def test_a_decoupled_request_completes_several_times_and_ends_once():
    def body(tracer, output):
        trace = sample(tracer)
        trace.begin(request())
        trace.record_response(Response("m", 1, is_final=False), 1)
        trace.record_response(Response("m", 1, is_final=False), 2)
        trace.record_response(Response("m", 1, is_empty=True), 3)
        trace.finish()

    (((trace,), _),) = run(body).written

    assert trace.records[1:] == (("INFER_RESPONSE_COMPLETE", 1), ("INFER_RESPONSE_COMPLETE", 2), ("REQUEST_END", 3))


def test_children_have_numbers_of_their_own_and_come_with_their_parent():
    def body(tracer, output):
        trace = sample(tracer, "ensemble")
        trace.begin(request("ensemble"))
        step = trace.child("step", 2)
        step.begin(request("step"))
        step.record_response(Response("step", 2), 3)
        grandchild = step.child("other", 1)
        grandchild.begin(request("other"))
        trace.finish()
        # Not to be seen any more.
        grandchild.record_queued(99)

    ((traces, _),) = run(body).written

    assert [(trace.id, trace.parent_id, trace.model_name, trace.model_version) for trace in traces] == [
        (1, 0, "ensemble", 1),
        (2, 1, "step", 2),
        (3, 2, "other", 1),
    ]
    assert names(traces[1]) == ["REQUEST_START", "REQUEST_END"]
    assert names(traces[2]) == ["REQUEST_START"]


def test_it_is_on_only_while_something_may_be_traced():
    def body(tracer, output):
        assert not tracer.is_on
        tracer.change("m", {"level": 1})
        assert tracer.is_on
        assert sample(tracer, "other") is None
        tracer.change("m", {"count": 1})
        sample(tracer).finish()
        assert not tracer.is_on
        tracer.change("m", {"count": -1})
        assert tracer.is_on
        tracer.change("m", {"level": 0})
        assert not tracer.is_on

    run(body, timestamps=False)


def test_the_trace_that_uses_up_the_count_is_the_last():
    def body(tracer, output):
        first, second = sample(tracer), sample(tracer)
        assert sample(tracer) is None
        second.finish()
        first.finish()

    assert [is_last for _, is_last in run(body, count=2).written] == [False, True]


def test_a_setting_ends_with_its_last_trace():
    async def body(tracer, output):
        trace = sample(tracer)
        tracer.change("", {"rate": 2})
        await tracer.flush()
        assert output.ended == []
        trace.finish()
        await tracer.flush()
        assert len(output.ended) == len(output.written) == 1
        tracer.change("", {"rate": 3})
        await tracer.flush()
        assert len(output.ended) == 2

    run(body)


def test_traces_are_dropped_when_too_much_waits(caplog):
    async def body(tracer, output):
        output.may_write.clear()
        for _ in range(4):
            sample(tracer).finish()
        output.may_write.set()
        await tracer.flush()
        sample(tracer).finish()

    assert len(run(body, max_waiting_byte_size=2 * 1024).written) == 3
    assert caplog.text.count("traces are dropped") == 1


def test_an_output_that_fails_is_logged_and_asked_again(caplog):
    def body(tracer, output):
        write = output.write
        failures = [OSError("disk full"), ZeroDivisionError("defect")]

        def fail(*arguments):
            if failures:
                raise failures.pop(0)
            write(*arguments)

        output.write = fail
        for _ in range(3):
            sample(tracer).finish()

    assert len(run(body).written) == 1
    assert "failed creating trace file: disk full" in caplog.text
    assert "unexpected error while writing a trace" in caplog.text


def test_what_finishes_after_the_end_is_lost():
    async def body(tracer, output):
        trace = sample(tracer)
        await tracer.close()
        trace.finish()
        assert output.written == []
        tracer._writer = type(tracer._writer)(1, "again")

    run(body)


def test_tensors_are_not_for_opentelemetry(caplog):
    def body(tracer, output):
        trace = sample(tracer)
        trace.begin(request())
        trace.finish()

    (((trace,), _),) = run(body, tensors=True, mode=TraceMode.OPENTELEMETRY).written

    assert names(trace) == ["REQUEST_START"]
    assert "Tensor level tracing is not supported by the mode: opentelemetry" in caplog.text


PARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_client_can_ask_to_be_traced_with_opentelemetry_only():
    def forced(tracer, output):
        assert sample(tracer) is None
        trace = sample(tracer, parent=PARENT)
        assert trace.door_context.trace_id == 0x0AF7651916CD43DD8448EB211C80319C
        assert trace.door_context.parent_span_id == 0xB7AD6B7169203331
        assert trace.context.parent_span_id == trace.door_context.span_id
        assert json.loads(trace.context_text()) == {
            "traceparent": "00-0af7651916cd43dd8448eb211c80319c-0000000000000002-01"
        }
        trace.finish()

    run(forced, mode=TraceMode.OPENTELEMETRY, rate=1000)

    def not_forced(tracer, output):
        assert sample(tracer, parent=PARENT) is None

    run(not_forced, rate=1000)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"00",
        PARENT[:-1],
        PARENT + b"-00",
        PARENT.upper(),
        PARENT.replace(b"0af", b"xyz"),
        b"ff" + PARENT[2:],
        b"00-00000000000000000000000000000000-b7ad6b7169203331-01",
        b"00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
    ],
)
def test_a_header_that_is_none_is_ignored(header):
    assert parse_trace_parent(header, b"") is None


def test_a_header_of_a_later_version_may_have_more():
    context = parse_trace_parent(b"01" + PARENT[2:] + b"-more", b"a=b")

    assert (context.trace_id, context.trace_state) == (0x0AF7651916CD43DD8448EB211C80319C, "a=b")
