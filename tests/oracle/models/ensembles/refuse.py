"""Answers with the error of the code A[0]; 8 raises."""

import triton_python_backend_utils as pb_utils

CODES = (
    "UNKNOWN",
    "INTERNAL",
    "NOT_FOUND",
    "INVALID_ARG",
    "UNAVAILABLE",
    "UNSUPPORTED",
    "ALREADY_EXISTS",
    "CANCELLED",
)


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            code = int(pb_utils.get_input_tensor_by_name(request, "A").as_numpy().reshape(-1)[0])
            if code >= len(CODES):
                raise pb_utils.TritonModelException("raised as asked")
            error = pb_utils.TritonError(f"code {code}", getattr(pb_utils.TritonError, CODES[code]))
            responses.append(pb_utils.InferenceResponse(error=error))
        return responses
