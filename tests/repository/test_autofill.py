"""What is filled in where a configuration is silent."""

from dataclasses import replace

import pytest

from merrow.core.errors import InternalError, InvalidArgumentError
from merrow.core.model_config import (
    ModelConfig,
    ModelDynamicBatching,
    ModelEnsembling,
    ModelEnsemblingStep,
    ModelInput,
    ModelInstanceGroup,
    ModelOptimizationPolicy,
    ModelOptimizationPolicyPinnedMemoryBuffer,
    ModelOutput,
    ModelParameter,
    ModelSequenceBatching,
    ModelSequenceBatchingStrategyOldest,
    ModelTransactionPolicy,
    ModelVersionPolicy,
    ModelVersionPolicyAll,
    ModelVersionPolicyLatest,
)
from merrow.repository.autofill import (
    complete_ensemble,
    fill_backend,
    merge_completed,
    normalize,
    normalize_instance_groups,
)

FILE, DIRECTORY = False, True


def _filled(config: ModelConfig, entries: dict[str, bool]) -> tuple[str, str, str]:
    filled = fill_backend(config, "m", entries)
    return filled.backend, filled.platform, filled.default_model_filename


@pytest.mark.parametrize(
    ("entries", "filled"),
    [
        ({"model.savedmodel": DIRECTORY}, ("tensorflow", "tensorflow_savedmodel", "model.savedmodel")),
        ({"model.graphdef": FILE}, ("tensorflow", "tensorflow_graphdef", "model.graphdef")),
        (
            {"model.savedmodel": DIRECTORY, "model.graphdef": FILE},
            ("tensorflow", "tensorflow_graphdef", "model.graphdef"),
        ),
        ({"model.plan": FILE}, ("tensorrt", "tensorrt_plan", "model.plan")),
        ({"model.onnx": FILE}, ("onnxruntime", "onnxruntime_onnx", "model.onnx")),
        ({"model.onnx": DIRECTORY}, ("onnxruntime", "onnxruntime_onnx", "model.onnx")),
        ({"model.xml": FILE}, ("openvino", "", "model.xml")),
        ({"model.pt": FILE}, ("pytorch", "pytorch_libtorch", "model.pt")),
        ({"model.pt2": FILE}, ("pytorch", "torch_aoti", "model.pt2")),
        ({"model.pt": FILE, "model.pt2": FILE}, ("pytorch", "pytorch_libtorch", "model.pt")),
        ({"model.py": FILE}, ("python", "", "model.py")),
        ({"model.py": FILE, "model.onnx": FILE}, ("onnxruntime", "onnxruntime_onnx", "model.onnx")),
    ],
)
def test_the_backend_is_deduced_from_the_file(entries: dict[str, bool], filled: tuple[str, str, str]):
    assert _filled(ModelConfig(), entries) == filled


@pytest.mark.parametrize(
    ("platform", "filled"),
    [
        ("tensorflow_graphdef", ("tensorflow", "tensorflow_graphdef", "model.graphdef")),
        ("tensorflow_savedmodel", ("tensorflow", "tensorflow_savedmodel", "model.savedmodel")),
        ("tensorrt_plan", ("tensorrt", "tensorrt_plan", "model.plan")),
        ("onnxruntime_onnx", ("onnxruntime", "onnxruntime_onnx", "model.onnx")),
        ("pytorch_libtorch", ("pytorch", "pytorch_libtorch", "model.pt")),
        ("torch_aoti", ("pytorch", "torch_aoti", "model.pt2")),
        ("ensemble", ("", "ensemble", "")),
        ("nonsense", ("", "nonsense", "")),
    ],
)
def test_the_backend_is_deduced_from_the_platform(platform: str, filled: tuple[str, str, str]):
    # The file that is there makes no difference then.
    assert _filled(ModelConfig(platform=platform), {"model.py": FILE}) == filled


