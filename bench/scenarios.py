"""What is measured: how each server answers under load, with large tensors, how it starts, what it holds when idle.

A load scenario keeps both servers running and gives each a window in turn, A B A B, so that a machine which is slow for
a moment is slow for both. With them runs the floor (see `bench.floor`), which says how fast the machine was.
"""

import contextlib
import os
import pathlib
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from bench import process_tree, repositories
from bench.load import LoadError
from bench.load_process import LoadProcess, LoadResult
from tests.oracle import real_triton
from tests.oracle.perf_analyzer import command as perf_analyzer_command
from tests.oracle.server_process import (
    ADDRESS,
    REPOSITORY_ROOT,
    ServerProcess,
    free_ports,
    start_merrow,
    start_real_triton,
)

# Instances of the conv net that are compared.
INSTANCE_COUNTS = (1, 8)

TENSOR_BYTES = (16 * process_tree.MIB, 64 * process_tree.MIB)
STARTUP_MODELS = 30
MEMORY_SAMPLE_SECONDS = 0.02

MERROW, TRITON, FLOOR = "merrow", "triton", "floor"


def start_floor(repository: pathlib.Path, log: pathlib.Path) -> ServerProcess:
    """The event loop that parses nothing; it has no models."""
    ports = free_ports()
    argv = [sys.executable, "-m", "bench.floor", str(ports.http)]
    environment = dict(os.environ, PYTHONPATH=str(REPOSITORY_ROOT))
    return ServerProcess(FLOOR, argv, environment, ports, log)


START: dict[str, Callable[..., ServerProcess]] = {
    MERROW: start_merrow,
    TRITON: start_real_triton,
    FLOOR: start_floor,
}


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, how often, and against whom."""

    folder: pathlib.Path
    peers: tuple[str, ...] = (MERROW, TRITON)
    seconds: float = 1.5
    window_count: int = 4
    concurrencies: tuple[int, ...] = (1, 16)
    protocols: tuple[str, ...] = ("http", "grpc")


@dataclass(frozen=True, slots=True)
class LoadRow:
    """One server under one load. CPU is that of its whole process tree; `generator_us` is the load generator's."""

    scenario: str
    protocol: str
    concurrency: int
    server: str
    requests_per_second: float
    mean_us: float
    p50_us: float
    p99_us: float
    cpu_us: float
    generator_us: float


@dataclass(frozen=True, slots=True)
class LargeRow:
    """Requests of so many bytes in and out; memory is the tree's PSS, in bytes."""

    tensor_bytes: int
    protocol: str
    server: str
    requests_per_second: float
    cpu_ms: float
    idle_pss: int
    peak_pss: int
    peak_rss: int


@dataclass(frozen=True, slots=True)
class StateRow:
    """A server that has started and does nothing: how long that took, and what it holds."""

    scenario: str
    server: str
    start_seconds: float
    process_count: int
    pss: int
    rss: int


@dataclass(frozen=True, slots=True)
class PerfAnalyzerRow:
    """What NVIDIA's load generator says."""

    protocol: str
    concurrency: int
    server: str
    requests_per_second: float
    mean_us: float


Row = LoadRow | LargeRow | StateRow | PerfAnalyzerRow


@dataclass(slots=True)
class _Measured:
    results: list[LoadResult] = field(default_factory=list)
    cpu_seconds: float = 0.0


def python_identity(plan: Plan) -> list[Row]:
    return _load_rows("python identity", plan, plan.peers, repositories.build_python, repositories.PYTHON_IDENTITY)


def inline_identity(plan: Plan) -> list[Row]:
    """The wheel of the real server has no identity backend: merrow runs alone."""
    peers = tuple(peer for peer in plan.peers if peer == MERROW)
    return _load_rows("identity backend", plan, peers, repositories.build_inline, repositories.INLINE_IDENTITY)


def large_tensor(plan: Plan) -> list[Row]:
    rows: list[Row] = []
    with _servers(plan, plan.peers, repositories.build_large, "large") as servers:
        idle = {server.name: process_tree.memory(server.pid).pss for server in servers}
        for size in TENSOR_BYTES:
            for protocol in plan.protocols:
                rows += [_large_row(server, protocol, size, plan, idle[server.name]) for server in servers]
    return rows


