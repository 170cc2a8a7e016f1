"""Counts IN down to 0, one execution for each step: the request is given back until then.

A decoupled model answers each step; another answers once, at the end, with how many steps there were.
"""

import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.is_decoupled = config["model_transaction_policy"]["decoupled"]
        self.left = {}

    def execute(self, requests):
        outcomes = [self.step(request) for request in requests]
        return None if self.is_decoupled else outcomes

    def step(self, request):
        key = request.correlation_id()
        if key not in self.left:
            self.left[key] = int(pb_utils.get_input_tensor_by_name(request, "IN").as_numpy().reshape(-1)[0])
        self.left[key] -= 1
        left = self.left[key]
        response = pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array([left, request.flags()], np.int64))])
        if left > 0:
            request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
        else:
            del self.left[key]
        if self.is_decoupled:
            sender = request.get_response_sender()
            if left > 0:
                sender.send(response)
            else:
                sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
            return None
        return None if left > 0 else response
