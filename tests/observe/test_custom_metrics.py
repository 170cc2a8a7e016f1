"""Metrics of models' own, with the texts of Triton 2.51."""

import math

import pytest

from merrow.core.errors import InternalError, InvalidArgumentError, UnavailableError, UnsupportedError
from merrow.observe.custom_metrics import COUNTER, FAMILY_DELETED, GAUGE, HISTOGRAM, CustomMetrics
from merrow.observe.exposition import render


@pytest.fixture
def metrics():
    return CustomMetrics({"nv_inference_count": "counter"})


def text(metrics):
    return render(metrics.families())


def make(metrics, kind=COUNTER, labels=None, buckets=None, name="m"):
    return metrics.add_metric(metrics.add_family(name, "help", kind), labels or {}, buckets)


def test_a_counter_goes_up(metrics):
    number = make(metrics, labels={"b": "2", "a": "1"})
    metrics.increment(number, 1)
    metrics.increment(number, 0.5)

    assert metrics.value(number) == 1.5
    assert text(metrics) == '# HELP m help\n# TYPE m counter\nm{a="1",b="2"} 1.5\n'
    with pytest.raises(InvalidArgumentError) as caught:
        metrics.increment(number, -1)
    assert caught.value.message == (
        "TRITONSERVER_METRIC_KIND_COUNTER can only be incremented monotonically by non-negative values."
    )
    with pytest.raises(InvalidArgumentError):
        metrics.increment(number, math.nan)


def test_a_shared_counter_is_read_when_someone_looks(metrics):
    counts = [1, 10]
    family = metrics.add_family("m", "help", COUNTER)
    first, second = (metrics.add_metric(family, {}) for _ in counts)
    metrics.share(first, lambda: counts[0])
    metrics.share(second, lambda: counts[1])
    metrics.increment(first, 100)

    assert metrics.value(first) == metrics.value(second) == 111
    counts[1] = 20
    assert text(metrics) == "# HELP m help\n# TYPE m counter\nm 121\n"
    assert metrics.find_values("m") == [({}, 121)]
    # What was counted stays, as long as anyone holds the series.
    metrics.drop_metric(second)
    counts[1] = 1000
    assert metrics.value(first) == 121
    with pytest.raises(UnsupportedError):
        metrics.share(make(metrics, GAUGE, name="gauge"), lambda: 1)


def test_a_gauge_goes_both_ways_and_is_set(metrics):
    number = make(metrics, GAUGE)
    metrics.set(number, 10)
    metrics.increment(number, -3)

    assert metrics.value(number) == 7
    assert text(metrics) == "# HELP m help\n# TYPE m gauge\nm 7\n"


def test_a_histogram_observes(metrics):
    number = make(metrics, HISTOGRAM, {"a": "1"}, [1.0, 2.5])
    for value in (1.0, 1.1, 99):
        metrics.observe(number, value)

    assert text(metrics) == (
        '# HELP m help\n# TYPE m histogram\nm_count{a="1"} 3\nm_sum{a="1"} 101.1\n'
        'm_bucket{a="1",le="1"} 1\nm_bucket{a="1",le="2.5"} 2\nm_bucket{a="1",le="+Inf"} 3\n'
    )


@pytest.mark.parametrize(
    ("kind", "operation", "arguments", "error"),
    [
        (COUNTER, "set", (1,), "TRITONSERVER_METRIC_KIND_COUNTER does not support Set"),
        (COUNTER, "observe", (1,), "TRITONSERVER_METRIC_KIND_COUNTER does not support Observe"),
        (GAUGE, "observe", (1,), "TRITONSERVER_METRIC_KIND_GAUGE does not support Observe"),
        (HISTOGRAM, "increment", (1,), "TRITONSERVER_METRIC_KIND_HISTOGRAM does not support Increment"),
        (HISTOGRAM, "set", (1,), "TRITONSERVER_METRIC_KIND_HISTOGRAM does not support Set"),
        (HISTOGRAM, "value", (), "TRITONSERVER_METRIC_KIND_HISTOGRAM does not support Value"),
    ],
)
def test_what_a_kind_cannot_do(metrics, kind, operation, arguments, error):
    number = make(metrics, kind, buckets=[1] if kind == HISTOGRAM else None)

    with pytest.raises(UnsupportedError) as caught:
        getattr(metrics, operation)(number, *arguments)
    assert caught.value.message == error


