import sys

import numpy as np
import pytest

from merrow.backends.python import pb_utils
from merrow.backends.python.pb_errors import C_MODULE, TritonModelException
from tests.backends.python.bound_models import make_runtime

# Everything that dir(triton_python_backend_utils) shows in Triton 2.51.
TRITON_NAMES = """
InferenceRequest InferenceResponse Logger MetricFamily ModelConfig PreferredMemory TRITONSERVER_MEMORY_CPU
TRITONSERVER_MEMORY_GPU TRITONSERVER_REQUEST_FLAG_SEQUENCE_END TRITONSERVER_REQUEST_FLAG_SEQUENCE_START
TRITONSERVER_REQUEST_RELEASE_ALL TRITONSERVER_REQUEST_RELEASE_RESCHEDULE TRITONSERVER_RESPONSE_COMPLETE_FINAL
TRITON_STRING_TO_NUMPY Tensor TritonError TritonModelException deserialize_bytes_tensor get_input_config_by_name
get_input_tensor_by_name get_model_dir get_output_config_by_name get_output_tensor_by_name is_model_ready json
load_model np numpy_to_triton_type serialize_byte_tensor struct triton_string_to_numpy triton_to_numpy_type
unload_model using_decoupled_model_transaction_policy
"""


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.delitem(sys.modules, pb_utils.MODULE_NAME, raising=False)
    monkeypatch.delitem(sys.modules, C_MODULE, raising=False)
    pb_utils.install("/models/m/1")
    yield sys.modules[pb_utils.MODULE_NAME]
    del sys.modules[pb_utils.MODULE_NAME], sys.modules[C_MODULE]


def test_models_find_every_name_of_tritons_module(installed):
    assert sorted(TRITON_NAMES.split()) == sorted(pb_utils.__all__)
    assert [name for name in TRITON_NAMES.split() if not hasattr(installed, name)] == []
    assert installed.np is np
    assert installed.TRITONSERVER_RESPONSE_COMPLETE_FINAL == 1
    assert repr(installed.TRITONSERVER_MEMORY_CPU) == "<MemoryType.TRITONSERVER_MEMORY_CPU: 1>"


def test_a_model_knows_its_directory(installed):
    assert installed.get_model_dir() == "/models/m/1"
    with pytest.raises(TritonModelException):
        pb_utils.get_model_dir()


def test_the_native_module_is_there_too(installed):
    native = sys.modules[C_MODULE]
    assert native.Tensor is installed.Tensor
    assert native.InferenceResponseSender


def test_tensors_are_found_by_name(installed):
    tensor = installed.Tensor("A", np.zeros(1))
    request = installed.InferenceRequest(inputs=[tensor], requested_output_names=[], model_name="m")
    response = installed.InferenceResponse([tensor])

    assert installed.get_input_tensor_by_name(request, "A") is tensor
    assert installed.get_input_tensor_by_name(request, "B") is None
    assert installed.get_output_tensor_by_name(response, "A") is tensor
    assert installed.get_output_tensor_by_name(response, "B") is None


@pytest.mark.parametrize(
    "use",
    [
        lambda module: module.MetricFamily(name="n", description="d", kind=module.MetricFamily.COUNTER),
        lambda module: module.load_model("m"),
        lambda module: module.unload_model("m"),
        lambda module: module.is_model_ready("m"),
    ],
)
def test_what_only_an_instance_can_do_says_so(installed, use):
    with pytest.raises(TritonModelException, match="only available in a model's instance"):
        use(installed)


def test_what_a_model_imports_is_bound_to_it(installed):
    first, second = make_runtime(on_question=lambda _: True), make_runtime(on_question=lambda _: False)
    pb_utils.install("/models/m/1", first)
    mine = sys.modules[pb_utils.MODULE_NAME]
    pb_utils.install("/models/m/2", second)
    others = sys.modules[pb_utils.MODULE_NAME]

    assert mine.is_model_ready("x") is True
    assert others.is_model_ready("x") is False
    assert mine.get_model_dir() == "/models/m/1"
    assert mine.InferenceRequest is not others.InferenceRequest
    assert mine.InferenceRequest.__name__ == "InferenceRequest"
    assert sys.modules[C_MODULE].MetricFamily is others.MetricFamily
    pb_utils.bind_installed("/models/m/3", first)
    assert others.is_model_ready("x") is True
    assert others.get_model_dir() == "/models/m/3"
