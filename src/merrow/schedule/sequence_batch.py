"""Sequence batching: the requests of one sequence go to one instance, in order, one at a time.

A sequence is known by its correlation id. It begins with a request that has the START flag and takes a slot, or a place
in the backlog while no slot is free. Each instance has a number of slots; the smallest free number is taken first, of
the instance that was made known first.

    START ──► slot free ─────────────► in a slot ──► its last request is dispatched ──► slot free for the backlog
       └────► no slot ──► in backlog ─────▲
                             └──► a request's timeout passed, or one was cancelled: all its requests are refused

What closes a sequence: the END flag; a slot, and no arrival, for `max_idle_ns` (evicted); a queued request that was
cancelled (it and what is behind it end with it); the loss of its instance (evicted). A closed sequence runs what it has
queued, its slot is free after that, and its correlation id means a new sequence from then on. A second START on an open
id goes on in the same place.

Of an iterative model each request with START is a sequence of its own, whatever its id, and it is over when the model
does not reschedule it: END means nothing. It arrives again with each turn, so that a turn must not take `max_idle_ns`.

How requests in slots become batches is the business of the two strategies, `sequence_direct` and `sequence_oldest`.

Source: Triton, sequence_batch_scheduler.cc; model_configuration.md, "Sequence Batcher".
"""

import enum
import heapq
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from merrow.core.errors import InvalidArgumentError, UnavailableError
from merrow.core.model_config import ModelConfig
from merrow.core.request import SEQUENCE_END, SEQUENCE_START, Request
from merrow.core.response import Response
from merrow.schedule.base import Refusal, RunBatch, not_iterative
from merrow.schedule.deadlines import Deadlines
from merrow.schedule.sequence_controls import SequenceControls
from merrow.schedule.sequence_state import SequenceStates, StateRule


class SequenceEvent(enum.Enum):
    """What happened to a sequence that its client should not be surprised by."""

    CONFLICT = "conflict"
    IDLE = "idle"
    CANCELLED = "cancelled"
    INSTANCE_LOST = "instance_lost"
    BACKLOG_TIMEOUT = "backlog_timeout"


OnSequenceEvent = Callable[[SequenceEvent, Request | None, "int | str"], None]
"""Told of each event, the request that caused it if one did, and the correlation id. All but a conflict end it."""


@dataclass(frozen=True, slots=True)
class SequencePolicy:
    """A model's sequence batching settings that both strategies share."""

    model_name: str
    slots_per_instance: int
    max_idle_ns: int
    is_iterative: bool
    controls: SequenceControls
    state_rules: tuple[StateRule, ...]

    @classmethod
    def from_config(cls, config: ModelConfig, state_rules: tuple[StateRule, ...]) -> "SequencePolicy":
        """The policy that a normalised configuration with `sequence_batching` asks for."""
        batching = config.sequence_batching
        assert batching is not None
        candidates = batching.oldest.max_candidate_sequences if batching.oldest is not None else 0
        return cls(
            model_name=config.name,
            slots_per_instance=candidates or max(1, config.max_batch_size),
            max_idle_ns=batching.max_sequence_idle_microseconds * 1000,
            is_iterative=batching.iterative_sequence,
            controls=SequenceControls(config),
            state_rules=state_rules,
        )


class Slot:
    """A place for one sequence on one instance."""

    __slots__ = ("instance", "number", "sequence")

    def __init__(self, instance: int, number: int) -> None:
        self.instance = instance
        self.number = number
        self.sequence: OpenSequence | None = None


