"""Says what kind of instance it is."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.args = args

    def execute(self, requests):
        names = (
            "model_instance_kind",
            "model_instance_device_id",
            "model_instance_name",
            "model_version",
            "model_name",
        )
        output = np.array([self.args[name].encode() for name in names], dtype=np.object_)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", output)]) for _ in requests]
