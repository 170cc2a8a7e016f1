"""Between detector and recogniser: from a map of where text is to pictures of single lines.

Pixels that are probably text and touch each other are one line (upright text is assumed). Its box is widened, because
the detector marks only the heart of a line; what lies in it is cut out of the image and scaled to the height that the
recogniser wants. Shorter lines are padded on the right.
"""

import numpy as np
import triton_python_backend_utils as pb_utils
from PIL import Image

IS_TEXT = 0.3
IS_SURE = 0.5
MIN_PIXELS = 10
WIDENING = 1.6
HEIGHT = 48
MIN_WIDTH = 320


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.add_input({"name": "IMAGE", "data_type": "TYPE_UINT8", "dims": [-1, -1, 3]})
        config.add_input({"name": "TEXT_MAP", "data_type": "TYPE_FP32", "dims": [-1, 1, -1, -1]})
        config.add_output({"name": "LINES", "data_type": "TYPE_FP32", "dims": [-1, 3, HEIGHT, -1]})
        config.add_output({"name": "BOXES", "data_type": "TYPE_INT32", "dims": [-1, 4]})
        config.set_max_batch_size(0)
        return config

    def execute(self, requests):
        responses = []
        for request in requests:
            image = pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy()
            text_map = pb_utils.get_input_tensor_by_name(request, "TEXT_MAP").as_numpy()[0, 0]
            boxes = find_boxes(text_map, image.shape[1], image.shape[0])
            outputs = [pb_utils.Tensor("LINES", cut_lines(image, boxes)), pb_utils.Tensor("BOXES", boxes)]
            responses.append(pb_utils.InferenceResponse(outputs))
        return responses


def find_boxes(text_map, width, height):
    """Boxes of the lines, from top to bottom: int32 [lines, 4], left, top, right, bottom in pixels of the image."""
    scale_x, scale_y = width / text_map.shape[1], height / text_map.shape[0]
    boxes = []
    for left, top, right, bottom, pixels in connected_areas(text_map > IS_TEXT):
        if pixels < MIN_PIXELS or text_map[top:bottom, left:right].mean() < IS_SURE:
            continue
        margin = (right - left) * (bottom - top) * WIDENING / (2 * (right - left + bottom - top))
        corners = np.array([left - margin, top - margin, right + margin, bottom + margin])
        scaled = np.round(corners * [scale_x, scale_y, scale_x, scale_y])
        boxes.append(np.clip(scaled, 0, [width, height, width, height]))
    boxes.sort(key=lambda box: (box[1], box[0]))
    return np.array(boxes, np.int32).reshape(-1, 4)


def connected_areas(mask):
    """Left, top, right, bottom and number of pixels of each area of touching pixels.

    The runs of each row are joined with those that they touch in the row above (union-find).
    """
    runs, parents, above = [], [], []
    for row, line in enumerate(mask):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], line, [0]]).astype(np.int8)))
        here = []
        for start, end in edges.reshape(-1, 2).tolist():
            number = len(runs)
            runs.append((row, start, end))
            parents.append(number)
            here.append(number)
            for other in above:
                _, other_start, other_end = runs[other]
                if other_start < end and start < other_end:
                    parents[_root(parents, other)] = _root(parents, number)
        above = here
    areas = {}
    for number, (row, start, end) in enumerate(runs):
        left, top, right, bottom, pixels = areas.get(_root(parents, number), (start, row, end, row, 0))
        areas[_root(parents, number)] = (
            min(left, start),
            min(top, row),
            max(right, end),
            max(bottom, row + 1),
            pixels + end - start,
        )
    return list(areas.values())


def _root(parents, number):
    while parents[number] != number:
        parents[number] = parents[parents[number]]
        number = parents[number]
    return number


def cut_lines(image, boxes):
    """The lines as float32 [lines, 3, 48, width], blue before red, values between -1 and 1."""
    crops = []
    for left, top, right, bottom in boxes.tolist():
        crop = Image.fromarray(image[top : max(bottom, top + 1), left : max(right, left + 1)])
        width = max(1, round(crop.width * HEIGHT / crop.height))
        pixels = np.asarray(crop.resize((width, HEIGHT), Image.Resampling.BILINEAR), np.float32)
        crops.append((pixels[:, :, ::-1] / 127.5 - 1).transpose(2, 0, 1))
    lines = np.zeros((len(crops), 3, HEIGHT, max([MIN_WIDTH, *[crop.shape[2] for crop in crops]])), np.float32)
    for line, crop in zip(lines, crops, strict=True):
        line[:, :, : crop.shape[2]] = crop
    return lines
