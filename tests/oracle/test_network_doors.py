"""Restricted APIs, header forwarding, and the ports for SageMaker and Vertex AI: the real server and ours.

Multi-model endpoints that load are left out: the platform's directory is always the same, and not ours to write to, and
the real server ends when a body is not as it expects.
"""

import contextlib
import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
from tritonclient.grpc import service_pb2 as pb

from tests.oracle import real_triton, repository
from tests.oracle.availability import install_or_skip
from tests.oracle.cases import Case, Header, HttpCase
from tests.oracle.comparison import describe, differences
from tests.oracle.differences import explanation
from tests.oracle.grpc_cases import unary
from tests.oracle.server_process import ADDRESS, Ports, ServerProcess, free_ports, start_merrow, start_real_triton
from tests.oracle.suite import Peer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

# The repository stays open: only since 2.67 do the platforms' ports obey.
RESTRICTED = "metadata,statistics,shared-memory,trace,logging"
OPTIONS = (
    *("--model-control-mode=explicit", "--load-model=ident", "--load-model=request_view"),
    *("--allow-sagemaker=true", "--allow-vertex-ai=true", "--vertex-ai-default-model=ident"),
    *("--http-header-forward-pattern=x-FWD|^abc$", "--grpc-header-forward-pattern=x-FWD|^abc$"),
    f"--http-restricted-api={RESTRICTED}:X-Key=se=cret",
    f"--grpc-restricted-protocol={RESTRICTED}:Key=se=cret",
)
VARIABLES = {
    "AIP_PREDICT_ROUTE": "/predict",
    "AIP_HEALTH_ROUTE": "/health",
    "SAGEMAKER_TRITON_DEFAULT_MODEL_NAME": "ident",
}
DATA = [float(number) for number in range(16)]
BODY = json.dumps(
    {"inputs": [{"name": "IN0", "datatype": "FP32", "shape": [1, 16], "data": DATA}], "outputs": [{"name": "OUT0"}]}
).encode()
HEADER = json.dumps(
    {
        "inputs": [{"name": "IN0", "datatype": "FP32", "shape": [1, 16], "parameters": {"binary_data_size": 64}}],
        "outputs": [{"name": "OUT0", "parameters": {"binary_data": True}}],
    }
).encode()
BINARY_BODY = HEADER + struct.pack("<16f", *DATA)
VIEW_BODY = b'{"parameters":{"X-Fwd-A":"body","k":1},"inputs":[],"outputs":[{"name":"VIEW"}]}'
PREFIXES = {
    name: f"application/vnd.{name}.binary+json;json-header-size=" for name in ("sagemaker-triton", "vertex-ai-triton")
}


@dataclass(frozen=True, slots=True)
class Doors:
    """Connections to the ports of one server."""

    main: Peer
    sagemaker: Peer
    vertex_ai: Peer


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[tuple[ServerProcess, Ports]]]:
    """Both, each with the ports of SageMaker and Vertex AI (as those of HTTP and gRPC)."""
    install_or_skip(real_triton.install)
    folder = tmp_path_factory.mktemp("doors")
    models = folder / "models"
    for model in (repository.IDENT, repository.REQUEST_VIEW):
        repository.add_model(models, model)
    with contextlib.ExitStack() as stack:
        variables = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in VARIABLES.items():
            variables.setenv(name, value)
        both = []
        for start, extra in ((start_real_triton, "--exit-timeout-secs=1"), (start_merrow, f"--address={ADDRESS}")):
            ports = free_ports()
            platforms = (f"--sagemaker-port={ports.http}", f"--vertex-ai-port={ports.grpc}")
            server = start(models, folder / start.__name__, *OPTIONS, extra, *platforms)
            both.append((stack.enter_context(server), ports))
        for server, _ in both:
            server.wait_until_live()
            server.wait_until_models_ready(("ident", "request_view"))
        yield both


@pytest.fixture
def pair(servers: list[tuple[ServerProcess, Ports]]) -> Iterator[list[Doors]]:
    with contextlib.ExitStack() as stack:
        yield [
            Doors(
                *(
                    stack.enter_context(contextlib.closing(Peer(server.name, ADDRESS, port, server.ports.grpc)))
                    for port in (server.ports.http, ports.http, ports.grpc)
                )
            )
            for server, ports in servers
        ]


def check(pair: list[Doors], door: str, cases: Sequence[Case]) -> None:
    """Fail if the servers differ without a listed reason."""
    failures = []
    for case in cases:
        theirs, ours = (getattr(doors, door).exchange(case) for doors in pair)
        if differences(case, theirs, ours) and explanation(case, theirs, ours) is None:
            failures.append(f"{case.name}\n  {describe(case, theirs)}\n  {describe(case, ours)}")
    if failures:
        pytest.fail("\n".join(failures), pytrace=False)


def request(
    method: str, target: str, body: bytes = b"", headers: dict[str, str] | None = None, name: str = ""
) -> HttpCase:
    fields: tuple[Header, ...] = tuple((headers or {}).items())
    return HttpCase(name or f"{method} {target} {dict(fields)} {body[:20]!r}", method, target, fields, body)


