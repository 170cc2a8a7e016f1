"""The image text example: its own steps, and the ensemble in a server."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from examples.image_text import client
from examples.image_text.repository import make_repository
from merrow.testing.running_server import RunningServer

HERE = Path(__file__).parents[2] / "examples" / "image_text"


@pytest.fixture(name="step")
def load_step(monkeypatch):
    """Imports a step of the ensemble as the server would, without a server."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", ModuleType("triton_python_backend_utils"))

    def load(name):
        specification = importlib.util.spec_from_file_location(f"step_{name}", HERE / f"{name}.py")
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        return module

    return load


def test_areas_that_touch_are_one(step):
    mask = np.array(
        [
            [1, 0, 1, 0, 0],
            [1, 1, 1, 0, 1],
            [0, 0, 0, 0, 1],
        ],
        bool,
    )

    assert sorted(step("crop").connected_areas(mask)) == [(0, 0, 3, 2, 5), (4, 1, 5, 3, 2)]


def test_boxes_are_widened_and_stay_in_the_image(step):
    text_map = np.zeros((32, 64), np.float32)
    text_map[8:12, 8:40] = 1

    boxes = step("crop").find_boxes(text_map, width=128, height=64)

    # The margin is 32 * 4 * 1.6 / (2 * 36) = 2.8 pixels of the map, which is half as large as the image.
    assert boxes.tolist() == [[10, 10, 86, 30]]


def test_no_text_makes_no_lines(step):
    crop = step("crop")
    boxes = crop.find_boxes(np.zeros((32, 32), np.float32), 32, 32)

    assert boxes.shape == (0, 4)
    assert crop.cut_lines(np.zeros((32, 32, 3), np.uint8), boxes).shape == (0, 3, 48, 320)


def test_repeated_characters_and_blanks_are_left_out(step):
    probabilities = np.eye(3, dtype=np.float32)[[[1, 1, 0, 1, 2, 2]]]

    texts, scores = step("decode").decode(probabilities, ["", "a", " "])

    assert texts.tolist() == [b"aa "]
    assert scores.tolist() == [1]


@pytest.mark.slow
def test_the_ensemble_reads_a_sign():
    with RunningServer(make_repository()) as server:
        lines = client.read_text(server.http_url, client.draw_sign())

    assert [text for text, _, _ in lines] == list(client.SIGN)
    assert all(score > 0.9 for _, score, _ in lines)
    tops = [box[1] for _, _, box in lines]
    assert tops == sorted(tops)
