"""The server's services for tests of places: they keep what was asked, and answer as the test says."""

from collections.abc import Callable

from merrow.backends.base import Answer, NewMetric, NewMetricFamily, Question
from merrow.core.errors import ServerError
from merrow.core.response import Response
from merrow.places.base import Caller, ModelCall


class RecordingServices:
    """`on_call` and `on_question`, if set, do what the server would do."""

    def __init__(self) -> None:
        self.calls: list[ModelCall] = []
        self.released: list[ModelCall] = []
        self.cancelled: list[ModelCall] = []
        self.resumed: list[ModelCall] = []
        self.questions: list[tuple[Caller, Question]] = []
        self.closed: list[Caller] = []
        self.on_call: Callable[[ModelCall], None] | None = None
        self.on_question: Callable[[Question], Answer | ServerError] | None = None

    def infer(self, call: ModelCall) -> None:
        self.calls.append(call)
        if self.on_call is not None:
            self.on_call(call)

    def release(self, call: ModelCall) -> None:
        self.released.append(call)

    def cancel(self, call: ModelCall) -> None:
        call.request.is_cancelled = True
        self.cancelled.append(call)

    def resume(self, call: ModelCall) -> None:
        self.resumed.append(call)

    def ask(self, caller: Caller, question: Question, reply: Callable[[Answer | ServerError], None]) -> None:
        self.questions.append((caller, question))
        if self.on_question is not None:
            reply(self.on_question(question))
        elif isinstance(question, (NewMetricFamily, NewMetric)):
            # A number that it had not given yet.
            reply(len(self.questions))
        else:
            reply(None)

    def close(self, caller: Caller) -> None:
        self.closed.append(caller)


def echo_call(call: ModelCall) -> None:
    """Answer a call with its inputs."""
    request = call.request
    outputs = list(request.inputs.values())
    request.sink.on_response(Response(request.model_name, 1, request.id, outputs, request.parameters))