@pytest.mark.parametrize("name", ["", "1a", "a-b", "__a", "ä", "a b"])
def test_names_that_are_none(metrics, name):
    with pytest.raises(InvalidArgumentError, match="Invalid metric name"):
        metrics.add_family(name, "", COUNTER)


def test_a_name_has_one_kind(metrics):
    metrics.add_family("m", "", COUNTER)
    for name, kind in (("m", GAUGE), ("nv_inference_count", GAUGE)):
        with pytest.raises(InvalidArgumentError, match="Family name already exists with different type"):
            metrics.add_family(name, "", kind)
    metrics.add_family("nv_inference_count", "", COUNTER)
    with pytest.raises(InvalidArgumentError):
        metrics.add_family("x", "", 3)


@pytest.mark.parametrize(
    ("kind", "labels", "buckets", "error"),
    [
        (COUNTER, {"a": 1}, None, InternalError("attempt to access JSON non-string as string")),
        (COUNTER, {"a-b": "x"}, None, InvalidArgumentError("Invalid label name")),
        (COUNTER, {}, [], InvalidArgumentError("Unexpected buckets found.")),
        (HISTOGRAM, {}, None, InvalidArgumentError("Missing required buckets.")),
        (HISTOGRAM, {}, [2, 1], InvalidArgumentError("Bucket Boundaries must be strictly sorted")),
        (HISTOGRAM, {}, [1, 1], InvalidArgumentError("Bucket Boundaries must be strictly sorted")),
        (HISTOGRAM, {}, [math.nan], InvalidArgumentError("Bucket Boundaries must be strictly sorted")),
    ],
)
def test_series_that_cannot_be(metrics, kind, labels, buckets, error):
    with pytest.raises(type(error)) as caught:
        make(metrics, kind, labels, buckets)
    assert caught.value.message == error.message
    assert text(metrics) == ""


def test_a_histogram_may_have_no_bounds(metrics):
    metrics.observe(make(metrics, HISTOGRAM, buckets=[]), 5)

    assert 'm_bucket{le="+Inf"} 1' in text(metrics)


def test_equal_labels_are_one_series_and_equal_names_one_family(metrics):
    first = make(metrics, labels={"a": "1"})
    metrics.increment(first, 1.5)
    second = make(metrics, labels={"a": "1"})
    assert first != second
    assert metrics.value(second) == 1.5

    metrics.drop_metric(first)
    assert metrics.value(second) == 1.5
    metrics.drop_metric(second)
    assert text(metrics) == ""
    assert metrics.value(make(metrics, labels={"a": "1"})) == 0


def test_a_family_ends_with_its_last_holder_and_takes_its_series_along(metrics):
    first = metrics.add_family("m", "", COUNTER)
    second = metrics.add_family("m", "", COUNTER)
    number = metrics.add_metric(first, {})
    metrics.drop_family(first)
    metrics.increment(number, 1)
    metrics.drop_family(second)

    for ask in (
        lambda: metrics.increment(number, 1),
        lambda: metrics.value(number),
        lambda: metrics.add_metric(first, {}),
    ):
        with pytest.raises(InternalError) as caught:
            ask()
        assert caught.value.message == FAMILY_DELETED
    metrics.add_family("m", "", GAUGE)
    metrics.drop_metric(number)
    assert text(metrics) == ""


def test_series_are_limited():
    metrics = CustomMetrics({}, max_series_count=2)
    family = metrics.add_family("m", "", COUNTER)
    for index in range(2):
        metrics.add_metric(family, {"a": str(index)})
    with pytest.raises(UnavailableError):
        metrics.add_metric(family, {"a": "2"})
    assert isinstance(metrics.add_metric(family, {"a": "1"}), int)


def test_values_are_found_by_name(metrics):
    metrics.set(make(metrics, GAUGE, {"a": "1"}), 4)

    assert metrics.find_values("m") == [({"a": "1"}, 4.0)]
    assert metrics.find_values("n") == []
    make(metrics, HISTOGRAM, buckets=[], name="h")
    assert metrics.find_values("h") == []
