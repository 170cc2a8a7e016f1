"""Answers what a request of a sequence looks like to a model, and the sum of what its row or its sequence was given.

OUT is [value, sum by row, sum by correlation id, START, END, READY, CORRID, flags(), requests in the batch]; what the
model's configuration does not ask for is -1.
"""

import numpy as np
import triton_python_backend_utils as pb_utils

NAMES = ("START", "END", "READY", "CORRID")


class TritonPythonModel:
    def initialize(self, args):
        self.by_row = {}
        self.by_sequence = {}

    def execute(self, requests):
        return [self.answer(row, request, len(requests)) for row, request in enumerate(requests)]

    def answer(self, row, request, count):
        controls = {}
        for name in NAMES:
            tensor = pb_utils.get_input_tensor_by_name(request, name)
            controls[name] = -1 if tensor is None else int(np.asarray(tensor.as_numpy()).reshape(-1)[0])
        value = int(pb_utils.get_input_tensor_by_name(request, "IN").as_numpy().reshape(-1)[0])
        if not controls["READY"]:
            return pb_utils.InferenceResponse([])
        key = request.correlation_id()
        if controls["START"] == 1 or request.flags() & 1:
            self.by_row[row] = self.by_sequence[key] = 0
        self.by_row[row] = self.by_row.get(row, 0) + value
        if controls["READY"] == -1:
            # Rows that no request has look like any other then, and hold anything.
            self.by_row[row] = -1
        self.by_sequence[key] = self.by_sequence.get(key, 0) + value
        seen = [value, self.by_row[row], self.by_sequence[key], *controls.values(), request.flags(), count]
        state = pb_utils.get_input_tensor_by_name(request, "STATE_IN")
        if state is not None:
            seen[1] = int(state.as_numpy().reshape(-1)[0])
        shape = (
            (1, len(seen)) if pb_utils.get_input_tensor_by_name(request, "IN").as_numpy().ndim == 2 else (len(seen),)
        )
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array(seen, np.int64).reshape(shape))])
