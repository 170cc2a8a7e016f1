"""Statistics of one model version, as Triton counts them.

A `StatisticsRecorder` belongs to one loaded model version and lives as long as it does: a reload starts from zero.
It is written on the loop's thread only. What is counted when:

    refused before scheduling (validation, queue full)      nothing
    left the queue by time-out or cancellation              fail
    executed, response (also one that carries an error)     success, queue, compute, inference count
    answered from the response cache                        success, queue, cache hit
    executed, but the model failed                          fail; the execution and its batch count
    never executed (its process died)                       fail

Source: Triton, infer_stats.cc; statistics extension.
"""

import enum
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from merrow.core.errors import ErrorCode
from merrow.core.response import TimedResponse
from merrow.observe.summary import Summary

# One for each bit length of a duration.
_HISTOGRAM_BUCKETS = 64


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
class DurationHistogram:
    """How often a duration was at most each bound; `counts` has one more entry, for what exceeds the last."""

    bounds_ns: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()
    total_ns: int = 0


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
    # Of requests: from arrival to answer, and in the queue. Of executions: in the instance. (Sizes: `batch_stats`.)
    request_histogram: DurationHistogram = DurationHistogram()
    queue_histogram: DurationHistogram = DurationHistogram()
    execution_histogram: DurationHistogram = DurationHistogram()
    # Time from arrival to the first response, where the recorder was given bounds.
    first_response_histogram: DurationHistogram | None = None
    # Of microseconds, where the recorder was told to keep them.
    summaries: "LatencySummaries | None" = None
    # Sequences whose slot was taken from them, by reason.
    sequence_evictions: dict[str, int] = field(default_factory=dict)


