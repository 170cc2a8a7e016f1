"""The call into a model: whatever it raises becomes the failure of its batch or question, never of the server."""

import logging
import time
from collections.abc import Callable, Sequence

from merrow.backends.base import Execution, Instance
from merrow.core.errors import InternalError, ServerError
from merrow.core.request import Request

_LOG = logging.getLogger("merrow.model")


def execute_guarded(instance: Instance, instance_name: str, requests: Sequence[Request]) -> Execution:
    """Execute a batch; an exception fails each of its requests (a ServerError keeps its code, others are INTERNAL)."""
    start_ns = time.monotonic_ns()
    try:
        execution = instance.execute(requests)
        if len(execution.outcomes) != len(requests):
            raise InternalError(
                f"instance '{instance_name}' answered {len(execution.outcomes)} of {len(requests)} requests"
            )
        return execution
    except ServerError as error:
        failure = error
    except Exception as error:
        _LOG.exception("execution failed in instance '%s'", instance_name)
        failure = InternalError(f"{type(error).__name__}: {error}")
    end_ns = time.monotonic_ns()
    return Execution([failure] * len(requests), start_ns, start_ns, end_ns, end_ns)


def ask_guarded(is_ready: Callable[[], bool]) -> bool | ServerError:
    """What an instance says of its readiness, or why it cannot say."""
    try:
        return is_ready()
    except ServerError as error:
        return error
    except Exception as error:
        _LOG.exception("the check of an instance's readiness failed")
        return InternalError(f"{type(error).__name__}: {error}")
