"""A batch executed request by request, as most probes do it."""

import time
from collections.abc import Callable, Sequence

from merrow.backends.base import Execution, Outcome
from merrow.core.errors import ServerError
from merrow.core.request import Request
from merrow.core.response import Response


def execute_each(execute: Callable[[Request], Response], requests: Sequence[Request]) -> Execution:
    """One request after another; one that fails does so alone, and all of the time counts as compute."""
    start_ns = time.monotonic_ns()
    outcomes: list[Outcome] = []
    for request in requests:
        try:
            outcomes.append(execute(request))
        except ServerError as error:
            outcomes.append(error)
    end_ns = time.monotonic_ns()
    return Execution(outcomes, start_ns, start_ns, end_ns, end_ns)
