"""Completing and checking configurations, by value."""

from dataclasses import replace

import pytest

from merrow.backends.onnx.signature import ModelSignature, TensorSignature, check_config, complete_config
from merrow.core.errors import InvalidArgumentError
from merrow.core.model_config import (
    BatchInput,
    BatchOutput,
    ModelConfig,
    ModelDynamicBatching,
    ModelInput,
    ModelOutput,
    ModelSequenceBatching,
    ModelSequenceBatchingControlInput,
    ModelTensorReshape,
)


def signature(inputs, outputs, defaults=()) -> ModelSignature:
    def by_name(tensors):
        return {name: TensorSignature(name, datatype, shape) for name, datatype, shape in tensors}

    return ModelSignature(by_name(inputs), by_name(defaults), by_name(outputs))


BATCHING = signature([("x", "FP32", (-1, 4))], [("y", "BYTES", (-1, -1))])
FIXED = signature([("x", "FP32", (2, 4))], [("y", "FP32", (2,))])


def complete(config: ModelConfig, model: ModelSignature) -> ModelConfig:
    return complete_config("m", config, model, 4)


def refused(config: ModelConfig, model: ModelSignature) -> str:
    with pytest.raises(InvalidArgumentError) as refusal:
        check_config("m", config, model)
    return refusal.value.message


class TestComplete:
    def test_a_model_that_can_batch_gets_the_default_size_and_dynamic_batching(self):
        assert complete(ModelConfig(name="m"), BATCHING) == ModelConfig(
            name="m",
            max_batch_size=4,
            dynamic_batching=ModelDynamicBatching(),
            input=(ModelInput(name="x", data_type="TYPE_FP32", dims=(4,)),),
            output=(ModelOutput(name="y", data_type="TYPE_STRING", dims=(-1,)),),
        )

    def test_a_configured_batch_size_and_scheduler_stay(self):
        batching = ModelDynamicBatching(max_queue_delay_microseconds=7)

        completed = complete(ModelConfig(name="m", max_batch_size=16, dynamic_batching=batching), BATCHING)

        assert (completed.max_batch_size, completed.dynamic_batching) == (16, batching)

    def test_a_batch_size_of_one_needs_no_scheduler(self):
        assert complete(ModelConfig(name="m", max_batch_size=1), BATCHING).dynamic_batching is None

    def test_a_sequence_batcher_stays_alone(self):
        config = ModelConfig(name="m", max_batch_size=8, sequence_batching=ModelSequenceBatching())

        assert complete(config, BATCHING).dynamic_batching is None

    def test_a_model_that_cannot_batch_gets_its_whole_shapes(self):
        assert complete(ModelConfig(name="m"), FIXED) == ModelConfig(
            name="m",
            input=(ModelInput(name="x", data_type="TYPE_FP32", dims=(2, 4)),),
            output=(ModelOutput(name="y", data_type="TYPE_FP32", dims=(2,)),),
        )

    def test_a_model_that_cannot_batch_refuses_a_batch_size(self):
        with pytest.raises(InvalidArgumentError) as refusal:
            complete(ModelConfig(name="m", max_batch_size=2), FIXED)

        assert refusal.value.message == (
            "autofill failed for model 'm': model does not support batching while non-zero max_batch_size is specified"
        )

    def test_one_tensor_without_a_batch_dimension_is_enough_not_to_batch(self):
        model = signature([("x", "FP32", (-1, 4))], [("y", "FP32", ())])

        assert complete(ModelConfig(name="m"), model).max_batch_size == 0

    def test_a_scalar_of_a_batch_is_reshaped(self):
        completed = complete(ModelConfig(name="m"), signature([("x", "INT64", (-1,))], [("y", "FP32", (-1,))]))

        assert completed.input == (
            ModelInput(name="x", data_type="TYPE_INT64", dims=(1,), reshape=ModelTensorReshape()),
        )
        assert completed.output == (
            ModelOutput(name="y", data_type="TYPE_FP32", dims=(1,), reshape=ModelTensorReshape()),
        )

    def test_a_scalar_without_batching_is_one_element(self):
        completed = complete(ModelConfig(name="m"), signature([("x", "FP32", ())], [("y", "FP32", (3,))]))

        assert completed.input == (ModelInput(name="x", data_type="TYPE_FP32", dims=(1,)),)

    def test_only_the_missing_list_is_filled_in(self):
        own = (ModelOutput(name="other", data_type="TYPE_FP32", dims=(9,)),)

        completed = complete(ModelConfig(name="m", output=own), BATCHING)

        assert completed.output == own
        assert [entry.name for entry in completed.input] == ["x"]


