"""The runtime at work, on models of one or two nodes."""

import threading
import weakref
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from merrow.backends.base import Execution, InstanceDescription, ModelContext
from merrow.backends.onnx import runtime
from merrow.backends.onnx.backend import OnnxBackend
from merrow.core.errors import (
    InternalError,
    InvalidArgumentError,
    ServerError,
    UnavailableError,
    UnsupportedError,
)
from merrow.core.model_config import (
    ModelConfig,
    ModelInput,
    ModelInstanceGroup,
    ModelOperations,
    ModelOptimizationPolicy,
    ModelOptimizationPolicyExecutionAccelerators,
    ModelOptimizationPolicyExecutionAcceleratorsAccelerator,
    ModelOptimizationPolicyGraph,
    ModelOutput,
    ModelParameter,
)
from merrow.core.request import Request
from merrow.core.response import Response
from merrow.core.tensor import Tensor
from merrow.testing.recording_host import RecordingHost


class Repository:
    """A folder of one model, and contexts over it."""

    def __init__(self, path):
        self.path = path
        (path / "1").mkdir()

    def write(self, nodes, inputs, outputs, initializer=(), filename="model.onnx"):
        graph = helper.make_graph(
            nodes,
            "graph",
            [helper.make_tensor_value_info(*value) for value in inputs],
            [helper.make_tensor_value_info(*value) for value in outputs],
            list(initializer),
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        path = self.path / "1" / filename
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(model.SerializeToString())

    def write_identity(self, element_type, shape):
        self.write(
            [helper.make_node("Identity", ["x"], ["y"])], [("x", element_type, shape)], [("y", element_type, shape)]
        )

    def context(self, config: ModelConfig, **backend_config: str) -> ModelContext:
        return ModelContext("m", 1, config, "{}", str(self.path), str(self.path / "1"), backend_config)

    def complete(self, config: ModelConfig | None = None, **backend_config: str) -> ModelConfig:
        config = ModelConfig(name="m") if config is None else config
        return OnnxBackend().auto_complete(self.context(config, **backend_config))

    def load(self, config: ModelConfig | None = None, **parameters: str):
        config = self.complete() if config is None else config
        config.parameters.update({key: ModelParameter(value) for key, value in parameters.items()})
        return OnnxBackend().create_instance(
            self.context(config), InstanceDescription("m_0", "KIND_CPU", 0), RecordingHost()
        )

    def refusal(self, config: ModelConfig | None = None, **parameters: str) -> ServerError:
        with pytest.raises(ServerError) as refusal:
            self.load(config, **parameters)
        return refusal.value


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path)


def request(**arrays) -> Request:
    inputs = {}
    for name, array in arrays.items():
        inputs[name] = array if isinstance(array, Tensor) else Tensor.from_numpy(name, np.asarray(array))
    return Request("m", 1, sink=None, inputs=inputs, id="r")  # type: ignore[arg-type]  # nobody answers here


def output(execution: Execution, position: int = 0, name: str = "y") -> Tensor:
    outcome = execution.outcomes[position]
    assert isinstance(outcome, Response), outcome
    return next(tensor for tensor in outcome.outputs if tensor.name == name)


def error(execution: Execution, position: int = 0) -> ServerError:
    outcome = execution.outcomes[position]
    assert isinstance(outcome, ServerError)
    return outcome


