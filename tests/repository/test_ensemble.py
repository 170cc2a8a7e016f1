"""An ensemble against its composing models. The texts are Triton's."""

import pytest

from merrow.core.errors import InvalidArgumentError
from merrow.core.model_config import (
    ModelConfig,
    ModelEnsembling,
    ModelEnsemblingStep,
    ModelInput,
    ModelOutput,
    ModelTransactionPolicy,
)
from merrow.repository.ensemble import (
    check_cycles,
    check_ensemble,
    composing_models,
    is_decoupled,
    missing_models_error,
    not_loaded_error,
    not_valid_error,
    version_not_loaded_error,
)


def model(
    name: str,
    inputs: dict[str, tuple[int, ...]],
    outputs: dict[str, tuple[int, ...]],
    max_batch_size: int = 0,
    is_decoupled: bool = False,
    data_type: str = "TYPE_FP32",
    optional: tuple[str, ...] = (),
) -> ModelConfig:
    return ModelConfig(
        name=name,
        max_batch_size=max_batch_size,
        input=tuple(
            ModelInput(name=key, data_type=data_type, dims=dims, optional=key in optional)
            for key, dims in inputs.items()
        ),
        output=tuple(ModelOutput(name=key, data_type=data_type, dims=dims) for key, dims in outputs.items()),
        model_transaction_policy=ModelTransactionPolicy(is_decoupled),
    )


def step(model_name: str, inputs: dict[str, str], outputs: dict[str, str], version: int = -1) -> ModelEnsemblingStep:
    return ModelEnsemblingStep(model_name, version, inputs, outputs)


def ensemble(*steps: ModelEnsemblingStep, max_batch_size: int = 0, **tensors: object) -> ModelConfig:
    return ModelConfig(
        name="E",
        platform="ensemble",
        max_batch_size=max_batch_size,
        input=(ModelInput(name="X", data_type="TYPE_FP32", dims=(3,)),),
        output=(ModelOutput(name="Z", data_type="TYPE_FP32", dims=(3,)),),
        ensemble_scheduling=ModelEnsembling(steps),
        **tensors,  # type: ignore[arg-type]
    )


M = model("m", {"IN": (3,)}, {"OUT": (3,)})
SIMPLE = ensemble(step("m", {"IN": "X"}, {"OUT": "Z"}))


def failure(config: ModelConfig, *models: ModelConfig) -> str:
    with pytest.raises(InvalidArgumentError) as raised:
        check_ensemble(config, {(composing.name, -1): composing for composing in models})
    return raised.value.message


def test_composing_models_are_named_once_with_the_version_asked_for():
    config = ensemble(
        step("m", {"IN": "X"}, {"OUT": "Y"}),
        step("m", {"IN": "Y"}, {"OUT": "W"}),
        step("m", {"IN": "W"}, {"OUT": "Z"}, 3),
    )

    assert composing_models(config) == (("m", -1), ("m", 3))
    assert composing_models(M) == ()


def test_a_fitting_ensemble_passes():
    check_ensemble(SIMPLE, {("m", -1): M})


def test_a_batching_model_must_take_the_ensembles_batch():
    small = model("m", {"IN": (3,)}, {"OUT": (3,)}, max_batch_size=8)
    config = ensemble(step("m", {"IN": "X"}, {"OUT": "Z"}), max_batch_size=16)

    assert failure(config, small) == (
        "ensemble E allows maximum batch size 16, but it contains model m which only allows maximum batch size to be 8"
    )


def test_a_model_without_batches_is_exempt_from_the_batch_size():
    check_ensemble(ensemble(step("m", {"IN": "X"}, {"OUT": "Z"}), max_batch_size=16), {("m", -1): M})


def test_names_that_the_model_does_not_have_are_refused():
    assert failure(ensemble(step("m", {"NO": "X"}, {"OUT": "Z"})), M) == (
        "in ensemble E, ensemble tensor X is mapping to non-existing input NO in model m"
    )
    assert failure(ensemble(step("m", {"IN": "X"}, {"NO": "Z"})), M) == (
        "in ensemble E, ensemble tensor Z is mapped from non-existing output NO in model m"
    )


def test_a_required_input_must_be_mapped_and_an_optional_one_need_not():
    required = model("m", {"IN": (3,), "MORE": (1,)}, {"OUT": (3,)})
    optional = model("m", {"IN": (3,), "MORE": (1,)}, {"OUT": (3,)}, optional=("MORE",))

    assert failure(SIMPLE, required) == "in ensemble E, input MORE in model m is not mapped to any ensemble tensors"
    check_ensemble(SIMPLE, {("m", -1): optional})


