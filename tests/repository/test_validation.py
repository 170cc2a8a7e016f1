"""What a configuration must not say: the rest of what stands in `test_recorded_configs`."""

from dataclasses import replace

import pytest

from merrow.core.errors import InvalidArgumentError
from merrow.core.model_config import (
    ModelConfig,
    ModelEnsembling,
    ModelEnsemblingStep,
    ModelInput,
    ModelInstanceGroup,
    ModelMetrics,
    ModelMetricsMetricControl,
    ModelMetricsMetricControlHistogramOptions,
    ModelMetricsMetricControlMetricIdentifier,
    ModelOutput,
    ModelTensorReshape,
)
from merrow.repository.validation import validate_config, validate_instance_groups, validate_tensors

VALID = ModelConfig(name="m", backend="python")


def _message_of(check: object, *arguments: object) -> str:
    with pytest.raises(InvalidArgumentError) as error:
        check(*arguments)  # type: ignore[operator]
    return error.value.message


def test_a_small_configuration_is_valid():
    validate_config(VALID)
    validate_config(replace(VALID, platform="whatever"))
    validate_config(replace(VALID, backend="pytorch", platform="torch_aoti"))


def test_a_model_must_have_a_name():
    assert _message_of(validate_config, replace(VALID, name="")) == "model configuration must specify 'name'"


IDENTIFIER = ModelMetricsMetricControlMetricIdentifier("nv_inference_first_response_histogram_ms")
BUCKETS = ModelMetricsMetricControlHistogramOptions((1.0, 2.5))


@pytest.mark.parametrize(
    ("control", "message"),
    [
        (ModelMetricsMetricControl(None, BUCKETS), "metric control must specify 'metric_identifier'"),
        (
            ModelMetricsMetricControl(ModelMetricsMetricControlMetricIdentifier(), BUCKETS),
            "metric identifier must specify non-empty 'family'",
        ),
        (ModelMetricsMetricControl(IDENTIFIER, None), "metric control must specify 'histogram_options'"),
        (
            ModelMetricsMetricControl(IDENTIFIER, ModelMetricsMetricControlHistogramOptions()),
            "histogram options must specify non-empty 'buckets'",
        ),
    ],
)
def test_metric_settings_must_be_complete(control: ModelMetricsMetricControl, message: str):
    assert _message_of(validate_config, replace(VALID, model_metrics=ModelMetrics((control,)))) == message


def test_complete_metric_settings():
    validate_config(replace(VALID, model_metrics=ModelMetrics((ModelMetricsMetricControl(IDENTIFIER, BUCKETS),))))


def _with_group(**settings: object) -> ModelConfig:
    return replace(VALID, instance_group=(ModelInstanceGroup(name="g", count=1, **settings),))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "gpu_ids", "message"),
    [
        (VALID, (), "must specify one or more 'instance group's for m"),
        (
            _with_group(kind="KIND_GPU"),
            (0,),
            "instance group g of model m has kind KIND_GPU but specifies no GPUs",
        ),
        (
            _with_group(kind="KIND_GPU", gpus=(0, 7)),
            (1, 0),
            "instance group g of model m specifies invalid or unsupported gpu id 7. GPUs with at least the minimum "
            "required CUDA compute compatibility of 6.000000 are: 0, 1",
        ),
        (
            replace(_with_group(kind="KIND_CPU", profile=("p",)), platform="P"),
            (),
            "instance group g of model m and platform Pspecifies profile field which is only supported for TensorRT "
            "models",
        ),
    ],
)
def test_instance_groups_that_cannot_be(config: ModelConfig, gpu_ids: tuple[int, ...], message: str):
    assert _message_of(validate_instance_groups, config, gpu_ids) == message


def test_instance_groups_that_can_be():
    validate_instance_groups(_with_group(kind="KIND_CPU"))
    validate_instance_groups(_with_group(kind="KIND_MODEL"))
    validate_instance_groups(_with_group(kind="KIND_GPU", gpus=(0, 1)), (0, 1, 2))
    validate_instance_groups(replace(_with_group(kind="KIND_CPU", profile=("p",)), platform="tensorrt_plan"))
    validate_instance_groups(replace(VALID, ensemble_scheduling=ModelEnsembling()))