@pytest.mark.parametrize(
    ("file_name", "filled"),
    [
        ("model.savedmodel", ("tensorflow", "tensorflow_savedmodel", "model.savedmodel")),
        ("model.plan", ("tensorrt", "tensorrt_plan", "model.plan")),
        ("model.onnx", ("onnxruntime", "onnxruntime_onnx", "model.onnx")),
        ("model.xml", ("openvino", "", "model.xml")),
        ("model.pt", ("pytorch", "pytorch_libtorch", "model.pt")),
        ("model.pt2", ("pytorch", "torch_aoti", "model.pt2")),
        ("model.py", ("python", "", "model.py")),
        ("other.bin", ("", "", "other.bin")),
    ],
)
def test_the_backend_is_deduced_from_the_file_name(file_name: str, filled: tuple[str, str, str]):
    assert _filled(ModelConfig(default_model_filename=file_name), {"model.py": FILE}) == filled


@pytest.mark.parametrize(
    ("config", "entries", "filled"),
    [
        (ModelConfig(backend="python"), {}, ("python", "", "model.py")),
        (ModelConfig(backend="python", default_model_filename="x.py"), {}, ("python", "", "x.py")),
        (ModelConfig(backend="python", platform="foo"), {}, ("python", "foo", "model.py")),
        (ModelConfig(backend="onnxruntime"), {}, ("onnxruntime", "onnxruntime_onnx", "model.onnx")),
        (ModelConfig(backend="pytorch"), {}, ("pytorch", "pytorch_libtorch", "model.pt")),
        (ModelConfig(backend="pytorch"), {"model.pt2": FILE}, ("pytorch", "torch_aoti", "model.pt2")),
        (ModelConfig(backend="pytorch", platform="torch_aoti"), {}, ("pytorch", "torch_aoti", "model.pt2")),
        (
            ModelConfig(backend="tensorflow"),
            {"model.graphdef": FILE},
            ("tensorflow", "tensorflow_graphdef", "model.graphdef"),
        ),
        (ModelConfig(backend="tensorflow"), {}, ("tensorflow", "", "")),
        (ModelConfig(backend="identity"), {"model.py": FILE}, ("identity", "", "")),
        (ModelConfig(platform="foo", default_model_filename="model.py"), {}, ("python", "foo", "model.py")),
        (ModelConfig(platform="foo", default_model_filename="model.graphdef"), {}, ("", "foo", "model.graphdef")),
    ],
)
def test_what_is_written_stays(config: ModelConfig, entries: dict[str, bool], filled: tuple[str, str, str]):
    assert _filled(config, entries) == filled


@pytest.mark.parametrize(
    "entries", [{}, {"model.pt": DIRECTORY}, {"model.savedmodel": FILE}, {"model.plan": DIRECTORY}]
)
def test_nothing_tells_the_backend(entries: dict[str, bool]):
    with pytest.raises(InvalidArgumentError) as error:
        fill_backend(ModelConfig(), "m", entries)
    assert error.value.message == (
        "Invalid model name: Could not determine backend for model 'm' with no backend in model configuration. "
        "Expected model name of the form 'model.<backend_name>'."
    )


@pytest.mark.parametrize(("name", "backend"), [("m.identity", "identity"), ("a.b.c", "b.c"), (".hidden", "hidden")])
def test_the_name_tells_the_backend(name: str, backend: str):
    filled = fill_backend(ModelConfig(), name, {})

    assert (filled.name, filled.backend, filled.default_model_filename) == (name, backend, f"model.{backend}")


def test_a_name_that_is_written_stays():
    assert fill_backend(ModelConfig(name="other", backend="python"), "m", {}).name == "other"


PINNED = ModelOptimizationPolicyPinnedMemoryBuffer(enable=True)
NOT_PINNED = ModelOptimizationPolicyPinnedMemoryBuffer(enable=False)