class TestCheck:
    def test_a_completed_configuration_fits(self):
        for model in (BATCHING, FIXED):
            check_config("m", complete(ModelConfig(name="m"), model), model)

    def test_fewer_outputs_than_the_model_has_are_fine(self):
        model = signature([("x", "FP32", (-1, 4))], [("y", "FP32", (-1, 2)), ("z", "FP32", (-1, 2))])
        config = ModelConfig(
            max_batch_size=4,
            input=(ModelInput(name="x", data_type="TYPE_FP32", dims=(4,)),),
            output=(ModelOutput(name="z", data_type="TYPE_FP32", dims=(2,)),),
        )

        check_config("m", config, model)

    def test_the_number_of_inputs(self):
        assert refused(ModelConfig(), FIXED) == (
            "unable to load model 'm', configuration expects 0 inputs, model provides 1"
        )

    def test_an_unknown_input(self):
        config = ModelConfig(input=(ModelInput(name="q", data_type="TYPE_FP32", dims=(2, 4)),))

        assert refused(config, FIXED) == "unexpected inference input 'q', allowed inputs are: x"

    def test_an_unknown_output(self):
        model = signature([("x", "FP32", (2,))], [("b", "FP32", (2,)), ("a", "FP32", (2,))])
        config = ModelConfig(
            input=(ModelInput(name="x", data_type="TYPE_FP32", dims=(2,)),),
            output=(ModelOutput(name="q", data_type="TYPE_FP32", dims=(2,)),),
        )

        assert refused(config, model) == "unexpected inference output 'q', allowed outputs are: a, b"

    def test_another_datatype(self):
        config = ModelConfig(input=(ModelInput(name="x", data_type="TYPE_INT8", dims=(2, 4)),))

        assert refused(config, FIXED) == (
            "unable to load model 'm', configuration expects datatype TYPE_INT8 for input 'x', model provides TYPE_FP32"
        )

    def test_a_datatype_that_does_not_exist(self):
        config = ModelConfig(input=(ModelInput(name="x", dims=(2, 4)),))

        assert refused(config, FIXED) == "unsupported datatype TYPE_INVALID for input 'x' for model 'm'"

    def test_another_shape_without_batching(self):
        config = ModelConfig(input=(ModelInput(name="x", data_type="TYPE_FP32", dims=(2,)),))

        assert refused(config, FIXED) == (
            "model 'm', tensor 'x': the model expects 2 dimensions (shape [2,4]) but the model configuration "
            "specifies 1 dimensions (shape [2])"
        )

    def test_another_shape_with_batching(self):
        config = ModelConfig(max_batch_size=4, input=(ModelInput(name="x", data_type="TYPE_FP32", dims=(3,)),))

        assert refused(config, BATCHING) == (
            "model 'm', tensor 'x': the model expects 2 dimensions (shape [-1,4]) but the model configuration "
            "specifies 2 dimensions (an initial batch dimension because max_batch_size > 0 followed by the explicit "
            "tensor shape, making complete shape [-1,3])"
        )

    def test_batching_on_a_model_that_cannot(self):
        config = ModelConfig(max_batch_size=4, input=(ModelInput(name="x", data_type="TYPE_FP32", dims=(4,)),))

        assert refused(config, FIXED) == (
            "model 'm', tensor 'x': for the model to support batching the shape should have at least 1 dimension and "
            "the first dimension must be -1; but shape expected by the model is [2,4]"
        )

    @pytest.mark.parametrize(("own", "configured", "fits"), [(-1, 3, True), (3, 3, True), (3, -1, False)])
    def test_a_varying_dimension_of_an_input_may_be_fixed_by_the_configuration(self, own, configured, fits):
        model = signature([("x", "FP32", (own, 4))], [])
        config = ModelConfig(input=(ModelInput(name="x", data_type="TYPE_FP32", dims=(configured, 4)),))

        if fits:
            check_config("m", config, model)
        else:
            assert "the model expects" in refused(config, model)

    def test_dimensions_of_an_output_are_compared_exactly(self):
        config = ModelConfig(
            max_batch_size=4,
            input=(ModelInput(name="x", data_type="TYPE_FP32", dims=(4,)),),
            output=(ModelOutput(name="y", data_type="TYPE_STRING", dims=(2,)),),
        )

        assert refused(config, BATCHING).endswith("making complete shape [-1,2])")

    def test_a_reshape_is_what_the_model_sees(self):
        config = ModelConfig(
            input=(ModelInput(name="x", data_type="TYPE_FP32", dims=(8,), reshape=ModelTensorReshape(shape=(2, 4))),)
        )

        check_config("m", config, FIXED)

    def test_a_scalar_without_batching_is_declared_as_one(self):
        model = signature([("x", "FP32", ())], [])
        config = ModelConfig(input=(ModelInput(name="x", data_type="TYPE_FP32", dims=(2,)),))

        assert refused(config, model) == (
            "unable to load model 'm', scalar tensor 'x', should only provide 1 in the model configuration when the "
            "model doesn't support batching. Model configuration provided: [2]."
        )

    def test_an_input_with_a_value_of_its_own_may_be_optional(self):
        model = signature([("x", "FP32", (2, 4))], [], defaults=[("w", "FP32", (3,))])
        config = ModelConfig(
            input=(
                ModelInput(name="x", data_type="TYPE_FP32", dims=(2, 4)),
                ModelInput(name="w", data_type="TYPE_FP32", dims=(3,), optional=True),
            )
        )

        check_config("m", config, model)

    def test_an_optional_input_and_batching_do_not_go_together(self):
        model = signature([("x", "FP32", (-1, 4))], [], defaults=[("w", "FP32", (-1, 3))])
        config = ModelConfig(
            max_batch_size=2,
            input=(
                ModelInput(name="x", data_type="TYPE_FP32", dims=(4,)),
                ModelInput(name="w", data_type="TYPE_FP32", dims=(3,), optional=True),
            ),
        )

        assert refused(config, model) == (
            "unable to load model 'm', optional input 'w' is not supported for models that support batching"
        )

    def test_sequence_controls_are_inputs_of_the_model(self):
        config = ModelConfig(
            max_batch_size=2,
            input=(ModelInput(name="x", data_type="TYPE_FP32", dims=(4,)),),
            sequence_batching=ModelSequenceBatching(control_input=(ModelSequenceBatchingControlInput(name="START"),)),
        )

        assert refused(config, BATCHING) == (
            "unable to load model 'm', configuration expects 2 inputs, model provides 1"
        )
        two = signature([("x", "FP32", (-1, 4)), ("begin", "FP32", (-1, 1))], [])
        assert refused(config, two) == (
            "configuration specified sequence control 'START', but model does not provide that input"
        )

    def ragged(self, shape: tuple[int, ...] = (-1,), **fields: object) -> tuple[ModelConfig, ModelSignature]:
        config = ModelConfig(
            name="m",
            max_batch_size=8,
            input=(ModelInput(name="x", data_type="TYPE_FP32", dims=(-1,), allow_ragged_batch=True),),
            output=(ModelOutput(name="y", data_type="TYPE_FP32", dims=(-1,)),),
            batch_input=(BatchInput("BATCH_ELEMENT_COUNT", ("n",), "TYPE_INT32", ("x",)),),
            batch_output=(BatchOutput(("y",), source_input=("x",)),),
        )
        tensors = {"x": TensorSignature("x", "FP32", shape), "n": TensorSignature("n", "INT32", (-1,))}
        signature = ModelSignature(tensors, {}, {"y": TensorSignature("y", "FP32", (-1,))})
        return replace(config, **fields), signature  # type: ignore[arg-type]

    def test_ragged_batches(self):
        check_config("m", *self.ragged())

    def test_a_ragged_input_must_be_a_row_of_elements(self):
        with pytest.raises(InvalidArgumentError) as refusal:
            check_config("m", *self.ragged((-1, -1)))
        assert refusal.value.message == (
            "unable to load model 'm', configuration expects model provides input with shape [-1]  for ragged input "
            "'x', model provides [-1,-1]"
        )

    def test_batch_inputs_are_inputs_of_the_graph(self):
        with pytest.raises(InvalidArgumentError) as refusal:
            check_config("m", *self.ragged(batch_input=()))
        assert refusal.value.message == ("unable to load model 'm', configuration expects 1 inputs, model provides 2")
        other = (BatchInput("BATCH_ELEMENT_COUNT", ("z",), "TYPE_INT32", ("x",)),)
        with pytest.raises(InvalidArgumentError) as refusal:
            check_config("m", *self.ragged(batch_input=other))
        assert refusal.value.message == "unexpected inference input 'z', allowed inputs are: n, x"
        floats = (BatchInput("BATCH_ELEMENT_COUNT", ("n",), "TYPE_FP32", ("x",)),)
        with pytest.raises(InvalidArgumentError, match="expects datatype TYPE_FP32 for input 'n', model provides"):
            check_config("m", *self.ragged(batch_input=floats))

    def test_an_output_that_is_not_scattered_has_rows(self):
        with pytest.raises(InvalidArgumentError, match="model 'm', tensor 'y': the model expects 1 dimensions"):
            check_config("m", *self.ragged(batch_output=()))
