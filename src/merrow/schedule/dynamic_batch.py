"""Dynamic batching: which queued requests run together, and when.

Requests wait in one first-in-first-out queue per priority level; a level is served before the levels behind it. When
an instance is free, the queue is walked in that order and a batch grows until the next request would exceed
`max_batch_size` or may not share a batch with the first (other input shapes or names). Order is never changed to fit
more in. What is cut off:

    a preferred size was reached                  exactly that many requests
    the batch cannot grow, or nothing delays it   all that were walked
    younger than max_queue_delay                  nothing yet: `next_deadline_ns` says when to ask again

Each level has a queue policy: how many may wait, how long, and whether one that waited too long is refused or moved
behind the others of its level. Time-outs bound the wait in the queue, never an execution.

Source: Triton, dynamic_batch_scheduler.cc, scheduler_utils.cc; model_configuration.md, "Dynamic Batcher".
"""

import heapq
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass

from merrow.core.errors import UnavailableError
from merrow.core.model_config import ModelConfig, ModelQueuePolicy
from merrow.core.request import Request
from merrow.core.response import Response
from merrow.schedule.base import BatchCut, Refusal, RunBatch, not_iterative

# So many time-outs of requests that left the queue are kept before they are looked for.
_MAX_STALE_ENTRIES = 16


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """A model's dynamic batching settings, normalised.

    `batch_key` is None where all requests may share a batch; else requests share one when their keys are equal.
    """

    max_batch_size: int
    preferred_batch_sizes: frozenset[int]
    max_queue_delay_ns: int
    priority_levels: int
    default_priority_level: int
    default_queue_policy: ModelQueuePolicy
    priority_queue_policies: dict[int, ModelQueuePolicy]
    batch_key: Callable[[Request], Hashable] | None = None

    @classmethod
    def from_config(cls, config: ModelConfig, batch_key: Callable[[Request], Hashable] | None) -> "BatchPolicy":
        """The policy that a normalised configuration with `dynamic_batching` asks for."""
        batching = config.dynamic_batching
        assert batching is not None
        # Without a batch dimension only the queue policies are left: each request runs alone.
        max_batch_size = max(1, config.max_batch_size)
        return cls(
            max_batch_size=max_batch_size,
            preferred_batch_sizes=frozenset(batching.preferred_batch_size) or frozenset({max_batch_size}),
            max_queue_delay_ns=batching.max_queue_delay_microseconds * 1000,
            priority_levels=batching.priority_levels,
            default_priority_level=batching.default_priority_level,
            default_queue_policy=batching.default_queue_policy or ModelQueuePolicy(),
            priority_queue_policies=dict(batching.priority_queue_policy),
            batch_key=batch_key,
        )


class _Level:
    """The queue of one priority level: those within their time-out, then those past it."""

    __slots__ = ("delayed", "policy", "waiting")

    def __init__(self, policy: ModelQueuePolicy) -> None:
        self.policy = policy
        self.waiting: deque[Request] = deque()
        self.delayed: deque[Request] = deque()

    def __len__(self) -> int:
        return len(self.waiting) + len(self.delayed)


