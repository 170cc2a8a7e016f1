"""Answers n with the number of times that it was executed: n, and one if n is less."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.passes = {}

    def execute(self, requests):
        responses = []
        for request in requests:
            wanted = int(pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()[0, 0])
            key = request.correlation_id()
            self.passes[key] = self.passes.get(key, 0) + 1
            if self.passes[key] < wanted:
                request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
                responses.append(None)
            else:
                output = pb_utils.Tensor("OUT", np.array([[self.passes.pop(key)]], np.int32))
                responses.append(pb_utils.InferenceResponse([output]))
        return responses
