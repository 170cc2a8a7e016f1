"""Triton's trace files."""

import json

import numpy as np
import pytest

from merrow.core.tensor import Tensor
from merrow.observe.trace import FinishedTrace, Trace
from merrow.observe.trace_file import TraceFile, format_trace
from merrow.observe.trace_settings import TraceLevel, TraceSetting, TraceValues

BOTH = TraceLevel.TIMESTAMPS | TraceLevel.TENSORS


def make_trace(id=1, parent_id=0, records=(("REQUEST_START", 5),), request_id="x"):
    trace = Trace(None, id, parent_id, "m", 3)
    trace.request_id = request_id
    trace.records += records
    return FinishedTrace(trace)


def make_setting(**values):
    return TraceSetting(TraceValues(BOTH, **values), frozenset(), True)


def objects(trace, level=BOTH):
    return json.loads(b"[" + format_trace(trace, level) + b"]")


def test_a_trace_is_objects_that_share_its_number():
    tensor = Tensor.from_numpy("I", np.array([[1, 2]], np.int32))
    trace = make_trace(
        4, 2, [("HTTP_RECV_START", 1), ("REQUEST_START", 5), ("TENSOR_QUEUE_INPUT", tensor), ("REQUEST_END", 9)]
    )

    assert format_trace(trace, BOTH) == (
        b'{"id":4,"timestamps":[{"name":"HTTP_RECV_START","ns":1}]},'
        b'{"id":4,"model_name":"m","model_version":3,"request_id":"x","parent_id":2},'
        b'{"id":4,"timestamps":[{"name":"REQUEST_START","ns":5}]},'
        b'{"id":4,"activity":"TENSOR_QUEUE_INPUT","tensor":{"name":"I","data":"1,2","shape":"1,2","dtype":"INT32"}},'
        b'{"id":4,"timestamps":[{"name":"REQUEST_END","ns":9}]}'
    )


def test_what_is_not_known_is_not_there():
    assert objects(make_trace(request_id=""))[0] == {"id": 1, "model_name": "m", "model_version": 3}
    assert objects(make_trace(records=[("HTTP_RECV_START", 1)])) == [
        {"id": 1, "timestamps": [{"name": "HTTP_RECV_START", "ns": 1}]}
    ]


def test_tensors_alone_come_without_times():
    tensor = Tensor.from_numpy("I", np.array([1], np.int32))
    trace = make_trace(records=[("REQUEST_START", 5), ("TENSOR_QUEUE_INPUT", tensor)])

    assert [list(each) for each in objects(trace, TraceLevel.TENSORS)] == [
        ["id", "model_name", "model_version", "request_id"],
        ["id", "activity", "tensor"],
    ]


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (np.array([1, 2.5, -0.1], np.float32), "1,2.5,-0.1"),
        (np.array([0.1, 1e300], np.float64), "0.1,1e+300"),
        (np.array([np.nan, np.inf], np.float32), "nan,inf"),
        (np.array([True, False]), "1,0"),
        (np.array([-128, 127], np.int8), "-128,127"),
        (np.array([2**64 - 1], np.uint64), "18446744073709551615"),
        (np.array([b"a", b'say "b"'], object), '"a","say "b""'),
        (np.array([1], np.float16), ""),
        (np.array([], np.int32), ""),
    ],
)
def test_elements_as_text(array, text):
    trace = make_trace(records=[("TENSOR_QUEUE_INPUT", Tensor.from_numpy("I", array))])

    assert objects(trace)[0]["tensor"]["data"] == text


@pytest.mark.parametrize("tensor", [Tensor("I", "BYTES", [1], rb"\9"), Tensor("I", "INT32", [1], b"abc")])
def test_a_tensor_that_is_not_whole_has_no_text(tensor):
    assert objects(make_trace(records=[("TENSOR_QUEUE_INPUT", tensor)]))[0]["tensor"]["data"] == ""


def read(path):
    return [each["id"] for each in json.loads(path.read_bytes()) if "model_name" in each]


def write(output, setting, *ids, is_last=False):
    for number in ids:
        output.write(setting, [make_trace(number)], is_last)


def files(folder):
    return {path.name: read(path) for path in sorted(folder.iterdir())}


def test_everything_goes_to_the_file_when_the_setting_ends(tmp_path):
    output = TraceFile(str(tmp_path / "t"))
    setting = make_setting()
    write(output, setting, 1, 2)
    assert files(tmp_path) == {}
    output.end_setting(setting)
    assert files(tmp_path) == {"t": [1, 2]}

    other = make_setting()
    write(output, other, 3)
    output.end_setting(other)
    output.end_setting(make_setting())
    output.close()
    assert files(tmp_path) == {"t": [1, 2, 3]}


def test_what_is_left_at_the_end_is_written(tmp_path):
    output = TraceFile(str(tmp_path / "t"))
    write(output, make_setting(), 1)
    write(output, make_setting(log_frequency=5), 2)
    output.close()

    assert files(tmp_path) == {"t": [1], "t.0": [2]}


def test_every_so_many_traces_make_a_file(tmp_path):
    output = TraceFile(str(tmp_path / "t"))
    setting = make_setting(log_frequency=2)
    write(output, setting, 1, 2, 3)
    assert files(tmp_path) == {"t.0": [1, 2]}
    output.end_setting(setting)
    output.close()
    assert files(tmp_path) == {"t.0": [1, 2], "t.1": [3]}


def test_the_last_trace_of_a_count_takes_all_to_a_numbered_file(tmp_path):
    output = TraceFile(str(tmp_path / "t"))
    setting = make_setting(count=2)
    write(output, setting, 1)
    write(output, setting, 2, is_last=True)
    output.end_setting(setting)
    output.close()

    assert files(tmp_path) == {"t.0": [1, 2]}


def test_children_come_before_what_caused_them(tmp_path):
    output = TraceFile(str(tmp_path / "t"))
    setting = make_setting(log_frequency=1)
    output.write(setting, [make_trace(1), make_trace(2, 1), make_trace(3, 1)], is_last=False)
    output.close()

    assert files(tmp_path) == {"t.0": [3, 2, 1]}


def test_much_is_not_kept_in_memory_and_the_file_is_whole_after_each_write(tmp_path):
    output = TraceFile(str(tmp_path / "t"))
    setting = make_setting()
    large = Tensor("I", "BYTES", [1], (700_000).to_bytes(4, "little") + b"x" * 700_000)
    for number in (1, 2, 3, 4):
        output.write(
            setting, [make_trace(number, records=[("REQUEST_START", 1), ("TENSOR_QUEUE_INPUT", large)])], False
        )
        if number == 2:
            assert files(tmp_path) == {"t": [1, 2]}
    assert files(tmp_path) == {"t": [1, 2, 3, 4]}
    output.close()


def test_a_trace_without_records_leaves_no_gap(tmp_path):
    output = TraceFile(str(tmp_path / "t"))
    setting = make_setting(log_frequency=1)
    output.write(setting, [make_trace(1), make_trace(2, records=())], is_last=False)

    assert files(tmp_path) == {"t.0": [1]}


def test_there_are_no_spans():
    assert TraceFile("t").new_context(None) is None
