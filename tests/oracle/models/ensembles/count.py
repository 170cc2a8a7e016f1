"""Decoupled: A[0] responses, 0, 10, 20, ..."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            count = int(pb_utils.get_input_tensor_by_name(request, "A").as_numpy().reshape(-1)[0])
            sender = request.get_response_sender()
            for number in range(count):
                tensor = pb_utils.Tensor("SUM", np.array([number * 10], np.int32))
                sender.send(pb_utils.InferenceResponse([tensor]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
