import json

import numpy as np
import pytest

from merrow.backends.python.pb_config import (
    TRITON_STRING_TO_NUMPY,
    ModelConfig,
    deserialize_bytes_tensor,
    get_input_config_by_name,
    get_output_config_by_name,
    numpy_to_triton_type,
    serialize_byte_tensor,
    triton_string_to_numpy,
    triton_to_numpy_type,
    using_decoupled_model_transaction_policy,
)

CONFIG = {
    "name": "M",
    "max_batch_size": 4,
    "input": [{"name": "X", "data_type": "TYPE_INT32", "dims": [2], "optional": False}],
    "output": [{"name": "Y", "data_type": "TYPE_INVALID", "dims": []}],
}
FUNCTION = "auto-complete-config function for model 'M'"


def make(**fields):
    return ModelConfig(json.dumps({**CONFIG, **fields}))


def test_the_dict_is_the_configuration_and_changes_with_it():
    config = make()
    config.as_dict()["extra"] = 1
    config.set_max_batch_size(8)

    assert config.as_dict()["extra"] == 1
    assert config.as_dict()["max_batch_size"] == 8


def test_inputs_and_outputs_are_added_or_completed():
    config = make()
    config.add_input({"name": "Z", "data_type": "TYPE_FP32", "dims": [-1], "optional": True})
    config.add_input({"name": "X", "data_type": "TYPE_INT32", "dims": [2]})
    config.add_output({"name": "Y", "data_type": "TYPE_FP32", "dims": [3]})

    assert config.as_dict()["input"] == [
        {"name": "X", "data_type": "TYPE_INT32", "dims": [2], "optional": False},
        {"name": "Z", "data_type": "TYPE_FP32", "dims": [-1], "optional": True},
    ]
    assert config.as_dict()["output"] == [{"name": "Y", "data_type": "TYPE_FP32", "dims": [3]}]


@pytest.mark.parametrize(
    ("method", "argument", "text"),
    [
        (
            "set_max_batch_size",
            2,
            f"configuration specified max_batch_size 4, but in {FUNCTION} specified max_batch_size 2",
        ),
        (
            "add_input",
            {"name": "X", "format": 1},
            f"input 'X' in {FUNCTION} contains property other than 'name', 'data_type', 'dims' and 'optional'.",
        ),
        (
            "add_output",
            {"name": "Y", "optional": True},
            f"output 'Y' in {FUNCTION} contains property other than 'name', 'data_type' and 'dims'.",
        ),
        ("add_input", {"dims": [1]}, f"input in {FUNCTION} is missing 'name' property."),
        ("add_input", {"name": "X"}, f"input 'X' in {FUNCTION} is missing 'data_type' property."),
        ("add_output", {"name": "Y", "data_type": "T"}, f"output 'Y' in {FUNCTION} is missing 'dims' property."),
        (
            "add_input",
            {"name": "X", "data_type": "TYPE_FP32", "dims": [2]},
            "unable to load model 'M', configuration expects datatype TYPE_INT32 for input 'X', model provides "
            "TYPE_FP32",
        ),
        (
            "add_input",
            {"name": "X", "data_type": "TYPE_INT32", "dims": [1]},
            "model 'M', tensor 'X': the model expects dims [1] but the model configuration specifies dims [2]",
        ),
        (
            "add_input",
            {"name": "X", "data_type": "TYPE_INT32", "dims": [2], "optional": True},
            "model 'M', tensor 'X': the model expects optional True but the model configuration specifies optional "
            "False",
        ),
        (
            "set_model_transaction_policy",
            {"other": 1},
            f"model transaction property in {FUNCTION} contains property other than 'decoupled'.",
        ),
    ],
)
def test_what_contradicts_the_configuration_is_refused(method, argument, text):
    config = make()
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the whole text is asserted
        getattr(config, method)(argument)

    assert str(caught.value) == text


def test_dynamic_batching_is_switched_on_once():
    config = make()
    config.set_dynamic_batching()
    assert config.as_dict()["dynamic_batching"] == {}
    config = make(dynamic_batching={"preferred_batch_size": [4]})
    config.set_dynamic_batching()
    assert config.as_dict()["dynamic_batching"] == {"preferred_batch_size": [4]}


@pytest.mark.parametrize("scheduler", ["sequence_batching", "ensemble_scheduling"])
def test_another_scheduler_is_not_replaced(scheduler):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the whole text is asserted
        make(**{scheduler: {}}).set_dynamic_batching()

    assert str(caught.value) == (
        f"Configuration specified scheduling_choice as '{scheduler}', but {FUNCTION} tries to set scheduling_choice "
        "as 'dynamic_batching'"
    )


def test_the_transaction_policy_is_set_but_not_changed():
    config = make()
    config.set_model_transaction_policy({"decoupled": True})
    assert config.as_dict()["model_transaction_policy"] == {"decoupled": True}
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the whole text is asserted
        config.set_model_transaction_policy({"decoupled": False})
    assert str(caught.value) == (
        "trying to change decoupled property in auto-complete-config for model 'M', which is already set to 'True'."
    )


def test_types_and_numbers_belong_together():
    for number, name in enumerate(TRITON_STRING_TO_NUMPY, start=1):
        numpy_type = triton_string_to_numpy(name)
        assert triton_to_numpy_type(number) is numpy_type
        assert numpy_to_triton_type(numpy_type) == number
        assert numpy_to_triton_type(np.dtype(numpy_type)) == number
    assert triton_to_numpy_type(14) is None
    assert numpy_to_triton_type(np.bytes_) == 13
    for other in (complex, None, "nonsense", np.dtype("S3")):
        assert numpy_to_triton_type(other) is None
    with pytest.raises(KeyError):
        triton_string_to_numpy("TYPE_BF16")


def test_byte_tensors_are_serialized_and_back():
    array = np.array([[b"ab", "c"], [1, b""]], dtype=np.object_)
    encoded = serialize_byte_tensor(array)

    assert encoded == b"\x02\0\0\0ab\x01\0\0\0c\x01\0\0\0001\0\0\0\0"
    assert deserialize_bytes_tensor(encoded).tolist() == [b"ab", b"c", b"1", b""]
    assert serialize_byte_tensor(np.array([b"ab"])) == b"\x02\0\0\0ab"
    assert serialize_byte_tensor(np.array([], dtype=np.object_)) == ()
    assert serialize_byte_tensor(np.array([1])) is None


def test_tensors_are_found_in_a_parsed_configuration():
    assert get_input_config_by_name(CONFIG, "X") is CONFIG["input"][0]
    assert get_output_config_by_name(CONFIG, "Y") is CONFIG["output"][0]
    assert get_input_config_by_name(CONFIG, "Y") is None
    assert get_output_config_by_name({}, "Y") is None
    assert using_decoupled_model_transaction_policy({}) is False
    assert using_decoupled_model_transaction_policy({"model_transaction_policy": {"decoupled": True}}) is True
