"""From the environment to the delays that tests of servers ask for. None of these variables has a flag.

Source: Triton, environment variables TRITONSERVER_...
"""

import re
import sys
from collections.abc import Mapping

from merrow.settings import GrpcDelays, SchedulerHold

_INTEGER = re.compile(r"\s*([+-]?\d+)")
_MAX_INT32 = 2**31 - 1

_GRPC_MS = {
    "TRITONSERVER_DELAY_GRPC_PROCESS_ENTRY": "process_entry_ms",
    "TRITONSERVER_DELAY_GRPC_NOTIFICATION": "notification_ms",
    "TRITONSERVER_DELAY_GRPC_PROCESS": "process_ms",
    "TRITONSERVER_DELAY_RESPONSE_COMPLETE_EXEC": "response_complete_exec_ms",
    "TRITONSERVER_DELAY_RESPONSE_COMPLETION": "response_completion_ms",
    "TRITONSERVER_DELAY_GRPC_COMPLETE": "complete_ms",
    "TRITONSERVER_DELAY_GRPC_RESPONSE": "response_ms",
}
# Before the state of an answered, cancelled call is given back to a pool: here nothing waits for that.
_WITHOUT_EFFECT = "TRITONSERVER_DELAY_GRPC_ENQUEUE"


def build_scheduler_hold(environment: Mapping[str, str]) -> SchedulerHold:
    """How many requests schedulers wait for; a negative number of them never comes together."""
    request_count = _integer(environment, "TRITONSERVER_DELAY_SCHEDULER")
    return SchedulerHold(
        sys.maxsize if request_count < 0 else request_count,
        max(0, _integer(environment, "TRITONSERVER_BACKLOG_DELAY_SCHEDULER")),
    )


def build_grpc_delays(environment: Mapping[str, str], warnings: list[str]) -> GrpcDelays | None:
    """Where gRPC calls are held back, and for how long; None for nowhere."""
    if _milliseconds(environment, _WITHOUT_EFFECT, warnings) > 0:
        warnings.append(f"{_WITHOUT_EFFECT} has no effect: calls have no state that goes back to a queue")
    delays = {field: _milliseconds(environment, name, warnings) for name, field in _GRPC_MS.items()}
    seconds = max(0, _integer(environment, "TRITONSERVER_SERVER_DELAY_GRPC_RESPONSE_SEC"))
    if not seconds and not any(delays.values()):
        return None
    return GrpcDelays(**delays, server_response_seconds=seconds)


def _milliseconds(environment: Mapping[str, str], name: str, warnings: list[str]) -> int:
    """As C++'s `stoi` reads it. 0 where there is no number that 32 bits hold, which is then warned about."""
    text = environment.get(name, "")
    match = _INTEGER.match(text)
    if match is not None and -_MAX_INT32 - 1 <= int(match[1]) <= _MAX_INT32:
        return max(0, int(match[1]))
    if text:
        warnings.append(f"{name} has no effect: expected milliseconds, got '{text}'")
    return 0


def _integer(environment: Mapping[str, str], name: str) -> int:
    """As C's `atoi` reads it: 0 where there is no number."""
    match = _INTEGER.match(environment.get(name, ""))
    return int(match[1]) if match is not None else 0
