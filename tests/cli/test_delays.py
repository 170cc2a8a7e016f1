import sys

import pytest

from merrow.cli.delays import build_grpc_delays, build_scheduler_hold
from merrow.settings import GrpcDelays, SchedulerHold


def test_without_variables_nothing_is_held_back():
    warnings = []

    assert build_scheduler_hold({}) == SchedulerHold()
    assert build_grpc_delays({}, warnings) is None
    assert warnings == []


@pytest.mark.parametrize(
    ("text", "count"), [("12", 12), (" 3x", 3), ("", 0), ("none", 0), ("0", 0), ("-1", sys.maxsize)]
)
def test_a_scheduler_waits_for_so_many_requests(text, count):
    assert build_scheduler_hold({"TRITONSERVER_DELAY_SCHEDULER": text}) == SchedulerHold(count)


def test_a_scheduler_waits_for_a_backlog_too():
    environment = {"TRITONSERVER_DELAY_SCHEDULER": "10", "TRITONSERVER_BACKLOG_DELAY_SCHEDULER": "2"}

    assert build_scheduler_hold(environment) == SchedulerHold(10, 2)


@pytest.mark.parametrize(
    ("variable", "field"),
    [
        ("TRITONSERVER_DELAY_GRPC_PROCESS_ENTRY", "process_entry_ms"),
        ("TRITONSERVER_DELAY_GRPC_NOTIFICATION", "notification_ms"),
        ("TRITONSERVER_DELAY_GRPC_PROCESS", "process_ms"),
        ("TRITONSERVER_DELAY_RESPONSE_COMPLETE_EXEC", "response_complete_exec_ms"),
        ("TRITONSERVER_DELAY_RESPONSE_COMPLETION", "response_completion_ms"),
        ("TRITONSERVER_DELAY_GRPC_COMPLETE", "complete_ms"),
        ("TRITONSERVER_DELAY_GRPC_RESPONSE", "response_ms"),
        ("TRITONSERVER_SERVER_DELAY_GRPC_RESPONSE_SEC", "server_response_seconds"),
    ],
)
def test_each_variable_holds_calls_back_at_its_point(variable, field):
    assert build_grpc_delays({variable: "7"}, []) == GrpcDelays(**{field: 7})
    assert build_grpc_delays({variable: "seven"}, []) is None
    assert build_grpc_delays({variable: "-7"}, []) is None


@pytest.mark.parametrize("text", ["soon", "2147483648"])
def test_a_delay_that_is_no_number_is_warned_about(text):
    warnings = []

    assert build_grpc_delays({"TRITONSERVER_DELAY_GRPC_PROCESS": text}, warnings) is None
    assert warnings == [f"TRITONSERVER_DELAY_GRPC_PROCESS has no effect: expected milliseconds, got '{text}'"]


def test_a_delay_that_nothing_waits_for_is_said_to_have_no_effect():
    warnings = []

    assert build_grpc_delays({"TRITONSERVER_DELAY_GRPC_ENQUEUE": "7"}, warnings) is None
    assert warnings == ["TRITONSERVER_DELAY_GRPC_ENQUEUE has no effect: calls have no state that goes back to a queue"]
