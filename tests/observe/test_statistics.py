from merrow.observe.statistics import BatchStatistics, Duration, FailureReason, StatisticsRecorder

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
