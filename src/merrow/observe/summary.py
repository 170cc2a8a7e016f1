"""Quantiles of latencies over the last minute, as the summaries of `/metrics` show them.

Values are counted by size, in steps of at most 0.8 % of the value, in five tables of twelve seconds; the oldest is
emptied when its time has come. So a quantile is exact in rank, near in value, and recording costs two additions.
Count and sum are of all time.

Source: prometheus-cpp, summary.h: a window of 60 seconds with 5 buckets of age.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

WINDOW_NS = 60 * 10**9
AGE_BUCKET_COUNT = 5

_AGE_BUCKET_NS = WINDOW_NS // AGE_BUCKET_COUNT
# Bits of a value that are kept.
_KEPT_BITS = 8


class Summary:
    """One summary of whole, non-negative numbers."""

    __slots__ = ("_age", "_tables", "count", "sum")

    def __init__(self) -> None:
        self.count = 0
        self.sum = 0
        # Tables of value -> how often, the newest at `_age` modulo their number.
        self._tables: list[dict[int, int]] = [{} for _ in range(AGE_BUCKET_COUNT)]
        self._age = 0

    def record(self, value: int, now_ns: int) -> None:
        """Count one value."""
        self.count += 1
        self.sum += value
        if now_ns // _AGE_BUCKET_NS != self._age:
            self._grow_older(now_ns)
        shift = value.bit_length() - _KEPT_BITS
        if shift > 0:
            value = value >> shift << shift
        table = self._tables[self._age % AGE_BUCKET_COUNT]
        table[value] = table.get(value, 0) + 1

    def quantiles(self, ranks: Sequence[float], now_ns: int) -> list[float]:
        """The values at these ranks (0 to 1) of those in the window; NaN where there are none."""
        if now_ns // _AGE_BUCKET_NS != self._age:
            self._grow_older(now_ns)
        merged: dict[int, int] = {}
        for table in self._tables:
            for value, count in table.items():
                merged[value] = merged.get(value, 0) + count
        total = sum(merged.values())
        if not total:
            return [math.nan] * len(ranks)
        values = sorted(merged)
        counts_up_to = list(accumulate(map(merged.__getitem__, values)))
        return [float(values[bisect_left(counts_up_to, max(1, math.ceil(rank * total)))]) for rank in ranks]

    def _grow_older(self, now_ns: int) -> None:
        age = now_ns // _AGE_BUCKET_NS
        for passed in range(max(self._age + 1, age - AGE_BUCKET_COUNT + 1), age + 1):
            self._tables[passed % AGE_BUCKET_COUNT].clear()
        self._age = age
