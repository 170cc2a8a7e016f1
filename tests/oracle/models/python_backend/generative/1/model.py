"""Answers n with n, n - 1, ... 1, one response each time that it is executed: requests are rescheduled in between."""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.remaining = {}

    def execute(self, requests):
        for request in requests:
            if request.flags() & pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START:
                count = int(pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()[0, 0])
            else:
                count = self.remaining.get(request.correlation_id(), 1)
            self.remaining[request.correlation_id()] = count - 1
            sender = request.get_response_sender()
            output = pb_utils.Tensor("OUT", np.array([[count]], np.int32))
            if count > 1:
                request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
                sender.send(pb_utils.InferenceResponse([output]))
            else:
                sender.send(pb_utils.InferenceResponse([output]), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