def dynamic_batching(plan: Plan) -> list[Row]:
    """A conv net with dynamic batching and without: an ONNX model of merrow, a Python model of the real server."""
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        servers = []
        for peer in plan.peers:
            repository = repositories.build_conv(plan.folder / f"conv-{peer}", in_python=peer == TRITON)
            if peer == TRITON:
                real_triton.install_for_models("onnxruntime")
            server = stack.enter_context(START[peer](repository, plan.folder / f"conv-{peer}.log"))
            server.wait_until_live(path="/v2/health/ready")
            servers.append(server)
        for protocol in plan.protocols:
            for concurrency in plan.concurrencies:
                for model in (repositories.CONV_BATCHED, repositories.CONV_SINGLE):
                    loaded = {server.name: (server, model) for server in servers}
                    rows += _compare(model.replace("_", " "), loaded, protocol, concurrency, plan)
    return rows


def instances(plan: Plan) -> list[Row]:
    """The same conv net in merrow with one instance and with eight; idle models take no part."""
    rows: list[Row] = []
    folder = plan.folder / "instances"
    for count in INSTANCE_COUNTS:
        repositories.build_conv(folder, in_python=False, instance_count=count, suffix=f"_{count}")
    with start_merrow(folder, plan.folder / "instances.log") as server:
        server.wait_until_live(path="/v2/health/ready")
        for protocol in plan.protocols:
            for concurrency in plan.concurrencies:
                for model in (repositories.CONV_BATCHED, repositories.CONV_SINGLE):
                    loaded = {f"merrow, instances: {count}": (server, f"{model}_{count}") for count in INSTANCE_COUNTS}
                    rows += _compare(model.replace("_", " "), loaded, protocol, concurrency, plan)
    return rows


def startup(plan: Plan) -> list[Row]:
    """From the start of the process until every model is ready, one server after the other."""
    repository = repositories.build_many(plan.folder / "many", STARTUP_MODELS)
    return [_state_row(f"{STARTUP_MODELS} Python models", peer, repository, plan) for peer in plan.peers]


def idle_onnx(plan: Plan) -> list[Row]:
    """The wheel of the real server has no ONNX Runtime: merrow runs alone."""
    if MERROW not in plan.peers:
        return []
    return [_state_row("one ONNX model", MERROW, repositories.build_onnx(plan.folder / "onnx"), plan)]


def idle_python(plan: Plan) -> list[Row]:
    repository = repositories.build_python(plan.folder / "idle")
    return [_state_row("one Python model", peer, repository, plan) for peer in plan.peers]


def perf_analyzer(plan: Plan) -> list[Row]:
    """The Python identity model once more, under NVIDIA's own load generator."""
    rows: list[Row] = []
    with _servers(plan, plan.peers, repositories.build_python, "perf-analyzer") as servers:
        for protocol in plan.protocols:
            for concurrency in plan.concurrencies:
                rows += [_perf_analyzer_row(server, protocol, concurrency) for server in servers]
    return rows


SCENARIOS: dict[str, Callable[[Plan], list[Row]]] = {
    "python-identity": python_identity,
    "identity-inline": inline_identity,
    "large-tensor": large_tensor,
    "dynamic-batching": dynamic_batching,
    "instances": instances,
    "startup": startup,
    "idle-python": idle_python,
    "idle-onnx": idle_onnx,
}


@contextlib.contextmanager
def _servers(
    plan: Plan, peers: Sequence[str], build: Callable[[pathlib.Path], pathlib.Path], name: str
) -> Iterator[list[ServerProcess]]:
    """The peers, ready, on one repository."""
    repository = build(plan.folder / name)
    with contextlib.ExitStack() as stack:
        servers = []
        for peer in peers:
            server = stack.enter_context(START[peer](repository, plan.folder / f"{name}-{peer}.log"))
            server.wait_until_live(path="/v2/health/ready")
            servers.append(server)
        yield servers


def _load_rows(
    scenario: str, plan: Plan, peers: Sequence[str], build: Callable[[pathlib.Path], pathlib.Path], model: str
) -> list[Row]:
    rows: list[Row] = []
    with _servers(plan, (*peers, FLOOR), build, model) as servers:
        for protocol in plan.protocols:
            speaking = [server for server in servers if server.name != FLOOR or protocol == "http"]
            for concurrency in plan.concurrencies:
                loaded = {server.name: (server, model) for server in speaking}
                rows += _compare(scenario, loaded, protocol, concurrency, plan)
    return rows


