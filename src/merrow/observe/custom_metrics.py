"""Metrics that models make for themselves: families, their series, and their values.

A family is known by its name; asking for it again gives the same one, to other models too, and likewise a series by its
labels. Both are counted: a series is gone when everybody who asked for it has dropped it, a family with it, and what is
made anew after that starts at 0. Numbers stand for families and series, since those who hold them are in other
processes; no number is used twice.

Source: Triton, metric_family.cc over prometheus-cpp; core.md 6.9.
"""

import math
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count, pairwise
from typing import Any

from merrow.core.errors import InternalError, InvalidArgumentError, UnavailableError, UnsupportedError
from merrow.observe.exposition import Family, Sample, histogram_samples, label_text

MAX_SERIES_COUNT = 10_000
FAMILY_DELETED = (
    "Invalid metric operation as the corresponding 'MetricFamily' has been deleted. The 'MetricFamily' object should "
    "be deleted AFTER its corresponding 'Metric' objects have been deleted."
)

COUNTER, GAUGE, HISTOGRAM = range(3)
"""Numbers of TRITONSERVER_MetricKind."""

KIND_NAMES = {COUNTER: "counter", GAUGE: "gauge", HISTOGRAM: "histogram"}

_METRIC_NAME = re.compile(r"(?!__)[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL_NAME = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")


class _Series:
    """One series: a value, or the counts of a histogram."""

    __slots__ = ("bucket_counts", "buckets", "family", "holder_count", "labels", "readers", "sum", "value")

    def __init__(self, family: "_Family", labels: tuple[tuple[str, str], ...], buckets: tuple[float, ...]) -> None:
        self.family = family
        self.labels = labels
        self.holder_count = 0
        self.value = 0.0
        # By the number of a holder: what it counts by itself, besides `value`.
        self.readers: dict[int, Callable[[], float]] = {}
        self.buckets = buckets
        self.bucket_counts = [0] * (len(buckets) + 1)
        self.sum = 0.0

    def total(self) -> float:
        return self.value + sum([read() for read in self.readers.values()]) if self.readers else self.value


class _Family:
    """One family. It is deleted when nobody holds it, even if somebody still holds a series of it."""

    __slots__ = ("help", "holder_count", "is_deleted", "kind", "name", "series")

    def __init__(self, name: str, help: str, kind: int) -> None:
        self.name = name
        self.help = help
        self.kind = kind
        self.holder_count = 0
        self.is_deleted = False
        self.series: dict[tuple[tuple[str, str], ...], _Series] = {}


