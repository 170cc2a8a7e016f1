"""What tells the samples of model versions apart."""

from merrow.observe.metrics import ModelMetrics
from merrow.observe.statistics import ModelStatistics

STATISTICS = ModelStatistics(name="m", version=7)


def test_a_model_version_is_told_by_name_and_version():
    assert ModelMetrics(STATISTICS).labels() == [("model", "m"), ("version", "7")]


def test_tags_of_the_configuration_have_a_leading_underscore():
    model = ModelMetrics(STATISTICS, metric_tags={"b": "2", "A": "1"})

    assert model.labels() == [("_b", "2"), ("_A", "1"), ("model", "m"), ("version", "7")]


def test_a_namespace_is_a_label():
    model = ModelMetrics(STATISTICS, namespace="/models")

    assert model.labels() == [("model", "m"), ("version", "7"), ("namespace", "/models")]
