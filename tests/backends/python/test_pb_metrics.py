import gc

import pytest

from merrow.backends.base import (
    ChangeMetric,
    DropMetric,
    DropMetricFamily,
    NewMetric,
    NewMetricFamily,
    ReadMetric,
)
from merrow.backends.python.pb_errors import TritonModelException
from merrow.backends.python.pb_metrics import Metric, MetricFamily
from merrow.core.errors import InvalidArgumentError, UnsupportedError
from tests.backends.python.bound_models import make_runtime

P = "Failed to process the request for model 'm_0_0', message: "


class Numbers:
    """A server that gives out numbers, or says no."""

    def __init__(self):
        self.last = 0
        self.refusal = None

    def __call__(self, question):
        if self.refusal is not None:
            return self.refusal
        if isinstance(question, ReadMetric):
            return 1.5
        self.last += 1
        return self.last


@pytest.fixture
def server():
    return Numbers()


@pytest.fixture
def family_class(server):
    runtime = make_runtime(on_question=server)
    return type("MetricFamily", (MetricFamily,), {"__slots__": (), "_runtime": runtime})


def questions_of(family_class):
    return family_class._runtime.host.questions


def test_a_model_makes_changes_reads_and_drops_metrics(family_class):
    family = family_class("n", "d", MetricFamily.GAUGE)
    metric = family.Metric(labels={"a": "b"})
    metric.increment(1)
    metric.set(-2.5)
    assert metric.value() == 1.5
    del metric, family
    gc.collect()

    assert questions_of(family_class) == [
        NewMetricFamily("n", "d", 1),
        NewMetric(1, {"a": "b"}),
        ChangeMetric(2, "increment", 1.0),
        ChangeMetric(2, "set", -2.5),
        ReadMetric(2),
        DropMetric(2),
        DropMetricFamily(1),
    ]


def test_a_histogram_has_buckets(family_class):
    family = family_class(name="n", description="d", kind=MetricFamily.HISTOGRAM)
    metric = family.Metric(buckets=[1, 2.5])
    metric.observe(2)

    assert questions_of(family_class)[1:] == [NewMetric(1, {}, (1.0, 2.5)), ChangeMetric(2, "observe", 2.0)]


@pytest.mark.parametrize(
    ("kind", "arguments", "text"),
    [
        ("COUNTER", {"labels": ["a"]}, "Failed to create metric. Labels must be a dictionary."),
        ("HISTOGRAM", {"buckets": (1,)}, "Failed to create metric. Buckets must be a list."),
        ("GAUGE", {"buckets": [1]}, "Failed to create metric. Unexpected buckets found."),
        ("HISTOGRAM", {}, "Failed to create metric. Missing required buckets."),
        (
            "COUNTER",
            {"labels": {"a": 1}},
            f"Error when creating Metric: {P}attempt to access JSON non-string as string",
        ),
    ],
)
def test_a_metric_that_makes_no_sense_is_refused(family_class, kind, arguments, text):
    family = family_class("n", "d", getattr(MetricFamily, kind))
    with pytest.raises(TritonModelException) as caught:
        family.Metric(**arguments)
    assert str(caught.value) == text


def test_what_the_server_refuses_is_said_in_tritons_words(family_class, server):
    family = family_class("n", "d", MetricFamily.COUNTER)
    metric = family.Metric()
    server.refusal = UnsupportedError("no")
    for use, text in (
        (lambda: metric.increment(1), f"Failed to increment metric value: {P}no"),
        (lambda: metric.set(1), f"Failed to set metric value: {P}no"),
        (lambda: metric.observe(1), f"Failed to observe metric value: {P}no"),
        (lambda: metric.value(), f"Failed to get metric value: {P}no"),
        (lambda: family.Metric(), f"Error when creating Metric: {P}no"),
    ):
        with pytest.raises(TritonModelException) as caught:
            use()
        assert str(caught.value) == text
    server.refusal = InvalidArgumentError("Invalid metric name")
    with pytest.raises(TritonModelException) as caught:
        family_class("bad name", "d", MetricFamily.COUNTER)
    assert str(caught.value) == f"Error when creating MetricFamily: {P}Invalid metric name"


def test_kinds_are_members_and_values_are_numbers(family_class):
    with pytest.raises(TypeError, match=r"__init__\(\): incompatible constructor arguments"):
        family_class("n", "d", 0)
    metric = family_class("n", "d", MetricFamily.COUNTER).Metric()
    with pytest.raises(TypeError, match=r"increment\(\): incompatible function arguments"):
        metric.increment("x")
    with pytest.raises(TypeError, match="No constructor defined"):
        Metric()
    assert repr(MetricFamily.HISTOGRAM) == "<MetricKind.HISTOGRAM: 2>"


def test_a_family_needs_an_instance():
    with pytest.raises(TritonModelException, match="only available in a model's instance"):
        MetricFamily("n", "d", MetricFamily.COUNTER)
