"""A decoupled model that does what PLAN says, a letter at a time.

r: a response; e: an error; p: a response with both outputs; f: a response that ends the request; c: the end, alone.
What a plan does not end is ended after it. Requests are answered one after another.
"""

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            plan = pb_utils.get_input_tensor_by_name(request, "PLAN").as_numpy().reshape(-1)[0].decode()
            sender = request.get_response_sender()
            is_over = False
            for index, step in enumerate(plan):
                is_over = step in "fc"
                flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if is_over else 0
                if step == "c":
                    sender.send(flags=flags)
                elif step == "e":
                    error = pb_utils.TritonError(f"error at {index} of '{plan}'")
                    sender.send(pb_utils.InferenceResponse(error=error))
                else:
                    outputs = [pb_utils.Tensor("INDEX", np.array([index], np.int32))]
                    if step != "r":
                        outputs.append(pb_utils.Tensor("STEP", np.array([step.encode()], np.object_)))
                    sender.send(pb_utils.InferenceResponse(outputs), flags=flags)
            if not is_over:
                sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
