"""The driver of one loaded model version: hands its scheduler's batches to its instances and answers its requests.

Events come in (a request, an execution, a failure, a timer, a change of health); the scheduler decides; this acts.
It runs on the loop's thread only, arms at most one timer, and answers every request it accepted exactly once.

A model without dynamic batching needs no decisions: each request is a batch, first come first served, and the queue is
touched only when every instance is busy.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from merrow.backends.base import Execution
from merrow.core.clock import Clock
from merrow.core.errors import CancelledError, InternalError, ServerError, UnavailableError
from merrow.core.request import Request
from merrow.core.response import Response
from merrow.engine.validation import ResponseShaper
from merrow.observe.statistics import FailureReason, StatisticsRecorder
from merrow.places.base import PlacedInstance
from merrow.schedule.dynamic_batch import DynamicBatcher


class Timer(Protocol):
    """An armed timer."""

    def cancel(self) -> None: ...


CallAt = Callable[[int, Callable[[], None]], Timer]
"""Call back on the loop's thread at a time in monotonic nanoseconds."""


class _Slot:
    """One instance and the batches it has been handed."""

    __slots__ = ("in_flight", "instance")

    def __init__(self, instance: PlacedInstance) -> None:
        self.instance = instance
        self.in_flight = 0


class ModelDriver:
    """See the module. Implements `places.base.InstanceEvents`."""

    def __init__(
        self,
        model_name: str,
        model_version: int,
        batcher: DynamicBatcher | None,
        shaper: ResponseShaper,
        statistics: StatisticsRecorder,
        clock: Clock,
        call_at: CallAt,
        preserves_order: bool,
    ) -> None:
        self._model_name = model_name
        self._model_version = model_version
        self._batcher = batcher
        self._shaper = shaper
        self._statistics = statistics
        self._clock = clock
        self._call_at = call_at
        self._slots: list[_Slot] = []
        self._slot_of: dict[PlacedInstance, _Slot] = {}
        self._queue: deque[Request] = deque()
        self._timer: Timer | None = None
        self._timer_ns = 0
        self._is_stopping = False
        self._drained: asyncio.Event | None = None
        # Accepted and not yet answered.
        self.in_flight_count = 0
        # Answered out of turn, and waiting for those before them (preserve_ordering): request -> its response.
        self._order: deque[Request] | None = deque() if preserves_order else None
        self._early: dict[Request, Response] = {}

    def add_instance(self, instance: PlacedInstance) -> None:
        """Take an instance into service."""
        slot = _Slot(instance)
        self._slots.append(slot)
        self._slot_of[instance] = slot

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
        queued = len(self._queue) if self._batcher is None else len(self._batcher)
        return queued + sum(max(0, slot.in_flight - 1) for slot in self._slots)

    async def drain(self) -> None:
        """Refuse new requests from now on, and wait until those accepted are answered."""
        self._is_stopping = True
        if self.in_flight_count:
            self._drained = asyncio.Event()
            await self._drained.wait()

    def enqueue(self, request: Request, now_ns: int) -> None:
        """Accept a validated request.

        Raises:
            ServerError: it is refused; nothing was counted and no response will come.
        """
        if self._is_stopping:
            raise UnavailableError(
                "Server is stopping, scheduler for model has stopped accepting new inference requests"
            )
        batcher = self._batcher
        if batcher is not None:
            batcher.enqueue(request, now_ns)
            self._accept(request)
            if self._is_dead():
                batcher.remove(request)
                self._fail_unhealthy(request, now_ns)
            else:
                self._dispatch(now_ns)
            return
        # Straight code from here to the instance, and from its answer to the sink: this runs for every request.
        request.queue_ns = now_ns
        self.in_flight_count += 1
        if self._order is not None:
            self._order.append(request)
        slot = None if self._queue else self._free_slot()
        if slot is not None:
            slot.in_flight += 1
            slot.instance.submit((request,))
        elif self._is_dead():
            self._fail_unhealthy(request, now_ns)
        else:
            self._queue.append(request)

    def run_on(self, instance: PlacedInstance, requests: Sequence[Request], now_ns: int) -> None:
        """Hand validated requests to one instance as one batch, past the queue (warm-up)."""
        for request in requests:
            request.queue_ns = now_ns
            self._accept(request)
        self._slot_of[instance].in_flight += 1
        instance.submit(tuple(requests))

    def cancel(self, request: Request) -> None:
        """The client has left: a queued request is answered CANCELLED at once, a running one is told."""
        request.is_cancelled = True
        if self._batcher is not None:
            was_queued = self._batcher.remove(request)
        else:
            try:
                self._queue.remove(request)
                was_queued = True
            except ValueError:
                was_queued = False
        if was_queued:
            self._fail(request, CancelledError(""), FailureReason.CANCELED, self._clock())
        else:
            for slot in self._slots:
                if slot.in_flight:
                    slot.instance.cancel(request)

    # What the instances report.

    def on_execution(self, instance: PlacedInstance, requests: Sequence[Request], execution: Execution) -> None:
        self._slot_of[instance].in_flight -= 1
        now_ns = self._clock()
        # The instance gets its next batch before this one's answers are encoded.
        if self._queue or self._batcher is not None:
            self._dispatch(now_ns)
        if len(requests) == 1:
            self._finish_one(requests[0], execution, now_ns)
        else:
            self._finish_batch(requests, execution, now_ns)

    def on_failure(self, instance: PlacedInstance, requests: Sequence[Request], error: ServerError) -> None:
        self._slot_of[instance].in_flight -= 1
        now_ns = self._clock()
        for request in requests:
            self._fail(request, error, FailureReason.BACKEND, now_ns)
        self._dispatch(now_ns)

    def on_health_change(self, instance: PlacedInstance, is_healthy: bool) -> None:
        if is_healthy:
            self._dispatch(self._clock())
        elif self._is_dead():
            # Nobody is left to run what waits; failing at once beats a wait of unknown length.
            waiting = list(self._queue) if self._batcher is None else self._batcher.drain()
            self._queue.clear()
            now_ns = self._clock()
            for request in waiting:
                self._fail_unhealthy(request, now_ns)

    # Acting on decisions.

    def _free_slot(self) -> _Slot | None:
        """The healthy instance with the fewest batches, if it may take another. An idle one wins at once."""
        best: _Slot | None = None
        for slot in self._slots:
            instance = slot.instance
            if slot.in_flight < instance.depth and instance.is_healthy:
                if not slot.in_flight:
                    return slot
                if best is None or slot.in_flight < best.in_flight:
                    best = slot
        return best

    def _idle_slot(self) -> _Slot | None:
        """An instance with nothing to do: a batch formed for a busy one would miss requests yet to come."""
        for slot in self._slots:
            if not slot.in_flight and slot.instance.is_healthy:
                return slot
        return None

    def _is_dead(self) -> bool:
        for slot in self._slots:
            if slot.instance.is_healthy:
                return False
        return True

    def _accept(self, request: Request) -> None:
        if self._order is not None:
            self._order.append(request)
        self.in_flight_count += 1

    def _dispatch(self, now_ns: int) -> None:
        batcher = self._batcher
        if batcher is None:
            queue = self._queue
            while queue and (slot := self._free_slot()) is not None:
                slot.in_flight += 1
                slot.instance.submit((queue.popleft(),))
            return
        for request in batcher.expire(now_ns):
            self._fail(request, UnavailableError("Request timeout expired"), FailureReason.REJECTED, now_ns)
        is_waiting_for_instance = False
        while len(batcher):
            idle = self._idle_slot()
            if idle is None:
                is_waiting_for_instance = True
                break
            batch = batcher.decide(now_ns)
            if batch is None:
                break
            idle.in_flight += 1
            idle.instance.submit(batch.requests)
        self._arm(batcher.next_timeout_ns() if is_waiting_for_instance else batcher.next_deadline_ns())

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

    # Answering.

    def _finish_one(self, request: Request, execution: Execution, now_ns: int) -> None:
        outcome = execution.outcomes[0]
        if isinstance(outcome, Response):
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
            self._answer(request, outcome)
        else:
            self._finish_batch((request,), execution, now_ns)

    def _finish_batch(self, requests: Sequence[Request], execution: Execution, now_ns: int) -> None:
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
                if isinstance(outcome, Response)
            ],
            start_ns,
            input_end_ns,
            output_start_ns,
            end_ns,
            now_ns,
        )
        for request, outcome in zip(requests, execution.outcomes, strict=True):
            if isinstance(outcome, Response):
                self._answer(request, outcome)
            else:
                self._fail(request, outcome, FailureReason.BACKEND, now_ns)

    def _fail(self, request: Request, error: ServerError, reason: FailureReason, now_ns: int) -> None:
        self._statistics.record_failure(reason, request.arrival_ns, now_ns)
        self._answer(request, Response(self._model_name, self._model_version, error=error))

    def _fail_unhealthy(self, request: Request, now_ns: int) -> None:
        error = InternalError(f"Stub process '{self._slots[0].instance.name}' is not healthy.")
        self._fail(request, error, FailureReason.BACKEND, now_ns)

    def _answer(self, request: Request, response: Response) -> None:
        response.id = request.id
        response.model_name = self._model_name
        response.model_version = self._model_version
        if response.error is None:
            self._shaper.shape(request, response)
        if self._order is None:
            self.in_flight_count -= 1
            request.sink.on_response(response)
            if self._drained is not None and not self.in_flight_count:
                self._drained.set()
            return
        self._early[request] = response
        order = self._order
        while order and (ready := self._early.pop(order[0], None)) is not None:
            self._release(order.popleft(), ready)

    def _release(self, request: Request, response: Response) -> None:
        self.in_flight_count -= 1
        request.sink.on_response(response)
        if self._drained is not None and not self.in_flight_count:
            self._drained.set()