class CustomMetrics:
    """All custom metrics of a server. For one thread.

    Args:
        known_families: the server's own families, by name, with their type. A model may add series to one of the same
            type.
    """

    def __init__(self, known_families: Mapping[str, str], max_series_count: int = MAX_SERIES_COUNT) -> None:
        self._known_families = known_families
        self._max_series_count = max_series_count
        self._numbers = count(1)
        self._by_name: dict[str, _Family] = {}
        self._families: dict[int, _Family] = {}
        self._series: dict[int, _Series] = {}

    # Families.

    def add_family(self, name: str, help: str, kind: int) -> int:
        """The number of a family of this name and kind, which its holder must drop.

        Raises:
            InvalidArgumentError: the name is none, or another kind's.
        """
        if kind not in KIND_NAMES:
            raise InvalidArgumentError("Metric kind not supported")
        if not _METRIC_NAME.fullmatch(name):
            raise InvalidArgumentError("Invalid metric name")
        family = self._by_name.get(name)
        known_type = self._known_families.get(name)
        if (family is not None and family.kind != kind) or known_type not in (None, KIND_NAMES[kind]):
            raise InvalidArgumentError("Family name already exists with different type")
        if family is None:
            family = self._by_name[name] = _Family(name, help, kind)
        family.holder_count += 1
        number = next(self._numbers)
        self._families[number] = family
        return number

    def drop_family(self, number: int) -> None:
        """A holder lets go of a family."""
        family = self._families.pop(number)
        family.holder_count -= 1
        if not family.holder_count:
            family.is_deleted = True
            family.series.clear()
            del self._by_name[family.name]

    # Series.

    def add_metric(self, family_number: int, labels: Mapping[str, Any], buckets: Sequence[float] | None = None) -> int:
        """The number of the series with these labels, which its holder must drop.

        Args:
            buckets: upper bounds, for a histogram and for nothing else; an existing series keeps its own.

        Raises:
            InvalidArgumentError: a label or the buckets cannot be.
            InternalError: a label's value is no string.
            UnavailableError: there are too many series.
        """
        family = self._families.get(family_number)
        if family is None or family.is_deleted:
            raise InternalError(FAMILY_DELETED)
        if any(type(value) is not str for value in labels.values()):
            raise InternalError("attempt to access JSON non-string as string")
        if not all(_LABEL_NAME.fullmatch(name) for name in labels):
            raise InvalidArgumentError("Invalid label name")
        if family.kind == HISTOGRAM:
            if buckets is None:
                raise InvalidArgumentError("Missing required buckets.")
            if any(not left < right for left, right in pairwise(buckets)) or any(map(math.isnan, buckets)):
                raise InvalidArgumentError("Bucket Boundaries must be strictly sorted")
        elif buckets is not None:
            raise InvalidArgumentError("Unexpected buckets found.")
        key = tuple(sorted(labels.items()))
        series = family.series.get(key)
        if series is None:
            if len(self._series) >= self._max_series_count:
                raise UnavailableError(f"there are {self._max_series_count} custom metrics already, which is the limit")
            series = family.series[key] = _Series(family, key, tuple(buckets or ()))
        series.holder_count += 1
        number = next(self._numbers)
        self._series[number] = series
        return number

    def drop_metric(self, number: int) -> None:
        """A holder lets go of a series."""
        series = self._series.pop(number)
        read = series.readers.pop(number, None)
        if read is not None:
            series.value += read()
        series.holder_count -= 1
        if not series.holder_count and series.family.series.get(series.labels) is series:
            del series.family.series[series.labels]

    # Values.

    def increment(self, number: int, value: float) -> None:
        """Raises ServerError: a counter goes up only, and a histogram not at all."""
        series = self._find(number, "Increment", COUNTER, GAUGE)
        if series.family.kind == COUNTER and not value >= 0:
            raise InvalidArgumentError(
                "TRITONSERVER_METRIC_KIND_COUNTER can only be incremented monotonically by non-negative values."
            )
        series.value += value

    def share(self, number: int, read: Callable[[], float]) -> None:
        """What `read` returns is part of a counter from now on; it is called whenever someone looks at the counter.

        Raises:
            ServerError: only a counter can be shared.
        """
        self._find(number, "Increment", COUNTER).readers[number] = read

    def set(self, number: int, value: float) -> None:
        """Raises UnsupportedError: only a gauge can be set."""
        self._find(number, "Set", GAUGE).value = value

    def observe(self, number: int, value: float) -> None:
        """Raises UnsupportedError: only a histogram observes."""
        series = self._find(number, "Observe", HISTOGRAM)
        series.bucket_counts[bisect_left(series.buckets, value)] += 1
        series.sum += value

    def value(self, number: int) -> float:
        """Raises UnsupportedError: a histogram has no value."""
        return self._find(number, "Value", COUNTER, GAUGE).total()

    # For whoever shows them.

    def families(self) -> Iterator[Family]:
        """Every family that has a series."""
        for family in self._by_name.values():
            if family.series:
                samples = [sample for series in family.series.values() for sample in _samples_of(family.name, series)]
                yield Family(family.name, KIND_NAMES[family.kind], family.help, samples)

    def find_values(self, name: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series of a counter or gauge of this name."""
        family = self._by_name.get(name)
        if family is None or family.kind == HISTOGRAM:
            return []
        return [(dict(series.labels), series.total()) for series in family.series.values()]

    def _find(self, number: int, operation: str, *kinds: int) -> _Series:
        series = self._series[number]
        family = series.family
        if family.is_deleted:
            raise InternalError(FAMILY_DELETED)
        if family.kind not in kinds:
            raise UnsupportedError(
                f"TRITONSERVER_METRIC_KIND_{KIND_NAMES[family.kind].upper()} does not support {operation}"
            )
        return series


def _samples_of(name: str, series: _Series) -> Sequence[Sample]:
    if series.family.kind != HISTOGRAM:
        return (Sample(name, label_text(series.labels), series.total()),)
    return histogram_samples(name, series.labels, series.buckets, series.bucket_counts, series.sum)
