"""Makes the model repository of the voice activity example.

    python -m examples.voice_activity.repository        # prints where it is

The network comes out of the package `silero-vad` (MIT licence), the recording that `client.py` streams out of
`useful-moonshine-onnx` (MIT licence): see `examples/wheels.py`.
"""

import shutil
import sys
from pathlib import Path

from examples.wheels import CACHE, WheelError, fetch

NETWORK = "silero_vad/data/silero_vad_openvino_16k.onnx"
RECORDING = "moonshine_onnx/assets/beckett.wav"


def make_repository() -> Path:
    """The folder of a model repository with the model `voice_activity`.

    Raises:
        WheelError: the package could not be fetched.
    """
    checksum = "7776b81ad1b0350c15d7f1555943b9232eb53e9ca5d989c6d0cea9ebc8664d87"
    network = fetch("silero-vad==6.2.3", {NETWORK: checksum})[NETWORK]
    repository = CACHE / "voice_activity_models"
    version = repository / "voice_activity" / "1"
    version.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(network, version / "model.onnx")
    shutil.copyfile(Path(__file__).parent / "config.pbtxt", version.parent / "config.pbtxt")
    return repository


def fetch_recording() -> Path:
    """A recording of speech: 16 kHz, one channel, 16 bits; ten seconds.

    Raises:
        WheelError: the package could not be fetched.
    """
    checksum = "e5a26b3d29e5b0bc8dbd72c11d16a3808a4ec0ac45b21f12a27d2a2fe5c5ae61"
    return fetch("useful-moonshine-onnx==20251121", {RECORDING: checksum})[RECORDING]


if __name__ == "__main__":
    try:
        print(make_repository())
    except WheelError as error:
        sys.exit(str(error))