def test_defaults_of_an_empty_configuration():
    assert normalize(ModelConfig()) == ModelConfig(
        version_policy=ModelVersionPolicy(latest=ModelVersionPolicyLatest(1)),
        optimization=ModelOptimizationPolicy(input_pinned_memory=PINNED, output_pinned_memory=PINNED),
    )


def test_defaults_of_an_ensemble():
    ensemble = ModelConfig(platform="ensemble", ensemble_scheduling=ModelEnsembling())

    assert normalize(ensemble) == replace(
        ensemble, version_policy=ModelVersionPolicy(latest=ModelVersionPolicyLatest(1))
    )


def test_what_was_written_is_no_default():
    config = ModelConfig(
        max_batch_size=8,
        version_policy=ModelVersionPolicy(all=ModelVersionPolicyAll()),
        dynamic_batching=ModelDynamicBatching(preferred_batch_size=(2, 4)),
        optimization=ModelOptimizationPolicy(input_pinned_memory=NOT_PINNED, output_pinned_memory=NOT_PINNED),
    )

    assert normalize(config) == config


@pytest.mark.parametrize(("max_batch_size", "preferred"), [(8, (8,)), (0, ()), (-1, ())])
def test_the_preferred_batch_size_is_the_largest(max_batch_size: int, preferred: tuple[int, ...]):
    config = normalize(ModelConfig(max_batch_size=max_batch_size, dynamic_batching=ModelDynamicBatching()))

    assert config.dynamic_batching == ModelDynamicBatching(preferred_batch_size=preferred)


@pytest.mark.parametrize(("max_batch_size", "preferred"), [(8, (8,)), (0, ())])
def test_defaults_of_sequence_batching(max_batch_size: int, preferred: tuple[int, ...]):
    batching = ModelSequenceBatching(oldest=ModelSequenceBatchingStrategyOldest())

    config = normalize(ModelConfig(max_batch_size=max_batch_size, sequence_batching=batching))

    assert config.sequence_batching == ModelSequenceBatching(
        oldest=ModelSequenceBatchingStrategyOldest(preferred_batch_size=preferred),
        max_sequence_idle_microseconds=1_000_000,
    )


def test_normalizing_twice_changes_nothing():
    once = normalize(ModelConfig(max_batch_size=8, dynamic_batching=ModelDynamicBatching()))

    assert normalize(once) == once


def test_a_backend_completes_what_it_may():
    config = normalize(ModelConfig(name="m", backend="python"))
    completed = replace(
        config,
        max_batch_size=4,
        input=(ModelInput("A"),),
        output=(ModelOutput("B"),),
        dynamic_batching=ModelDynamicBatching(),
        model_transaction_policy=ModelTransactionPolicy(decoupled=True),
        # Not taken over:
        backend="other",
        parameters={"a": ModelParameter("b")},
        instance_group=(ModelInstanceGroup(count=3),),
    )

    assert merge_completed(config, completed) == replace(
        config,
        max_batch_size=4,
        input=(ModelInput("A"),),
        output=(ModelOutput("B"),),
        dynamic_batching=ModelDynamicBatching(preferred_batch_size=(4,)),
        model_transaction_policy=ModelTransactionPolicy(decoupled=True),
    )


def test_a_backend_keeps_the_scheduling_that_was_chosen():
    config = normalize(ModelConfig(max_batch_size=4, dynamic_batching=ModelDynamicBatching(preserve_ordering=True)))
    completed = replace(config, dynamic_batching=ModelDynamicBatching(max_queue_delay_microseconds=5))

    assert merge_completed(config, completed) == config


@pytest.mark.parametrize(
    ("config", "completed", "number"),
    [
        (ModelConfig(dynamic_batching=ModelDynamicBatching()), ModelConfig(), 11),
        (
            ModelConfig(sequence_batching=ModelSequenceBatching()),
            ModelConfig(dynamic_batching=ModelDynamicBatching()),
            13,
        ),
    ],
)
def test_a_backend_cannot_choose_another_scheduling(config: ModelConfig, completed: ModelConfig, number: int):
    with pytest.raises(InternalError) as error:
        merge_completed(config, completed)
    assert error.value.message == f"Cannot update scheduling choice from {number} to {number} when auto-completing."


