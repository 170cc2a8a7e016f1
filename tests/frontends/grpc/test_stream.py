"""ModelStreamInfer."""

import pytest

from merrow.core.errors import NotFoundError, UnavailableError
from merrow.core.tensor import Tensor
from merrow.frontends.grpc.stream import InferStream
from merrow.settings import ConnectionLimits
from tests.frontends.fakes import FakeCall, FakeEngine, FakeModel
from tests.frontends.grpc.messages import OUTPUT, config_of, describe_stream_response, encode_request


class Talk:
    """A stream with its client and its engine, which has an ordinary model `m` and a decoupled one `d`."""

    def __init__(self, metadata=(), **limits):
        self.engine = FakeEngine(FakeModel(config_of("m")), FakeModel(config_of("d"), is_decoupled=True))
        self.call = FakeCall(metadata=metadata)
        self.ended = []
        self.stream = InferStream(self.call, self.engine, self.ended.append, limits=ConnectionLimits(**limits))

    def ask(self, *requests, **arguments):
        for model_name, request_id in requests:
            self.stream.on_message(encode_request(model_name, request_id, **arguments))

    def answer(self, request_id, outputs=(OUTPUT,), **arguments):
        (index,) = [index for index, request in enumerate(self.engine.submitted) if request.id == request_id]
        self.engine.answer(index, outputs, **arguments)

    @property
    def heard(self):
        return [describe_stream_response(data) for data in self.call.sent]

    @property
    def heard_ids(self):
        return [response[3] for response in self.heard]


def test_an_ordinary_response_is_always_final():
    talk = Talk()
    talk.ask(("m", "a"))
    talk.answer("a")
    assert talk.heard == [("", "m", "1", "a", ["O"], True)]
    assert talk.call.status is None


def test_ordinary_responses_leave_in_the_order_of_their_requests():
    talk = Talk()
    talk.ask(("m", "a"), ("m", "b"), ("m", "c"))

    talk.answer("b")
    talk.answer("c")
    assert talk.heard == []
    talk.answer("a")

    assert talk.heard_ids == ["a", "b", "c"]


def test_refusals_and_errors_of_models_wait_for_their_turn_too():
    talk = Talk()
    talk.ask(("m", "a"), ("nope", "b"), ("m", "c"))
    talk.ask(("m", "d"), input_count=2)
    talk.ask(("m", "e"), version="x")
    talk.answer("c", error=NotFoundError("why"), outputs=())
    assert talk.heard == []

    talk.answer("a")

    assert talk.heard == [
        ("", "m", "1", "a", ["O"], True),
        ("Request for unknown model: 'nope' is not found", "", "", "b", [], None),
        ("why", "m", "", "c", [], True),
        ("[request id: d] input 'I' already exists in request", "", "", "d", [], None),
        (
            "failed to get model version from specified version string 'x' (details: stol), version should be an "
            "integral value > 0",
            "",
            "",
            "e",
            [],
            None,
        ),
    ]
    assert talk.call.status is None


def test_a_refusal_of_the_engine_is_a_message():
    talk = Talk()
    talk.engine.submit_error = UnavailableError("full")
    talk.ask(("m", "a"))
    assert talk.heard == [("full", "", "", "a", [], None)]


def test_decoupled_responses_leave_as_they_come():
    talk = Talk()
    talk.ask(("m", "a"), ("d", "b"), ("d", "c"))

    talk.answer("c", is_final=False)
    talk.answer("b", is_final=False)
    talk.answer("c", is_final=True)
    talk.answer("b", is_final=False, error=NotFoundError("why"), outputs=())

    assert talk.heard == [
        ("", "d", "1", "c", ["O"], False),
        ("", "d", "1", "b", ["O"], False),
        ("", "d", "1", "c", ["O"], True),
        ("why", "d", "", "b", [], False),
    ]


def test_an_empty_final_response_is_sent_only_where_it_was_asked_for():
    talk = Talk()
    talk.ask(("d", "a"))
    talk.ask(("d", "b"), empty_final=True)
    for request_id in ("a", "b"):
        talk.answer(request_id, outputs=(), is_empty=True)
    assert talk.heard == [("", "d", "", "b", [], True)]


def test_a_half_closed_stream_ends_after_its_last_response():
    talk = Talk()
    talk.ask(("m", "a"), ("d", "b"))
    talk.stream.on_half_close()
    talk.answer("a")
    talk.answer("b", is_final=False)
    assert talk.call.status is None

    talk.answer("b", outputs=(), is_empty=True)

    assert (talk.call.status, talk.call.message) == (0, "")
    assert (talk.call.on_cancel, talk.call.on_writable) == (None, None)
    assert talk.ended == [talk.stream]


def test_a_stream_without_requests_ends_well():
    talk = Talk()
    talk.stream.on_half_close()
    assert talk.call.status == 0


def test_an_error_of_a_model_ends_the_call_where_the_client_asked_for_it():
    talk = Talk([(b"triton_grpc_error", b"true")])
    talk.ask(("m", "a"), ("nope", "b"), ("m", "c"), ("m", "d"))

    talk.answer("c", error=NotFoundError("why"), outputs=())
    talk.answer("d")

    assert (talk.call.status, talk.call.message, talk.heard) == (5, "why", [])
    assert {request.id for request in talk.engine.cancelled} == {"a", "d"}


def test_a_refusal_never_ends_the_call():
    talk = Talk([(b"triton_grpc_error", b"true")])
    talk.ask(("nope", "b"))
    assert talk.heard_ids == ["b"]
    assert talk.call.status is None