def test_restricted_apis(pair: list[Doors]):
    targets = (
        *("/v2", "/v2/models/ident", "/v2/models/nothing", "/v2/models/stats", "/v2/models/ident/stats"),
        *("/v2/systemsharedmemory/status", "/v2/cudasharedmemory/status", "/v2/systemsharedmemory/unregister"),
        *("/v2/trace/setting", "/v2/models/ident/trace/setting", "/v2/logging"),
        *("/v2/health/live", "/v2/models/ident/ready", "/v2/models/ident/config", "/v2/nothing"),
    )
    wrong = (
        {},
        {"X-Key": "x"},
        {"X-Key": ""},
        {"X-Key": "Se=cret"},
        {"X-Key": "se=cret", "x-Key2": "y"},
        {"Key": "se=cret"},
    )
    check(
        pair,
        "main",
        [
            request(method, target, b"", headers)
            for method in ("GET", "POST", "PUT")
            for target in targets
            for headers in wrong
            # With the key it is as without restrictions, which other suites compare.
            if method == "PUT" or "se=cret" not in headers.get("X-Key", "")
        ],
    )
    cases = []
    for metadata in ((), (("triton-grpc-protocol-key", "x"),)):
        for method, message in (
            ("ServerMetadata", pb.ServerMetadataRequest()),
            ("ModelMetadata", pb.ModelMetadataRequest(name="ident")),
            ("ModelStatistics", pb.ModelStatisticsRequest()),
            ("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest()),
            ("TraceSetting", pb.TraceSettingRequest()),
            ("LogSettings", pb.LogSettingsRequest()),
            ("ServerLive", pb.ServerLiveRequest()),
            ("ModelConfig", pb.ModelConfigRequest(name="nothing")),
        ):
            cases.append(unary(f"{method} {metadata}", method, message, metadata=metadata))
    check(pair, "main", cases)


def test_header_forwarding(pair: list[Doors]):
    headers = (
        *({}, {"X-Fwd-A": "1"}, {"my-x-fwd-b": "2", "Other": "3"}, {"ABC": "4", "abcd": "5", "aabc": "6"}),
        *({"x-fwd-a": "7", "x-fwd-c": "x"}, {"X-FWD": "8 9\t10"}),
    )
    target = "/v2/models/request_view/infer"
    # Two parameters of one name are one for Python, the last; and the header is.
    check(pair, "main", [request("POST", target, VIEW_BODY, each) for each in headers])
    message = pb.ModelInferRequest(model_name="request_view", outputs=[{"name": "VIEW"}])
    message.parameters["k"].int64_param = 3
    metadata = ((), (("x-fwd-a", "1"),), (("abc", "2"), ("my-x-fwd", "3"), ("other", "4")), (("x-fwd-bin", b"\1\2"),))
    check(pair, "main", [unary(f"{each}", "ModelInfer", message, metadata=each) for each in metadata])


def framed(target: str, platform: str) -> list[HttpCase]:
    """Requests whose content type says how long the JSON is, or lies."""
    prefix = PREFIXES[platform]
    lengths = (len(HEADER), 0, len(HEADER) - 1, len(BINARY_BODY), len(BINARY_BODY) + 1, -1)
    types = [*(f"{prefix}{length}" for length in lengths), f"x {prefix}1", "application/json", "x/y"]
    return [
        *(request("POST", target, BINARY_BODY, {"Content-Type": each}) for each in types),
        request("POST", target, BINARY_BODY[len(HEADER) :], {"Content-Type": f"{prefix}0"}, name="raw"),
        request("POST", target, BODY, {"Inference-Header-Content-Length": "5"}),
        request("POST", target, BODY, {"Content-Encoding": "br"}),
        request("POST", target, BODY, {"Accept-Encoding": "gzip"}),
        *(request("POST", target, body) for body in (BODY, b"", b"{", b"{}", b"[]", b'{"inputs":[]}')),
    ]


def test_sagemaker(pair: list[Doors]):
    paths = ("/", "/pingx", "/ping/", "/ping?x=1", "/v2", "/invocations/", "/models/nothing/x", "/models/a/b/invoke")
    check(
        pair,
        "sagemaker",
        [
            *framed("/invocations", "sagemaker-triton"),
            *(request(method, path) for method in ("GET", "POST", "PUT") for path in (*paths, "/ping", "/invocations")),
            # A load (POST) is another matter since 2.67.
            *(request(method, "/models/nothing") for method in ("GET", "PUT", "DELETE", "PATCH")),
            *(request(method, "/models/nothing/invoke", BODY) for method in ("POST", "PUT", "DELETE")),
        ],
    )


def test_vertex_ai(pair: list[Doors]):
    def redirect(target: str, body: bytes = b"", method: str = "POST") -> HttpCase:
        return request(method, "/predict", body, {"X-Vertex-Ai-Triton-Redirect": target})

    check(
        pair,
        "vertex_ai",
        [
            *framed("/predict", "vertex-ai-triton"),
            *(
                request(method, path)
                for method in ("GET", "POST", "PUT")
                for path in ("/", "/v2", "/health/", "/health")
            ),
            *(request(method, "/predict") for method in ("GET", "PUT", "DELETE")),
            *map(redirect, ("v2/health/live", "v2/health/ready", "v2/models/ident/ready", "v2/models/nothing/ready")),
            *map(redirect, ("v2/models/ident/config", "v2/models/nothing/config", "v2/models/ident/versions/1/ready")),
            *map(redirect, ("v2/models/ident/generate", "v2/logging", "v2/trace/setting", "/v2", "x", "v2/")),
            *map(redirect, ("v2/models/ident/versions/a", "v2?x=1", "v2/models/ident/infer/", "v2/health")),
            redirect("v2/models/ident/infer", BODY),
            redirect("v2/models/nothing/infer", BODY),
            redirect("v2/health/live", method="GET"),
            redirect("v2/models/ident/infer", BODY, method="PUT"),
        ],
    )