def test_without_a_transaction_policy_the_old_one_stays():
    config = normalize(ModelConfig(model_transaction_policy=ModelTransactionPolicy(decoupled=True)))

    assert merge_completed(config, ModelConfig()).is_decoupled


def _groups(config: ModelConfig, gpu_ids: tuple[int, ...] = (), preferred: int = 0) -> list[tuple[object, ...]]:
    groups = normalize_instance_groups(config, gpu_ids, preferred).instance_group
    return [(group.name, group.kind, group.count, group.gpus) for group in groups]


def test_there_is_always_an_instance():
    assert _groups(ModelConfig(name="m", backend="python")) == [("m", "KIND_CPU", 1, ())]
    assert _groups(ModelConfig(name="m", backend="python"), gpu_ids=(1, 0)) == [("m", "KIND_GPU", 1, (0, 1))]


@pytest.mark.parametrize(
    ("backend", "preferred", "count"),
    [("python", 0, 1), ("onnxruntime", 0, 2), ("tensorflow", 0, 2), ("pytorch", 0, 1), ("python", 3, 3)],
)
def test_how_many_instances_a_cpu_gets(backend: str, preferred: int, count: int):
    config = ModelConfig(name="m", backend=backend, instance_group=(ModelInstanceGroup(kind="KIND_CPU"),))

    assert _groups(config, preferred=preferred) == [("m_0", "KIND_CPU", count, ())]


def test_a_gpu_gets_one_instance_whatever_the_backend_prefers_on_a_cpu():
    config = ModelConfig(name="m", backend="onnxruntime", instance_group=(ModelInstanceGroup(kind="KIND_GPU"),))

    assert _groups(config, gpu_ids=(0,), preferred=3) == [("m_0", "KIND_GPU", 1, (0,))]


@pytest.mark.parametrize(
    ("gpus", "gpu_ids", "kind"),
    [((), (), "KIND_CPU"), ((0,), (), "KIND_CPU"), ((1,), (0, 1), "KIND_GPU"), ((0, 2), (0, 1), "KIND_CPU")],
)
def test_auto_is_the_gpu_where_all_that_are_listed_exist(gpus: tuple[int, ...], gpu_ids: tuple[int, ...], kind: str):
    config = ModelConfig(name="m", instance_group=(ModelInstanceGroup(kind="KIND_AUTO", count=1, gpus=gpus),))

    assert _groups(config, gpu_ids) == [("m_0", kind, 1, gpus)]


def test_groups_are_numbered_and_named_ones_keep_their_names():
    config = ModelConfig(
        name="m",
        instance_group=(
            ModelInstanceGroup(kind="KIND_CPU", count=2),
            ModelInstanceGroup(name="x", kind="KIND_MODEL", count=-1),
            ModelInstanceGroup(kind="KIND_CPU", count=1),
        ),
    )

    assert _groups(config) == [("m_0", "KIND_CPU", 2, ()), ("x", "KIND_MODEL", 1, ()), ("m_2", "KIND_CPU", 1, ())]


def test_an_ensemble_has_no_instances():
    config = ModelConfig(name="m", platform="ensemble", ensemble_scheduling=ModelEnsembling())

    assert normalize_instance_groups(config) is config


def test_an_ensemble_is_decoupled_if_a_step_is():
    config = ModelConfig(ensemble_scheduling=ModelEnsembling((ModelEnsemblingStep("a", model_namespace="ns"),)))

    assert complete_ensemble(config, is_decoupled=True) == ModelConfig(
        ensemble_scheduling=ModelEnsembling((ModelEnsemblingStep("a"),)),
        model_transaction_policy=ModelTransactionPolicy(decoupled=True),
    )
