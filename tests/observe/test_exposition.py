"""Prometheus' text format."""

import math

import pytest

from merrow.observe.exposition import Family, Sample, format_value, histogram_samples, label_text, render


def test_a_family_is_its_head_and_its_samples():
    families = [
        Family("a", "counter", "back\\slash\nline", [Sample("a", "", 1), Sample("a", '{x="1"}', 2.5)]),
        Family("b", "gauge", "", []),
    ]

    assert render(families) == (
        '# HELP a back\\\\slash\\nline\n# TYPE a counter\na 1\na{x="1"} 2.5\n# HELP b \n# TYPE b gauge\n'
    )


def test_labels_stand_in_order_and_the_last_stays_last():
    assert label_text([]) == ""
    assert label_text([("b", "2"), ("A", '"\\\n')]) == '{A="\\"\\\\\\n",b="2"}'
    assert label_text([("z", "1")], ("le", "5")) == '{z="1",le="5"}'
    assert label_text([], ("quantile", "0.5")) == '{quantile="0.5"}'


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (-3, "-3"),
        (10**16, "1e+16"),
        (0.1, "0.1"),
        (1 / 3, "0.3333333333333333"),
        (2.0, "2"),
        (math.nan, "Nan"),
        (math.inf, "+Inf"),
        (-math.inf, "-Inf"),
    ],
)
def test_numbers_are_written_as_prometheus_cpp_writes_them(value, text):
    assert format_value(value) == text


@pytest.mark.parametrize(("labels", "start"), [([], "{"), ([("m", "x")], '{m="x",')])
def test_a_histogram_counts_up_to_each_bound(labels, start):
    lines = [
        f"{name}{text} {format_value(value)}"
        for name, text, value in histogram_samples("h", labels, (1, 2.5), [3, 0, 2], 7.5)
    ]
    plain = label_text(labels)

    assert lines == [
        f"h_count{plain} 5",
        f"h_sum{plain} 7.5",
        f'h_bucket{start}le="1"}} 3',
        f'h_bucket{start}le="2.5"}} 3',
        f'h_bucket{start}le="+Inf"}} 5',
    ]
