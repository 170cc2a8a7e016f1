"""Fails, or answers oddly, in the way that the input CODE names.

Each branch is a way in which a model's author can break the contract of `execute`; 0 to 7 are the codes of TritonError.
"""

import numpy as np
import triton_python_backend_utils as pb_utils

CODE_NAMES = (
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
        code = int(pb_utils.get_input_tensor_by_name(requests[0], "CODE").as_numpy().reshape(-1)[0])
        out = pb_utils.Tensor("OUT", np.array([[code]], dtype=np.int32))
        if code < len(CODE_NAMES):
            error = pb_utils.TritonError(f"code {code} as asked", getattr(pb_utils.TritonError, CODE_NAMES[code]))
            return [pb_utils.InferenceResponse(error=error) for _ in requests]
        return getattr(self, f"case_{code}")(requests, out)

    def case_8(self, requests, out):  # An ordinary answer.
        return [pb_utils.InferenceResponse([out]) for _ in requests]

    def case_9(self, requests, out):
        raise ValueError("raised as asked")

    def case_10(self, requests, out):
        raise pb_utils.TritonModelException("raised as asked")

    def case_11(self, requests, out):
        return []

    def case_12(self, requests, out):
        return 5

    def case_13(self, requests, out):
        return [5 for _ in requests]

    def case_14(self, requests, out):
        return tuple(pb_utils.InferenceResponse([out]) for _ in requests)

    def case_15(self, requests, out):  # No outputs at all.
        return [pb_utils.InferenceResponse([]) for _ in requests]

    def case_16(self, requests, out):  # An output that the configuration does not name.
        other = pb_utils.Tensor("OTHER", np.array([1.5], dtype=np.float32))
        return [pb_utils.InferenceResponse([other, out]) for _ in requests]

    def case_17(self, requests, out):  # Another datatype and shape than the configuration's.
        tensor = pb_utils.Tensor("OUT", np.arange(6, dtype=np.float64).reshape(2, 3))
        return [pb_utils.InferenceResponse([tensor]) for _ in requests]

    def case_18(self, requests, out):  # The same output twice.
        return [pb_utils.InferenceResponse([out, out]) for _ in requests]

    def case_19(self, requests, out):
        error = pb_utils.TritonError(
            'a "quoted" text, \\ ü 漢字\nand a second line\ttabbed', pb_utils.TritonError.INVALID_ARG
        )
        return [pb_utils.InferenceResponse(error=error) for _ in requests]

    def case_20(self, requests, out):
        return [pb_utils.InferenceResponse(error=pb_utils.TritonError("")) for _ in requests]

    def case_21(self, requests, out):  # The default code.
        return [pb_utils.InferenceResponse(error=pb_utils.TritonError("no code")) for _ in requests]

    def case_22(self, requests, out):  # Outputs beside an error.
        error = pb_utils.TritonError("outputs and an error", pb_utils.TritonError.NOT_FOUND)
        return [pb_utils.InferenceResponse([out], error) for _ in requests]

    def case_23(self, requests, out):
        return ["no response"]

    def case_24(self, requests, out):
        tensor = pb_utils.Tensor("OUT", np.array(["a"]))  # Unicode arrays are not supported.
        return [pb_utils.InferenceResponse([tensor]) for _ in requests]

    def case_25(self, requests, out):
        tensor = pb_utils.Tensor("", np.array([1]))
        return [pb_utils.InferenceResponse([tensor]) for _ in requests]

    def case_26(self, requests, out):  # Zero elements.
        tensor = pb_utils.Tensor("OUT", np.zeros((1, 0), dtype=np.int32))
        return [pb_utils.InferenceResponse([tensor]) for _ in requests]

    def case_27(self, requests, out):  # A scalar.
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array(7, dtype=np.int32))]) for _ in requests]

    def case_28(self, requests, out):  # A view that is not contiguous.
        tensor = pb_utils.Tensor("OUT", np.arange(6, dtype=np.int32).reshape(2, 3).T)
        return [pb_utils.InferenceResponse([tensor]) for _ in requests]

    def case_29(self, requests, out):  # As many elements as asked, in other datatypes.
        tensor = pb_utils.Tensor("OUT", np.array([b"a", "b", 3], dtype=np.object_))
        return [pb_utils.InferenceResponse([tensor]) for _ in requests]
