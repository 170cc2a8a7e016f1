"""An `InstanceHost` for tests of backends."""

import threading
from collections.abc import Callable, Sequence

from merrow.backends.base import Answer, DropMetric, DropMetricFamily, Question
from merrow.core.errors import ServerError, UnsupportedError
from merrow.core.request import Request
from merrow.core.response import Response


class RecordingHost:
    """Keeps what an instance sends, in order, and what it asks; `on_call` and `on_question` answer as the test says."""

    copies_tensors = True

    def __init__(self) -> None:
        self.sent: list[tuple[Request, Response]] = []
        self.calls: list[Request] = []
        self.cancelled: list[Request] = []
        self.consumed = 0
        self.questions: list[Question] = []
        self.on_call: Callable[[Request], None] | None = None
        self.on_question: Callable[[Question], Answer] | None = None
        self._news = threading.Condition()

    def can_wait(self) -> bool:
        """See `backends.base.InstanceHost`."""
        return True

    def send(self, request: Request, response: Response) -> None:
        """See `backends.base.InstanceHost`."""
        with self._news:
            self.sent.append((request, response))
            self._news.notify_all()

    def wait_for_end(self, request: Request, timeout_seconds: float = 10) -> list[Response]:
        """All responses to a request, the last of which is final.

        Raises:
            TimeoutError: the last one does not come.
        """
        with self._news:
            if not self._news.wait_for(
                lambda: any(other is request and response.is_final for other, response in self.sent), timeout_seconds
            ):
                raise TimeoutError(f"no final response among {self.sent}")
            return [response for other, response in self.sent if other is request]

    def infer(self, request: Request, is_decoupled: bool, parents: Sequence[Request], trace: Request | None) -> None:
        """See `backends.base.InstanceHost`."""
        self.calls.append(request)
        if self.on_call is None:
            error = UnsupportedError("there are no other models")
            request.sink.on_response(Response(request.model_name, request.model_version, error=error))
        else:
            self.on_call(request)

    def cancel(self, request: Request) -> None:
        """See `backends.base.InstanceHost`."""
        self.cancelled.append(request)

    def consume(self, request: Request, byte_size: int) -> None:
        """See `backends.base.InstanceHost`."""
        self.consumed += byte_size

    def ask(self, question: Question) -> Answer:
        """See `backends.base.InstanceHost`."""
        self.questions.append(question)
        if self.on_question is None:
            return None
        answer = self.on_question(question)
        if isinstance(answer, ServerError):
            raise answer
        return answer

    def drop(self, question: DropMetric | DropMetricFamily) -> None:
        """See `backends.base.InstanceHost`."""
        self.questions.append(question)
