"""Plain curl, as people try a server out."""

import json
import shutil
import struct
import subprocess

import pytest

from tests.clients.conftest import Endpoints

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")

REQUEST = json.dumps({"inputs": [{"name": "IN0", "datatype": "INT16", "shape": [2], "data": [1, -2]}]})
ANSWER = {
    "model_name": "versions",
    "model_version": "3",
    "outputs": [{"name": "OUT0", "datatype": "INT16", "shape": [2], "data": [1, -2]}],
}


def curl(*arguments: str, body: bytes | None = None) -> bytes:
    argv = ["curl", "--silent", "--show-error", "--max-time", "10", *arguments]
    return subprocess.run(argv, input=body, check=True, capture_output=True).stdout


def test_health(server: Endpoints):
    assert curl("-w", "%{http_code}", f"{server.http}/v2/health/ready") == b"200"
    assert curl("-w", "%{http_code}", f"{server.http}/v2/health/live") == b"200"


def test_metadata(server: Endpoints):
    assert json.loads(curl(f"{server.http}/v2"))["name"] == "triton"
    assert json.loads(curl(f"{server.http}/v2/models/versions"))["versions"] == ["1", "3"]
    assert json.loads(curl("-X", "POST", f"{server.http}/v2/repository/index"))


def test_infer_json(server: Endpoints):
    assert json.loads(curl("-d", REQUEST, f"{server.http}/v2/models/versions/infer")) == ANSWER


def test_infer_binary(server: Endpoints):
    data = struct.pack("<2h", 1, -2)
    header = json.dumps(
        {
            "inputs": [{"name": "IN0", "datatype": "INT16", "shape": [2], "parameters": {"binary_data_size": 4}}],
            "parameters": {"binary_data_output": True},
        }
    ).encode()

    answer = curl(
        *("--data-binary", "@-", "-H", f"Inference-Header-Content-Length: {len(header)}"),
        f"{server.http}/v2/models/versions/infer",
        body=header + data,
    )

    assert answer.endswith(data)
    assert json.loads(answer[:-4])["outputs"][0]["parameters"] == {"binary_data_size": 4}


def test_a_large_body_is_announced_with_expect_and_sent_chunked(server: Endpoints):
    values = [0.5] * 300_000
    request = json.dumps({"inputs": [{"name": "IN_FP32", "datatype": "FP32", "shape": [300_000], "data": values}]})

    for header in ("Expect: 100-continue", "Transfer-Encoding: chunked"):
        answer = curl("-d", "@-", "-H", header, f"{server.http}/v2/models/types/infer", body=request.encode())
        assert json.loads(answer)["outputs"][0]["data"] == values


def test_one_connection_serves_several_requests(server: Endpoints):
    url = f"{server.http}/v2/health/live"

    assert curl("-w", "%{http_code} %{num_connects};", url, url, url) == b"200 1;200 0;200 0;"


def test_errors_name_what_was_wrong(server: Endpoints):
    answer = curl("-w", "%{http_code}", "-d", "{", f"{server.http}/v2/models/versions/infer")

    assert answer == (b'{"error":"failed to parse the request JSON buffer: Missing a name for object member. at 1"}500')


def test_metrics(server: Endpoints):
    curl("-d", REQUEST, f"{server.http}/v2/models/versions/infer")

    page = curl(f"{server.metrics}/metrics").decode()

    assert "# TYPE nv_inference_request_success counter" in page
    assert 'nv_inference_request_success{model="versions",version="3"}' in page
