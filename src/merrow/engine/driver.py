"""The driver of one loaded model version: hands its scheduler's batches to its instances and answers its requests.

Events come in (a request, an execution, a response, a failure, a timer, a change of health); the scheduler decides;
this acts. It runs on the loop's thread only, arms at most one timer, and answers every request it accepted with any
number of responses (one, unless the model is decoupled), of which exactly one, the last, is final.

    accepted ──► waits in the scheduler ──► executes ──┬─► answered: the execution gave its response, or failed
                     ▲                                 ├─► deferred: its responses come by themselves
                     └─────────── rescheduled ◄────────┘
A request is owned by its driver until its final response; whatever comes for it later is dropped.

A model without dynamic batching needs no decisions: each request is a batch, first come first served, and the queue is
touched only when every instance is busy.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from merrow.backends.base import Deferral, Execution
from merrow.core.clock import Clock
from merrow.core.errors import CancelledError, InternalError, ServerError, UnavailableError
from merrow.core.request import SEQUENCE_START, PaddingRequest, Request
from merrow.core.response import Response, TimedResponse
from merrow.engine.response_order import ResponseOrder
from merrow.engine.validation import ResponseShaper
from merrow.observe.statistics import FailureReason, StatisticsRecorder
from merrow.places.base import PlacedInstance
from merrow.schedule.base import RunBatch, Scheduler, not_iterative

_LOG = logging.getLogger("merrow.engine")

# How often all instances are given batches before anything else happens on the loop's thread.
_MAX_ROUNDS = 64


class Timer(Protocol):
    """An armed timer."""

    def cancel(self) -> None: ...


CallAt = Callable[[int, Callable[[], None]], Timer]
"""Call back on the loop's thread at a time in monotonic nanoseconds."""


class Permits(Protocol):
    """What an instance needs before it may be given a batch (the rate limiter).

    After a refusal it calls `ModelDriver.on_permit` once asking again makes sense.
    """

    def acquire(self, instance: PlacedInstance) -> bool:
        """Whether an idle instance may execute now; if so it holds what it needs."""

    def release(self, instance: PlacedInstance, has_executed: bool = True) -> None:
        """The batch came back; or, with `has_executed` False, there was none after all."""

    def remove(self, instance: PlacedInstance) -> None:
        """The instance is gone."""


class _Slot:
    """One instance and the batches it has been handed."""

    __slots__ = ("in_flight", "index", "instance")

    def __init__(self, instance: PlacedInstance) -> None:
        self.instance = instance
        # The scheduler's number for it; none before it is in service.
        self.index = -1
        self.in_flight = 0


class _Deferred:
    """A request whose responses come by themselves.

    `response_count` is how many came so far. That of a model that is not decoupled is held until it is known to be
    the only one.
    """

    __slots__ = ("held", "instance", "response_count")

    def __init__(self, instance: PlacedInstance) -> None:
        self.instance = instance
        self.response_count = 0
        self.held: Response | None = None


