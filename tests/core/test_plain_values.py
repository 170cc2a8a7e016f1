import pytest

from merrow.core.model_config import (
    ModelConfig,
    ModelDynamicBatching,
    ModelInput,
    ModelParameter,
    ModelQueuePolicy,
    ModelRateLimiterResource,
    ModelSequenceBatching,
    ModelSequenceBatchingControl,
    ModelSequenceBatchingControlInput,
    ModelTransactionPolicy,
)
from merrow.core.plain_values import decode_plain, encode_plain

CONFIG = ModelConfig(
    name="m",
    max_batch_size=8,
    input=(ModelInput("IN", "TYPE_FP32", dims=(-1, 2)), ModelInput("CORR", "TYPE_STRING", optional=True)),
    dynamic_batching=ModelDynamicBatching(
        preferred_batch_size=(4, 8), priority_queue_policy={1: ModelQueuePolicy(max_queue_size=3)}
    ),
    sequence_batching=ModelSequenceBatching(
        control_input=(
            ModelSequenceBatchingControlInput("START", (ModelSequenceBatchingControl(fp32_false_true=(0.0, 1.0)),)),
        )
    ),
    parameters={"key": ModelParameter("value")},
    model_transaction_policy=ModelTransactionPolicy(),
)


def test_a_configuration_survives_the_way_there_and_back():
    assert decode_plain(ModelConfig, encode_plain(CONFIG)) == CONFIG


def test_defaults_are_left_out_and_a_set_but_empty_message_is_not():
    plain = encode_plain(CONFIG)

    assert "platform" not in plain
    assert plain["model_transaction_policy"] == {}
    assert plain["input"][0] == {"name": "IN", "data_type": "TYPE_FP32", "dims": [-1, 2]}


def test_a_field_that_is_a_python_keyword_has_its_proto_name():
    resource = ModelRateLimiterResource("r", global_=True, count=2)

    assert encode_plain(resource) == {"name": "r", "global": True, "count": 2}
    assert decode_plain(ModelRateLimiterResource, {"name": "r", "global": True, "count": 2}) == resource


def test_integers_may_be_strings_and_floats_may_be_whole():
    control = decode_plain(ModelSequenceBatchingControl, {"int32_false_true": ["0", 1], "fp32_false_true": [0, 1]})

    assert control.int32_false_true == (0, 1)
    assert control.fp32_false_true == (0.0, 1.0)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"nam": "m"}, "ModelConfig: no field named 'nam'"),
        ({"name": 5}, "ModelConfig.name: expected str, got 5"),
        ({"max_batch_size": True}, "ModelConfig.max_batch_size: expected int, got True"),
        ({"max_batch_size": "x"}, "ModelConfig.max_batch_size: expected an integer, got 'x'"),
        ({"input": 5}, "ModelConfig.input: expected a list, got 5"),
        ({"input": [5]}, "ModelConfig.input[0]: expected an object, got 5"),
        ({"input": [{"dims": [1.5]}]}, "ModelConfig.input[0].dims[0]: expected int, got 1.5"),
        ({"parameters": []}, "ModelConfig.parameters: expected an object, got []"),
        ([], "ModelConfig: expected an object, got []"),
    ],
)
def test_what_does_not_fit_is_named(content, text):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the whole text is asserted
        decode_plain(ModelConfig, content)

    assert str(caught.value) == text
