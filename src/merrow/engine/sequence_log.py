"""What an operator learns of sequences: a line in the log and a count for each that lost its slot before its end."""

import logging

from merrow.core.request import Request
from merrow.observe.statistics import StatisticsRecorder
from merrow.schedule.sequence_batch import SequenceEvent

_LOG = logging.getLogger("merrow.engine")

_REASONS = {
    SequenceEvent.IDLE: "no request came for max_sequence_idle_microseconds",
    SequenceEvent.CANCELLED: "a client left while its request was queued",
    SequenceEvent.INSTANCE_LOST: "its model instance died",
    SequenceEvent.BACKLOG_TIMEOUT: "a request waited in the backlog for longer than its timeout",
}


class SequenceLog:
    """Told of the events of one model version's sequences."""

    def __init__(self, model_name: str, statistics: StatisticsRecorder) -> None:
        self._model_name = model_name
        self._statistics = statistics

    def on_event(self, event: SequenceEvent, request: Request | None, correlation_id: int | str) -> None:
        """See `schedule.sequence_batch.OnSequenceEvent`."""
        if event is SequenceEvent.CONFLICT:
            _LOG.warning(
                "%ssequence %s for model '%s' has a conflict. The previous sequence did not end before this sequence "
                "start. Previous sequence will be terminated early.",
                request.log_prefix if request is not None else "",
                correlation_id,
                self._model_name,
            )
            return
        _LOG.info("sequence %s of model '%s' was ended: %s", correlation_id, self._model_name, _REASONS[event])
        self._statistics.record_eviction(event.value)
