"""Sequence batching, strategy DIRECT: a sequence keeps its row of the batch.

Slot r of an instance is row r of its batches, so a model may keep what it knows of a sequence by row. A batch has the
rows 0 to the highest that has a request. A row without one, or whose request may not share a batch with the first, is
filled with padding: a request of zeros whose READY control is false. One batch at a time: the next is formed when the
instance is idle again.

A batch waits, at most `max_queue_delay_ns`, only while fewer than `minimum_utilization` of the slots have a request.

Source: Triton, sequence_batch_scheduler.cc, DirectSequenceBatch.
"""

from collections.abc import Callable, Hashable

from merrow.core.datatypes import ELEMENT_BYTE_SIZES
from merrow.core.model_config import ModelConfig
from merrow.core.request import PaddingRequest, Request
from merrow.core.response import Response
from merrow.core.tensor import Tensor, element_count
from merrow.schedule.base import BatchCut, RunBatch
from merrow.schedule.sequence_batch import OnSequenceEvent, OpenSequence, SequenceBatcher, SequencePolicy


class _Nobody:
    """The sink of padding."""

    def on_response(self, response: Response) -> None:
        """Nobody asked."""


_NOBODY = _Nobody()


class DirectSequenceBatcher(SequenceBatcher):
    """See the module. `batch_key` as for dynamic batching: equal for requests that may share a batch."""

    def __init__(
        self,
        policy: SequencePolicy,
        on_event: OnSequenceEvent,
        max_queue_delay_ns: int,
        minimum_utilization: float,
        batch_key: Callable[[Request], Hashable] | None,
    ) -> None:
        super().__init__(policy, on_event)
        self._max_queue_delay_ns = max_queue_delay_ns
        self._minimum_utilization = minimum_utilization
        self._batch_key = batch_key
        # Instances that wait for more slots, and until when.
        self._delays: dict[int, int] = {}

    @classmethod
    def from_config(
        cls,
        config: ModelConfig,
        policy: SequencePolicy,
        on_event: OnSequenceEvent,
        batch_key: Callable[[Request], Hashable] | None,
    ) -> "DirectSequenceBatcher":
        """The batcher that a normalised configuration asks for."""
        assert config.sequence_batching is not None
        direct = config.sequence_batching.direct
        return cls(
            policy,
            on_event,
            direct.max_queue_delay_microseconds * 1000 if direct is not None else 0,
            direct.minimum_slot_utilization if direct is not None else 0.0,
            batch_key,
        )

    def next_deadline_ns(self) -> int | None:
        timeout_ns = self.next_timeout_ns()
        deadlines = list(self._delays.values())
        if timeout_ns is not None:
            deadlines.append(timeout_ns)
        return min(deadlines) if deadlines else None

    def decide(self, now_ns: int, instance: int = 0) -> RunBatch | None:
        choice = self._choose(now_ns, instance)
        if choice is None:
            return None
        row_count, cut = choice
        return RunBatch(self._take(instance, row_count, now_ns), cut)

    def has_batch(self, now_ns: int, instance: int = 0) -> bool:
        return self._choose(now_ns, instance) is not None

    def _choose(self, now_ns: int, instance: int) -> tuple[int, BatchCut] | None:
        """How many rows the next batch has, and why it does not wait; None to wait."""
        self._delays.pop(instance, None)
        slots = self._slots[instance]
        ready = 0
        highest = -1
        oldest_ns = now_ns
        for slot in slots:
            if slot.sequence is not None and slot.sequence.queue:
                ready += 1
                highest = slot.number
                oldest_ns = min(oldest_ns, slot.sequence.queue[0].queue_ns)
        if not ready:
            return None
        cut = BatchCut.NOTHING_TO_WAIT_FOR
        if self._minimum_utilization:
            cut = BatchCut.SLOT_UTILIZATION
            if ready / len(slots) < self._minimum_utilization:
                if now_ns - oldest_ns < self._max_queue_delay_ns:
                    self._delays[instance] = oldest_ns + self._max_queue_delay_ns
                    return None
                cut = BatchCut.QUEUE_DELAY
        return highest + 1, cut

    def _take(self, instance: int, row_count: int, now_ns: int) -> tuple[Request, ...]:
        rows: list[Request | None] = [None] * row_count
        model: Request | None = None
        key: Hashable = None
        taken: list[OpenSequence] = []
        for slot in self._slots[instance][:row_count]:
            sequence = slot.sequence
            if sequence is None or not sequence.queue:
                continue
            head = sequence.queue[0]
            self._prepare(sequence, head)
            if self._batch_key is not None:
                if model is None:
                    key = self._batch_key(head)
                elif self._batch_key(head) != key:
                    continue
            if model is None:
                model = head
            sequence.queue.popleft()
            sequence.running = head
            self._count -= 1
            rows[slot.number] = head
            taken.append(sequence)
        assert model is not None
        for sequence in taken:
            # Whoever moves into the slot is for the next batch.
            self._free_if_over(sequence, now_ns)
        template = model
        return tuple([row if row is not None else self._padding(template) for row in rows])

    def _padding(self, template: Request) -> PaddingRequest:
        """A row like `template`, of zeros."""
        inputs = {tensor.name: _zeros(tensor) for tensor in template.inputs.values()}
        inputs.update(self._policy.controls.of_padding())
        return PaddingRequest(template.model_name, template.model_version, _NOBODY, inputs)

    def _advance(self, sequence: OpenSequence, now_ns: int) -> None:
        """The rows of an instance are read when it is idle."""

    def _after_release(self, sequence: OpenSequence, now_ns: int) -> None:
        """As above."""

    def _take_back(self, sequence: OpenSequence, request: Request) -> bool:
        return False

    def _take_back_all(self, instance: int) -> list[Request]:
        self._delays.pop(instance, None)
        return []

    def _holds_slot(self, sequence: OpenSequence) -> bool:
        # The next batch is formed only when this one is back.
        return False

    def _batching_count(self) -> int:
        return 0


def _zeros(tensor: Tensor) -> Tensor:
    count = element_count(tensor.shape)
    return Tensor(tensor.name, tensor.datatype, tensor.shape, bytes(count * (ELEMENT_BYTE_SIZES[tensor.datatype] or 4)))
