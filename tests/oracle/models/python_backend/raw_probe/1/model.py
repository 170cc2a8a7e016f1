"""Runs the Python that comes as input; `execute` returns what it calls `result`, or raises."""

import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.args = args
        self.kept = {}

    def execute(self, requests):
        source = pb_utils.get_input_tensor_by_name(requests[0], "SOURCE").as_numpy()[0].decode()
        scope = {"pb_utils": pb_utils, "np": np, "time": time, "request": requests[0], "self": self, "text": text}
        exec(source, scope)
        return scope["result"]


def text(value):
    array = np.array([value.encode()], dtype=np.object_)
    return pb_utils.InferenceResponse([pb_utils.Tensor("RESULT", array)])
