"""Answers with what a model sees of its request, one line of text per question."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        # Where the repository lies differs from run to run; everything else does not.
        self.args = {key: value for key, value in args.items() if key != "model_repository"}
        self.args["model_config"] = json.loads(args["model_config"])

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        lines = [
            f"id {request.request_id()!r}",
            f"correlation id {request.correlation_id()!r}",
            f"flags {request.flags()}",
            f"timeout {request.timeout()}",
            f"parameters {json.dumps(json.loads(request.parameters() or '{}'), sort_keys=True)}",
            f"requested {sorted(request.requested_output_names())}",
        ]
        for tensor in sorted(request.inputs(), key=lambda one: one.name()):
            array = tensor.as_numpy()
            lines.append(f"input {tensor.name()} {array.dtype} {list(tensor.shape())} {array.tolist()}")
        view = pb_utils.Tensor("VIEW", np.array([line.encode() for line in lines], dtype=np.object_))
        arguments = json.dumps(self.args, sort_keys=True).encode()
        return pb_utils.InferenceResponse([view, pb_utils.Tensor("ARGS", np.array([arguments], dtype=np.object_))])