def test_datatypes_must_agree():
    assert failure(SIMPLE, model("m", {"IN": (3,)}, {"OUT": (3,)}, data_type="TYPE_INT32")) == (
        "in ensemble E, ensemble tensor X: inconsistent data type: TYPE_FP32 is inferred from model E while TYPE_INT32 "
        "is inferred from model m"
    )


def test_shapes_must_agree_and_are_shown_with_the_batch_dimension():
    config = ensemble(step("m", {"IN": "X"}, {"OUT": "Z"}), max_batch_size=4)

    assert failure(config, model("m", {"IN": (2,)}, {"OUT": (3,)}, max_batch_size=4)) == (
        "in ensemble E, ensemble tensor X: inconsistent shape: [-1,3] is inferred from model E while [-1,2] is "
        "inferred from model m"
    )


def test_a_size_of_any_matches_and_a_batch_may_be_a_dimension():
    check_ensemble(SIMPLE, {("m", -1): model("m", {"IN": (-1,)}, {"OUT": (-1,)})})
    check_ensemble(SIMPLE, {("m", -1): model("m", {"IN": (3,)}, {"OUT": (3,)}, max_batch_size=2)})
    whole_batch = ensemble(step("m", {"IN": "X"}, {"OUT": "Z"}), max_batch_size=4)
    check_ensemble(whole_batch, {("m", -1): model("m", {"IN": (-1, 3)}, {"OUT": (-1, 3)})})


def test_tensors_between_steps_are_checked_too():
    config = ensemble(step("m", {"IN": "X"}, {"OUT": "Y"}), step("n", {"IN": "Y"}, {"OUT": "Z"}))

    assert failure(config, M, model("n", {"IN": (5,)}, {"OUT": (3,)})) == (
        "in ensemble E, ensemble tensor Y: inconsistent shape: [3] is inferred from model m while [5] is inferred from "
        "model n"
    )


def test_tensors_of_different_origin_do_not_mix():
    many = model("many", {"IN": (3,)}, {"OUT": (3,)}, is_decoupled=True)
    two = model("two", {"A": (3,), "B": (3,)}, {"OUT": (3,)})
    text = "in ensemble E, step of model 'E' receives inputs originated from different decoupled models"
    with_input = ensemble(step("many", {"IN": "X"}, {"OUT": "Y"}), step("two", {"A": "X", "B": "Y"}, {"OUT": "Z"}))
    two_sources = ensemble(
        step("many", {"IN": "X"}, {"OUT": "Y"}),
        step("many", {"IN": "X"}, {"OUT": "W"}),
        step("two", {"A": "W", "B": "Y"}, {"OUT": "Z"}),
    )

    assert failure(with_input, many, two) == text
    assert failure(two_sources, many, two) == text


def test_steps_after_one_decoupled_step_may_meet_again():
    many = model("many", {"IN": (3,)}, {"OUT": (3,)}, is_decoupled=True)
    two = model("two", {"A": (3,), "B": (3,)}, {"OUT": (3,)})
    config = ensemble(
        step("two", {"A": "V", "B": "W"}, {"OUT": "Z"}),
        step("m", {"IN": "Y"}, {"OUT": "V"}),
        step("m", {"IN": "Y"}, {"OUT": "W"}),
        step("many", {"IN": "X"}, {"OUT": "Y"}),
    )
    configs = {("many", -1): many, ("two", -1): two, ("m", -1): M}

    check_ensemble(config, configs)
    assert is_decoupled(config, configs)
    assert not is_decoupled(SIMPLE, configs)


def test_an_ensemble_that_contains_itself_is_refused():
    def calls(name: str, other: str) -> ModelConfig:
        return ModelConfig(
            name=name,
            platform="ensemble",
            ensemble_scheduling=ModelEnsembling((step(other, {"IN": "X"}, {"OUT": "Z"}),)),
        )

    configs = {"A": calls("A", "B"), "B": calls("B", "C"), "C": calls("C", "A"), "D": calls("D", "m"), "m": M}

    with pytest.raises(InvalidArgumentError) as raised:
        check_cycles(configs["A"], configs.get)
    assert raised.value.message == "circular dependency between ensembles: A -> ... -> C -> A"
    check_cycles(configs["D"], configs.get)
    check_cycles(calls("F", "unknown"), configs.get)


def test_what_is_said_of_composing_models_that_do_not_serve():
    assert missing_models_error("E", ["b", "a"]).message == (
        "ensemble E contains models that are not available or ambiguous: a, b"
    )
    assert not_loaded_error("E", "m", "no").message == (
        "ensemble 'E' depends on 'm' which has no loaded version. Model 'm' loading failed with error: no"
    )
    assert not_valid_error("E", "m", "no").message == (
        "ensemble 'E' depends on 'm' which is not valid. Model 'm' failed with error: no"
    )
    assert version_not_loaded_error("E", "m", 7).message == (
        "ensemble 'E' depends on 'm' whose required version 7 is not loaded."
    )
