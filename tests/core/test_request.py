"""Requests: what they are before anything happened to them, and how errors name them."""

from merrow.core.request import Request
from merrow.core.response import Response
from merrow.core.tensor import Tensor


class Sink:
    def on_response(self, response: Response) -> None:
        raise AssertionError("nothing answers here")


def test_a_request_starts_with_nothing_decided():
    sink = Sink()
    inputs = {"A": Tensor("A", "INT8", (1,), b"a")}

    request = Request("m", 3, sink, inputs)

    assert (request.model_name, request.model_version, request.sink, request.inputs) == ("m", 3, sink, inputs)
    assert (request.id, request.requested_outputs, request.parameters) == ("", (), None)
    assert (request.priority, request.timeout_us, request.correlation_id, request.flags) == (0, 0, 0, 0)
    assert (request.batch_size, request.arrival_ns, request.queue_ns) == (1, 0, 0)
    assert not request.is_cancelled
    assert not request.is_raw


def test_errors_name_a_request_by_its_id():
    assert Request("m", 1, Sink(), {}, id="abc").log_prefix == "[request id: abc] "
    assert Request("m", 1, Sink(), {}).log_prefix == "[request id: <id_unknown>] "
