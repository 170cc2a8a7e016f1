"""The demo: a server on the example models, asked over HTTP and over gRPC with the published client.

    python -m examples.demo                 # starts, asks, prints, and serves until Ctrl-C
    python -m examples.demo --once          # stops after the answers: exit code 0, or 1 if one was wrong

It needs the extra `examples`. Everything is served on one port; another one is chosen with --port. The client cannot
tell merrow from Triton, so the same lines work against either.
"""

import argparse
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http

from examples.readiness import wait_until_ready

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "examples" / "models"
DEFAULT_PORT = 8000
START_SECONDS = 60
STOP_SECONDS = 40

# Files that are surely there, and what they are.
FILES = (
    (ROOT / "README.md", "markdown"),
    (ROOT / "pyproject.toml", "toml"),
    (ROOT / "Makefile", "makefile"),
    (ROOT / "examples" / "demo.py", "python"),
    (ROOT / "protos" / "model_config.proto", "proto"),
    (MODELS / "digits" / "1" / "model.onnx", "onnx"),
)

SHADES = " .:-=+*#%@"


class Door:
    """One of the two protocols. The two modules of tritonclient have the same names for everything used here."""

    def __init__(self, name: str, module: Any, url: str) -> None:
        self.name = name
        self.module = module
        self.client = module.InferenceServerClient(url)

    def infer(self, model: str, output: str, class_count: int = 0, **arrays: np.ndarray) -> np.ndarray:
        """Send one request and return one output."""
        inputs = []
        for name, array in arrays.items():
            datatype = {"O": "BYTES", "f": "FP32"}[array.dtype.kind]
            tensor = self.module.InferInput(name, array.shape, datatype)
            tensor.set_data_from_numpy(array)
            inputs.append(tensor)
        requested = self.module.InferRequestedOutput(output, class_count=class_count)
        answer = self.client.infer(model, inputs, outputs=[requested]).as_numpy(output)
        assert isinstance(answer, np.ndarray)
        return answer


def ask_add_sub(door: Door) -> bool:
    """Triton's classic, a Python model."""
    left, right = np.arange(4, dtype=np.float32), np.ones(4, dtype=np.float32)
    total = door.infer("add_sub", "OUTPUT0", INPUT0=left, INPUT1=right)
    difference = door.infer("add_sub", "OUTPUT1", INPUT0=left, INPUT1=right)
    print(f"  {door.name:4}  {left.tolist()} + {right.tolist()} = {total.tolist()},  - = {difference.tolist()}")
    return bool((total == left + right).all() and (difference == left - right).all())


def ask_digits(door: Door) -> bool:
    """A classifier that train.py made, an ONNX file; ten images that it has not seen, in one request."""
    samples = json.loads((ROOT / "examples" / "digits" / "samples.json").read_text())
    images = np.array([sample["image"] for sample in samples], dtype=np.float32)
    # class_count=1 asks for the best class of each row: "probability:index:label".
    answers = door.infer("digits", "probabilities", class_count=1, image=images)
    labels = [row.decode().split(":")[2] for row in answers.reshape(-1)]
    for row in range(8) if door.name == "HTTP" else ():
        print("        " + " ".join(shade(image[row]) for image in images))
    print(f"  {door.name:4}  " + " ".join(f"{label:8}" for label in labels))
    return labels == [sample["label"] for sample in samples]


def shade(pixels: np.ndarray) -> str:
    """A row of an image as text."""
    return "".join(SHADES[int(pixel * (len(SHADES) - 1) / 16)] for pixel in pixels)


def ask_file_type(door: Door) -> bool:
    """A Python model with pre- and post-processing around a network that a PyPI package carries."""
    contents = np.array([[path.read_bytes()] for path, _ in FILES], dtype=np.object_)
    labels = [label.decode() for label in door.infer("file_type", "label", content=contents).reshape(-1)]
    for (path, _), label in zip(FILES, labels, strict=True):
        print(f"  {door.name:4}  {path.relative_to(ROOT)!s:32} {label}")
    return labels == [expected for _, expected in FILES]


QUESTIONS: tuple[Callable[[Door], bool], ...] = (ask_add_sub, ask_digits, ask_file_type)


def ask(port: int) -> bool:
    """Ask every model over both protocols; whether every answer was right."""
    url = f"127.0.0.1:{port}"
    doors = (Door("HTTP", tritonclient.http, url), Door("gRPC", tritonclient.grpc, url))
    is_right = True
    for question in QUESTIONS:
        print(f"\n{question.__name__.removeprefix('ask_')}: {(question.__doc__ or '').strip()}")
        for door in doors:
            if not question(door):
                print(f"  {door.name:4}  this is not the expected answer")
                is_right = False
    for door in doors:
        door.client.close()
    return is_right


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Serve the example models, and ask them.")
    parser.add_argument("--once", action="store_true", help="stop after the answers")
    parser.add_argument("--port", type=int, help=f"default {DEFAULT_PORT}, with --once 0: a free one")
    options = parser.parse_args(arguments)
    wanted_port = (0 if options.once else DEFAULT_PORT) if options.port is None else options.port
    port = wanted_port or free_port()

    # A polite end of the demo is one of the server, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    command = [sys.executable, "-m", "merrow", "serve", f"--model-repository={MODELS}", f"--port={port}"]
    print("$ merrow serve " + " ".join(command[4:]), flush=True)
    # A session of its own: Ctrl-C reaches this process only, which then ends the server properly.
    server = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    try:
        url = f"127.0.0.1:{port}"
        client = tritonclient.http.InferenceServerClient(url)
        if not wait_until_ready(client, url, START_SECONDS, lambda: server.poll() is None):
            how = f"did not become ready within {START_SECONDS} s" if server.poll() is None else "could not start"
            print(f"the server {how}; its log is above", file=sys.stderr)
            return 1
        is_right = ask(port)
        print(f"\nServing on http://127.0.0.1:{port} (HTTP, gRPC and metrics)", flush=True)
        if options.once:
            return 0 if is_right else 1
        print(f"Try: curl -s http://127.0.0.1:{port}/v2/models/digits/config    End with Ctrl-C.", flush=True)
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        stop(server)


def stop(server: subprocess.Popen[bytes]) -> None:
    """End the server: politely, then not."""
    if server.poll() is None:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


if __name__ == "__main__":
    sys.exit(main())
