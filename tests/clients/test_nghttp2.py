"""curl over HTTP/2, and nghttp and h2load of nghttp2, with requests that a model answers."""

import json
import shutil
import struct
import subprocess

import pytest

from merrow.testing.repository_builder import RepositoryBuilder
from merrow.testing.running_server import RunningServer

pytestmark = pytest.mark.slow

BODY = b'{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1,4],"data":[1,2,3,4]}]}'
OUTPUTS = [{"name": "OUTPUT0", "datatype": "FP32", "shape": [1, 4], "data": [1.0, 2.0, 3.0, 4.0]}]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    repository = RepositoryBuilder(tmp_path_factory.mktemp("nghttp2"))
    repository.add_identity("m", dims=(-1,), max_batch_size=8)
    with RunningServer(repository.path, "--port=0") as running:
        yield running


@pytest.fixture
def body(tmp_path):
    path = tmp_path / "body"
    path.write_bytes(BODY)
    return path


def run(*command, data=None):
    if shutil.which(command[0]) is None:
        pytest.skip(f"NOT TESTED with {command[0]}: it is not installed")
    return subprocess.run(command, input=data, capture_output=True, check=True, timeout=60).stdout


@pytest.mark.parametrize("version", ["--http1.1", "--http2-prior-knowledge", "--http2"])
class TestCurl:
    def test_json(self, server, version):
        url = f"http://{server.http_url}/v2/models/m/infer"
        answer, _, code = run("curl", "-sS", version, "-d", BODY, "-w", "\n%{http_code}", url).rpartition(b"\n")
        assert (code, json.loads(answer)["outputs"]) == (b"200", OUTPUTS)

    def test_large_binary(self, server, version):
        count = 1_000_000
        header = json.dumps(
            {
                "inputs": [
                    {"name": "INPUT0", "datatype": "FP32", "shape": [1, count],
                     "parameters": {"binary_data_size": 4 * count}}
                ],
                "parameters": {"binary_data_output": True},
            }
        ).encode()  # fmt: skip
        data = struct.pack("<f", 1.5) * count
        answer = run(
            *("curl", "-sS", version, "--data-binary", "@-", "-H", f"Inference-Header-Content-Length: {len(header)}"),
            f"http://{server.http_url}/v2/models/m/infer",
            data=header + data,
        )
        assert answer.endswith(data)

    def test_errors(self, server, version):
        url = f"http://{server.http_url}/v2/models/nothing"
        seen = run("curl", "-sS", version, "-w", "%{http_code}", url)
        assert seen == b'{"error":"Request for unknown model: \'nothing\' is not found"}404'


def test_nghttp(server, body):
    url = f"http://{server.http_url}/v2/models/m/infer"
    assert json.loads(run("nghttp", "--data", str(body), url))["outputs"] == OUTPUTS
    seen = run("nghttp", "--null-out", "--stat", "--multiply=50", "--data", str(body), url)
    assert seen.count(b" 200 ") == 50


@pytest.mark.parametrize(
    "options", [["--h1"], ["--max-concurrent-streams=20"], ["--window-bits=16", "--connection-window-bits=16"]]
)
def test_h2load(server, body, options):
    url = f"http://{server.http_url}/v2/models/m/infer"
    report = run("h2load", "--requests=500", "--clients=5", f"--data={body}", *options, url).decode()
    assert "500 succeeded, 0 failed, 0 errored, 0 timeout" in report
    assert "status codes: 500 2xx" in report
