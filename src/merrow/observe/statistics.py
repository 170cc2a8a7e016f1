"""Statistics of one model version, as Triton counts them.

A `StatisticsRecorder` belongs to one loaded model version and lives as long as it does: a reload starts from zero.
It is written on the loop's thread only. What is counted when:

    refused before scheduling (validation, queue full)      nothing
    left the queue by time-out or cancellation              fail
    executed, response (also one that carries an error)     success, queue, compute, inference count
    executed, but the model failed                          fail; the execution and its batch count
    never executed (its process died)                       fail

Source: Triton, infer_stats.cc; statistics extension.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field


class FailureReason(enum.Enum):
    """Label `reason` of nv_inference_request_failure."""

    REJECTED = "REJECTED"
    CANCELED = "CANCELED"
    BACKEND = "BACKEND"
    OTHER = "OTHER"


@dataclass(frozen=True, slots=True)
class Duration:
    """How often something happened, and how long it took in total."""

    count: int = 0
    ns: int = 0


@dataclass(frozen=True, slots=True)
class BatchStatistics:
    """Executions of one batch size."""

    batch_size: int
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


@dataclass(frozen=True, slots=True)
class MemoryUsage:
    """Memory a backend reports; `type` is CPU, CPU_PINNED or GPU."""

    type: str
    id: int
    byte_size: int


@dataclass(frozen=True, slots=True)
class ResponseStatistics:
    """Statistics of one response index of a decoupled model."""

    compute_infer: Duration
    compute_output: Duration
    success: Duration
    fail: Duration
    empty_response: Duration
    cancel: Duration


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """What the statistics endpoint says of one model version. `last_inference_ms` is wall clock, 0 if none."""

    name: str
    version: int
    last_inference_ms: int = 0
    inference_count: int = 0
    execution_count: int = 0
    success: Duration = Duration()
    fail: Duration = Duration()
    queue: Duration = Duration()
    compute_input: Duration = Duration()
    compute_infer: Duration = Duration()
    compute_output: Duration = Duration()
    cache_hit: Duration = Duration()
    cache_miss: Duration = Duration()
    response_stats: dict[str, ResponseStatistics] = field(default_factory=dict)
    batch_stats: tuple[BatchStatistics, ...] = ()
    memory_usage: tuple[MemoryUsage, ...] = ()
    failures: dict[FailureReason, int] = field(default_factory=dict)


class StatisticsRecorder:
    """Counts for one model version. Times are monotonic nanoseconds."""

    __slots__ = (
        "_batches",
        "_compute_infer_ns",
        "_compute_input_ns",
        "_compute_output_ns",
        "_execution_count",
        "_fail_count",
        "_fail_ns",
        "_failures",
        "_inference_count",
        "_last_ns",
        "_queue_ns",
        "_success_count",
        "_success_ns",
    )

    def __init__(self) -> None:
        # When something was last counted; 0 for never.
        self._last_ns = 0
        self._inference_count = 0
        self._execution_count = 0
        self._success_count = 0
        self._success_ns = 0
        self._fail_count = 0
        self._fail_ns = 0
        self._queue_ns = 0
        self._compute_input_ns = 0
        self._compute_infer_ns = 0
        self._compute_output_ns = 0
        self._failures = dict.fromkeys(FailureReason, 0)
        # batch size -> [executions, compute input ns, compute infer ns, compute output ns]
        self._batches: dict[int, list[int]] = {}

    def record_execution(
        self, batch_size: int, start_ns: int, input_end_ns: int, output_start_ns: int, end_ns: int, now_ns: int
    ) -> None:
        """A batch of `batch_size` rows ran, whatever came out of it."""
        self._last_ns = now_ns
        self._execution_count += 1
        batch = self._batches.get(batch_size)
        if batch is None:
            batch = self._batches[batch_size] = [0, 0, 0, 0]
        batch[0] += 1
        batch[1] += input_end_ns - start_ns
        batch[2] += output_start_ns - input_end_ns
        batch[3] += end_ns - output_start_ns

    def record_successes(
        self,
        spans: Sequence[tuple[int, int, int]],
        start_ns: int,
        input_end_ns: int,
        output_start_ns: int,
        end_ns: int,
        now_ns: int,
    ) -> None:
        """Requests of an executed batch were answered; each is charged the whole batch's durations.

        Args:
            spans: for each request its rows, when it arrived and when it entered the queue.
        """
        count = len(spans)
        self._success_count += count
        self._compute_input_ns += count * (input_end_ns - start_ns)
        self._compute_infer_ns += count * (output_start_ns - input_end_ns)
        self._compute_output_ns += count * (end_ns - output_start_ns)
        for rows, arrival_ns, queue_ns in spans:
            self._inference_count += rows
            self._success_ns += now_ns - arrival_ns
            self._queue_ns += start_ns - queue_ns

    def record_success(
        self,
        rows: int,
        arrival_ns: int,
        queue_ns: int,
        start_ns: int,
        input_end_ns: int,
        output_start_ns: int,
        end_ns: int,
        now_ns: int,
    ) -> None:
        """A batch of one request ran, and its request was answered.

        `record_execution` and `record_successes` in one, without the list: most executions are such.
        """
        input_ns = input_end_ns - start_ns
        infer_ns = output_start_ns - input_end_ns
        output_ns = end_ns - output_start_ns
        self._last_ns = now_ns
        self._execution_count += 1
        batch = self._batches.get(rows)
        if batch is None:
            batch = self._batches[rows] = [0, 0, 0, 0]
        batch[0] += 1
        batch[1] += input_ns
        batch[2] += infer_ns
        batch[3] += output_ns
        self._success_count += 1
        self._inference_count += rows
        self._success_ns += now_ns - arrival_ns
        self._queue_ns += start_ns - queue_ns
        self._compute_input_ns += input_ns
        self._compute_infer_ns += infer_ns
        self._compute_output_ns += output_ns

    def record_failure(self, reason: FailureReason, arrival_ns: int, now_ns: int) -> None:
        """An accepted request failed."""
        self._last_ns = now_ns
        self._fail_count += 1
        self._fail_ns += now_ns - arrival_ns
        self._failures[reason] += 1

    def snapshot(self, name: str, version: int, now_ns: int, now_wall_ms: int) -> ModelStatistics:
        """The counts so far; with the time now, to say by the wall clock when the last was counted."""
        executed = self._success_count
        return ModelStatistics(
            name=name,
            version=version,
            last_inference_ms=now_wall_ms - (now_ns - self._last_ns) // 1_000_000 if self._last_ns else 0,
            inference_count=self._inference_count,
            execution_count=self._execution_count,
            success=Duration(self._success_count, self._success_ns),
            fail=Duration(self._fail_count, self._fail_ns),
            queue=Duration(self._success_count, self._queue_ns),
            compute_input=Duration(executed, self._compute_input_ns),
            compute_infer=Duration(executed, self._compute_infer_ns),
            compute_output=Duration(executed, self._compute_output_ns),
            batch_stats=tuple(
                BatchStatistics(size, Duration(count, input_ns), Duration(count, infer_ns), Duration(count, output_ns))
                for size, (count, input_ns, infer_ns, output_ns) in sorted(self._batches.items())
            ),
            failures=dict(self._failures),
        )
