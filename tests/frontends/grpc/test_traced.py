"""ModelInfer and ModelStreamInfer, traced."""

from merrow.core.errors import NotFoundError, UnavailableError
from merrow.frontends.grpc.infer import GrpcInference
from merrow.frontends.grpc.stream import InferStream
from tests.frontends.fakes import FakeCall, FakeEngine, FakeModel
from tests.frontends.grpc.messages import OUTPUT, config_of, encode_request
from tests.frontends.tracing import run_traced

WAITED = ["GRPC_WAITREAD_START", "GRPC_WAITREAD_END"]
SENT = ["GRPC_SEND_START", "GRPC_SEND_END"]


def infer(respond, **settings):
    call = FakeCall()
    engine = FakeEngine(FakeModel(config_of("m")))

    def talk(tracer):
        respond(engine, lambda: GrpcInference(engine, tracer).on_infer(call, encode_request()))

    return call, run_traced(talk, **settings)


def test_a_reply_is_recorded():
    def respond(engine, send):
        send()
        assert engine.submitted[0].trace is not None
        engine.answer(outputs=[OUTPUT])

    call, traces = infer(respond)
    assert (call.status, call.on_cancel) == (0, None)
    assert traces == [WAITED + SENT]


def test_a_request_that_is_not_sampled_is_not_touched():
    def respond(engine, send):
        send()
        assert engine.submitted[0].trace is None
        engine.answer(outputs=[OUTPUT])

    assert infer(respond, rate=2)[1] == []


def test_an_error_of_a_model_is_recorded():
    def respond(engine, send):
        send()
        engine.answer(error=NotFoundError("why"))

    call, traces = infer(respond)
    assert (call.status, traces) == (5, [WAITED + SENT])


def test_a_refusal_is_recorded():
    def respond(engine, send):
        engine.submit_error = UnavailableError("full")
        send()

    call, traces = infer(respond)
    assert (call.status, traces) == (14, [WAITED + SENT])


def stream(talk):
    call = FakeCall()
    engine = FakeEngine(FakeModel(config_of("m")), FakeModel(config_of("d"), is_decoupled=True))

    def run(tracer):
        talk(engine, InferStream(call, engine, lambda stream: None, tracer), call)

    return run_traced(run)


def test_each_response_of_a_stream_is_a_sending():
    def talk(engine, stream, call):
        stream.on_message(encode_request("d"))
        engine.answer(outputs=[OUTPUT], is_final=False)
        engine.answer(outputs=[OUTPUT])

    assert stream(talk) == [WAITED + SENT * 2]


def test_responses_that_wait_their_turn_are_sent_in_it():
    def talk(engine, stream, call):
        stream.on_message(encode_request("m"))
        stream.on_message(encode_request("m"))
        engine.answer(1, outputs=[OUTPUT])
        assert call.sent == []
        engine.answer(0, outputs=[OUTPUT])
        assert len(call.sent) == 2

    assert stream(talk) == [WAITED + SENT] * 2


def test_a_request_that_a_stream_refuses_is_recorded():
    def talk(engine, stream, call):
        engine.submit_error = UnavailableError("full")
        stream.on_message(encode_request("m"))

    assert stream(talk) == [WAITED + SENT]


def test_a_stream_that_ends_finishes_what_was_under_way():
    def talk(engine, stream, call):
        stream.on_message(encode_request("m"))
        call.on_cancel()
        assert engine.cancelled == engine.submitted
        engine.answer(error=NotFoundError("cancelled"))

    assert stream(talk) == [WAITED]
