"""The ORCA load header."""

import pytest

from merrow.observe.custom_metrics import GAUGE, CustomMetrics
from merrow.observe.load_report import report_load


def make_metrics(**values):
    metrics = CustomMetrics({})
    family = metrics.add_family("nv_trt_llm_kv_cache_block_metrics", "", GAUGE)
    for block_type, value in values.items():
        labels = {"kv_cache_block_type": block_type, "model": "m", "version": "1"}
        metrics.set(metrics.add_metric(family, labels), value)
    return metrics


FULL = {"tokens_per": 64, "used": 10, "max": 40, "free": 30}


def test_as_text():
    assert report_load(make_metrics(**FULL), b"text") == (
        b"TEXT named_metrics.kv_cache_utilization=0.250000, named_metrics.max_token_capacity=2560"
    )


def test_as_json():
    assert report_load(make_metrics(**FULL), b"json") == (
        b'JSON {"named_metrics":{"kv_cache_utilization":0.25,"max_token_capacity":2560}}'
    )


@pytest.mark.parametrize("load_format", [b"", b"TEXT", b"http", b"text "])
def test_other_formats_are_none(load_format):
    assert report_load(make_metrics(**FULL), load_format) is None


@pytest.mark.parametrize("values", [{}, {"used": 1, "max": 2}, {**FULL, "max": 0}])
def test_metrics_that_do_not_tell(values):
    assert report_load(make_metrics(**values), b"json") is None
    assert report_load(CustomMetrics({}), b"json") is None
