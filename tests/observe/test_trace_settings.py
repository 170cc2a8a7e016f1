"""Trace settings: what falls back on what, and which requests are sampled."""

import pytest

from merrow.core.errors import InvalidArgumentError
from merrow.observe.trace_settings import TraceLevel, TraceTable, TraceValues
from merrow.settings import TraceMode

ON = TraceLevel.TIMESTAMPS
START = TraceValues()


def make_table(start=START, mode=TraceMode.TRITON, has_file=True):
    return TraceTable(start, mode, has_file)


def values_of(table, model=""):
    return table.find(model).current()


def test_a_model_follows_the_server_until_it_has_its_own():
    table = make_table()
    table.change("", {"rate": 500})
    assert values_of(table, "m").rate == 500

    table.change("m", {"count": 7})
    table.change("", {"rate": 600, "count": 70})
    assert (values_of(table, "m").rate, values_of(table, "m").count) == (600, 7)

    table.change("m", {"count": None})
    assert values_of(table, "m") == values_of(table) == TraceValues(rate=600, count=70)
    assert table.settings() == [table.find("m")]


def test_the_server_falls_back_on_its_start():
    table = make_table(TraceValues(ON, rate=5, count=9, log_frequency=2))
    table.change("", {"rate": 7, "log_frequency": 0})
    table.change("", {"rate": None})

    assert values_of(table) == TraceValues(ON, rate=5, count=9, log_frequency=0)


def test_a_change_keeps_the_other_fields():
    table = make_table()
    table.change("m", {"rate": 3})
    table.change("m", {"level": ON})

    assert values_of(table, "m") == TraceValues(ON, rate=3)


@pytest.mark.parametrize(
    ("mode", "has_file", "changes", "reason"),
    [
        (TraceMode.TRITON, True, {"level": ON, "rate": 0}, "sample rate must be non-zero"),
        (TraceMode.TRITON, False, {"level": ON}, "trace file name is not given"),
        (TraceMode.TRITON, False, {"level": ON, "rate": 0}, "sample rate must be non-zero"),
        (TraceMode.TRITON, False, {"level": TraceLevel.OFF, "rate": 0}, None),
        (TraceMode.OPENTELEMETRY, False, {"level": ON, "rate": 0}, None),
    ],
)
def test_a_setting_that_traces_must_be_able_to(mode, has_file, changes, reason):
    table = make_table(mode=mode, has_file=has_file)
    if reason is None:
        table.change("", changes)
        return
    with pytest.raises(InvalidArgumentError) as caught:
        table.change("m", changes)
    assert caught.value.message == f"Attempting to set invalid trace setting :{reason}"
    assert values_of(table, "m") == START


def sampled(table, count, model="m", is_forced=False):
    return [table.find(model).sample(is_forced) for _ in range(count)]


def test_every_nth_request_is_sampled_the_nth_first():
    assert sampled(make_table(TraceValues(ON, rate=3)), 7) == [False, False, True, False, False, True, False]


def test_nothing_is_sampled_while_tracing_is_off():
    table = make_table(TraceValues(rate=1))
    assert sampled(table, 2) == [False, False]
    assert not table.may_sample
    assert sampled(make_table(TraceValues(ON, rate=1), has_file=False), 1, is_forced=True) == [False]


def test_the_count_goes_down_and_ends_it():
    table = make_table(TraceValues(ON, rate=1, count=2))
    assert sampled(table, 1) == [True]
    assert values_of(table).count == 1
    assert table.may_sample
    assert sampled(table, 2) == [True, False]
    assert values_of(table).count == 0
    assert not table.may_sample


def test_a_change_of_another_field_keeps_what_is_left():
    table = make_table()
    table.change("", {"level": ON, "rate": 1, "count": 3})
    sampled(table, 1)
    table.change("", {"rate": 2})

    assert values_of(table).count == 2


def test_rate_0_samples_only_what_asks_for_it():
    table = make_table(TraceValues(ON, rate=0), TraceMode.OPENTELEMETRY)

    assert sampled(table, 3) == [False] * 3
    assert sampled(table, 1, is_forced=True) == [True]


def test_models_of_their_own_setting_count_for_themselves():
    table = make_table(TraceValues(ON, rate=2))
    table.change("own", {"rate": 2})

    assert [table.find(name).sample(False) for name in ("own", "a", "own", "b")] == [False, False, True, True]


def test_a_change_retires_what_it_replaces():
    table = make_table(TraceValues(ON, rate=1))
    table.change("m", {"count": 5})
    server, model = table.find(""), table.find("m")
    assert model.sample(False)

    assert table.change("", {"rate": 2}) == [server, model]
    assert server.is_retired
    assert model.is_retired
    assert model.open_count == 1
    assert not table.find("m").is_retired
    assert table.change("other", {"rate": 1}) == []
