"""The stream around reflection."""

from merrow.frontends.grpc import reflection
from merrow.frontends.grpc.reflection import ReflectionStream
from merrow.wire._generated.reflection_v1_pb2 import ServerReflectionRequest
from tests.frontends.fakes import FakeCall

REQUEST = ServerReflectionRequest(list_services="").SerializeToString()


def test_questions_are_answered_until_the_client_ends():
    call = FakeCall()
    stream = ReflectionStream(call)
    stream.on_message(REQUEST)
    stream.on_message(REQUEST)
    stream.on_half_close()

    assert (len(call.sent), call.status) == (2, 0)


def test_a_client_that_does_not_read_is_not_read():
    call = FakeCall()
    stream = ReflectionStream(call)
    call.writable = False
    stream.on_message(REQUEST)
    assert call.is_paused
    call.writable = True
    call.on_writable()
    call.on_writable()
    assert not call.is_paused


def test_a_broken_question_ends_the_call():
    call = FakeCall()
    ReflectionStream(call).on_message(b"\xff")
    assert (call.status, call.message) == (13, "Unable to parse request")


def test_a_defect_is_logged_and_told(monkeypatch, caplog):
    monkeypatch.setattr(reflection, "answer_reflection_request", lambda message: 1 / 0)
    call = FakeCall()
    ReflectionStream(call).on_message(REQUEST)
    assert call.status == 13
    assert "unexpected error in reflection" in caplog.text