class DynamicBatcher:
    """The queue of one model; a `schedule.base.Scheduler`. Every batch suits every instance.

    Call `enqueue` for each request; whenever an instance is free, call `decide` until it returns None; call `expire`
    and then `decide` when `next_deadline_ns` has come.
    """

    follows_requests = False

    def __init__(self, policy: BatchPolicy) -> None:
        self._policy = policy
        self._max_preferred = max(policy.preferred_batch_sizes)
        self._levels = [
            _Level(policy.priority_queue_policies.get(level, policy.default_queue_policy))
            for level in range(1, max(1, policy.priority_levels) + 1)
        ]
        self._count = 0
        self._enqueued = 0
        # (deadline, arrival order, request, its level); an entry whose request left the queue is skipped when due, or
        # dropped when there are many.
        self._timeouts: list[tuple[int, int, Request, _Level]] = []
        self._delay_deadline_ns: int | None = None

    def __len__(self) -> int:
        return self._count

    @property
    def held_count(self) -> int:
        return self._count

    def add_instance(self) -> None:
        """All instances are alike."""

    def enqueue(self, request: Request, now_ns: int) -> None:
        """Add a request; sets its `queue_ns`.

        Raises:
            UnavailableError: the queue of its level is full.
        """
        level = self._level_of(request)
        policy = level.policy
        if policy.max_queue_size and len(level) >= policy.max_queue_size:
            raise UnavailableError(f"{request.log_prefix}Exceeds maximum queue size")
        request.queue_ns = request.batcher_ns = now_ns
        level.waiting.append(request)
        self._count += 1
        timeout_us = policy.default_timeout_microseconds
        if policy.allow_timeout_override and 0 < request.timeout_us < timeout_us:
            timeout_us = request.timeout_us
        if timeout_us:
            self._enqueued += 1
            heapq.heappush(self._timeouts, (now_ns + timeout_us * 1000, self._enqueued, request, level))
            if len(self._timeouts) > 2 * self._count + _MAX_STALE_ENTRIES:
                self._drop_stale_timeouts()

    def cancel(self, request: Request, now_ns: int) -> list[Request]:
        """Take out a request whose client has left; empty when it is no longer queued."""
        level = self._level_of(request)
        for queue in (level.waiting, level.delayed):
            try:
                queue.remove(request)
            except ValueError:
                continue
            self._count -= 1
            return [request]
        return []

    def drain(self) -> list[Request]:
        """Take out everything, in order."""
        requests = list(self._walk())
        for level in self._levels:
            level.waiting.clear()
            level.delayed.clear()
        self._timeouts.clear()
        self._count = 0
        return requests

    def expire(self, now_ns: int) -> list[Refusal]:
        """Apply due time-outs: refused requests are taken out and returned, delayed ones moved back."""
        refused: list[Refusal] = []
        while self._timeouts and self._timeouts[0][0] <= now_ns:
            _, _, request, level = heapq.heappop(self._timeouts)
            try:
                level.waiting.remove(request)
            except ValueError:
                continue
            if level.policy.timeout_action == "DELAY":
                level.delayed.append(request)
            else:
                self._count -= 1
                refused.append(Refusal(request, UnavailableError("Request timeout expired")))
        return refused

    def next_deadline_ns(self) -> int | None:
        """When `expire` and `decide` must next be called without another event; None when there is no need."""
        timeout = self.next_timeout_ns()
        delay = self._delay_deadline_ns
        if timeout is None or delay is None:
            return delay if timeout is None else timeout
        return min(timeout, delay)

    def next_timeout_ns(self) -> int | None:
        """When `expire` must next be called; the deadline while no instance is free, for a delay is moot then."""
        if not self._count:
            self._timeouts.clear()
        return self._timeouts[0][0] if self._timeouts else None

    def decide(self, now_ns: int, instance: int = 0) -> RunBatch | None:
        """The next batch for a free instance, whichever it is, or None to wait.

        Sets the deadline that `next_deadline_ns` returns: the end of the queue delay where one is being waited out.
        """
        choice = self._choose(now_ns)
        if choice is None:
            return None
        count, cut = choice
        return self._take(count, cut)

    def has_batch(self, now_ns: int, instance: int = 0) -> bool:
        return self._choose(now_ns) is not None

    def complete(self, request: Request) -> None:
        """Nothing is added to requests."""

    def release(self, request: Request, response: Response | None, now_ns: int) -> None:
        """Nothing is kept of a request that ran."""

    def reschedule(self, request: Request, now_ns: int) -> None:
        """Raises: only sequences are executed more than once."""
        raise not_iterative()

    def update_state(self, request: Request, response: Response) -> None:
        """Requests share no state."""

    def lose_instance(self, instance: int, now_ns: int) -> list[Request]:
        """Whatever waits can run elsewhere."""
        return []

    def retire_instance(self, instance: int, now_ns: int) -> bool:
        """Nothing is pinned to an instance."""
        return True

    def restore_instance(self, instance: int, now_ns: int) -> None:
        """Nothing was lost."""

    def check_invariants(self) -> None:
        """For tests: the counts agree with the queues, and no bound is broken."""
        assert self._count == sum(len(level) for level in self._levels)
        for level in self._levels:
            assert not level.policy.max_queue_size or len(level) <= level.policy.max_queue_size
            arrivals = [request.batcher_ns for request in level.waiting]
            assert arrivals == sorted(arrivals)

    def _choose(self, now_ns: int) -> tuple[int, BatchCut] | None:
        """How many requests from the head of the queue run together now, and why no more; None to wait."""
        self._delay_deadline_ns = None
        if not self._count:
            return None
        policy = self._policy
        max_batch_size = policy.max_batch_size
        max_preferred = self._max_preferred
        batch_key = policy.batch_key
        first_key: Hashable = None
        oldest_ns = now_ns
        total = count = best = 0
        # Whether the best so far is all that fits, and no preferred size.
        is_best_full = False
        # What stopped the walk before the end of the queue.
        stop: BatchCut | None = None
        for request in self._walk():
            rows = request.batch_size
            if count:
                if not best and total + rows > max_preferred:
                    best = count
                    is_best_full = True
                if total + rows > max_batch_size:
                    stop = BatchCut.FULL
                    break
                if batch_key is not None and batch_key(request) != first_key:
                    stop = BatchCut.MISMATCH
                    break
            elif batch_key is not None:
                first_key = batch_key(request)
            total += rows
            count += 1
            if request.batcher_ns < oldest_ns:
                oldest_ns = request.batcher_ns
            if total in policy.preferred_batch_sizes:
                best = count
                is_best_full = False
        delay_ns = policy.max_queue_delay_ns
        is_due = now_ns - oldest_ns >= delay_ns
        if best and (not delay_ns or not is_due):
            return best, BatchCut.FULL if is_best_full else BatchCut.PREFERRED_SIZE
        if stop is not None:
            return count, stop
        if total >= max_preferred:
            return count, BatchCut.FULL
        if is_due:
            return count, BatchCut.QUEUE_DELAY if delay_ns else BatchCut.NOTHING_TO_WAIT_FOR
        self._delay_deadline_ns = oldest_ns + delay_ns
        return None

    def _drop_stale_timeouts(self) -> None:
        """Let go of requests that left the queue, which under steady load would be kept until their time-out."""
        waiting = {request for level in self._levels for request in level.waiting}
        self._timeouts = [entry for entry in self._timeouts if entry[2] in waiting]
        heapq.heapify(self._timeouts)

    def _level_of(self, request: Request) -> _Level:
        levels = self._policy.priority_levels
        if not levels:
            return self._levels[0]
        priority = request.priority if 1 <= request.priority <= levels else self._policy.default_priority_level
        return self._levels[priority - 1]

    def _walk(self) -> Iterator[Request]:
        for level in self._levels:
            yield from level.waiting
            yield from level.delayed

    def _take(self, count: int, cut: BatchCut) -> RunBatch:
        taken: list[Request] = []
        for level in self._levels:
            for queue in (level.waiting, level.delayed):
                while queue and len(taken) < count:
                    taken.append(queue.popleft())
        self._count -= len(taken)
        return RunBatch(tuple(taken), cut)
