"""Gives every input back: input `IN...` as output `OUT...`, in the order of the configured outputs."""

import json

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        outputs = json.loads(args["model_config"])["output"]
        self.pairs = [("IN" + output["name"][3:], output["name"], output["data_type"]) for output in outputs]

    def execute(self, requests):
        responses = []
        for request in requests:
            responses.append(pb_utils.InferenceResponse(self.echo(request)))
        return responses

    def echo(self, request):
        tensors = []
        for input_name, output_name, datatype in self.pairs:
            tensor = pb_utils.get_input_tensor_by_name(request, input_name)
            if tensor is None:
                continue
            if datatype == "TYPE_BF16":  # numpy has no such type; the tensor goes through as it is.
                tensors.append(pb_utils.Tensor.from_dlpack(output_name, tensor.to_dlpack()))
            else:
                tensors.append(pb_utils.Tensor(output_name, tensor.as_numpy()))
        return tensors
