"""Load and unload models under traffic, and see whether anything is lost or left behind.

    python -m bench.model_life                   # 500 cycles, some minutes
    python -m bench.model_life --cycles 50

While a client sends requests to one model that stays and to one that is loaded again and again, others are loaded,
asked once and unloaded: a Python model in a process of its own, an ONNX model with 16 MiB of weights, an ensemble of
the two with everything that it is made of. No request may fail. Memory (PSS of all processes) and descriptors of the
server's process tree are printed every tenth of the way; the last must be near the first.
"""

import argparse
import os
import pathlib
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import tritonclient.http as client

from bench import process_tree
from merrow.testing.repository_builder import RepositoryBuilder, model_config
from tests.oracle.server_process import ADDRESS, ServerProcess, start_merrow

WIDTH = 2048
SETTLE_SECONDS = 1.0


@dataclass(slots=True)
class Traffic:
    """What the clients of one model saw."""

    answers: int = 0
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Sample:
    """What the server holds at one moment."""

    cycle: int
    pss: int
    descriptors: int
    processes: int

    def __str__(self) -> str:
        return (
            f"after {self.cycle:4d} cycles: {self.pss / 2**20:7.1f} MiB, {self.descriptors:4d} descriptors, "
            f"{self.processes:2d} processes"
        )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.model_life", description=__doc__)
    parser.add_argument("--cycles", type=int, default=500)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="merrow-life-") as folder:
        repository = RepositoryBuilder(pathlib.Path(folder) / "models")
        build_repository(repository)
        log = pathlib.Path(folder) / "server.log"
        options = ("--model-control-mode=explicit", "--load-model=steady", "--load-model=renewed")
        with start_merrow(repository.path, log, *options) as server:
            server.wait_until_live()
            samples, traffic = run(server, repository, arguments.cycles)
    answers = sum(each.answers for each in traffic)
    failures = [failure for each in traffic for failure in each.failures]
    print(f"{answers} requests answered meanwhile, {len(failures)} failed")
    for failure in failures[:5]:
        print(f"  {failure}")
    first, last = samples[1], samples[-1]
    print(
        f"from the second to the last: {(last.pss - first.pss) / 2**20:+.1f} MiB, "
        f"{last.descriptors - first.descriptors:+d} descriptors"
    )
    is_flat = last.pss < first.pss * 1.1 + 8 * 2**20 and last.descriptors <= first.descriptors + 4
    return 0 if is_flat and not failures else 1


def run(server: ServerProcess, repository: RepositoryBuilder, cycles: int) -> tuple[list[Sample], list[Traffic]]:
    """All cycles, with traffic beside them."""
    url = f"{ADDRESS}:{server.ports.http}"
    stop = threading.Event()
    traffic = [Traffic(), Traffic()]
    threads = [
        threading.Thread(target=send, args=(url, name, stop, seen))
        for name, seen in zip(("steady", "renewed"), traffic, strict=True)
    ]
    control = client.InferenceServerClient(url, network_timeout=120, connection_timeout=120)
    samples = [take_sample(server, 0)]
    print(samples[-1], flush=True)
    for thread in threads:
        thread.start()
    try:
        for cycle in range(1, cycles + 1):
            run_cycle(control, repository, cycle)
            if cycle % max(1, cycles // 10) == 0:
                time.sleep(SETTLE_SECONDS)
                samples.append(take_sample(server, cycle))
                print(samples[-1], flush=True)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        control.close()
    return samples, traffic


def run_cycle(control: client.InferenceServerClient, repository: RepositoryBuilder, cycle: int) -> None:
    """Load, ask, unload; and load the renewed model again."""
    config = repository.path / "renewed" / "config.pbtxt"
    config.write_text(config.read_text().partition("#")[0] + f"# {cycle}\n")
    control.load_model("renewed")
    name = ("python", "weights", "pipeline")[cycle % 3]
    control.load_model(name)
    control.infer(name, [tensor("IN")])
    control.unload_model(name, unload_dependents=True)


def send(url: str, name: str, stop: threading.Event, seen: Traffic) -> None:
    """Ask one model, one request after another, until told to stop."""
    connection = client.InferenceServerClient(url, network_timeout=120, connection_timeout=120)
    while not stop.is_set():
        try:
            connection.infer(name, [tensor("IN")])
            seen.answers += 1
        except Exception as error:
            seen.failures.append(f"{name}: {error}")
        time.sleep(0.002)
    connection.close()


def take_sample(server: ServerProcess, cycle: int) -> Sample:
    processes = process_tree.tree(server.pid)
    descriptors = 0
    for pid in processes:
        try:
            descriptors += len(os.listdir(f"/proc/{pid}/fd"))
        except OSError:
            continue
    return Sample(cycle, process_tree.memory(server.pid).pss, descriptors, len(processes))


def tensor(name: str) -> client.InferInput:
    given = client.InferInput(name, [1, WIDTH], "FP32")
    given.set_data_from_numpy(np.ones((1, WIDTH), np.float32))
    return given


def build_repository(repository: RepositoryBuilder) -> None:
    tensors = ([("IN", "FP32", (WIDTH,))], [("OUT", "FP32", (WIDTH,))])
    source = {"1/model.py": PYTHON_SOURCE}
    repository.add("steady", model_config("steady", "identity", *tensors, max_batch_size=8))
    repository.add("renewed", model_config("renewed", "python", *tensors, max_batch_size=8), source)
    repository.add("python", model_config("python", "python", *tensors, max_batch_size=8), source)
    repository.add(
        "weights",
        model_config("weights", "onnxruntime", *tensors, max_batch_size=8),
        {"1/model.onnx": make_onnx_model()},
    )
    steps = "".join(
        f'step {{ model_name: "{model}" model_version: -1 '
        f'input_map {{ key: "IN" value: "{source}" }} output_map {{ key: "OUT" value: "{target}" }} }}\n'
        for model, source, target in (("python", "IN", "between"), ("weights", "between", "OUT"))
    )
    repository.add(
        "pipeline",
        model_config("pipeline", "", *tensors, max_batch_size=8).replace('backend: ""', 'platform: "ensemble"')
        + f"ensemble_scheduling {{\n{steps}}}\n",
    )


def make_onnx_model() -> bytes:
    """OUT = IN x weights, 16 MiB of them."""
    weights = np.random.default_rng(0).random((WIDTH, WIDTH), np.float32)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["IN", "weights"], ["OUT"])],
        "weights",
        [onnx.helper.make_tensor_value_info("IN", onnx.TensorProto.FLOAT, ["rows", WIDTH])],
        [onnx.helper.make_tensor_value_info("OUT", onnx.TensorProto.FLOAT, ["rows", WIDTH])],
        [onnx.numpy_helper.from_array(weights, "weights")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    model.ir_version = 9
    return bytes(model.SerializeToString())


PYTHON_SOURCE = """\
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.weights = np.ones(4_000_000, np.float32)

    def execute(self, requests):
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("OUT", request.inputs()[0].as_numpy())])
            for request in requests
        ]
"""


if __name__ == "__main__":
    sys.exit(main())
