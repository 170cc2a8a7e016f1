"""What a file is, from its content: the model that the PyPI package `magika` (Apache-2.0) carries.

The client sends whole files; pre-processing, the network and post-processing happen here. The requests of a batch, and
the rows of each, go through the network in one run.

    in   content  BYTES [1]   the file
    out  label    BYTES [1]   magika's name of the type: "python", "pdf", "elf", ...
         score    FP32 [1]    how sure the network is, 0 to 1; 1 where a rule decided

The network sees the first and the last 1024 bytes, white space at the ends stripped. A type whose score stays under its
threshold becomes "txt" or "unknown". `magika.Magika().identify_bytes` gives the same answers, one file at a time.
"""

import json
from importlib import resources

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(auto_complete_model_config):
        auto_complete_model_config.add_input({"name": "content", "data_type": "TYPE_STRING", "dims": [1]})
        auto_complete_model_config.add_output({"name": "label", "data_type": "TYPE_STRING", "dims": [1]})
        auto_complete_model_config.add_output({"name": "score", "data_type": "TYPE_FP32", "dims": [1]})
        return auto_complete_model_config

    def initialize(self, args):
        package = resources.files("magika")
        folder = next(entry for entry in (package / "models").iterdir() if entry.name.startswith("standard"))
        self.settings = json.loads((folder / "config.min.json").read_text())
        self.types = json.loads((package / "config" / "content_types_kb.min.json").read_text())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            (folder / "model.onnx").read_bytes(), options, providers=["CPUExecutionProvider"]
        )

    def execute(self, requests):
        contents = [pb_utils.get_input_tensor_by_name(request, "content").as_numpy() for request in requests]
        answers = self.identify([content for rows in contents for content in rows.reshape(-1)])
        responses = []
        for rows in contents:
            mine, answers = answers[: rows.size], answers[rows.size :]
            labels = np.array([label.encode() for label, _ in mine], dtype=np.object_).reshape(rows.shape)
            scores = np.array([score for _, score in mine], dtype=np.float32).reshape(rows.shape)
            outputs = [pb_utils.Tensor("label", labels), pb_utils.Tensor("score", scores)]
            responses.append(pb_utils.InferenceResponse(output_tensors=outputs))
        return responses

    def identify(self, contents):
        """Label and score of each file."""
        features = [self.features(content) for content in contents]
        answers = [
            (self.label_without_network(content), 1.0) if feature is None else None
            for content, feature in zip(contents, features, strict=True)
        ]
        rows = [feature for feature in features if feature is not None]
        if rows:
            (probabilities,) = self.session.run(["target_label"], {"bytes": np.stack(rows)})
            decided = iter(probabilities)
            answers = [self.decide(next(decided)) if answer is None else answer for answer in answers]
        return answers

    def features(self, content):
        """What the network sees of a file; None where there is too little of it."""
        settings = self.settings
        minimum, padding = settings["min_file_size_for_dl"], settings["padding_token"]
        start = content[: settings["block_size"]].lstrip()[: settings["beg_size"]]
        end = content[-settings["block_size"] :].rstrip()[-settings["end_size"] :]
        if len(content) < minimum or len(start) < minimum:
            return None
        row = np.full(settings["beg_size"] + settings["end_size"], padding, dtype=np.int32)
        row[: len(start)] = np.frombuffer(start, dtype=np.uint8)
        row[len(row) - len(end) :] = np.frombuffer(end, dtype=np.uint8)
        return row

    def label_without_network(self, content):
        if not content:
            return "empty"
        try:
            content[: self.settings["block_size"]].decode()
        except UnicodeDecodeError:
            return "unknown"
        return "txt"

    def decide(self, probabilities):
        """Label and score for one row of the network's answer."""
        settings = self.settings
        best = int(probabilities.argmax())
        score = float(probabilities[best])
        raw_label = settings["target_labels_space"][best]
        label = settings["overwrite_map"].get(raw_label, raw_label)
        if score < settings["thresholds"].get(raw_label, settings["medium_confidence_threshold"]):
            label = "txt" if self.types[label]["is_text"] else "unknown"
        return label, score
