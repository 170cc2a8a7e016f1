"""Streams speech to the model `voice_activity`, window by window, and prints where somebody speaks.

    merrow serve --model-repository="$(python -m examples.voice_activity.repository)" --port=8000 &
    python -m examples.voice_activity.client --url=127.0.0.1:8000

Each stream is a sequence: its requests carry the same `sequence_id`, the first says start, the last says end. The
server keeps the network's state in between, so a request holds nothing but its own window. Several streams are sent at
once, to show that they do not disturb each other.
"""

import argparse
import sys
import wave
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import tritonclient.grpc

from examples.readiness import wait_until_ready
from examples.voice_activity.repository import fetch_recording

SAMPLE_RATE = 16_000
WINDOW = 512
CONTEXT = 64
SPEECH = 0.5
BARS = " ▁▂▃▄▅▆▇█"


def read_recording(path: Path) -> np.ndarray:
    """Samples between -1 and 1."""
    with wave.open(str(path)) as recording:
        assert (recording.getframerate(), recording.getnchannels(), recording.getsampwidth()) == (SAMPLE_RATE, 1, 2)
        return np.frombuffer(recording.readframes(recording.getnframes()), "<i2").astype(np.float32) / 32768


def windows_of(samples: np.ndarray) -> Iterator[np.ndarray]:
    """Windows of 512 samples, each after the last 64 of the window before: shape [1, 576]."""
    padded = np.concatenate([np.zeros(CONTEXT, np.float32), samples])
    for start in range(0, len(samples) - WINDOW + 1, WINDOW):
        yield padded[None, start : start + CONTEXT + WINDOW]


def stream(url: str, recordings: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    """Send each recording as the sequence of that number, all at once; returns the probability of each window."""
    answers: Queue[Any] = Queue()
    client = tritonclient.grpc.InferenceServerClient(url)
    client.start_stream(lambda result, error: answers.put(error or result))
    windows = {number: list(windows_of(samples)) for number, samples in recordings.items()}
    sent = 0
    for index in range(max(len(each) for each in windows.values())):
        for number, each in windows.items():
            if index < len(each):
                tensor = tritonclient.grpc.InferInput("input", each[index].shape, "FP32")
                tensor.set_data_from_numpy(each[index])
                client.async_stream_infer(
                    "voice_activity",
                    [tensor],
                    request_id=f"{number} {index}",
                    sequence_id=number,
                    sequence_start=index == 0,
                    sequence_end=index == len(each) - 1,
                )
                sent += 1
    probabilities = {number: np.zeros(len(each)) for number, each in windows.items()}
    for _ in range(sent):
        answer = answers.get(timeout=30)
        if isinstance(answer, Exception):
            raise answer
        number, index = map(int, answer.get_response().id.split())
        probabilities[number][index] = answer.as_numpy("output")[0, 0]
    client.stop_stream()
    client.close()
    return probabilities


def spoken(probabilities: np.ndarray) -> list[tuple[float, float]]:
    """From and to, in seconds, of each stretch of speech."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], probabilities >= SPEECH, [False]]).astype(int)))
    return [(float(start), float(end)) for start, end in edges.reshape(-1, 2) * WINDOW / SAMPLE_RATE]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Stream speech to the model voice_activity.")
    parser.add_argument("--url", default="127.0.0.1:8001", help="of the gRPC port (127.0.0.1:8001)")
    parser.add_argument("--wav", type=Path, help="a recording of your own: 16 kHz, one channel, 16 bits")
    options = parser.parse_args(arguments)
    samples = read_recording(options.wav or fetch_recording())
    if not wait_until_ready(tritonclient.grpc.InferenceServerClient(options.url), options.url):
        return 1
    # The second stream is the same speech a second later: it must get the same answers, later.
    recordings = {1: samples, 2: np.concatenate([np.zeros(SAMPLE_RATE // WINDOW * WINDOW, np.float32), samples])}
    for number, probabilities in stream(options.url, recordings).items():
        print(f"stream {number}:")
        bars = "".join(BARS[round(value * (len(BARS) - 1))] for value in probabilities)
        for start in range(0, len(bars), 100):
            print(f"  {start * WINDOW / SAMPLE_RATE:5.1f} s  {bars[start : start + 100]}")
        print("  speech " + ", ".join(f"{start:.1f}-{end:.1f} s" for start, end in spoken(probabilities)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
