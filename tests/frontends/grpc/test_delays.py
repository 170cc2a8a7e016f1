import pytest
from tritonclient.grpc import service_pb2 as pb

from merrow.core.errors import NotFoundError
from merrow.frontends.grpc.delays import DelayedGrpc
from merrow.net.exchange import GrpcCall
from merrow.settings import GrpcDelays

INFER = b"/inference.GRPCInferenceService/ModelInfer"
STREAM = b"/inference.GRPCInferenceService/ModelStreamInfer"
LIVE = b"/inference.GRPCInferenceService/ServerLive"
WATCH = b"/grpc.health.v1.Health/Watch"


class Loop:
    """Time that a test moves."""

    def __init__(self):
        self.now = 100.0
        self.calls = []

    def time(self):
        return self.now

    def call_at(self, when, callback):
        self.calls.append((when, callback))

    def call_later(self, seconds, callback):
        self.call_at(self.now + seconds, callback)

    def pass_time(self, seconds):
        self.now = round(self.now + seconds, 6)
        due = [call for call in self.calls if call[0] <= self.now + 1e-9]
        self.calls = [call for call in self.calls if call not in due]
        for _, callback in sorted(due, key=lambda call: call[0]):
            callback()


class Call(GrpcCall):
    def __init__(self, path):
        self.path = path
        self.metadata = ()
        self.on_cancel = None
        self.on_writable = None
        self.log = []

    is_writable = True

    def pause_reading(self):
        self.log.append("pause")

    def resume_reading(self):
        self.log.append("resume")

    def reply(self, parts):
        self.log.append(b"".join(parts))

    def send(self, parts):
        self.log.append(b"".join(parts))

    def finish(self, status=0, message=""):
        self.log.append((status, message))


class Application:
    """Answers at once, unless told to wait."""

    def __init__(self):
        self.calls = []
        self.cancelled = []
        self.answers = True

    def is_streaming(self, path):
        return path in (STREAM, WATCH)

    def compression_of(self, path):
        return None

    def on_unary(self, call, message):
        self.calls.append(bytes(message))
        call.on_cancel = lambda: self.cancelled.append(call.path)
        if self.answers:
            call.reply([b"answer"])

    def on_stream(self, call):
        application = self

        class Stream:
            def on_message(self, message):
                application.calls.append(bytes(message))
                call.send([b"first"])
                call.send([b"second"])

            def on_half_close(self):
                call.finish(0, "")

        return Stream()


class Engine:
    def find_model(self, name, version):
        if name == "missing":
            raise NotFoundError("no")

        class Model:
            is_decoupled = name == "decoupled"

        return Model()


@pytest.fixture
def loop():
    return Loop()


def delayed(loop, **delays):
    return DelayedGrpc(Application(), Engine(), GrpcDelays(**delays), loop)


def test_a_request_enters_later(loop):
    grpc = delayed(loop, process_entry_ms=100, process_ms=50)
    call = Call(INFER)
    grpc.on_unary(call, b"request")
    loop.pass_time(0.149)
    assert grpc._inner.calls == []
    loop.pass_time(0.001)

    assert grpc._inner.calls == [b"request"]
    assert call.log == [b"answer"]


@pytest.mark.parametrize("delay", ["response_complete_exec_ms", "response_completion_ms"])
def test_an_answer_leaves_later(loop, delay):
    grpc = delayed(loop, **{delay: 100})
    call = Call(INFER)
    grpc.on_unary(call, b"request")
    assert (grpc._inner.calls, call.log) == ([b"request"], [])
    loop.pass_time(0.1)

    assert call.log == [b"answer"]


def test_calls_do_not_wait_for_each_other(loop):
    grpc = delayed(loop, response_completion_ms=100)
    calls = [Call(INFER) for _ in range(3)]
    for call in calls:
        grpc.on_unary(call, b"request")
    loop.pass_time(0.1)

    assert [call.log for call in calls] == [[b"answer"]] * 3


def test_a_client_that_left_is_heard_of_later_and_answered_nothing(loop):
    grpc = delayed(loop, notification_ms=100, process_ms=50, response_completion_ms=100)
    call = Call(INFER)
    grpc.on_unary(call, b"request")
    loop.pass_time(0.05)
    call.on_cancel()
    assert grpc._inner.cancelled == []
    loop.pass_time(0.15)

    assert grpc._inner.cancelled == [INFER]
    assert call.log == []


def test_without_a_delay_a_cancellation_is_passed_on_at_once(loop):
    grpc = delayed(loop, response_completion_ms=100)
    call = Call(INFER)
    grpc.on_unary(call, b"request")
    call.on_cancel()

    assert grpc._inner.cancelled == [INFER]


def test_a_client_that_leaves_while_its_request_is_held_back_asked_nothing(loop):
    grpc = delayed(loop, process_entry_ms=100)
    call = Call(INFER)
    grpc.on_unary(call, b"request")
    call.on_cancel()
    loop.pass_time(0.1)

    assert grpc._inner.calls == []


def test_other_methods_are_answered_one_after_another(loop):
    grpc = delayed(loop, server_response_seconds=2)
    calls = [Call(LIVE) for _ in range(2)]
    for call in calls:
        grpc.on_unary(call, b"")
    loop.pass_time(2)
    assert [call.log for call in calls] == [[b"answer"], []]
    loop.pass_time(2)
    assert [call.log for call in calls] == [[b"answer"], [b"answer"]]
    infer = Call(INFER)
    grpc.on_unary(infer, b"request")
    assert infer.log == [b"answer"]


def message(model_name):
    return pb.ModelInferRequest(model_name=model_name).SerializeToString()


@pytest.mark.parametrize(("model", "seconds"), [("ordinary", 0.1), ("decoupled", 0.3), ("missing", 0.1)])
def test_each_message_of_a_stream_leaves_later(loop, model, seconds):
    grpc = delayed(loop, complete_ms=100, response_ms=200, process_entry_ms=50)
    call = Call(STREAM)
    stream = grpc.on_stream(call)
    stream.on_message(message(model))
    stream.on_half_close()
    loop.pass_time(0.05)
    assert grpc._inner.calls == [message(model)]
    assert call.log == []
    loop.pass_time(seconds)
    assert call.log == [b"first"]
    loop.pass_time(seconds)
    assert call.log == [b"first", b"second"]
    loop.pass_time(seconds)
    assert call.log == [b"first", b"second", (0, "")]


def test_other_streams_are_left_alone(loop):
    grpc = delayed(loop, complete_ms=100)
    call = Call(WATCH)
    grpc.on_stream(call).on_message(b"x")

    assert call.log == [b"first", b"second"]
    assert grpc.is_streaming(WATCH)
    assert grpc.compression_of(INFER) is None