def test_only_the_exact_word_asks_for_it():
    talk = Talk([(b"triton_grpc_error", b"True")])
    talk.ask(("m", "a"))
    talk.answer("a", error=NotFoundError("why"), outputs=())
    assert talk.heard_ids == ["a"]


def test_a_client_that_leaves_cancels_all_its_requests():
    talk = Talk()
    talk.ask(("m", "a"), ("d", "b"), ("m", "c"))
    talk.answer("a")

    talk.call.on_cancel()

    assert {request.id for request in talk.engine.cancelled} == {"b", "c"}
    talk.answer("c")
    assert talk.heard_ids == ["a"]


def test_a_message_that_is_none_ends_the_call():
    talk = Talk()
    talk.ask(("m", "a"))
    talk.stream.on_message(b"\xff\xff\xff")
    assert (talk.call.status, talk.call.message) == (13, "Unable to parse request")
    assert [request.id for request in talk.engine.cancelled] == ["a"]
    talk.ask(("m", "b"))
    assert len(talk.engine.submitted) == 1


def test_an_exiting_server_refuses_in_the_stream():
    talk = Talk()
    talk.engine.is_exiting = True
    talk.ask(("m", "a"))
    assert talk.heard == [
        ("GRPC server is shutting down and has stopped accepting new requests.", "", "", "a", [], None)
    ]


def test_a_stream_that_is_shut_down_ends_after_what_it_accepted():
    talk = Talk()
    talk.ask(("m", "a"))
    talk.stream.shut_down()
    talk.stream.on_half_close()
    assert talk.call.status is None
    talk.answer("a")
    assert talk.heard_ids == ["a"]
    assert (talk.call.status, talk.call.message) == (
        14,
        "GRPC server is shutting down and has stopped accepting new requests.",
    )


def test_an_idle_stream_that_is_shut_down_ends_at_once():
    talk = Talk()
    talk.stream.shut_down()
    assert talk.call.status == 14


def test_a_defect_ends_the_call_and_is_logged(caplog):
    talk = Talk()
    talk.ask(("m", "a"), ("m", "b"))
    talk.answer("a", outputs=[object()])
    assert talk.call.status == 13
    assert "unexpected error in a response of model 'm'" in caplog.text

    talk = Talk()
    talk.engine.submit_error = ZeroDivisionError()
    talk.ask(("m", "a"))
    assert talk.call.status == 13
    assert "unexpected error in a stream" in caplog.text


def test_responses_wait_for_a_client_that_does_not_read_and_so_do_its_requests():
    talk = Talk()
    talk.ask(("m", "a"), ("m", "b"))
    talk.call.writable = False
    talk.answer("a")
    talk.answer("b")
    assert talk.heard == []
    assert talk.call.is_paused

    talk.call.writable = True
    talk.call.on_writable()

    assert talk.heard_ids == ["a", "b"]
    assert not talk.call.is_paused


def test_a_half_closed_stream_ends_after_what_waited():
    talk = Talk()
    talk.ask(("m", "a"))
    talk.call.writable = False
    talk.answer("a")
    talk.stream.on_half_close()
    assert talk.call.status is None
    talk.call.writable = True
    talk.call.on_writable()
    assert talk.heard_ids == ["a"]
    assert talk.call.status == 0


def test_unanswered_requests_are_bounded():
    talk = Talk(max_stream_requests=2)
    talk.ask(("m", "a"))
    assert not talk.call.is_paused
    talk.ask(("m", "b"))
    assert talk.call.is_paused
    # Answered, but not written yet.
    talk.answer("b")
    assert talk.call.is_paused
    talk.answer("a")
    assert not talk.call.is_paused


def test_responses_that_wait_for_their_turn_are_bounded():
    talk = Talk(max_stream_buffer_byte_size=10_000)
    large = Tensor("O", "INT8", (6000,), bytes(6000))
    talk.ask(("m", "a"), ("m", "b"), ("m", "c"))
    talk.answer("b", [large])
    assert not talk.call.is_paused
    talk.answer("c", [large])
    assert talk.call.is_paused

    talk.answer("a", [large])

    assert talk.heard_ids == ["a", "b", "c"]
    assert not talk.call.is_paused
    talk.ask(("m", "d"))
    talk.answer("d", [large])
    assert not talk.call.is_paused


def test_a_decoupled_model_cannot_fill_the_memory():
    talk = Talk(max_stream_buffer_byte_size=10_000)
    talk.ask(("d", "a"))
    talk.call.writable = False
    large = Tensor("O", "INT8", (6000,), bytes(6000))
    talk.answer("a", [large], is_final=False)
    assert talk.call.status is None

    talk.answer("a", [large], is_final=False)

    assert (talk.call.status, talk.call.message) == (8, "the client does not read the responses of the stream")
    assert [request.id for request in talk.engine.cancelled] == ["a"]


@pytest.mark.parametrize("count", [1, 300])
def test_a_synchronous_engine_answers_within_the_call(count):
    talk = Talk()
    submit = talk.engine.submit

    def submit_and_answer(model, request):
        submit(model, request)
        talk.engine.answer(-1, [OUTPUT])

    talk.engine.submit = submit_and_answer
    ids = [str(number) for number in range(count)]
    talk.ask(*(("m", request_id) for request_id in ids))
    assert talk.heard_ids == ids
    assert not talk.call.is_paused