class TestAutoComplete:
    def test_the_file_says_names_types_and_shapes(self, repository):
        repository.write_identity(TensorProto.FLOAT, ["batch", 3])

        config = repository.complete()

        assert config.max_batch_size == 4
        assert config.dynamic_batching is not None
        assert config.input == (ModelInput(name="x", data_type="TYPE_FP32", dims=(3,)),)
        assert config.output == (ModelOutput(name="y", data_type="TYPE_FP32", dims=(3,)),)

    def test_the_default_batch_size_is_a_backend_setting(self, repository):
        repository.write_identity(TensorProto.FLOAT, ["batch", 3])

        assert repository.complete(**{"default-max-batch-size": "9"}).max_batch_size == 9

    def test_a_backend_setting_that_is_no_number_is_refused(self, repository):
        repository.write_identity(TensorProto.FLOAT, ["batch", 3])

        with pytest.raises(InvalidArgumentError) as refusal:
            repository.complete(**{"default-max-batch-size": "many"})

        assert refusal.value.message == "failed to convert default-max-batch-size 'many' to integral number"

    def test_a_complete_configuration_is_left_alone_and_the_file_unread(self, repository):
        config = ModelConfig(name="m", input=(ModelInput(name="x"),), output=(ModelOutput(name="y"),))

        assert repository.complete(config) is config

    @pytest.mark.parametrize(
        ("element_type", "config_type"),
        [
            (TensorProto.BOOL, "TYPE_BOOL"),
            (TensorProto.UINT8, "TYPE_UINT8"),
            (TensorProto.UINT16, "TYPE_UINT16"),
            (TensorProto.UINT32, "TYPE_UINT32"),
            (TensorProto.UINT64, "TYPE_UINT64"),
            (TensorProto.INT8, "TYPE_INT8"),
            (TensorProto.INT16, "TYPE_INT16"),
            (TensorProto.INT32, "TYPE_INT32"),
            (TensorProto.INT64, "TYPE_INT64"),
            (TensorProto.FLOAT16, "TYPE_FP16"),
            (TensorProto.FLOAT, "TYPE_FP32"),
            (TensorProto.DOUBLE, "TYPE_FP64"),
            (TensorProto.BFLOAT16, "TYPE_BF16"),
            (TensorProto.STRING, "TYPE_STRING"),
        ],
    )
    def test_every_datatype_has_its_name(self, repository, element_type, config_type):
        repository.write_identity(element_type, [2])

        assert repository.complete().input[0].data_type == config_type

    def test_a_sequence_of_tensors_is_no_tensor(self, repository):
        sequence = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
        graph = helper.make_graph(
            [helper.make_node("SequenceConstruct", ["x"], ["y"])],
            "graph",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
            [sequence],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        (repository.path / "1" / "model.onnx").write_bytes(model.SerializeToString())

        with pytest.raises(InvalidArgumentError) as refusal:
            repository.complete()

        assert refusal.value.message == (
            "Unsupported ONNX Type 'ONNX_TYPE_SEQUENCE' for I/O 'y', expected 'ONNX_TYPE_TENSOR'."
        )


class TestLoading:
    def test_a_missing_file_is_named(self, repository):
        refusal = repository.refusal(ModelConfig(name="m"))

        assert isinstance(refusal, UnavailableError)
        assert refusal.message == f"unable to find '{repository.path}/1/model.onnx' for model instance 'm_0'"

    def test_the_file_may_have_another_name(self, repository):
        repository.write(
            [helper.make_node("Identity", ["x"], ["y"])],
            [("x", TensorProto.FLOAT, [1])],
            [("y", TensorProto.FLOAT, [1])],
            filename="other.onnx",
        )
        config = repository.complete(ModelConfig(name="m", default_model_filename="other.onnx"))

        assert config.input[0].dims == (1,)

    def test_the_file_may_be_a_folder(self, repository):
        repository.write(
            [helper.make_node("Identity", ["x"], ["y"])],
            [("x", TensorProto.FLOAT, [1])],
            [("y", TensorProto.FLOAT, [1])],
            filename="model.onnx/model.onnx",
        )

        assert repository.complete().input[0].dims == (1,)

    def test_a_broken_file_gives_the_runtimes_code_and_text(self, repository):
        (repository.path / "1" / "model.onnx").write_bytes(b"not a model")

        refusal = repository.refusal(ModelConfig(name="m"))

        assert isinstance(refusal, InternalError)
        assert refusal.message.startswith("onnx runtime error 7: ")
        assert "Protobuf parsing failed" in refusal.message

    def test_a_configuration_that_does_not_fit_is_refused(self, repository):
        repository.write_identity(TensorProto.FLOAT, [2])

        refusal = repository.refusal(
            ModelConfig(name="m", input=(ModelInput(name="x", data_type="TYPE_INT8", dims=(2,)),))
        )

        assert refusal.message == (
            "unable to load model 'm', configuration expects datatype TYPE_INT8 for input 'x', model provides TYPE_FP32"
        )

    def test_an_instance_on_a_gpu_is_refused(self, repository):
        repository.write_identity(TensorProto.FLOAT, [2])

        with pytest.raises(UnsupportedError, match="'m_0' of model 'm' has kind KIND_GPU"):
            OnnxBackend().create_instance(
                repository.context(repository.complete()), InstanceDescription("m_0", "KIND_GPU", 0), RecordingHost()
            )

    def test_providers_of_an_instance_on_a_gpu(self, repository, monkeypatch):
        """Of a package that has them: none is installed where the tests run."""
        opened = []
        providers = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
        monkeypatch.setattr(runtime.onnxruntime, "get_available_providers", lambda: providers)
        session = runtime.open_session

        def open_session(path, options, providers):
            opened.append(providers)
            return session(path, options, ["CPUExecutionProvider"])

        monkeypatch.setattr("merrow.backends.onnx.backend.open_session", open_session)
        repository.write_identity(TensorProto.FLOAT, [2])
        config = repository.complete()
        config.parameters["gpu_mem_limit"] = ModelParameter("1000")
        accelerators = ModelOptimizationPolicyExecutionAccelerators(
            gpu_execution_accelerator=(
                ModelOptimizationPolicyExecutionAcceleratorsAccelerator("tensorrt", {"trt_fp16_enable": "1"}),
            )
        )
        assert OnnxBackend().takes_gpus
        for optimization in (None, ModelOptimizationPolicy(execution_accelerators=accelerators)):
            OnnxBackend().create_instance(
                repository.context(replace(config, optimization=optimization)),
                InstanceDescription("m_0", "KIND_GPU", 3),
                RecordingHost(),
            )
        cuda = ("CUDAExecutionProvider", {"gpu_mem_limit": "1000", "device_id": "3"})
        tensorrt = ("TensorrtExecutionProvider", {"trt_fp16_enable": "1", "device_id": "3"})
        assert opened[-2:] == [(cuda, "CPUExecutionProvider"), (tensorrt, cuda, "CPUExecutionProvider")]

    def test_without_the_package_the_error_names_the_extra(self, monkeypatch):
        monkeypatch.setattr(runtime, "onnxruntime", None)

        with pytest.raises(UnavailableError) as refusal:
            OnnxBackend()

        assert refusal.value.message == (
            "the onnxruntime backend needs the package onnxruntime, which is not installed; it comes with "
            "pip install 'merrow[onnx]'"
        )

    def test_two_instances_are_preferred_on_a_cpu(self):
        assert OnnxBackend().preferred_cpu_instance_count == 2


class TestParameters:
    def options(self, instance):
        return instance._session.get_session_options()

    def test_no_more_batches_at_once_than_cores(self, monkeypatch):
        monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(4)), raising=False)
        limit = OnnxBackend().batch_limit
        passive = ModelInstanceGroup(count=8, passive=True)

        assert limit(ModelConfig(instance_group=(ModelInstanceGroup(count=8),))) == 4
        assert limit(ModelConfig(instance_group=(ModelInstanceGroup(count=4),))) is None
        assert limit(ModelConfig(instance_group=(ModelInstanceGroup(count=2), passive))) is None
        chosen = {"intra_op_thread_count": ModelParameter("1")}
        assert limit(ModelConfig(instance_group=(ModelInstanceGroup(count=8),), parameters=chosen)) is None
        assert limit(ModelConfig(instance_group=(ModelInstanceGroup(kind="KIND_GPU", count=8),))) is None

    def test_threads_of_a_run_and_the_callers_of_others_fill_the_cores(self, repository, monkeypatch):
        monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
        repository.write_identity(TensorProto.FLOAT, [2])
        config = ModelConfig(name="m", instance_group=(ModelInstanceGroup(count=2), ModelInstanceGroup(count=1)))

        assert self.options(repository.load(repository.complete(config))).intra_op_num_threads == 6

    def test_thread_counts_and_memory_settings_are_handed_on(self, repository):
        repository.write_identity(TensorProto.FLOAT, [2])

        options = self.options(
            repository.load(
                intra_op_thread_count="3",
                inter_op_thread_count="2",
                execution_mode="1",
                enable_mem_arena="0",
                enable_mem_pattern="0",
            )
        )

        assert options.intra_op_num_threads == 3
        assert options.inter_op_num_threads == 2
        assert options.execution_mode.name == "ORT_PARALLEL"
        assert options.enable_cpu_mem_arena is False
        assert options.enable_mem_pattern is False

    def test_threads_sleep_between_runs_unless_the_configuration_says_otherwise(self, repository):
        repository.write_identity(TensorProto.FLOAT, [2])
        key = "session.force_spinning_stop"

        assert self.options(repository.load()).get_session_config_entry(key) == "1"
        assert self.options(repository.load(**{key: "0"})).get_session_config_entry(key) == "0"

    @pytest.mark.parametrize(
        ("level", "name"),
        [(0, "ORT_ENABLE_ALL"), (-1, "ORT_ENABLE_BASIC"), (1, "ORT_ENABLE_EXTENDED"), (2, "ORT_DISABLE_ALL")],
    )
    def test_the_level_of_graph_optimization(self, repository, level, name):
        repository.write_identity(TensorProto.FLOAT, [2])
        config = ModelConfig(
            name="m", optimization=ModelOptimizationPolicy(graph=ModelOptimizationPolicyGraph(level=level))
        )

        assert self.options(repository.load(repository.complete(config))).graph_optimization_level.name == name

    def test_an_unknown_execution_mode(self, repository):
        repository.write_identity(TensorProto.FLOAT, [2])

        assert repository.refusal(execution_mode="2").message == (
            "Invalid configuration value provided. Expected values for  execution_mode are 0 or 1 but got 2 ."
        )

    def test_a_thread_count_that_is_no_number(self, repository):
        repository.write_identity(TensorProto.FLOAT, [2])

        assert repository.refusal(intra_op_thread_count="two").message == (
            "failed to convert intra_op_thread_count 'two' to integral number"
        )

    def test_a_negative_thread_count_is_ignored(self, repository):
        repository.write_identity(TensorProto.FLOAT, [2])

        assert self.options(repository.load(inter_op_thread_count="-5")).inter_op_num_threads == 0

    @pytest.mark.parametrize(
        ("accelerator", "message"),
        [
            ("tensorrt", "unknown Execution Accelerator 'tensorrt' is requested"),
            (
                "openvino",
                "the execution accelerator 'openvino' needs the package onnxruntime-openvino in place of onnxruntime",
            ),
        ],
    )
    def test_accelerators(self, repository, accelerator, message):
        repository.write_identity(TensorProto.FLOAT, [2])
        accelerators = ModelOptimizationPolicyExecutionAccelerators(
            cpu_execution_accelerator=(ModelOptimizationPolicyExecutionAcceleratorsAccelerator(name=accelerator),)
        )
        config = ModelConfig(name="m", optimization=ModelOptimizationPolicy(execution_accelerators=accelerators))

        assert repository.refusal(repository.complete(config)).message == message

    def test_a_library_of_operators_that_is_not_there(self, repository):
        repository.write_identity(TensorProto.FLOAT, [2])
        config = ModelConfig(name="m", model_operations=ModelOperations(op_library_filename=("none.so",)))

        with pytest.raises(InternalError, match=r"onnx runtime error 1: Failed to load library .*/none\.so"):
            repository.complete(config)

    def test_shrinking_the_arena_after_each_run(self, repository):
        repository.write_identity(TensorProto.FLOAT, [2])
        instance = repository.load(**{"memory.enable_memory_arena_shrinkage": "cpu:0"})

        execution = instance.execute([request(x=np.array([1, 2], np.float32))])

        assert output(execution).as_numpy().tolist() == [1, 2]


