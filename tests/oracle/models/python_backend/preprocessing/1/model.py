"""From the bytes of a PPM picture to an array that a network takes: cut to 4 x 4, scaled, channels first."""

import json

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        config = pb_utils.get_output_config_by_name(json.loads(args["model_config"]), "IMAGE")
        self.dtype = pb_utils.triton_string_to_numpy(config["data_type"])

    def execute(self, requests):
        responses = []
        for request in requests:
            batch = pb_utils.get_input_tensor_by_name(request, "RAW").as_numpy()
            try:
                images = np.stack([self.read(row.tobytes()) for row in batch])
            except ValueError as error:
                responses.append(pb_utils.InferenceResponse(error=pb_utils.TritonError(f"no picture: {error}")))
                continue
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("IMAGE", images.astype(self.dtype))]))
        return responses

    def read(self, data):
        kind, width, height, depth, pixels = data.split(None, 4)
        if kind != b"P6":
            raise ValueError("not a PPM")
        shape = (int(height), int(width), 3)
        image = np.frombuffer(pixels, np.uint8)[: shape[0] * shape[1] * 3].reshape(shape)
        return image[:4, :4].transpose(2, 0, 1) / float(depth)
