"""Makes the model repository of the image text example.

    python -m examples.image_text.repository        # prints where it is

Both networks, PP-OCRv4's detector and recogniser, come out of the package `rapidocr-onnxruntime` (Apache-2.0 licence):
see `examples/wheels.py`. The steps around them are the Python models beside this file.
"""

import shutil
import sys
from pathlib import Path

import onnxruntime

from examples.wheels import CACHE, WheelError, fetch

HERE = Path(__file__).parent
DETECTOR = "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx"
RECOGNISER = "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx"
CHECKSUMS = {
    DETECTOR: "d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9",
    RECOGNISER: "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b",
}


def make_repository() -> Path:
    """The folder of a model repository with the ensemble `image_text` and its five steps.

    Raises:
        WheelError: the package could not be fetched.
    """
    networks = fetch("rapidocr-onnxruntime==1.4.4", CHECKSUMS)
    repository = CACHE / "image_text_models"
    _folder(repository, "image_text").joinpath("1").mkdir(exist_ok=True)
    shutil.copyfile(HERE / "ensemble.pbtxt", repository / "image_text" / "config.pbtxt")
    for step in ("prepare", "crop", "decode"):
        folder = _folder(repository, f"image_text_{step}")
        (folder / "config.pbtxt").write_text('backend: "python"\n')
        shutil.copyfile(HERE / f"{step}.py", folder / "1" / "model.py")
    for name, network in (("detector", DETECTOR), ("recogniser", RECOGNISER)):
        folder = _folder(repository, f"image_text_{name}")
        # Neither network has a batch dimension that the server may fill: images differ in size.
        (folder / "config.pbtxt").write_text('platform: "onnxruntime_onnx"\nmax_batch_size: 0\n')
        shutil.copyfile(networks[network], folder / "1" / "model.onnx")
    characters = repository / "image_text_decode" / "1" / "characters.txt"
    characters.write_text(_characters(networks[RECOGNISER]), encoding="utf-8")
    return repository


def _folder(repository: Path, model: str) -> Path:
    (repository / model / "1").mkdir(parents=True, exist_ok=True)
    return repository / model


def _characters(recogniser: Path) -> str:
    """What the recogniser's classes mean, a line each: it says so itself."""
    session = onnxruntime.InferenceSession(str(recogniser), providers=["CPUExecutionProvider"])
    text: str = session.get_modelmeta().custom_metadata_map["character"]
    return "\n".join(text.splitlines())


if __name__ == "__main__":
    try:
        print(make_repository())
    except WheelError as error:
        sys.exit(str(error))
