"""First step: an image as the text detector wants it.

The image gets sides that are multiples of 32 and at least `MIN_SIDE` on its shorter one; channels come first, blue
before red, and values lie between -1 and 1.
"""

import numpy as np
import triton_python_backend_utils as pb_utils
from PIL import Image

MIN_SIDE = 736
MAX_SIDE = 2048


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.add_input({"name": "IMAGE", "data_type": "TYPE_UINT8", "dims": [-1, -1, 3]})
        config.add_output({"name": "PREPARED", "data_type": "TYPE_FP32", "dims": [1, 3, -1, -1]})
        config.set_max_batch_size(0)
        return config

    def execute(self, requests):
        responses = []
        for request in requests:
            image = pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy()
            prepared = pb_utils.Tensor("PREPARED", prepare(image))
            responses.append(pb_utils.InferenceResponse([prepared]))
        return responses


def prepare(image):
    """From uint8 [height, width, 3] to float32 [1, 3, height', width']."""
    height, width, _ = image.shape
    scale = min(max(1.0, MIN_SIDE / min(height, width)), MAX_SIDE / max(height, width))
    size = [max(32, round(side * scale / 32) * 32) for side in (width, height)]
    resized = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR), np.float32)
    return np.ascontiguousarray((resized[:, :, ::-1] / 127.5 - 1).transpose(2, 0, 1)[None])
