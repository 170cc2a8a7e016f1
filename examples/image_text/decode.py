"""Last step: from the recogniser's probabilities to text.

The network says a character, or that there is none, for each narrow stripe of a line; repetitions count once. Which
characters there are is in `characters.txt`, a line each, in the order of the network's classes after the first.
"""

from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.add_input({"name": "PROBABILITIES", "data_type": "TYPE_FP32", "dims": [-1, -1, -1]})
        config.add_output({"name": "TEXTS", "data_type": "TYPE_STRING", "dims": [-1]})
        config.add_output({"name": "SCORES", "data_type": "TYPE_FP32", "dims": [-1]})
        config.set_max_batch_size(0)
        return config

    def initialize(self, args):
        folder = Path(args["model_repository"]) / args["model_version"]
        # Class 0 stands for no character, the one after the last for a space.
        self.characters = ["", *(folder / "characters.txt").read_text(encoding="utf-8").split("\n"), " "]

    def execute(self, requests):
        responses = []
        for request in requests:
            probabilities = pb_utils.get_input_tensor_by_name(request, "PROBABILITIES").as_numpy()
            texts, scores = decode(probabilities, self.characters)
            outputs = [pb_utils.Tensor("TEXTS", texts), pb_utils.Tensor("SCORES", scores)]
            responses.append(pb_utils.InferenceResponse(outputs))
        return responses


def decode(probabilities, characters):
    """Texts (UTF-8) and how sure they are, of float32 [lines, stripes, classes]."""
    texts = np.empty(len(probabilities), np.object_)
    scores = np.zeros(len(probabilities), np.float32)
    for index, line in enumerate(probabilities):
        classes = line.argmax(axis=1)
        is_new = np.concatenate([[True], classes[1:] != classes[:-1]]) & (classes != 0)
        texts[index] = "".join([characters[number] for number in classes[is_new]]).encode()
        scores[index] = line.max(axis=1)[is_new].mean() if is_new.any() else 0
    return texts, scores