class LatencySummaries:
    """Summaries of one model version's latencies, in whole microseconds."""

    __slots__ = ("cache_hit", "cache_miss", "compute_infer", "compute_input", "compute_output", "queue", "request")

    def __init__(self) -> None:
        self.request = Summary()
        self.queue = Summary()
        self.compute_input = Summary()
        self.compute_infer = Summary()
        self.compute_output = Summary()
        self.cache_hit = Summary()
        self.cache_miss = Summary()

    def record(self, request_ns: int, queue_ns: int, input_ns: int, infer_ns: int, output_ns: int, now_ns: int) -> None:
        """A request was executed and answered."""
        self.request.record(request_ns // 1000, now_ns)
        self.queue.record(queue_ns // 1000, now_ns)
        self.compute_input.record(input_ns // 1000, now_ns)
        self.compute_infer.record(infer_ns // 1000, now_ns)
        self.compute_output.record(output_ns // 1000, now_ns)


class StatisticsRecorder:
    """Counts for one model version. Times are monotonic nanoseconds.

    Args:
        first_response_bounds_ns: of the histogram of first responses; without them there is none.
        has_summaries: whether to keep summaries of latencies, which costs each request some microseconds.
    """

    __slots__ = (
        "_batches",
        "_cache_hit_count",
        "_cache_hit_ns",
        "_cache_miss_count",
        "_cache_miss_ns",
        "_compute_infer_ns",
        "_compute_input_ns",
        "_compute_output_ns",
        "_evictions",
        "_execution_times",
        "_fail_count",
        "_fail_ns",
        "_failures",
        "_first_response_bounds_ns",
        "_first_response_counts",
        "_first_response_ns",
        "_inference_count",
        "_last_ns",
        "_lone",
        "_queue_ns",
        "_queue_times",
        "_request_times",
        "_responses",
        "_success_count",
        "_success_ns",
        "_summaries",
        "has_first_response_bounds",
    )

    def __init__(self, first_response_bounds_ns: Sequence[int] = (), has_summaries: bool = False) -> None:
        # When something was last counted; 0 for never.
        self._last_ns = 0
        self._inference_count = 0
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
        # The same for executions of one request each that succeeded (`record_success`), by its rows.
        self._lone: dict[int, list[int]] = {}
        # Counts of durations by the bit length of their microseconds (of 1024 ns): a histogram for one addition.
        self._request_times = [0] * _HISTOGRAM_BUCKETS
        self._queue_times = [0] * _HISTOGRAM_BUCKETS
        self._execution_times = [0] * _HISTOGRAM_BUCKETS
        self._first_response_bounds_ns = tuple(first_response_bounds_ns)
        self.has_first_response_bounds = bool(first_response_bounds_ns)
        self._first_response_counts = [0] * (len(self._first_response_bounds_ns) + 1)
        self._first_response_ns = 0
        # response index -> [count and ns of each field of ResponseStatistics, in its order]
        self._responses: dict[int, list[int]] = {}
        self._evictions: dict[str, int] = {}
        self._cache_hit_count = 0
        self._cache_hit_ns = 0
        self._cache_miss_count = 0
        self._cache_miss_ns = 0
        self._summaries = LatencySummaries() if has_summaries else None

    def record_execution(
        self, batch_size: int, start_ns: int, input_end_ns: int, output_start_ns: int, end_ns: int, now_ns: int
    ) -> None:
        """A batch of `batch_size` rows ran, whatever came out of it."""
        self._last_ns = now_ns
        batch = self._batches.get(batch_size)
        if batch is None:
            batch = self._batches[batch_size] = [0, 0, 0, 0]
        batch[0] += 1
        batch[1] += input_end_ns - start_ns
        batch[2] += output_start_ns - input_end_ns
        batch[3] += end_ns - output_start_ns
        self._execution_times[(end_ns - start_ns >> 10).bit_length()] += 1

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
            self._queue_times[(start_ns - queue_ns >> 10).bit_length()] += 1
            self._request_times[(now_ns - arrival_ns >> 10).bit_length()] += 1
        if self._summaries is not None:
            for _, arrival_ns, queue_ns in spans:
                self._summaries.record(
                    now_ns - arrival_ns,
                    start_ns - queue_ns,
                    input_end_ns - start_ns,
                    output_start_ns - input_end_ns,
                    end_ns - output_start_ns,
                    now_ns,
                )

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

        `record_execution` and `record_successes` in one: most executions are such, and what can be told from others
        (`_lone` has them all) is not counted again.
        """
        input_ns = input_end_ns - start_ns
        infer_ns = output_start_ns - input_end_ns
        output_ns = end_ns - output_start_ns
        self._last_ns = now_ns
        lone = self._lone.get(rows)
        if lone is None:
            lone = self._lone[rows] = [0, 0, 0, 0]
        lone[0] += 1
        lone[1] += input_ns
        lone[2] += infer_ns
        lone[3] += output_ns
        self._success_ns += now_ns - arrival_ns
        queue_ns = start_ns - queue_ns
        self._queue_ns += queue_ns
        self._queue_times[(queue_ns >> 10).bit_length()] += 1
        self._request_times[(now_ns - arrival_ns >> 10).bit_length()] += 1
        self._execution_times[(end_ns - start_ns >> 10).bit_length()] += 1
        if self.has_first_response_bounds:
            self.record_first_response(arrival_ns, now_ns)
        if self._summaries is not None:
            self._summaries.record(now_ns - arrival_ns, queue_ns, input_ns, infer_ns, output_ns, now_ns)

    def record_cache_hit(self, arrival_ns: int, queue_ns: int, lookup_ns: int, now_ns: int) -> None:
        """A request was answered from the response cache; `lookup_ns` is when the search for it began."""
        self._last_ns = now_ns
        self._success_count += 1
        self._success_ns += now_ns - arrival_ns
        self._queue_ns += lookup_ns - queue_ns
        self._cache_hit_count += 1
        self._cache_hit_ns += now_ns - lookup_ns
        self._request_times[(now_ns - arrival_ns >> 10).bit_length()] += 1
        self._queue_times[(lookup_ns - queue_ns >> 10).bit_length()] += 1
        if self.has_first_response_bounds:
            self.record_first_response(arrival_ns, now_ns)
        if self._summaries is not None:
            self._summaries.request.record((now_ns - arrival_ns) // 1000, now_ns)
            self._summaries.queue.record((lookup_ns - queue_ns) // 1000, now_ns)
            self._summaries.cache_hit.record((now_ns - lookup_ns) // 1000, now_ns)

    def record_cache_miss(self, duration_ns: int, now_ns: int) -> None:
        """The cache did not have a request's answer and was given it, which took so long in all.

        The time counts as part of the request's, too, as in Triton.
        """
        self._success_ns += duration_ns
        self._cache_miss_count += 1
        self._cache_miss_ns += duration_ns
        if self._summaries is not None:
            self._summaries.cache_miss.record(duration_ns // 1000, now_ns)

    def record_first_response(self, arrival_ns: int, now_ns: int) -> None:
        """The first response of a request came; nothing is kept unless `has_first_response_bounds`."""
        if self.has_first_response_bounds:
            self._first_response_ns += now_ns - arrival_ns
            self._first_response_counts[bisect_left(self._first_response_bounds_ns, now_ns - arrival_ns)] += 1

    def record_response(self, response: TimedResponse) -> None:
        """One response of a decoupled request."""
        times = response.times
        counts = self._responses.get(times.index)
        if counts is None:
            counts = self._responses[times.index] = [0] * 12
        total_ns = times.end_ns - times.start_ns
        error = response.error
        if error is not None and error.code is ErrorCode.CANCELLED:
            _add(counts, _CANCEL, total_ns)
        elif not response.outputs and error is None:
            _add(counts, _COMPUTE_INFER, total_ns)
            _add(counts, _EMPTY, total_ns)
        else:
            _add(counts, _COMPUTE_INFER, times.output_start_ns - times.start_ns)
            _add(counts, _COMPUTE_OUTPUT, times.end_ns - times.output_start_ns)
            _add(counts, _SUCCESS if error is None else _FAIL, total_ns)

    def record_eviction(self, reason: str) -> None:
        """A sequence lost its slot before its end."""
        self._evictions[reason] = self._evictions.get(reason, 0) + 1

    def record_failure(self, reason: FailureReason, arrival_ns: int, now_ns: int) -> None:
        """An accepted request failed."""
        self._last_ns = now_ns
        self._fail_count += 1
        self._fail_ns += now_ns - arrival_ns
        self._failures[reason] += 1

    def snapshot(self, name: str, version: int, now_ns: int, now_wall_ms: int) -> ModelStatistics:
        """The counts so far; with the time now, to say by the wall clock when the last was counted."""
        lone_count, lone_input_ns, lone_infer_ns, lone_output_ns = (
            sum(lone[part] for lone in self._lone.values()) for part in range(4)
        )
        batches = {
            size: [
                sum(parts) for parts in zip(self._batches.get(size, _NONE), self._lone.get(size, _NONE), strict=True)
            ]
            for size in self._batches.keys() | self._lone.keys()
        }
        success_count = self._success_count + lone_count
        executed = success_count - self._cache_hit_count
        return ModelStatistics(
            name=name,
            version=version,
            last_inference_ms=now_wall_ms - (now_ns - self._last_ns) // 1_000_000 if self._last_ns else 0,
            inference_count=self._inference_count + sum(rows * lone[0] for rows, lone in self._lone.items()),
            execution_count=sum(batch[0] for batch in batches.values()),
            success=Duration(success_count, self._success_ns),
            fail=Duration(self._fail_count, self._fail_ns),
            queue=Duration(success_count, self._queue_ns),
            compute_input=Duration(executed, self._compute_input_ns + lone_input_ns),
            compute_infer=Duration(executed, self._compute_infer_ns + lone_infer_ns),
            compute_output=Duration(executed, self._compute_output_ns + lone_output_ns),
            batch_stats=tuple(
                BatchStatistics(size, Duration(count, input_ns), Duration(count, infer_ns), Duration(count, output_ns))
                for size, (count, input_ns, infer_ns, output_ns) in sorted(batches.items())
            ),
            cache_hit=Duration(self._cache_hit_count, self._cache_hit_ns),
            cache_miss=Duration(self._cache_miss_count, self._cache_miss_ns),
            failures=dict(self._failures),
            response_stats={
                str(index): _response_statistics(self._responses[index]) for index in sorted(self._responses)
            },
            request_histogram=_histogram(self._request_times, self._success_ns),
            queue_histogram=_histogram(self._queue_times, self._queue_ns),
            execution_histogram=_histogram(self._execution_times, sum(sum(batch[1:]) for batch in batches.values())),
            first_response_histogram=DurationHistogram(
                self._first_response_bounds_ns, tuple(self._first_response_counts), self._first_response_ns
            )
            if self.has_first_response_bounds
            else None,
            summaries=self._summaries,
            sequence_evictions=dict(self._evictions),
        )


# Executions of a batch size that there were none of.
_NONE = (0, 0, 0, 0)
# Positions of the fields of ResponseStatistics, two numbers each.
_COMPUTE_INFER, _COMPUTE_OUTPUT, _SUCCESS, _FAIL, _EMPTY, _CANCEL = range(0, 12, 2)


def _add(counts: list[int], position: int, ns: int) -> None:
    counts[position] += 1
    counts[position + 1] += ns


def _response_statistics(counts: list[int]) -> ResponseStatistics:
    return ResponseStatistics(*(Duration(counts[position], counts[position + 1]) for position in range(0, 12, 2)))


def _histogram(counts: Sequence[int], total_ns: int) -> DurationHistogram:
    """From counts by bit length of units of 1024 ns: the bounds that matter, from 1 us to 17 s."""
    shown = 25
    return DurationHistogram(
        tuple((1 << bits) * 1024 for bits in range(shown)),
        (*counts[:shown], sum(counts[shown:])),
        total_ns,
    )
