import numpy as np
import pytest

from merrow.core.errors import InvalidArgumentError
from merrow.core.request import Request
from merrow.schedule.sequence_controls import SequenceControls
from tests.schedule.sequence_rig import END, START, NoSink, boolean_control, config, correlation_control


def request(correlation_id=7, flags=0):
    return Request("m", 1, NoSink(), {}, correlation_id=correlation_id, flags=flags)


@pytest.mark.parametrize(
    ("values", "datatype", "false", "true"),
    [
        ({"int32_false_true": (0, 1)}, "INT32", 0, 1),
        ({"int32_false_true": (-3, 9)}, "INT32", -3, 9),
        ({"fp32_false_true": (0.0, 0.5)}, "FP32", 0.0, 0.5),
        ({"bool_false_true": (False, True)}, "BOOL", False, True),
        ({"bool_false_true": (True, False)}, "BOOL", True, False),
    ],
)
def test_a_boolean_control_has_the_configured_type_and_values(values, datatype, false, true):
    controls = SequenceControls(config(controls=(boolean_control("START", **values),)))

    begun, going_on = controls.of(request(flags=START))["START"], controls.of(request())["START"]
    assert (begun.datatype, begun.shape) == (datatype, (1, 1))
    assert begun.as_numpy().tolist() == [[true]]
    assert going_on.as_numpy().tolist() == [[false]]


def test_flags_become_start_and_end_and_every_request_is_ready():
    controls = SequenceControls(config())

    def values(tensors):
        return {name: tensor.as_numpy().item() for name, tensor in tensors.items()}

    assert values(controls.of(request(flags=0))) == {"START": 0, "END": 0, "READY": 1}
    assert values(controls.of(request(flags=START | END))) == {"START": 1, "END": 1, "READY": 1}
    assert values(controls.of_padding()) == {"START": 0, "END": 0, "READY": 0}


def test_a_model_without_a_batch_dimension_gets_vectors():
    controls = SequenceControls(config(max_batch_size=0))

    assert controls.of(request())["READY"].shape == (1,)


@pytest.mark.parametrize(
    ("data_type", "dtype", "correlation_id"),
    [
        ("TYPE_UINT64", np.uint64, 2**64 - 1),
        ("TYPE_INT64", np.int64, 2**64 - 1),
        ("TYPE_UINT32", np.uint32, 2**40 + 5),
        ("TYPE_INT32", np.int32, 2**31 + 5),
    ],
)
def test_an_integer_correlation_id_is_cut_to_its_width(data_type, dtype, correlation_id):
    controls = SequenceControls(config(controls=(correlation_control(data_type),)))

    tensor = controls.of(request(correlation_id))["CORRID"]
    assert tensor.as_numpy().item() == np.array([correlation_id], np.uint64).astype(dtype).item()
    assert len(tensor.data) == np.dtype(dtype).itemsize


def test_a_string_correlation_id_is_an_element():
    controls = SequenceControls(config(controls=(correlation_control("TYPE_STRING"),)))

    tensor = controls.of(request("abc"))["CORRID"]
    assert (tensor.datatype, tensor.data) == ("BYTES", b"\3\0\0\0abc")
    assert controls.of_padding()["CORRID"].data == bytes(4)


@pytest.mark.parametrize(
    ("data_type", "correlation_id", "given", "expected"),
    [
        ("TYPE_UINT64", "abc", "BYTES", "UINT64"),
        ("TYPE_INT32", "abc", "BYTES", "INT32"),
        ("TYPE_STRING", 5, "UINT64", "BYTES"),
    ],
)
def test_a_correlation_id_of_another_kind_is_refused(data_type, correlation_id, given, expected):
    controls = SequenceControls(config(controls=(correlation_control(data_type),)))

    with pytest.raises(InvalidArgumentError) as refusal:
        controls.check_correlation_id(request(correlation_id))
    assert refusal.value.message == (
        f"[request id: <id_unknown>] sequence batching control 'CORRID' data-type is '{given}', but model 'm' expects "
        f"'{expected}'"
    )


def test_any_correlation_id_suits_a_model_that_does_not_ask_for_it():
    controls = SequenceControls(config())

    controls.check_correlation_id(request("abc"))
    controls.check_correlation_id(request(5))
