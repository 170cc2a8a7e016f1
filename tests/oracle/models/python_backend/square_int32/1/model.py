"""Answers the number n with n responses, each of them n: from a thread, after `execute` returned."""

import json
import threading

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        model_config = json.loads(args["model_config"])
        if not pb_utils.using_decoupled_model_transaction_policy(model_config):
            raise pb_utils.TritonModelException("this model must be decoupled")
        self.inflight_thread_count = 0
        self.lock = threading.Lock()

    def execute(self, requests):
        for request in requests:
            count = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
            with self.lock:
                self.inflight_thread_count += 1
            thread = threading.Thread(target=self.answer, args=(request.get_response_sender(), int(count[0])))
            thread.daemon = True
            thread.start()

    def answer(self, sender, count):
        for _ in range(count):
            output = pb_utils.Tensor("OUT", np.array([count], np.int32))
            sender.send(pb_utils.InferenceResponse(output_tensors=[output]))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        with self.lock:
            self.inflight_thread_count -= 1

    def finalize(self):
        while self.inflight_thread_count:
            pass
