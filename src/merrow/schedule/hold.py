"""Holding a scheduler back until enough requests wait, so that a test can foresee the batches.

The first dispatch waits until `request_count` requests are there (and `backlog_count` in the backlog of sequences,
where that is asked for); from then on nothing is held any more. Meanwhile the time-outs of a queue are not looked at,
but sequences still become idle, and whatever refuses a request when it comes still does. Where nothing is held, nothing
of this exists.

Source: Triton, environment variables TRITONSERVER_DELAY_SCHEDULER and TRITONSERVER_BACKLOG_DELAY_SCHEDULER.
"""

from collections.abc import Callable, Sequence

from merrow.core.request import Request
from merrow.core.response import Response
from merrow.schedule.base import Refusal, RunBatch, Scheduler


class HeldScheduler:
    """A scheduler that is held back; itself a `schedule.base.Scheduler`."""

    def __init__(
        self,
        scheduler: Scheduler,
        request_count: int,
        backlog_count: int = 0,
        count_backlog: Callable[[], int] = lambda: 0,
    ) -> None:
        self._scheduler = scheduler
        self._request_count = request_count
        self._backlog_count = backlog_count
        self._count_backlog = count_backlog
        self._is_held = True

    @property
    def follows_requests(self) -> bool:
        return self._scheduler.follows_requests

    @property
    def held_count(self) -> int:
        return self._scheduler.held_count

    def __len__(self) -> int:
        return len(self._scheduler)

    def add_instance(self) -> None:
        self._scheduler.add_instance()

    def enqueue(self, request: Request, now_ns: int) -> None:
        self._scheduler.enqueue(request, now_ns)

    def cancel(self, request: Request, now_ns: int) -> Sequence[Request]:
        return self._scheduler.cancel(request, now_ns)

    def expire(self, now_ns: int) -> Sequence[Refusal]:
        if self._is_closed() and not self._scheduler.follows_requests:
            return ()
        return self._scheduler.expire(now_ns)

    def decide(self, now_ns: int, instance: int = 0) -> RunBatch | None:
        if self._is_closed():
            return None
        return self._scheduler.decide(now_ns, instance)

    def has_batch(self, now_ns: int, instance: int = 0) -> bool:
        return not self._is_closed() and self._scheduler.has_batch(now_ns, instance)

    def complete(self, request: Request) -> None:
        self._scheduler.complete(request)

    def next_deadline_ns(self) -> int | None:
        return self.next_timeout_ns() if self._is_closed() else self._scheduler.next_deadline_ns()

    def next_timeout_ns(self) -> int | None:
        if self._is_closed() and not self._scheduler.follows_requests:
            return None
        return self._scheduler.next_timeout_ns()

    def release(self, request: Request, response: Response | None, now_ns: int) -> None:
        self._scheduler.release(request, response, now_ns)

    def reschedule(self, request: Request, now_ns: int) -> None:
        self._scheduler.reschedule(request, now_ns)

    def update_state(self, request: Request, response: Response) -> None:
        self._scheduler.update_state(request, response)

    def lose_instance(self, instance: int, now_ns: int) -> Sequence[Request]:
        return self._scheduler.lose_instance(instance, now_ns)

    def restore_instance(self, instance: int, now_ns: int) -> None:
        self._scheduler.restore_instance(instance, now_ns)

    def retire_instance(self, instance: int, now_ns: int) -> bool:
        return self._scheduler.retire_instance(instance, now_ns)

    def drain(self) -> Sequence[Request]:
        return self._scheduler.drain()

    def check_invariants(self) -> None:
        self._scheduler.check_invariants()

    def _is_closed(self) -> bool:
        if self._is_held:
            self._is_held = (
                self._scheduler.held_count < self._request_count or self._count_backlog() < self._backlog_count
            )
        return self._is_held
