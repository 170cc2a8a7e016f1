from merrow.core.errors import CancelledError, InternalError
from merrow.core.response import ResponseTimes, TimedResponse
from merrow.core.tensor import Tensor
from merrow.observe.statistics import (
    BatchStatistics,
    Duration,
    DurationHistogram,
    FailureReason,
    ResponseStatistics,
    StatisticsRecorder,
)

NOW_NS, NOW_MS = 5_000_000_000, 1_700_000_000_000


def test_nothing_counted_is_all_zero():
    counts = StatisticsRecorder().snapshot("m", 3, 0, 0)

    assert (counts.name, counts.version, counts.last_inference_ms) == ("m", 3, 0)
    assert counts.success == counts.fail == counts.queue == Duration(0, 0)
    assert counts.batch_stats == ()
    assert set(counts.failures.values()) == {0}


def test_each_request_of_a_batch_is_charged_the_whole_execution():
    recorder = StatisticsRecorder()
    recorder.record_execution(3, 100, 110, 150, 155, now_ns=NOW_NS - 3_000_000)
    recorder.record_successes([(1, 10, 20), (2, 30, 40)], 100, 110, 150, 155, now_ns=200)
    counts = recorder.snapshot("m", 1, NOW_NS, NOW_MS)

    assert counts.last_inference_ms == NOW_MS - 3
    assert (counts.inference_count, counts.execution_count) == (3, 1)
    assert counts.success == Duration(2, 190 + 170)
    assert counts.queue == Duration(2, 80 + 60)
    assert counts.compute_input == Duration(2, 20)
    assert counts.compute_infer == Duration(2, 80)
    assert counts.compute_output == Duration(2, 10)
    assert counts.batch_stats == (BatchStatistics(3, Duration(1, 10), Duration(1, 40), Duration(1, 5)),)


def test_a_lone_request_counts_the_same_by_either_way():
    one, many = StatisticsRecorder(), StatisticsRecorder()
    one.record_success(2, 10, 20, 100, 110, 150, 155, 200)
    many.record_execution(2, 100, 110, 150, 155, 200)
    many.record_successes([(2, 10, 20)], 100, 110, 150, 155, 200)

    assert one.snapshot("m", 1, NOW_NS, NOW_MS) == many.snapshot("m", 1, NOW_NS, NOW_MS)


def test_failures_are_counted_by_reason():
    recorder = StatisticsRecorder()
    recorder.record_failure(FailureReason.REJECTED, 10, 30)
    recorder.record_failure(FailureReason.OTHER, 10, NOW_NS)
    counts = recorder.snapshot("m", 1, NOW_NS, NOW_MS)

    assert counts.fail == Duration(2, 20 + NOW_NS - 10)
    assert counts.failures[FailureReason.REJECTED] == counts.failures[FailureReason.OTHER] == 1
    assert counts.failures[FailureReason.CANCELED] == 0
    assert counts.last_inference_ms == NOW_MS


def histogram(durations):
    """Bounds that something was counted under, with how often; None for more than the largest."""
    bounds = (*durations.bounds_ns, None)
    return {bound: count for bound, count in zip(bounds, durations.counts, strict=True) if count}


def test_queues_and_executions_have_histograms():
    recorder = StatisticsRecorder()
    us = 1024
    recorder.record_success(1, 0, 0, 3 * us, 3 * us, 3 * us, 103 * us, 110 * us)
    recorder.record_execution(2, 1000 * us, 1000 * us, 1000 * us, 1000 * us + 512, 2000 * us)
    recorder.record_successes([(1, 0, 0), (1, 0, 10**12)], 10**12, 10**12, 10**12, 10**12, 10**12)

    statistics = recorder.snapshot("m", 1, 0, 0)
    assert histogram(statistics.queue_histogram) == {1 * us: 1, 4 * us: 1, None: 1}
    assert statistics.queue_histogram.total_ns == statistics.queue.ns
    assert histogram(statistics.execution_histogram) == {1 * us: 1, 128 * us: 1}
    assert statistics.execution_histogram.total_ns == 100 * us + 512
    assert len(statistics.queue_histogram.counts) == len(statistics.queue_histogram.bounds_ns) + 1


def test_responses_that_are_measured_are_counted_by_their_index():
    recorder = StatisticsRecorder()

    def record(index, **settings):
        response = TimedResponse("m", 1, **settings)
        response.times = ResponseTimes(index, 100, 107, 110)
        recorder.record_response(response)

    output = Tensor("y", "INT8", (1,), b"")
    record(1, outputs=[output])
    record(0, outputs=[output])
    record(0, outputs=[output], error=InternalError("failed"))
    record(0, is_empty=True)
    record(0, is_empty=True, error=CancelledError("cancelled"))

    responses = recorder.snapshot("m", 1, 0, 0).response_stats
    assert responses == {
        "0": ResponseStatistics(
            compute_infer=Duration(3, 7 + 7 + 10),
            compute_output=Duration(2, 6),
            success=Duration(1, 10),
            fail=Duration(1, 10),
            empty_response=Duration(1, 10),
            cancel=Duration(1, 10),
        ),
        "1": ResponseStatistics(Duration(1, 7), Duration(1, 3), Duration(1, 10), Duration(), Duration(), Duration()),
    }
    assert list(responses) == ["0", "1"]


def test_first_responses_are_observed_under_the_bounds_that_were_given():
    recorder = StatisticsRecorder((1000, 5000))
    for duration_ns in (10, 1000, 1001, 9000):
        recorder.record_first_response(0, duration_ns)
    recorder.record_success(1, 0, 0, 1, 1, 1, 1, 4000)

    first = recorder.snapshot("m", 1, 0, 0).first_response_histogram
    assert first == DurationHistogram((1000, 5000), (2, 2, 1), 10 + 1000 + 1001 + 9000 + 4000)
    assert StatisticsRecorder().snapshot("m", 1, 0, 0).first_response_histogram is None


def test_evictions_are_counted_by_reason():
    recorder = StatisticsRecorder()
    for reason in ("idle", "cancelled", "idle"):
        recorder.record_eviction(reason)

    assert recorder.snapshot("m", 1, 0, 0).sequence_evictions == {"idle": 2, "cancelled": 1}
