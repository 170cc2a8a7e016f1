"""What a scheduler is: it keeps the accepted requests of one model and decides which run together, where and when.

A scheduler is a pure state machine. Events and the time come in, decisions come out; `engine.driver` acts on them:

    enqueue, cancel, expire, lose_instance     a request came, its client left, time passed, an instance died
    decide                                     an instance has nothing to do: its next batch, or None to wait
    release, reschedule                        a request of a batch came back (only to one that `follows_requests`)

Every request leaves exactly once: in a batch, or in what `cancel`, `expire`, `lose_instance` or `drain` return.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from merrow.core.errors import InvalidArgumentError, ServerError
from merrow.core.request import Request
from merrow.core.response import Response


class BatchCut(enum.Enum):
    """Why a batch was cut off where it was; the value completes "cut because"."""

    PREFERRED_SIZE = "a preferred size was reached"
    FULL = "the next request does not fit"
    MISMATCH = "the next request has other inputs or shapes"
    QUEUE_DELAY = "the oldest request has waited the queue delay"
    NOTHING_TO_WAIT_FOR = "nothing else waits"
    SLOT_UTILIZATION = "enough sequences are ready"


# Not frozen, which would cost as much as a tenth of forming a batch.
@dataclass(slots=True)
class RunBatch:
    """Decision: execute `requests` together, rows concatenated in this order."""

    requests: tuple[Request, ...]
    cut: BatchCut = field(default=BatchCut.NOTHING_TO_WAIT_FOR, compare=False)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Decision: this queued request will not run; answer it with this error."""

    request: Request
    error: ServerError


class Scheduler(Protocol):
    """See the module. Instances are numbered from 0, in the order in which `add_instance` made them known."""

    @property
    def follows_requests(self) -> bool:
        """Whether batches are made for one particular instance, and executed requests come back here."""

    @property
    def held_count(self) -> int:
        """How many requests TRITONSERVER_DELAY_SCHEDULER counts."""

    def __len__(self) -> int:
        """Requests that wait here."""

    def add_instance(self) -> None:
        """There is one more instance."""

    def enqueue(self, request: Request, now_ns: int) -> None:
        """Add a request; sets its `queue_ns`.

        Raises:
            ServerError: it is refused.
        """

    def cancel(self, request: Request, now_ns: int) -> Sequence[Request]:
        """The client of a request has left. Returns the queued requests that end with it; empty if it runs."""

    def expire(self, now_ns: int) -> Sequence[Refusal]:
        """Apply what is due; call when `next_deadline_ns` has come, and before `decide`."""

    def decide(self, now_ns: int, instance: int = 0) -> RunBatch | None:
        """The next batch for an instance that has nothing to do, or None to wait."""

    def has_batch(self, now_ns: int, instance: int = 0) -> bool:
        """Whether `decide` would give a batch."""

    def complete(self, request: Request) -> None:
        """Give a request that is run without being scheduled (warm-up) the inputs that `decide` would have added."""

    def next_deadline_ns(self) -> int | None:
        """When `expire` and `decide` must next be called without another event; None when there is no need."""

    def next_timeout_ns(self) -> int | None:
        """The same while no instance is free, for then `decide` would not be called."""

    def release(self, request: Request, response: Response | None, now_ns: int) -> None:
        """An executed request came back for good; `response` if the execution gave one."""

    def reschedule(self, request: Request, now_ns: int) -> None:
        """An executed request is to be executed again.

        Raises:
            ServerError: it cannot be; the request has been released.
        """

    def update_state(self, request: Request, response: Response) -> None:
        """A response came by itself for a request that has not been released."""

    def lose_instance(self, instance: int, now_ns: int) -> Sequence[Request]:
        """An instance died. Returns the queued requests that can run nowhere else."""

    def restore_instance(self, instance: int, now_ns: int) -> None:
        """An instance that died is back."""

    def retire_instance(self, instance: int, now_ns: int) -> bool:
        """An instance is to leave: nothing new is pinned to it. True if nothing is pinned to it any more."""

    def drain(self) -> Sequence[Request]:
        """Take out everything that waits, in order; asked only when every instance was lost."""

    def check_invariants(self) -> None:
        """For tests: assert whatever must be true between events."""


def not_iterative() -> ServerError:
    """Why a model without `iterative_sequence` may not have a request executed again."""
    return InvalidArgumentError(
        "Request is released with TRITONSERVER_REQUEST_RELEASE_RESCHEDULE, while the model is not configured to handle "
        "such a flag."
    )
