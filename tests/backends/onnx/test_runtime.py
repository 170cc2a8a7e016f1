"""What is the runtime's for the whole process, so it is tried in a process of its own."""

import os
import pathlib
import subprocess
import sys

import pytest

from merrow.backends.base import ModelContext
from merrow.backends.onnx import runtime
from merrow.core.errors import UnsupportedError
from merrow.core.model_config import ModelConfig

SOURCE = pathlib.Path(runtime.__file__).parents[3]

ONE_POOL = """
import sys
import numpy as np
import onnx
from onnx import TensorProto, helper
from merrow.backends.base import ModelContext
from merrow.backends.onnx import runtime
from merrow.core.model_config import ModelConfig
import os

def thread_count():
    return len(os.listdir("/proc/self/task"))

values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in ("x", "y")]
graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "graph", values[:1], values[1:])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
path = sys.argv[1]
onnx.save(model, path)
settings = {"enable-global-threadpool": "1", "intra_op_thread_count": "3", "inter_op_thread_count": "1"}
context = ModelContext("m", 1, ModelConfig(), "{}", "", "", settings)
before = thread_count()
sessions = [
    runtime.open_session(path, options, runtime.CPU_PROVIDERS)
    for options in [runtime.signature_options(context)] + [runtime.session_options(context, 8) for _ in range(4)]
]
after = thread_count()
answers = {float(session.run(["y"], {"x": np.ones((1, 2), np.float32)})[0][0, 0]) for session in sessions}
print(after - before, answers)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="counts threads in /proc")
def test_sessions_can_have_one_pool_of_threads(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-c", ONE_POOL, str(tmp_path / "model.onnx")],
        env=dict(os.environ, PYTHONPATH=str(SOURCE)),
        capture_output=True,
        text=True,
        check=True,
    )

    # A run's caller is the third.
    assert (ended.stdout, ended.stderr) == ("2 {-1.0}\n", "")


def test_a_package_without_such_a_pool_is_named(monkeypatch):
    monkeypatch.delattr(runtime.onnxruntime, "set_global_thread_pool_sizes")
    monkeypatch.setattr(runtime.onnxruntime, "__version__", "1.0")
    context = ModelContext("m", 1, ModelConfig(), "{}", "", "", {"enable-global-threadpool": "1"})

    with pytest.raises(UnsupportedError) as refusal:
        runtime.signature_options(context)

    assert refusal.value.message == (
        "--backend-config=onnxruntime,enable-global-threadpool=1 needs a newer onnxruntime than 1.0"
    )