def _with_input(**settings: object) -> ModelConfig:
    defaults: dict[str, object] = {"name": "A", "data_type": "TYPE_FP32", "dims": (3,)}
    return replace(VALID, input=(ModelInput(**{**defaults, **settings}),))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"is_non_linear_format_io": True}, "Non-linear IO format input requires 3 dims for m"),
        ({"format": "FORMAT_NHWC"}, "model input NHWC/NCHW require 3 dims for m"),
    ],
)
def test_inputs_that_tensorrt_cannot_have(settings: dict[str, object], message: str):
    assert _message_of(validate_tensors, replace(_with_input(**settings), platform="tensorrt_plan")) == message


def test_inputs_that_tensorrt_can_have():
    for settings in ({"is_shape_tensor": True}, {"is_non_linear_format_io": True, "dims": (1, 2, 3)}):
        validate_tensors(replace(_with_input(**settings), platform="tensorrt_plan"))


@pytest.mark.parametrize(
    ("dims", "shape", "max_batch_size"),
    [
        ((2, 3), (6,), 0),
        ((1,), (), 4),
        ((1, 1), (), 4),
        ((-1, 2), (2, -1), None),
        ((2, 4, -1, 6), (8, -1, 1, 6), 0),
        ((-1, -1), (-1, 1, -1), 0),
        ((2,), (), None),
        ((-1,), (4,), None),
        ((4,), (-1,), None),
        ((-1,), (), None),
        ((-1, -1), (-1,), None),
    ],
)
def test_a_reshape_keeps_the_number_of_elements(
    dims: tuple[int, ...], shape: tuple[int, ...], max_batch_size: int | None
):
    """Those with a `max_batch_size` are possible."""
    config = replace(
        _with_input(dims=dims, reshape=ModelTensorReshape(shape)),
        max_batch_size=4 if max_batch_size is None else max_batch_size,
    )
    if max_batch_size is not None:
        validate_tensors(config)
    elif dims.count(-1) != shape.count(-1) and min(dims.count(-1), shape.count(-1)):
        assert _message_of(validate_tensors, config) == (
            "model input 'A' has different number of variable-size dimensions for dims and reshape for m"
        )
    else:
        assert _message_of(validate_tensors, config) == (
            "model input 'A' has different size for dims and reshape for m"
        )


def test_the_first_error_in_order_is_told():
    config = replace(
        VALID,
        input=(ModelInput("A", "TYPE_FP32", dims=(1,)), ModelInput("B", "TYPE_FP32", dims=(0,)), ModelInput()),
        output=(ModelOutput(),),
    )

    assert _message_of(validate_tensors, config) == (
        "model input 'B' dimension must be integer >= 1, or -1 to indicate a variable-size dimension for m"
    )


def _ensemble(*steps: tuple[str, dict[str, str], dict[str, str]]) -> ModelConfig:
    return ModelConfig(
        name="e",
        platform="ensemble",
        input=(ModelInput("IN"),),
        output=(ModelOutput("OUT"),),
        ensemble_scheduling=ModelEnsembling(
            tuple(ModelEnsemblingStep(model, -1, inputs, outputs) for model, inputs, outputs in steps)
        ),
    )


def test_a_long_chain_of_steps():
    steps = [("m", {"A": f"T{i}"}, {"B": f"T{i + 1}"}) for i in range(2000)]

    validate_config(_ensemble(("m", {"A": "IN"}, {"B": "T0"}), *steps, ("m", {"A": "T2000"}, {"B": "OUT"})))


def test_steps_may_stand_in_any_order():
    validate_config(_ensemble(("b", {"A": "T"}, {"B": "OUT"}), ("a", {"A": "IN"}, {"B": "T"})))


def test_a_cycle_that_no_input_reaches():
    config = _ensemble(("a", {"A": "IN", "C": "U"}, {"B": "T"}), ("b", {"A": "T"}, {"B": "U", "C": "OUT"}))

    assert _message_of(validate_config, config) == (
        "output 'OUT' for ensemble 'e' is not written: at least one of its depending tensors, 'T', is not connected"
    )
