"""Train the `digits` model and write it into the example repository.

    python -m examples.digits.train          # needs scikit-learn and onnx: pip install -e '.[dev]'

The data are scikit-learn's 1,797 handwritten digits (8 by 8 pixels, 0 to 16), of which a fifth is kept for testing.
The network is one hidden layer of 128; it is right on about 99 % of the images it has not seen. It writes three files:

    <repository>/digits/1/model.onnx     image [batch, 8, 8] -> probabilities [batch, 10]
    <repository>/digits/labels.txt       the names of the ten classes
    <samples>                            ten images that the network has not seen, one of each digit, for the demo
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

EXAMPLES = Path(__file__).parents[1]
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SEED = 7


def train() -> tuple[MLPClassifier, np.ndarray, np.ndarray]:
    """The trained network, and the images and labels it has not seen."""
    images, labels = load_digits(return_X_y=True)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=0.2, random_state=SEED, stratify=labels
    )
    network = MLPClassifier(hidden_layer_sizes=(128,), alpha=0.05, max_iter=1000, tol=3e-4, random_state=SEED)
    # So small a network trains faster on one thread than on several.
    with threadpool_limits(1):
        network.fit(train_images / 16.0, train_labels)
    return network, test_images.reshape(-1, 8, 8), test_labels


def to_onnx(network: MLPClassifier) -> onnx.ModelProto:
    """The network as a graph that takes raw images of any batch size."""
    constants = [
        numpy_helper.from_array(np.array([16.0], np.float32), "black"),
        numpy_helper.from_array(np.array([-1, 64], np.int64), "row_shape"),
    ]
    for layer, (weights, bias) in enumerate(zip(network.coefs_, network.intercepts_, strict=True)):
        constants.append(numpy_helper.from_array(weights.astype(np.float32), f"weights{layer}"))
        constants.append(numpy_helper.from_array(bias.astype(np.float32), f"bias{layer}"))
    nodes = [
        helper.make_node("Div", ["image", "black"], ["scaled"]),
        helper.make_node("Reshape", ["scaled", "row_shape"], ["row"]),
        helper.make_node("Gemm", ["row", "weights0", "bias0"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("Gemm", ["active", "weights1", "bias1"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 8, 8])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 10])],
        constants,
    )
    model = helper.make_model(
        graph, producer_name="examples.digits.train", opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    onnx.checker.check_model(model)
    return model


def samples(network: MLPClassifier, images: np.ndarray, labels: np.ndarray) -> list[dict[str, object]]:
    """The first unseen image of each digit that the network is right on: the demo tests a server, not the network."""
    is_right = network.predict(images.reshape(-1, 64) / 16.0) == labels
    firsts = (int(np.flatnonzero((labels == digit) & is_right)[0]) for digit in range(10))
    return [{"label": NAMES[int(labels[row])], "image": images[row].astype(int).tolist()} for row in firsts]


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the digits model.")
    parser.add_argument("--repository", type=Path, default=EXAMPLES / "models")
    parser.add_argument("--samples", type=Path, default=EXAMPLES / "digits" / "samples.json")
    arguments = parser.parse_args()

    network, images, labels = train()
    accuracy = network.score(images.reshape(-1, 64) / 16.0, labels)
    folder = arguments.repository / "digits"
    (folder / "1").mkdir(parents=True, exist_ok=True)
    onnx.save(to_onnx(network), folder / "1" / "model.onnx")
    (folder / "labels.txt").write_text("\n".join(NAMES) + "\n")
    rows = ",\n".join(json.dumps(sample) for sample in samples(network, images, labels))
    arguments.samples.write_text(f"[\n{rows}\n]\n")
    print(f"wrote {folder}: right on {accuracy:.1%} of {len(labels)} unseen images")


if __name__ == "__main__":
    main()