class TestExecution:
    @pytest.mark.parametrize(
        ("element_type", "array"),
        [
            (TensorProto.BOOL, np.array([[True, False]])),
            (TensorProto.UINT8, np.array([[1, 255]], np.uint8)),
            (TensorProto.INT64, np.array([[-1, 2**40]], np.int64)),
            (TensorProto.FLOAT16, np.array([[1.5, -2]], np.float16)),
            (TensorProto.FLOAT, np.array([[1.5, np.inf]], np.float32)),
            (TensorProto.DOUBLE, np.array([[1.5, -2]], np.float64)),
            (TensorProto.STRING, np.array([["héllo".encode(), b""]], object)),
        ],
    )
    def test_datatypes_pass_through(self, repository, element_type, array):
        repository.write_identity(element_type, ["batch", 2])
        sent = Tensor.from_numpy("x", array)

        execution = repository.load().execute([request(x=sent)])

        received = output(execution)
        assert (received.datatype, tuple(received.shape)) == (sent.datatype, (1, 2))
        assert bytes(received.data) == bytes(sent.data)

    def test_bfloat16_passes_through_beside_other_types(self, repository):
        repository.write(
            [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Identity", ["u"], ["v"])],
            [("x", TensorProto.BFLOAT16, ["batch", 2]), ("u", TensorProto.UINT16, ["batch", 1])],
            [("y", TensorProto.BFLOAT16, ["batch", 2]), ("v", TensorProto.UINT16, ["batch", 1])],
        )
        instance = repository.load()
        one_two = Tensor("x", "BF16", (1, 2), b"\x80\x3f\x00\x40")
        two_one = Tensor("x", "BF16", (1, 2), b"\x00\x40\x80\x3f")
        numbers = np.array([[7]], np.uint16)

        execution = instance.execute([request(x=one_two, u=numbers), request(x=two_one, u=numbers + 1)])

        assert output(execution, 0).datatype == "BF16"
        assert bytes(output(execution, 0).data) == bytes(one_two.data)
        assert bytes(output(execution, 1).data) == bytes(two_one.data)
        assert output(execution, 0, "v").as_numpy().tolist() == [[7]]
        assert output(execution, 1, "v").as_numpy().tolist() == [[8]]

    def test_requests_run_as_one_batch_and_get_their_own_rows(self, repository):
        # The sum over the batch shows that there was one execution.
        repository.write(
            [
                helper.make_node("ReduceSum", ["x", "axes"], ["total"], keepdims=1),
                helper.make_node("Add", ["x", "total"], ["y"]),
            ],
            [("x", TensorProto.FLOAT, ["batch", 1])],
            [("y", TensorProto.FLOAT, ["batch", 1])],
            [helper.make_tensor("axes", TensorProto.INT64, [1], [0])],
        )
        instance = repository.load()

        execution = instance.execute(
            [request(x=np.array([[1], [2]], np.float32)), request(x=np.array([[4]], np.float32))]
        )

        assert output(execution, 0).as_numpy().tolist() == [[8], [9]]
        assert output(execution, 1).as_numpy().tolist() == [[11]]
        assert execution.start_ns <= execution.input_end_ns <= execution.output_start_ns <= execution.end_ns

    def test_strings_are_batched_too(self, repository):
        repository.write_identity(TensorProto.STRING, ["batch", 1])

        execution = repository.load().execute(
            [request(x=np.array([[b"a"]], object)), request(x=np.array([[b"b"], [b"c"]], object))]
        )

        assert output(execution, 0).as_numpy().tolist() == [[b"a"]]
        assert output(execution, 1).as_numpy().tolist() == [[b"b"], [b"c"]]

    def test_a_string_that_is_not_utf8_fails_its_request_alone(self, repository):
        repository.write_identity(TensorProto.STRING, ["batch", 1])

        execution = repository.load().execute(
            [request(x=np.array([[b"\xff"]], object)), request(x=np.array([[b"ok"]], object))]
        )

        assert isinstance(error(execution, 0), InvalidArgumentError)
        assert error(execution, 0).message == (
            "[request id: r] input 'x': 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"
        )
        assert output(execution, 1).as_numpy().tolist() == [[b"ok"]]

    def test_data_that_is_cut_fails_its_request_alone(self, repository):
        repository.write_identity(TensorProto.FLOAT, ["batch", 2])
        cut = Tensor("x", "FP32", (0, 2), b"\0" * 8)

        execution = repository.load().execute([request(x=cut), request(x=np.ones((1, 2), np.float32))])

        assert isinstance(error(execution, 0), InvalidArgumentError)
        assert output(execution, 1).as_numpy().tolist() == [[1, 1]]

    def test_an_error_of_the_runtime_fails_every_request_of_the_batch(self, repository):
        repository.write(
            [helper.make_node("Gather", ["table", "x"], ["y"])],
            [("x", TensorProto.INT64, ["batch", 1])],
            [("y", TensorProto.FLOAT, ["batch", 1])],
            [helper.make_tensor("table", TensorProto.FLOAT, [2], [0, 0])],
        )

        execution = repository.load().execute([request(x=np.array([[1]])), request(x=np.array([[2]]))])

        for position in (0, 1):
            assert isinstance(error(execution, position), InternalError)
            assert error(execution, position).message.startswith("onnx runtime error 2: ")
            assert "indices element out of data bounds, idx=2" in error(execution, position).message

    def test_an_error_that_is_not_the_runtimes_own_has_code_one(self, repository):
        repository.write_identity(TensorProto.FLOAT, [2])

        execution = repository.load().execute([request()])

        assert error(execution).message.startswith("onnx runtime error 1: ")

    def test_a_batch_beyond_the_limit_is_refused(self, repository):
        repository.write_identity(TensorProto.FLOAT, ["batch", 2])

        execution = repository.load().execute([request(x=np.ones((5, 2), np.float32))])

        assert isinstance(error(execution), InvalidArgumentError)
        assert error(execution).message == "batch size 5 for 'm_0', max allowed is 4"

    def test_an_output_with_other_rows_than_the_batch_is_an_error(self, repository):
        repository.write(
            [helper.make_node("Concat", ["x", "x"], ["y"], axis=0)],
            [("x", TensorProto.FLOAT, ["batch", 2])],
            [("y", TensorProto.FLOAT, ["double", 2])],
        )

        execution = repository.load().execute([request(x=np.ones((1, 2), np.float32))])

        assert isinstance(error(execution), InternalError)
        assert error(execution).message == "output 'y' of model 'm' has shape [2,2], but the batch has 1 rows"

    def test_a_model_without_batching_takes_its_whole_shape(self, repository):
        repository.write_identity(TensorProto.FLOAT, [2, 2])

        execution = repository.load().execute([request(x=np.eye(2, dtype=np.float32))])

        assert output(execution).as_numpy().tolist() == [[1, 0], [0, 1]]

    def test_scalars_are_one_element_outside(self, repository):
        repository.write_identity(TensorProto.FLOAT, [])

        execution = repository.load().execute([request(x=np.array([5], np.float32))])

        assert tuple(output(execution).shape) == (1,)
        assert output(execution).as_numpy().tolist() == [5]

    def test_an_empty_tensor_is_a_tensor(self, repository):
        repository.write_identity(TensorProto.FLOAT, ["batch", "length"])

        execution = repository.load().execute([request(x=np.zeros((1, 0), np.float32))])

        assert tuple(output(execution).shape) == (1, 0)
        assert len(output(execution).data) == 0

    def test_data_at_an_odd_address_is_taken(self, repository):
        repository.write_identity(TensorProto.FLOAT, ["batch", 2])
        data = memoryview(b"\0" + np.array([1, 2], np.float32).tobytes())[1:]

        execution = repository.load().execute([request(x=Tensor("x", "FP32", (1, 2), data))])

        assert output(execution).as_numpy().tolist() == [[1, 2]]

    def test_an_input_with_a_value_of_its_own_may_be_left_out(self, repository):
        repository.write(
            [helper.make_node("Add", ["x", "w"], ["y"])],
            [("x", TensorProto.FLOAT, [1]), ("w", TensorProto.FLOAT, [1])],
            [("y", TensorProto.FLOAT, [1])],
            [helper.make_tensor("w", TensorProto.FLOAT, [1], [10])],
        )
        config = ModelConfig(
            name="m",
            input=(
                ModelInput(name="x", data_type="TYPE_FP32", dims=(1,)),
                ModelInput(name="w", data_type="TYPE_FP32", dims=(1,), optional=True),
            ),
            output=(ModelOutput(name="y", data_type="TYPE_FP32", dims=(1,)),),
        )
        instance = repository.load(config)
        one = np.array([1], np.float32)

        assert output(instance.execute([request(x=one)])).as_numpy().tolist() == [11]
        assert output(instance.execute([request(x=one, w=one)])).as_numpy().tolist() == [2]

    def test_only_configured_outputs_are_computed(self, repository):
        repository.write(
            [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Neg", ["x"], ["z"])],
            [("x", TensorProto.FLOAT, ["batch", 1])],
            [("y", TensorProto.FLOAT, ["batch", 1]), ("z", TensorProto.FLOAT, ["batch", 1])],
        )
        config = repository.complete(
            ModelConfig(name="m", output=(ModelOutput(name="z", data_type="TYPE_FP32", dims=(1,)),))
        )

        execution = repository.load(config).execute([request(x=np.array([[1]], np.float32))])

        outcome = execution.outcomes[0]
        assert isinstance(outcome, Response)
        assert [tensor.name for tensor in outcome.outputs] == ["z"]

    def test_closing_lets_go_of_the_session(self, repository):
        repository.write_identity(TensorProto.FLOAT, [2])
        instance = repository.load()

        instance.close()

        assert instance._session is None


class TestSharing:
    """Instances on the CPU share a session, unless something says that they should not."""

    def instances(self, repository, *descriptions, **parameters):
        config = repository.complete()
        config.parameters.update({key: ModelParameter(value) for key, value in parameters.items()})
        backend = OnnxBackend()
        return [
            backend.create_instance(repository.context(config), description, RecordingHost())
            for description in descriptions
        ]

    def test_instances_run_on_one_session(self, repository):
        repository.write_identity(TensorProto.FLOAT, ["batch", 2])
        first, second = self.instances(
            repository, InstanceDescription("m_0", "KIND_CPU", 0), InstanceDescription("m_1", "KIND_CPU", 0)
        )

        assert first._session is second._session

    def test_it_takes_runs_of_all_of_them_at_once(self, repository):
        repository.write_identity(TensorProto.FLOAT, ["batch", 2])
        descriptions = [InstanceDescription(f"m_{index}", "KIND_CPU", 0) for index in range(4)]
        instances = self.instances(repository, *descriptions)
        answers = [[] for _ in instances]

        def run(index):
            for number in range(200):
                execution = instances[index].execute([request(x=np.full((1, 2), index * 1000 + number, np.float32))])
                answers[index].append(output(execution).as_numpy()[0, 0])

        threads = [threading.Thread(target=run, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert answers == [[index * 1000 + number for number in range(200)] for index in range(4)]

    def test_the_last_that_closes_lets_go_of_it(self, repository):
        repository.write_identity(TensorProto.FLOAT, ["batch", 2])
        backend = OnnxBackend()
        context = repository.context(repository.complete())
        first = backend.create_instance(context, InstanceDescription("m_0", "KIND_CPU", 0), RecordingHost())
        second = backend.create_instance(context, InstanceDescription("m_1", "KIND_CPU", 0), RecordingHost())
        session = weakref.ref(first._session)

        first.close()
        assert session() is not None
        second.close()
        assert session() is None

    @pytest.mark.parametrize(
        ("other", "parameters"),
        [
            (InstanceDescription("m_1", "KIND_CPU", 0, cpu_cores=(0,)), {}),
            (InstanceDescription("m_1", "KIND_CPU", 0, has_own_process=True), {}),
            (InstanceDescription("m_1", "KIND_CPU", 0), {"intra_op_thread_count": "1"}),
        ],
    )
    def test_not_across_cores_or_processes_nor_with_a_chosen_number_of_threads(self, repository, other, parameters):
        repository.write_identity(TensorProto.FLOAT, ["batch", 2])
        first, second = self.instances(repository, InstanceDescription("m_0", "KIND_CPU", 0), other, **parameters)

        assert first._session is not second._session


def test_sizes_of_a_pool_that_is_not_asked_for_are_said_to_be_without_effect(repository, caplog):
    context = repository.context(ModelConfig(name="m"), intra_op_thread_count="2")

    OnnxBackend().validate(context)

    (record,) = caplog.records
    assert record.getMessage() == (
        "--backend-config=onnxruntime,intra_op_thread_count has no effect without "
        "--backend-config=onnxruntime,enable-global-threadpool=1: model 'm' has threads of its own"
    )
