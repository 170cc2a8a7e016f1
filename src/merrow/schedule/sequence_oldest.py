"""Sequence batching, strategy OLDEST: a sequence keeps its instance, and its oldest requests are batched dynamically.

Each instance has a dynamic batcher of its own, into which each of its sequences puts one request at a time: the next
when the former came back. Batches are cut by preferred sizes and queue delay, in order of arrival there, and hold
requests of different sequences.

Source: Triton, sequence_batch_scheduler.cc, OldestSequenceBatch.
"""

from collections.abc import Callable, Hashable

from merrow.core.model_config import ModelConfig, ModelQueuePolicy
from merrow.core.request import SEQUENCE_END, Request
from merrow.schedule.base import RunBatch, Scheduler
from merrow.schedule.dynamic_batch import BatchPolicy
from merrow.schedule.sequence_batch import OnSequenceEvent, OpenSequence, SequenceBatcher, SequencePolicy


class OldestSequenceBatcher(SequenceBatcher):
    """See the module.

    Args:
        make_batcher: a dynamic batcher for one more instance.
    """

    def __init__(
        self, policy: SequencePolicy, on_event: OnSequenceEvent, make_batcher: Callable[[], Scheduler]
    ) -> None:
        super().__init__(policy, on_event)
        self._make_batcher = make_batcher
        self._batchers: list[Scheduler] = []

    def add_instance(self) -> None:
        super().add_instance()
        self._batchers.append(self._make_batcher())

    def retire_instance(self, instance: int, now_ns: int) -> bool:
        return super().retire_instance(instance, now_ns) and not len(self._batchers[instance])

    def next_deadline_ns(self) -> int | None:
        deadlines = [batcher.next_deadline_ns() for batcher in self._batchers]
        deadlines.append(self.next_timeout_ns())
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def decide(self, now_ns: int, instance: int = 0) -> RunBatch | None:
        batch = self._batchers[instance].decide(now_ns)
        if batch is not None:
            self._count -= len(batch.requests)
        return batch

    def has_batch(self, now_ns: int, instance: int = 0) -> bool:
        return self._batchers[instance].has_batch(now_ns)

    def _advance(self, sequence: OpenSequence, now_ns: int) -> None:
        if sequence.running is not None or not sequence.queue:
            return
        assert sequence.slot is not None
        request = sequence.queue.popleft()
        sequence.running = request
        self._prepare(sequence, request)
        queue_ns = request.queue_ns
        self._batchers[sequence.slot.instance].enqueue(request, now_ns)
        # The wait behind its sequence counts as queueing, too.
        request.queue_ns = queue_ns
        self._free_if_over(sequence, now_ns)

    def _after_release(self, sequence: OpenSequence, now_ns: int) -> None:
        if sequence.slot is not None:
            self._advance(sequence, now_ns)

    def _take_back(self, sequence: OpenSequence, request: Request) -> bool:
        return any(batcher.cancel(request, 0) for batcher in self._batchers)

    def _take_back_all(self, instance: int) -> list[Request]:
        return list(self._batchers[instance].drain())

    def _holds_slot(self, sequence: OpenSequence) -> bool:
        # An END is on its way: whoever comes next need not wait for it.
        return sequence.running is not None and not sequence.running.flags & SEQUENCE_END

    def _batching_count(self) -> int:
        return sum(len(batcher) for batcher in self._batchers)


def oldest_batch_policy(config: ModelConfig, batch_key: Callable[[Request], Hashable] | None) -> BatchPolicy:
    """How an instance's batches are cut, from a normalised configuration with `oldest`."""
    assert config.sequence_batching is not None
    oldest = config.sequence_batching.oldest
    assert oldest is not None
    max_batch_size = max(1, config.max_batch_size)
    return BatchPolicy(
        max_batch_size=max_batch_size,
        preferred_batch_sizes=frozenset(oldest.preferred_batch_size) or frozenset({max_batch_size}),
        max_queue_delay_ns=oldest.max_queue_delay_microseconds * 1000,
        priority_levels=0,
        default_priority_level=0,
        default_queue_policy=ModelQueuePolicy(),
        priority_queue_policies={},
        batch_key=batch_key,
    )
