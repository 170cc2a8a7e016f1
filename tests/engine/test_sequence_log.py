import logging

import pytest

from merrow.core.request import Request
from merrow.engine.sequence_log import SequenceLog
from merrow.observe.statistics import StatisticsRecorder
from merrow.schedule.sequence_batch import SequenceEvent


def evictions(statistics):
    return statistics.snapshot("m", 1, 0, 0).sequence_evictions


def test_a_conflict_is_a_warning_in_tritons_words(caplog):
    statistics = StatisticsRecorder()
    log = SequenceLog("m", statistics)
    log.on_event(SequenceEvent.CONFLICT, Request("m", 1, None, {}, id="r"), 5)

    assert caplog.record_tuples == [
        (
            "merrow.engine",
            logging.WARNING,
            "[request id: r] sequence 5 for model 'm' has a conflict. The previous sequence did not end before this "
            "sequence start. Previous sequence will be terminated early.",
        )
    ]
    assert evictions(statistics) == {}


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (SequenceEvent.IDLE, "no request came for max_sequence_idle_microseconds"),
        (SequenceEvent.CANCELLED, "a client left while its request was queued"),
        (SequenceEvent.INSTANCE_LOST, "its model instance died"),
        (SequenceEvent.BACKLOG_TIMEOUT, "a request waited in the backlog for longer than its timeout"),
    ],
)
def test_a_sequence_that_did_not_end_by_itself_is_logged_and_counted(event, reason, caplog):
    caplog.set_level(logging.INFO, "merrow.engine")
    statistics = StatisticsRecorder()
    log = SequenceLog("m", statistics)
    for correlation_id in (5, "six"):
        log.on_event(event, None, correlation_id)

    assert caplog.messages == [
        f"sequence 5 of model 'm' was ended: {reason}",
        f"sequence six of model 'm' was ended: {reason}",
    ]
    assert evictions(statistics) == {event.value: 2}
