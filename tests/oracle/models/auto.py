"""Has no config.pbtxt: completes its configuration itself."""

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.set_max_batch_size(4)
        config.add_input({"name": "IN", "data_type": "TYPE_INT32", "dims": [2, -1]})
        config.add_input({"name": "IN_EXTRA", "data_type": "TYPE_STRING", "dims": [1], "optional": True})
        config.add_output({"name": "OUT", "data_type": "TYPE_INT32", "dims": [2, -1]})
        config.set_dynamic_batching()
        return config

    def execute(self, requests):
        responses = []
        for request in requests:
            array = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", array)]))
        return responses