def _compare(
    scenario: str, loaded: Mapping[str, tuple[ServerProcess, str]], protocol: str, concurrency: int, plan: Plan
) -> list[LoadRow]:
    """Windows in turn for each server and model; by the name that they have in the table."""
    measured = {name: _Measured() for name in loaded}
    with contextlib.ExitStack() as stack:
        loads = {
            name: stack.enter_context(LoadProcess(protocol, _port(server, protocol), concurrency, model))
            for name, (server, model) in loaded.items()
        }
        for load in loads.values():
            load.run(plan.seconds / 3)
        for _ in range(plan.window_count):
            for name, (server, _model) in loaded.items():
                before = process_tree.cpu_seconds(server.pid)
                measured[name].results.append(loads[name].run(plan.seconds))
                measured[name].cpu_seconds += process_tree.cpu_seconds(server.pid) - before
    return [_load_row(scenario, protocol, concurrency, name, found) for name, found in measured.items()]


def _load_row(scenario: str, protocol: str, concurrency: int, server: str, measured: _Measured) -> LoadRow:
    results = measured.results
    count = sum(result.request_count for result in results)
    return LoadRow(
        scenario=scenario,
        protocol=protocol,
        concurrency=concurrency,
        server=server,
        requests_per_second=statistics.median(result.request_count / result.seconds for result in results),
        mean_us=statistics.median(result.mean_us for result in results),
        p50_us=statistics.median(result.p50_us for result in results),
        p99_us=statistics.median(result.p99_us for result in results),
        cpu_us=measured.cpu_seconds / count * 1e6,
        generator_us=sum(result.cpu_seconds for result in results) / count * 1e6,
    )


def _large_row(server: ServerProcess, protocol: str, tensor_bytes: int, plan: Plan, idle_pss: int) -> LargeRow:
    with LoadProcess(protocol, _port(server, protocol), 1, repositories.LARGE_IDENTITY, tensor_bytes) as load:
        process_tree.reset_peaks(server.pid)
        before = process_tree.cpu_seconds(server.pid)
        # Memory is looked at in a run of its own: looking costs the server time.
        result = load.run(plan.seconds * 2)
        cpu_seconds = process_tree.cpu_seconds(server.pid) - before
        load.start(plan.seconds)
        peak_pss, end = 0, time.monotonic() + plan.seconds
        while time.monotonic() < end:
            peak_pss = max(peak_pss, process_tree.memory(server.pid).pss)
            time.sleep(MEMORY_SAMPLE_SECONDS)
        load.result()
        return LargeRow(
            tensor_bytes=tensor_bytes,
            protocol=protocol,
            server=server.name,
            requests_per_second=result.request_count / result.seconds,
            cpu_ms=cpu_seconds / result.request_count * 1e3,
            idle_pss=idle_pss,
            peak_pss=peak_pss,
            peak_rss=process_tree.memory(server.pid).peak_rss,
        )


def _state_row(scenario: str, peer: str, repository: pathlib.Path, plan: Plan) -> StateRow:
    log = plan.folder / f"{scenario.replace(' ', '-')}-{peer}.log"
    with START[peer](repository, log) as server:
        server.wait_until_live(path="/v2/health/ready")
        time.sleep(1.0)  # What start-up leaves behind may still be freed.
        memory = process_tree.memory(server.pid)
        return StateRow(
            scenario=scenario,
            server=peer,
            start_seconds=server.start_seconds,
            process_count=len(process_tree.tree(server.pid)),
            pss=memory.pss,
            rss=memory.rss,
        )


def _perf_analyzer_row(server: ServerProcess, protocol: str, concurrency: int) -> PerfAnalyzerRow:
    # The mean of three windows, however much they differ: on a shared machine it might wait for calm for ever.
    url = f"{ADDRESS}:{_port(server, protocol)}"
    argv, environment = perf_analyzer_command(
        *("-m", repositories.PYTHON_IDENTITY, "-u", url, "-i", protocol),
        *("--concurrency-range", str(concurrency), "-p", "2000", "-r", "3", "-s", "999", "-a"),
    )
    output = subprocess.run(argv, env=environment, check=True, capture_output=True, text=True).stdout
    throughput = re.search(r"Throughput: ([\d.]+) infer/sec", output)
    latency = re.search(r"Avg latency: (\d+) usec", output)
    if not throughput or not latency:
        raise LoadError(f"perf_analyzer measured nothing:\n{output}")
    return PerfAnalyzerRow(protocol, concurrency, server.name, float(throughput[1]), float(latency[1]))


def _port(server: ServerProcess, protocol: str) -> int:
    return server.ports.http if protocol == "http" else server.ports.grpc
