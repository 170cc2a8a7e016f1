"""Sends an image to the ensemble `image_text` and prints the text in it.

    merrow serve --model-repository="$(python -m examples.image_text.repository)" --port=8000 &
    python -m examples.image_text.client --url=127.0.0.1:8000

The image goes in as its pixels, and text, boxes and scores come out: one request, five models.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tritonclient.http
from PIL import Image, ImageDraw, ImageFont

from examples.readiness import wait_until_ready

SIGN = ("Ever tried. Ever failed.", "No matter.", "Try again. Fail better.")


def draw_sign(lines: Sequence[str] = SIGN) -> np.ndarray:
    """An image with some lines of text: uint8 [height, width, 3]."""
    image = Image.new("RGB", (640, 80 * len(lines) + 40), "white")
    pen = ImageDraw.Draw(image)
    for number, line in enumerate(lines):
        pen.text((40, 80 * number + 30), line, "black", ImageFont.load_default(40))
    return np.asarray(image)


def read_text(url: str, image: np.ndarray) -> list[tuple[str, float, list[int]]]:
    """Text, score and box (left, top, right, bottom) of each line in an image."""
    client = tritonclient.http.InferenceServerClient(url)
    tensor = tritonclient.http.InferInput("IMAGE", image.shape, "UINT8")
    tensor.set_data_from_numpy(image)
    answer = client.infer("image_text", [tensor])
    client.close()
    texts, scores, boxes = (answer.as_numpy(name) for name in ("TEXTS", "SCORES", "BOXES"))
    return [(text.decode(), float(score), box.tolist()) for text, score, box in zip(texts, scores, boxes, strict=True)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Read the text in an image with the ensemble image_text.")
    parser.add_argument("--url", default="127.0.0.1:8000", help="of the HTTP port (127.0.0.1:8000)")
    parser.add_argument("image", type=Path, nargs="?", help="a picture of your own; without one, a sign is drawn")
    options = parser.parse_args(arguments)
    image = draw_sign() if options.image is None else np.asarray(Image.open(options.image).convert("RGB"))
    if not wait_until_ready(tritonclient.http.InferenceServerClient(options.url), options.url):
        return 1
    for text, score, box in read_text(options.url, image):
        print(f"{score:4.0%}  {box}  {text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
