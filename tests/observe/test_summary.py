"""Quantiles over the last minute."""

import math
import random

from merrow.observe.summary import AGE_BUCKET_COUNT, WINDOW_NS, Summary

RANKS = (0.0, 0.5, 0.9, 0.99, 1.0)
STEP_NS = WINDOW_NS // AGE_BUCKET_COUNT


def record(summary, values, now_ns=0):
    for value in values:
        summary.record(value, now_ns)


def test_nothing_has_no_quantiles():
    summary = Summary()

    assert all(map(math.isnan, summary.quantiles(RANKS, 0)))
    assert (summary.count, summary.sum) == (0, 0)


def test_small_values_are_exact():
    summary = Summary()
    record(summary, range(1, 101))

    assert summary.quantiles(RANKS, 0) == [1, 50, 90, 99, 100]
    assert (summary.count, summary.sum) == (100, 5050)


def test_large_values_are_near():
    summary = Summary()
    values = sorted(random.Random(1).randrange(10**9) for _ in range(1000))
    record(summary, values)

    for rank, found in zip(RANKS[1:], summary.quantiles(RANKS[1:], 0), strict=True):
        exact = values[math.ceil(rank * 1000) - 1]
        assert exact * 0.992 <= found <= exact


def test_values_leave_the_window_and_stay_in_the_sum():
    summary = Summary()
    record(summary, [10], 0)
    record(summary, [20], 2 * STEP_NS)

    assert summary.quantiles((0.5, 1.0), 4 * STEP_NS) == [10, 20]
    assert summary.quantiles((0.5, 1.0), 5 * STEP_NS) == [20, 20]
    assert math.isnan(summary.quantiles((0.5,), 7 * STEP_NS)[0])
    assert (summary.count, summary.sum) == (2, 30)


def test_after_a_long_pause_nothing_old_is_left():
    summary = Summary()
    record(summary, [1, 2, 3], 0)
    record(summary, [7], 1000 * STEP_NS)

    assert summary.quantiles(RANKS, 1000 * STEP_NS) == [7] * len(RANKS)
