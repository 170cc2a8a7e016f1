"""Answers in the order of their requests, whatever order they come in (`preserve_ordering`).

Requests join a line. What comes for the first in line goes out at once; what comes for another waits until those before
it have had their final response. So the responses of one request stay together.
"""

from collections import deque
from collections.abc import Callable

from merrow.core.request import Request
from merrow.core.response import Response


class ResponseOrder:
    """See the module; `release` sends a response on its way, and may call back."""

    def __init__(self, release: Callable[[Request, Response], None]) -> None:
        self._release = release
        self._line: deque[Request] = deque()
        # For each request in line, what came out of turn.
        self._early: dict[Request, list[Response]] = {}

    def __contains__(self, request: Request) -> bool:
        return request in self._early

    def join(self, request: Request) -> None:
        """A request gets its place: the last."""
        self._line.append(request)
        self._early[request] = []

    def answer(self, request: Request, response: Response) -> None:
        """A response of a request in line came; release whatever has its turn now."""
        line, early = self._line, self._early
        early[request].append(response)
        while line and (responses := early[line[0]]):
            first = line[0]
            early[first] = []
            # A sink may call back: the first stays in line until it has all of its responses.
            for ready in responses:
                self._release(first, ready)
            if responses[-1].is_final:
                line.popleft()
                del early[first]

    def check_invariants(self) -> None:
        """For tests: nobody is in line twice, and nothing waits that could go."""
        assert len(self._line) == len(self._early)
        assert set(self._line) == set(self._early)
        assert not self._line or not self._early[self._line[0]]