class ModelDriver:
    """See the module. Implements `places.base.InstanceEvents`.

    Args:
        scheduler: None for a model whose requests run alone, in the order they came.
        preserves_order: responses leave in the order in which requests came, or with a scheduler that
            `follows_requests`, in the order in which they were executed.
        permits: None if an instance may always execute.
        batch_limit: how many instances execute at once; None is all of them. Beyond the processor's cores,
            more at once would only make batches smaller, and caches colder.
        call_soon: calls back on the loop's next turn; batches of a scheduler that does not `follows_requests` are
            formed then. None forms them at once.
    """

    def __init__(
        self,
        model_name: str,
        model_version: int,
        scheduler: Scheduler | None,
        shaper: ResponseShaper,
        statistics: StatisticsRecorder,
        clock: Clock,
        call_at: CallAt,
        preserves_order: bool,
        is_decoupled: bool = False,
        permits: Permits | None = None,
        batch_limit: int | None = None,
        call_soon: Callable[[Callable[[], None]], object] | None = None,
    ) -> None:
        self._model_name = model_name
        self._model_version = model_version
        self._scheduler = scheduler
        self._follows = scheduler is not None and scheduler.follows_requests
        self._shaper = shaper
        self._statistics = statistics
        self._clock = clock
        self._call_at = call_at
        self._is_decoupled = is_decoupled
        self._permits = permits
        self.batch_limit = batch_limit
        self._call_soon = call_soon
        self._is_dispatch_due = False
        self._is_managed = scheduler is not None or permits is not None
        self._slots: list[_Slot] = []
        self._slot_of: dict[PlacedInstance, _Slot] = {}
        self._next_index = 0
        # Instances, by index, that leave service once their last sequence has ended.
        self._retiring: dict[int, asyncio.Event] = {}
        self._queue: deque[Request] = deque()
        self._deferred: dict[Request, _Deferred] = {}
        self._timer: Timer | None = None
        self._timer_ns = 0
        self._is_dispatching = False
        self._is_stopping = False
        self._has_stopped = False
        self._drained: asyncio.Event | None = None
        # Accepted and not yet answered.
        self.in_flight_count = 0
        self._order = ResponseOrder(self._release) if preserves_order else None

    def add_instance(self, instance: PlacedInstance) -> None:
        """Take an instance into service."""
        slot = self._slot_of.get(instance)
        if slot is None:
            slot = self._slot_of[instance] = _Slot(instance)
        slot.index = self._next_index
        self._next_index += 1
        self._slots.append(slot)
        if self._scheduler is not None:
            self._scheduler.add_instance()
        if self.in_flight_count:
            self._dispatch(self._clock())

    def prepare_instance(self, instance: PlacedInstance) -> None:
        """Let an instance execute what `run_on` gives it (warm-up), before `add_instance` takes it into service."""
        self._slot_of[instance] = _Slot(instance)

    async def close_instance(self, instance: PlacedInstance) -> None:
        """Take an instance out of service, wait for what it executes, and release it; also one that was never in it.

        While others stay, sequences that the instance has may end there first.
        """
        slot = self._slot_of.get(instance)
        if slot is not None and slot in self._slots:
            if self._scheduler is not None and not self._scheduler.retire_instance(slot.index, self._clock()):
                left = self._retiring[slot.index] = asyncio.Event()
                if not self._is_stopping:
                    await left.wait()
                del self._retiring[slot.index]
            self._slots.remove(slot)
        await instance.close()
        self._slot_of.pop(instance, None)
        if self._permits is not None:
            self._permits.remove(instance)

    @property
    def instances(self) -> list[PlacedInstance]:
        return [slot.instance for slot in self._slots]

    @property
    def is_healthy(self) -> bool:
        """Whether every instance can take batches."""
        return all(slot.instance.is_healthy for slot in self._slots)

    @property
    def pending_count(self) -> int:
        """Requests accepted and not yet begun by an instance, as far as the server knows."""
        queued = len(self._queue) if self._scheduler is None else len(self._scheduler)
        return queued + sum(max(0, slot.in_flight - 1) for slot in self._slots)

    async def drain(self) -> None:
        """Refuse new requests from now on, and wait until those accepted are answered."""
        self._is_stopping = True
        for left in self._retiring.values():
            left.set()
        if self.in_flight_count:
            self._drained = asyncio.Event()
            await self._drained.wait()
        self._has_stopped = True
        self._arm(None)

    def enqueue(self, request: Request, now_ns: int) -> None:
        """Accept a validated request.

        Raises:
            ServerError: it is refused; nothing was counted and no response will come.
        """
        if self._is_stopping and (self._has_stopped or not self._follows or request.flags & SEQUENCE_START):
            raise UnavailableError(
                "Server is stopping, scheduler for model has stopped accepting new inference requests"
            )
        scheduler = self._scheduler
        if scheduler is not None:
            try:
                scheduler.enqueue(request, now_ns)
            except UnavailableError:
                if not self._is_dispatch_due:
                    raise
                # The queue may be full of what this turn of the loop brought, while instances have nothing to do.
                self._dispatch(now_ns)
                scheduler.enqueue(request, now_ns)
            self._accept(request)
            if self._is_dead():
                for queued in scheduler.drain():
                    self._fail_unhealthy(queued, now_ns)
            elif self._call_soon is None or self._follows:
                self._dispatch(now_ns)
            elif not self._is_dispatch_due:
                # Requests that come in the same turn of the loop share the batch.
                self._is_dispatch_due = True
                self._call_soon(self._on_dispatch_due)
            return
        # Straight code from here to the instance, and from its answer to the sink: this runs for every request.
        request.owner = self
        request.queue_ns = now_ns
        self.in_flight_count += 1
        if self._order is not None:
            self._order.join(request)
        if request.trace is not None:
            request.trace.record_queued(now_ns)
        slot = None if self._queue else self._free_slot()
        if slot is not None:
            slot.in_flight += 1
            slot.instance.submit((request,))
        elif self._is_dead():
            self._fail_unhealthy(request, now_ns)
        else:
            self._queue.append(request)

    def answer_at_once(self, request: Request, response: Response, now_ns: int) -> None:
        """Answer a validated request in its turn, without executing it (the response cache knows the response)."""
        request.queue_ns = now_ns
        self._accept(request)
        request.owner = None
        response.model_name = self._model_name
        response.model_version = self._model_version
        if self._order is None or request not in self._order:
            self._release(request, response)
        else:
            self._order.answer(request, response)

    def run_on(self, instance: PlacedInstance, requests: Sequence[Request], now_ns: int) -> None:
        """Hand validated requests to one instance as one batch, past the queue (warm-up)."""
        for request in requests:
            request.queue_ns = now_ns
            self._accept(request)
            if self._follows:
                assert self._scheduler is not None
                self._scheduler.complete(request)
                if self._order is not None:
                    self._order.join(request)
        self._slot_of[instance].in_flight += 1
        instance.submit(tuple(requests))

    def cancel(self, request: Request) -> None:
        """The client has left: a queued request is answered CANCELLED at once, a running one is told."""
        request.is_cancelled = True
        if request.owner is not self:
            return
        now_ns = self._clock()
        queued: Sequence[Request] = ()
        if self._scheduler is not None:
            queued = self._scheduler.cancel(request, now_ns)
        elif request in self._queue:
            self._queue.remove(request)
            queued = (request,)
        for ended in queued:
            self._fail(ended, CancelledError(""), FailureReason.CANCELED, now_ns)
        if request not in queued:
            for instance in self._instances_with(request):
                instance.cancel(request)
        elif self._follows:
            # A slot may have come free.
            self._dispatch(now_ns)

    def resume(self, request: Request) -> None:
        """The client takes responses again: the model may go on sending."""
        if request.owner is self:
            for instance in self._instances_with(request):
                instance.resume(request)

    def _on_dispatch_due(self) -> None:
        self._is_dispatch_due = False
        self._dispatch(self._clock())

    def on_permit(self) -> None:
        """Instances that were refused a permit may ask again."""
        self._dispatch(self._clock())

    # What the instances report.

    def on_execution(self, instance: PlacedInstance, requests: Sequence[Request], execution: Execution) -> None:
        self._slot_of[instance].in_flight -= 1
        now_ns = self._clock()
        if self._is_managed:
            if self._permits is not None:
                self._permits.release(instance)
            if self._follows:
                self._finish_followed(instance, requests, execution, now_ns)
                return
            self._dispatch(now_ns)
        elif self._queue:
            # The instance gets its next batch before this one's answers are encoded.
            self._dispatch(now_ns)
        if len(requests) == 1:
            self._finish_one(instance, requests[0], execution, now_ns)
        else:
            self._finish_batch(instance, requests, execution, now_ns)

    def on_response(self, instance: PlacedInstance, request: Request, response: Response) -> None:
        if request.owner is not self:
            # It is over: what a model sends after its final response goes nowhere.
            return
        if isinstance(response, TimedResponse):
            self._statistics.record_response(response)
        if response.is_empty and not response.is_final:
            return
        deferred = self._deferred.get(request)
        if deferred is None:
            deferred = self._deferred[request] = _Deferred(instance)
        if self._follows and response.error is None:
            assert self._scheduler is not None
            self._scheduler.update_state(request, response)
        if not (response.is_empty and response.error is None):
            deferred.response_count += 1
            if deferred.response_count == 1:
                self._statistics.record_first_response(request.arrival_ns, self._clock())
        if self._is_decoupled:
            self._answer(request, response)
        else:
            self._answer_once(request, deferred, response)
        if self._follows and response.is_final:
            # A model that said the last word, and asked for another turn before, does not get it.
            assert self._scheduler is not None
            now_ns = self._clock()
            for ended in self._scheduler.cancel(request, now_ns):
                self._fail(ended, CancelledError(""), FailureReason.CANCELED, now_ns)

    def on_failure(self, instance: PlacedInstance, requests: Sequence[Request], error: ServerError) -> None:
        self._slot_of[instance].in_flight -= 1
        if self._permits is not None:
            self._permits.release(instance)
        now_ns = self._clock()
        for request in requests:
            if self._follows:
                assert self._scheduler is not None
                self._scheduler.release(request, None, now_ns)
            self._fail(request, error, FailureReason.BACKEND, now_ns)
        self._dispatch(now_ns)

    def on_health_change(self, instance: PlacedInstance, is_healthy: bool) -> None:
        now_ns = self._clock()
        scheduler = self._scheduler
        index = self._slot_of[instance].index
        if index < 0:
            # Its warm-up fails, or goes on; nobody else waits for it yet.
            return
        if is_healthy:
            if scheduler is not None:
                scheduler.restore_instance(index, now_ns)
            self._dispatch(now_ns)
            return
        waiting: list[Request] = []
        if scheduler is not None:
            waiting.extend(scheduler.lose_instance(index, now_ns))
        if self._is_dead():
            # Nobody is left to run what waits; failing at once beats a wait of unknown length.
            waiting.extend(self._queue if scheduler is None else scheduler.drain())
            self._queue.clear()
        for request in waiting:
            self._fail_unhealthy(request, now_ns)
        if scheduler is not None:
            self._dispatch(now_ns)

    def check_invariants(self) -> None:
        """For tests: assert whatever must be true between events."""
        if self._scheduler is not None:
            self._scheduler.check_invariants()
        assert not self._is_dispatching
        assert all(slot.in_flight >= 0 for slot in self._slots)
        assert all(request.owner is self for request in self._deferred)
        assert self.in_flight_count >= self.pending_count - sum(max(0, slot.in_flight - 1) for slot in self._slots)
        if self._order is not None:
            self._order.check_invariants()
        if self._permits is None and not self._is_managed and self._queue:
            assert self._free_slot() is None

    # Acting on decisions.

    def _free_slot(self) -> _Slot | None:
        """The healthy instance with the fewest batches, if it may take another. An idle one wins at once."""
        if self._permits is not None:
            return self._idle_slot()
        may_be_idle = self.batch_limit is None or self._is_below_limit(self.batch_limit)
        best: _Slot | None = None
        for slot in self._slots:
            instance = slot.instance
            if slot.in_flight < instance.depth and instance.is_healthy:
                if not slot.in_flight:
                    if may_be_idle:
                        return slot
                elif best is None or slot.in_flight < best.in_flight:
                    best = slot
        return best

    def _idle_slot(self) -> _Slot | None:
        """An instance with nothing to do: a batch formed for a busy one would miss requests yet to come."""
        if self.batch_limit is not None and not self._is_below_limit(self.batch_limit):
            return None
        for slot in self._slots:
            if (
                not slot.in_flight
                and slot.instance.is_healthy
                and (self._permits is None or self._permits.acquire(slot.instance))
            ):
                return slot
        return None

    def _is_below_limit(self, limit: int) -> bool:
        """Whether fewer instances than so many are busy."""
        for slot in self._slots:
            if slot.in_flight:
                # The busy ones come first, so this is over soon, however many instances there are.
                limit -= 1
                if not limit:
                    return False
        return True

    def _instances_with(self, request: Request) -> list[PlacedInstance]:
        """Where a request that left the queue is, or may be."""
        deferred = self._deferred.get(request)
        if deferred is not None:
            return [deferred.instance]
        return [slot.instance for slot in self._slots if slot.in_flight]

    def _is_dead(self) -> bool:
        for slot in self._slots:
            if slot.instance.is_healthy:
                return False
        return True

    def _accept(self, request: Request) -> None:
        request.owner = self
        if self._order is not None and not self._follows:
            self._order.join(request)
        if request.trace is not None:
            request.trace.record_queued(request.queue_ns)
        self.in_flight_count += 1

    def _dispatch(self, now_ns: int) -> None:
        if self._is_dispatching:
            # Called back by what an outer call runs or answers; that one goes on until there is nothing to do.
            return
        self._is_dispatching = True
        try:
            scheduler = self._scheduler
            if scheduler is None:
                queue = self._queue
                while queue and (slot := self._free_slot()) is not None:
                    slot.in_flight += 1
                    slot.instance.submit((queue.popleft(),))
                return
            for refusal in scheduler.expire(now_ns):
                self._fail(refusal.request, refusal.error, FailureReason.REJECTED, now_ns)
            if self._follows:
                self._run_pinned_batches(scheduler, now_ns)
            else:
                self._run_batches(scheduler, now_ns)
        finally:
            self._is_dispatching = False

    def _run_batches(self, scheduler: Scheduler, now_ns: int) -> None:
        """Give batches to any instance that has nothing to do."""
        is_waiting_for_instance = False
        while len(scheduler):
            if self._permits is not None and not scheduler.has_batch(now_ns):
                # A permit is for executing: who asks for one must have something to execute.
                break
            idle = self._idle_slot()
            if idle is None:
                is_waiting_for_instance = True
                break
            batch = scheduler.decide(now_ns)
            if batch is None:
                break
            self._submit(idle, batch)
        self._arm(scheduler.next_timeout_ns() if is_waiting_for_instance else scheduler.next_deadline_ns())

    def _run_pinned_batches(self, scheduler: Scheduler, now_ns: int) -> None:
        """Give each instance that has nothing to do its own next batch."""
        has_run = True
        round_count = 0
        while has_run and len(scheduler):
            if round_count == _MAX_ROUNDS:
                # Instances that run where they are called, on sequences that come back each time: others want a turn.
                self._arm(now_ns)
                return
            round_count += 1
            has_run = False
            for slot in self._slots:
                if slot.in_flight or not slot.instance.is_healthy:
                    continue
                if self._permits is not None and not (
                    scheduler.has_batch(now_ns, slot.index) and self._permits.acquire(slot.instance)
                ):
                    continue
                batch = scheduler.decide(now_ns, slot.index)
                if batch is not None:
                    has_run = True
                    if self._order is not None:
                        for request in batch.requests:
                            if request.owner is self and request not in self._order:
                                self._order.join(request)
                    self._submit(slot, batch)
        for index, left in self._retiring.items():
            if scheduler.retire_instance(index, now_ns):
                left.set()
        self._arm(scheduler.next_deadline_ns())

    def _submit(self, slot: _Slot, batch: RunBatch) -> None:
        if _LOG.isEnabledFor(logging.DEBUG):
            _LOG.debug(
                "model '%s' version %d: batch of %d requests (%d rows) for instance '%s', cut because %s",
                self._model_name,
                self._model_version,
                len(batch.requests),
                sum(request.batch_size for request in batch.requests),
                slot.instance.name,
                batch.cut.value,
            )
        for request in batch.requests:
            if request.trace is not None:
                request.trace.record_batch(batch.cut.name, self._clock())
        slot.in_flight += 1
        slot.instance.submit(batch.requests)

    def _arm(self, deadline_ns: int | None) -> None:
        if self._timer is not None:
            if deadline_ns is not None and self._timer_ns <= deadline_ns:
                # Fires early, finds nothing due and arms itself again: cheaper than re-arming per request.
                return
            self._timer.cancel()
            self._timer = None
        if deadline_ns is not None:
            self._timer_ns = deadline_ns
            self._timer = self._call_at(deadline_ns, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._dispatch(self._clock())

    # What became of a batch.

    def _finish_one(self, instance: PlacedInstance, request: Request, execution: Execution, now_ns: int) -> None:
        outcome = execution.outcomes[0]
        if (
            not isinstance(outcome, Response)
            or not outcome.is_final
            or request.trace is not None
            or request.owner is not self
            or self._order is not None
            or self._deferred
        ):
            self._finish_batch(instance, (request,), execution, now_ns)
            return
        # What `_finish_batch` does, in one piece: most requests end here, and each call counts.
        self._statistics.record_success(
            request.batch_size,
            request.arrival_ns,
            request.queue_ns,
            execution.start_ns,
            execution.input_end_ns,
            execution.output_start_ns,
            execution.end_ns,
            now_ns,
        )
        outcome.id = request.id
        outcome.model_name = self._model_name
        outcome.model_version = self._model_version
        if outcome.error is None:
            self._shaper.shape(request, outcome)
        request.owner = None
        self.in_flight_count -= 1
        request.sink.on_response(outcome)
        if self._drained is not None and not self.in_flight_count:
            self._drained.set()

    def _finish_batch(
        self, instance: PlacedInstance, requests: Sequence[Request], execution: Execution, now_ns: int
    ) -> None:
        self._count(requests, execution, now_ns)
        for request, outcome in zip(requests, execution.outcomes, strict=True):
            if request.trace is not None:
                _trace_execution(request, execution)
            if isinstance(outcome, ServerError):
                self._fail(request, outcome, FailureReason.BACKEND, now_ns)
            elif outcome is Deferral.DEFERRED:
                if request.owner is self and request not in self._deferred:
                    self._deferred[request] = _Deferred(instance)
            elif isinstance(outcome, Response) and outcome.is_final:
                self._answer_last(instance, request, outcome)
            else:
                # It was executed, and counted, but its model may not ask for another turn.
                self._answer(request, self._error_response(not_iterative()))

    def _finish_followed(
        self, instance: PlacedInstance, requests: Sequence[Request], execution: Execution, now_ns: int
    ) -> None:
        """The same for requests that go back to their scheduler first."""
        scheduler = self._scheduler
        assert scheduler is not None
        self._count(requests, execution, now_ns)
        has_rescheduled = False
        ended: list[tuple[Request, Response | ServerError]] = []
        for request, outcome in zip(requests, execution.outcomes, strict=True):
            if isinstance(request, PaddingRequest):
                continue
            if request.trace is not None:
                _trace_execution(request, execution)
            is_rescheduled = outcome is Deferral.RESCHEDULED or (isinstance(outcome, Response) and not outcome.is_final)
            if is_rescheduled and request.owner is self:
                try:
                    scheduler.reschedule(request, now_ns)
                except ServerError as error:
                    ended.append((request, self._error_response(error)))
                    continue
                has_rescheduled = True
                if request.trace is not None:
                    request.trace.record_queued(now_ns)
                if isinstance(outcome, Response):
                    self.on_response(instance, request, outcome)
                if request.is_cancelled:
                    self.cancel(request)
                continue
            scheduler.release(request, outcome if isinstance(outcome, Response) else None, now_ns)
            if isinstance(outcome, Deferral):
                if request.owner is self and request not in self._deferred:
                    self._deferred[request] = _Deferred(instance)
            else:
                ended.append((request, outcome))
        if not has_rescheduled:
            # As in `on_execution`; but a request's answers stay in the order of its executions.
            self._dispatch(now_ns)
        for request, outcome in ended:
            if isinstance(outcome, ServerError):
                self._fail(request, outcome, FailureReason.BACKEND, now_ns)
            else:
                self._answer_last(instance, request, outcome)
        if has_rescheduled:
            self._dispatch(now_ns)

    def _count(self, requests: Sequence[Request], execution: Execution, now_ns: int) -> None:
        """Count a batch, and those of its requests whose execution did not fail. Padding fills only the batch."""
        if not execution.is_counted:
            return
        start_ns, input_end_ns = execution.start_ns, execution.input_end_ns
        output_start_ns, end_ns = execution.output_start_ns, execution.end_ns
        self._statistics.record_execution(
            sum(request.batch_size for request in requests),
            start_ns,
            input_end_ns,
            output_start_ns,
            end_ns,
            now_ns,
        )
        self._statistics.record_successes(
            [
                (request.batch_size, request.arrival_ns, request.queue_ns)
                for request, outcome in zip(requests, execution.outcomes, strict=True)
                if not isinstance(outcome, ServerError) and not isinstance(request, PaddingRequest)
            ],
            start_ns,
            input_end_ns,
            output_start_ns,
            end_ns,
            now_ns,
        )
        if self._statistics.has_first_response_bounds:
            for request, outcome in zip(requests, execution.outcomes, strict=True):
                if isinstance(outcome, Response) and request.owner is self and request not in self._deferred:
                    self._statistics.record_first_response(request.arrival_ns, now_ns)

    # Answering.

    def _fail(self, request: Request, error: ServerError, reason: FailureReason, now_ns: int) -> None:
        if request.owner is not self:
            return
        self._statistics.record_failure(reason, request.arrival_ns, now_ns)
        self._answer(request, self._error_response(error))

    def _fail_unhealthy(self, request: Request, now_ns: int) -> None:
        error: ServerError
        if self._slots:
            error = InternalError(f"Stub process '{self._slots[0].instance.name}' is not healthy.")
        else:
            error = UnavailableError(
                f"model '{self._model_name}' has no instance that takes requests: "
                "all of its instance groups are passive"
            )
        self._fail(request, error, FailureReason.BACKEND, now_ns)

    def _error_response(self, error: ServerError) -> Response:
        return Response(self._model_name, self._model_version, error=error)

    def _answer_last(self, instance: PlacedInstance, request: Request, response: Response) -> None:
        """Answer with what an execution gave; its model may have sent something before."""
        if request in self._deferred:
            self.on_response(instance, request, response)
        else:
            self._answer(request, response)

    def _answer_once(self, request: Request, deferred: _Deferred, response: Response) -> None:
        """Answer a request of a model that is not decoupled, once it is known that there is one response."""
        if deferred.held is None and not (response.is_empty and response.error is None):
            deferred.held = response
        if not response.is_final:
            return
        held = deferred.held
        if held is None or deferred.response_count != 1:
            held = self._error_response(InternalError(f"expected a single response, got {deferred.response_count}"))
        held.is_final = True
        self._answer(request, held)

    def _answer(self, request: Request, response: Response) -> None:
        """Send a response on its way; the final one ends the request."""
        if request.owner is not self:
            return
        response.id = request.id
        response.model_name = self._model_name
        response.model_version = self._model_version
        if response.error is None:
            self._shaper.shape(request, response)
        if response.is_final:
            request.owner = None
            if self._deferred:
                self._deferred.pop(request, None)
        if self._order is None or request not in self._order:
            # Not in line: it ended before it was executed, and the others need not wait for it.
            self._release(request, response)
        else:
            self._order.answer(request, response)

    def _release(self, request: Request, response: Response) -> None:
        if request.trace is not None:
            request.trace.record_response(response, self._clock())
        if response.is_final:
            self.in_flight_count -= 1
            request.sink.on_response(response)
            if self._drained is not None and not self.in_flight_count:
                self._drained.set()
        else:
            request.sink.on_response(response)


def _trace_execution(request: Request, execution: Execution) -> None:
    assert request.trace is not None
    request.trace.record_execution(
        execution.start_ns, execution.input_end_ns, execution.output_start_ns, execution.end_ns
    )
