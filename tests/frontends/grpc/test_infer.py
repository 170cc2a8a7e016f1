"""ModelInfer."""

import pytest

from merrow.core.errors import InvalidArgumentError, NotFoundError, ServerError, UnavailableError
from merrow.frontends.grpc.infer import GrpcInference
from tests.frontends.fakes import FakeCall, FakeEngine, FakeModel
from tests.frontends.grpc.messages import OUTPUT, config_of, describe_response, encode_request


def make_engine(**arguments):
    return FakeEngine(FakeModel(config_of("m"), **arguments))


def infer(engine, message=None):
    call = FakeCall()
    GrpcInference(engine).on_infer(call, encode_request() if message is None else message)
    return call


def test_a_request_reaches_the_engine_and_its_response_the_client():
    engine = make_engine()

    call = infer(engine)
    (request,) = engine.submitted
    engine.answer(outputs=[OUTPUT])

    assert (request.id, request.model_name, request.model_version) == ("a", "m", 1)
    assert request.inputs["I"].as_numpy().tolist() == [1, 2]
    assert [describe_response(data) for data in call.sent] == [("m", "1", "a", ["O"], None)]
    assert (call.status, call.on_cancel) == (0, None)


@pytest.mark.parametrize(
    ("message", "error", "text"),
    [
        (encode_request("n"), NotFoundError, "Request for unknown model: 'n' is not found"),
        (encode_request(version="7"), NotFoundError, "Request for unknown model: 'm' version 7 is not found"),
        (
            encode_request(version="-1"),
            InvalidArgumentError,
            "invalid model version specified '-1' , version should be an integral value > 0",
        ),
        (b"\xff\xff\xff", ServerError, "Unable to parse request"),
    ],
)
def test_what_is_wrong_with_a_request_is_raised_for_the_door(message, error, text):
    engine = make_engine()
    with pytest.raises(error) as raised:
        infer(engine, message)
    assert raised.value.message == text
    assert engine.submitted == []


def test_what_is_wrong_with_a_request_s_content_ends_the_call():
    engine = make_engine()
    call = infer(engine, encode_request(input_count=2))

    assert (call.status, call.message) == (3, "[request id: a] input 'I' already exists in request")
    assert (engine.submitted, call.on_cancel) == ([], None)


def test_a_version_may_have_something_after_its_digits():
    engine = make_engine()
    infer(engine, encode_request(version="1x"))
    assert engine.submitted[0].model_version == 1


def test_a_decoupled_model_needs_a_stream():
    with pytest.raises(ServerError) as raised:
        infer(make_engine(is_decoupled=True))
    assert raised.value.message == "ModelInfer RPC doesn't support models with decoupled transaction policy"


def test_an_exiting_server_takes_no_requests():
    engine = make_engine()
    engine.is_exiting = True
    with pytest.raises(UnavailableError) as raised:
        infer(engine, encode_request("n"))
    assert raised.value.message == "GRPC server is shutting down and has stopped accepting new requests."


def test_a_refusal_of_the_engine_ends_the_call_and_forgets_the_client():
    engine = make_engine()
    engine.submit_error = UnavailableError("full")
    call = infer(engine)

    assert (call.status, call.message, call.on_cancel) == (14, "full", None)


def test_an_error_of_the_model_ends_the_call():
    engine = make_engine()
    call = infer(engine)
    engine.answer(error=NotFoundError("why"))
    assert (call.sent, call.status, call.message) == ([], 5, "why")


def test_a_defect_in_a_response_ends_the_call_and_is_logged(caplog):
    engine = make_engine()
    call = infer(engine)
    engine.answer(outputs=[object()])
    assert call.status == 13
    assert "unexpected error in a response of model 'm'" in caplog.text


def test_a_client_that_leaves_cancels_its_request():
    engine = make_engine()
    call = infer(engine)
    call.on_cancel()
    assert engine.cancelled == engine.submitted