class OpenSequence:
    """A sequence from its start until nothing of it is left.

    `queue` holds requests that were not dispatched, `running` the one that was (to a batch, or to the queue that makes
    batches). With `slot` None it is in the backlog, or over; there, `is_unwatched` says that nobody looks any more
    whether it is idle.
    """

    __slots__ = (
        "correlation_id",
        "expiration_ns",
        "is_closed",
        "is_unwatched",
        "last_active_ns",
        "queue",
        "running",
        "slot",
        "states",
    )

    def __init__(self, correlation_id: int | str, states: SequenceStates | None) -> None:
        self.correlation_id = correlation_id
        self.states = states
        self.queue: deque[Request] = deque()
        self.running: Request | None = None
        self.slot: Slot | None = None
        self.is_closed = False
        self.is_unwatched = False
        self.last_active_ns = 0
        # In the backlog: when the first of its requests has waited too long.
        self.expiration_ns: int | None = None


class SequenceBatcher(ABC):
    """What both strategies share; a `schedule.base.Scheduler`."""

    follows_requests = True

    def __init__(self, policy: SequencePolicy, on_event: OnSequenceEvent) -> None:
        self._policy = policy
        self._on_event = on_event
        self._slots: list[list[Slot]] = []
        # Instances that take no further sequences: they died, and may come back, or leave for good.
        self._lost: set[int] = set()
        self._retired: set[int] = set()
        # (slot number, instance) of each free slot of an instance that is there.
        self._free: list[tuple[int, int]] = []
        self._backlog: deque[OpenSequence] = deque()
        # Sequences that take further requests by their correlation id; no other knows that of a generation without one.
        self._open: dict[int | str, OpenSequence] = {}
        self._sequence_of: dict[Request, OpenSequence] = {}
        self._count = 0
        self._next_id = 1
        # Idle limits of open sequences, which are put right when they are due, and timeouts of the backlog.
        self._idle: Deadlines[OpenSequence] = Deadlines(lambda _, sequence: sequence.is_closed)
        self._expirations: Deadlines[OpenSequence] = Deadlines(
            lambda deadline_ns, sequence: sequence.expiration_ns != deadline_ns
        )
        # Slots that came free and were not offered to the backlog yet; None while nobody offers.
        self._freed: list[Slot] | None = None

    def __len__(self) -> int:
        return self._count

    @property
    def held_count(self) -> int:
        return self._count - self.backlog_count

    @property
    def backlog_count(self) -> int:
        """Requests of sequences that wait for a slot."""
        return sum(len(sequence.queue) for sequence in self._backlog)

    @property
    def sequence_count(self) -> int:
        """Sequences that have a slot or wait for one."""
        return len(self._backlog) + sum(slot.sequence is not None for slots in self._slots for slot in slots)

    def add_instance(self) -> None:
        instance = len(self._slots)
        slots = [Slot(instance, number) for number in range(self._policy.slots_per_instance)]
        self._slots.append(slots)
        for slot in slots:
            heapq.heappush(self._free, (slot.number, instance))

    def enqueue(self, request: Request, now_ns: int) -> None:
        policy = self._policy
        policy.controls.check_correlation_id(request)
        if request.batch_size > 1:
            raise InvalidArgumentError(
                f"inference request to model '{policy.model_name}' must specify batch-size 1 due to requirements of "
                "sequence batcher"
            )
        is_own = not request.correlation_id
        if is_own:
            if not policy.is_iterative:
                raise InvalidArgumentError(
                    f"inference request to model '{policy.model_name}' must specify a non-zero or non-empty "
                    "correlation ID"
                )
            # A generation is a sequence of its own.
            while self._next_id in self._open:
                self._next_id += 1
            request.correlation_id = self._next_id
            self._next_id += 1
            request.flags = SEQUENCE_START
        sequence = self._open.get(request.correlation_id)
        if not request.flags & SEQUENCE_START:
            if sequence is None:
                raise self._start_missing(request.correlation_id)
        elif policy.is_iterative:
            # One request is a whole generation: another with the same id would only end it too early.
            sequence = None
        elif sequence is not None:
            self._on_event(SequenceEvent.CONFLICT, request, sequence.correlation_id)
        if sequence is None:
            sequence = self._begin(request.correlation_id, now_ns)
            if not is_own:
                self._open[request.correlation_id] = sequence
        request.queue_ns = now_ns
        self._add(sequence, request, now_ns)
        if sequence.slot is None and request.timeout_us:
            expiration_ns = now_ns + request.timeout_us * 1000
            if sequence.expiration_ns is None or expiration_ns < sequence.expiration_ns:
                sequence.expiration_ns = expiration_ns
                self._expirations.push(expiration_ns, sequence)
        if request.flags & SEQUENCE_END and not policy.is_iterative:
            self._close(sequence)
        self._place(sequence, now_ns)

    def cancel(self, request: Request, now_ns: int) -> list[Request]:
        sequence = self._sequence_of.get(request)
        if sequence is None:
            return []
        if sequence.slot is None and request in sequence.queue:
            ended = self._drop_from_backlog(sequence)
        elif request in sequence.queue:
            ended = []
            while sequence.queue[-1] is not request:
                ended.append(sequence.queue.pop())
            ended.append(sequence.queue.pop())
            ended.reverse()
        elif sequence.running is request and self._take_back(sequence, request):
            sequence.running = None
            ended = [request, *sequence.queue]
            sequence.queue.clear()
        else:
            return []
        self._on_event(SequenceEvent.CANCELLED, request, sequence.correlation_id)
        self._close(sequence)
        self._forget(ended)
        self._free_if_over(sequence, now_ns)
        return ended

    def expire(self, now_ns: int) -> list[Refusal]:
        refusals: list[Refusal] = []
        while (sequence := self._expirations.pop_due(now_ns)) is not None:
            self._on_event(SequenceEvent.BACKLOG_TIMEOUT, None, sequence.correlation_id)
            ended = self._drop_from_backlog(sequence)
            self._close(sequence)
            self._forget(ended)
            error = "timeout of the corresponding sequence has been expired"
            refusals.extend(Refusal(request, UnavailableError(error)) for request in ended)
        while (sequence := self._idle.pop_due(now_ns)) is not None:
            if sequence.slot is None:
                sequence.is_unwatched = True
            else:
                self._watch(sequence, now_ns)
        return refusals

    @abstractmethod
    def decide(self, now_ns: int, instance: int = 0) -> RunBatch | None: ...

    @abstractmethod
    def has_batch(self, now_ns: int, instance: int = 0) -> bool: ...

    def complete(self, request: Request) -> None:
        """As if it were a sequence of its own; what it brings along stays."""
        rules = self._policy.state_rules
        request.flags = SEQUENCE_START | SEQUENCE_END
        extra = self._policy.controls.of(request)
        if rules:
            extra.update(SequenceStates(rules).inputs())
        request.inputs = {**extra, **request.inputs}

    def next_deadline_ns(self) -> int | None:
        return self.next_timeout_ns()

    def next_timeout_ns(self) -> int | None:
        deadlines = [due_ns for due_ns in (self._expirations.next_ns(), self._idle.next_ns()) if due_ns is not None]
        return min(deadlines) if deadlines else None

    def release(self, request: Request, response: Response | None, now_ns: int) -> None:
        sequence = self._sequence_of.pop(request, None)
        if sequence is None:
            return
        if response is not None:
            self._update(sequence, response)
        if sequence.running is request:
            sequence.running = None
        if self._policy.is_iterative and not sequence.is_closed:
            self._close(sequence)
        self._after_release(sequence, now_ns)
        self._free_if_over(sequence, now_ns)

    def reschedule(self, request: Request, now_ns: int) -> None:
        sequence = self._sequence_of.get(request)
        if not self._policy.is_iterative or sequence is None or sequence.is_closed:
            self.release(request, None, now_ns)
            raise self._start_missing(request.correlation_id) if self._policy.is_iterative else not_iterative()
        sequence.running = None
        request.flags = 0
        request.queue_ns = now_ns
        self._add(sequence, request, now_ns)
        self._place(sequence, now_ns)

    def update_state(self, request: Request, response: Response) -> None:
        sequence = self._sequence_of.get(request)
        if sequence is not None:
            self._update(sequence, response)

    def lose_instance(self, instance: int, now_ns: int) -> list[Request]:
        """What its sequences had told it is lost: they end, and their clients must start again."""
        self._lost.add(instance)
        self._withdraw(instance)
        ended: list[Request] = []
        for slot in self._slots[instance]:
            sequence = slot.sequence
            if sequence is None:
                continue
            self._on_event(SequenceEvent.INSTANCE_LOST, None, sequence.correlation_id)
            self._close(sequence)
            slot.sequence = sequence.slot = None
            ended.extend(sequence.queue)
            sequence.queue.clear()
        ended = self._take_back_all(instance) + ended
        self._forget(ended)
        return ended

    def restore_instance(self, instance: int, now_ns: int) -> None:
        if instance in self._lost:
            self._lost.discard(instance)
            for slot in self._slots[instance]:
                self._offer(slot, now_ns)

    def retire_instance(self, instance: int, now_ns: int) -> bool:
        if instance not in self._retired:
            self._retired.add(instance)
            self._withdraw(instance)
        return all(slot.sequence is None for slot in self._slots[instance])

    def drain(self) -> list[Request]:
        """Take out the backlog: with every instance lost nothing else waits."""
        ended: list[Request] = []
        while self._backlog:
            sequence = self._backlog[0]
            ended.extend(self._drop_from_backlog(sequence))
            self._close(sequence)
        self._forget(ended)
        return ended

    def check_invariants(self) -> None:
        """For tests: nothing is in two places, and nothing that could go on waits."""
        queued = 0
        for instance, slots in enumerate(self._slots):
            for slot in slots:
                sequence = slot.sequence
                is_free = (slot.number, instance) in self._free
                assert is_free == (sequence is None and instance not in self._lost | self._retired)
                if sequence is not None:
                    assert sequence.slot is slot
                    assert sequence.expiration_ns is None
                    assert sequence.queue or sequence.running or not sequence.is_closed
                    queued += len(sequence.queue)
        for sequence in self._backlog:
            assert sequence.slot is None
            assert sequence.running is None
            assert sequence.queue
            queued += len(sequence.queue)
        assert len(self._free) == len(set(self._free))
        assert not (self._free and self._backlog)
        for correlation_id, sequence in self._open.items():
            assert sequence.correlation_id == correlation_id
            assert not sequence.is_closed
            assert (sequence.slot is not None) != (sequence in self._backlog)
        assert self._count == queued + self._batching_count()

    # What the strategies do.

    @abstractmethod
    def _advance(self, sequence: OpenSequence, now_ns: int) -> None:
        """A sequence in a slot has a request more, or its slot is new."""

    @abstractmethod
    def _after_release(self, sequence: OpenSequence, now_ns: int) -> None:
        """A request of the sequence came back."""

    @abstractmethod
    def _take_back(self, sequence: OpenSequence, request: Request) -> bool:
        """Undo the dispatch of a request that does not run yet; False if it runs."""

    @abstractmethod
    def _take_back_all(self, instance: int) -> list[Request]:
        """The same for whatever an instance was to run."""

    @abstractmethod
    def _holds_slot(self, sequence: OpenSequence) -> bool:
        """Whether a closed sequence with nothing queued still needs its slot."""

    @abstractmethod
    def _batching_count(self) -> int:
        """Requests that left their sequence's queue and are in no batch yet."""

    def _prepare(self, sequence: OpenSequence, request: Request) -> None:
        """Give a request that may be put into a batch, and is the next of its sequence, its controls and states."""
        extra = self._policy.controls.of(request)
        states = sequence.states
        if states is not None:
            if request.flags & SEQUENCE_START:
                states.reset()
            extra.update(states.inputs())
        request.inputs = {**request.inputs, **extra}

    # The life of sequences.

    def _begin(self, correlation_id: int | str, now_ns: int) -> OpenSequence:
        rules = self._policy.state_rules
        sequence = OpenSequence(correlation_id, SequenceStates(rules) if rules else None)
        if self._policy.max_idle_ns:
            self._idle.push(now_ns + self._policy.max_idle_ns, sequence)
        if self._free:
            number, instance = heapq.heappop(self._free)
            slot = self._slots[instance][number]
            slot.sequence = sequence
            sequence.slot = slot
        else:
            self._backlog.append(sequence)
        return sequence

    def _add(self, sequence: OpenSequence, request: Request, now_ns: int) -> None:
        sequence.queue.append(request)
        sequence.last_active_ns = now_ns
        self._sequence_of[request] = sequence
        self._count += 1

    def _place(self, sequence: OpenSequence, now_ns: int) -> None:
        if sequence.slot is not None:
            self._advance(sequence, now_ns)

    def _close(self, sequence: OpenSequence) -> None:
        """It takes no more requests."""
        sequence.is_closed = True
        if self._open.get(sequence.correlation_id) is sequence:
            del self._open[sequence.correlation_id]

    def _free_if_over(self, sequence: OpenSequence, now_ns: int) -> None:
        """Let the backlog have the slot of a sequence of which nothing is left."""
        slot = sequence.slot
        if slot is None or sequence.queue or not sequence.is_closed or self._holds_slot(sequence):
            return
        sequence.slot = slot.sequence = None
        self._offer(slot, now_ns)

    def _offer(self, slot: Slot, now_ns: int) -> None:
        """A slot came free."""
        if self._freed is not None:
            # Called back from below: a backlog of short sequences must not become a stack of calls.
            self._freed.append(slot)
            return
        self._freed = [slot]
        while self._freed:
            slot = self._freed.pop()
            if slot.instance in self._retired or slot.instance in self._lost:
                continue
            if not self._backlog:
                heapq.heappush(self._free, (slot.number, slot.instance))
                continue
            sequence = self._backlog.popleft()
            sequence.expiration_ns = None
            sequence.slot = slot
            slot.sequence = sequence
            # It could do nothing but wait: only from now on it is its client that keeps the slot idle.
            sequence.last_active_ns = now_ns
            if sequence.is_unwatched:
                self._watch(sequence, now_ns)
            self._advance(sequence, now_ns)
        self._freed = None

    def _withdraw(self, instance: int) -> None:
        """Nobody gets a slot of this instance."""
        self._free = [free for free in self._free if free[1] != instance]
        heapq.heapify(self._free)

    def _watch(self, sequence: OpenSequence, now_ns: int) -> None:
        """Evict a sequence in a slot if it was idle for too long, else look again when it may be."""
        deadline_ns = sequence.last_active_ns + self._policy.max_idle_ns
        if sequence.is_closed:
            return
        if deadline_ns > now_ns:
            self._idle.push(deadline_ns, sequence)
            return
        self._on_event(SequenceEvent.IDLE, None, sequence.correlation_id)
        self._close(sequence)
        self._free_if_over(sequence, now_ns)

    def _drop_from_backlog(self, sequence: OpenSequence) -> list[Request]:
        self._backlog.remove(sequence)
        sequence.expiration_ns = None
        ended = list(sequence.queue)
        sequence.queue.clear()
        return ended

    def _forget(self, requests: Sequence[Request]) -> None:
        """Requests left without being run."""
        for request in requests:
            del self._sequence_of[request]
        self._count -= len(requests)

    def _update(self, sequence: OpenSequence, response: Response) -> None:
        if sequence.states is not None and response.error is None:
            sequence.states.update(response)

    def _start_missing(self, correlation_id: int | str) -> InvalidArgumentError:
        return InvalidArgumentError(
            f"inference request for sequence {correlation_id} to model '{self._policy.model_name}' must specify the "
            "START flag on the first request of the sequence"
        )
