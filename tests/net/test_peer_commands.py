"""Programs of others as clients: curl, nghttp and h2load (of nghttp2), and Node's HTTP/2."""

import json
import shutil
import subprocess

import pytest

from tests.net.serving import TIMEOUT_SECONDS, serving


def find(program):
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed")
    return path


def run(program, *arguments, data=None):
    return subprocess.run(
        [find(program), *arguments], input=data, capture_output=True, check=True, timeout=TIMEOUT_SECONDS
    ).stdout


def has_http2(curl):
    return b"HTTP2" in subprocess.run([curl, "--version"], capture_output=True, check=True).stdout


BODY = bytes(range(256)) * 12_000  # 3 MB


@pytest.mark.parametrize("version", ["--http1.0", "--http1.1", "--http2-prior-knowledge", "--http2"])
@pytest.mark.parametrize("size", [0, 5, len(BODY)])
def test_curl_posts(version, size):
    if "http2" in version and not has_http2(find("curl")):
        pytest.skip("curl has no HTTP/2")
    with serving() as server:
        url = f"http://127.0.0.1:{server.port}/"
        answer = run("curl", "-sS", version, "--data-binary", "@-", "-w", "%{http_code}", url, data=BODY[:size])

        assert answer == BODY[:size] + b"200"


def test_curl_sends_chunks_and_expects():
    with serving() as server:
        url = f"http://127.0.0.1:{server.port}/"
        chunked = run("curl", "-sS", "-H", "Transfer-Encoding: chunked", "--data-binary", "@-", url, data=BODY)
        expecting = run("curl", "-sS", "-H", "Expect: 100-continue", "--data-binary", "@-", url, data=BODY)

        assert (chunked, expecting) == (BODY, BODY)


def test_curl_keeps_its_connection():
    with serving() as server:
        url = f"http://127.0.0.1:{server.port}/"
        seen = run("curl", "-sS", "-w", "%{num_connects},", url, url, url)

        assert seen == b"1,0,0,"


@pytest.mark.parametrize("version", ["--http1.1", "--http2-prior-knowledge"])
def test_curl_reads_a_stream(version):
    with serving() as server:
        answer = run(
            "curl", "-sSN", version, "--data-binary", "@-", f"http://127.0.0.1:{server.port}/drain", data=b"20"
        )

        assert answer == bytes(2_000_000)


def test_curl_reads_heads_and_faults():
    with serving() as server:
        url = f"http://127.0.0.1:{server.port}/"
        head = run("curl", "-sSI", url)
        fault = run("curl", "-sS", "-w", "%{http_code}", "-H", "A: " + "b" * 70_000, url)

        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert fault == b'{"error":"request head exceeds the limit of 65536 bytes"}431'


def test_nghttp_posts_and_multiplexes(tmp_path):
    body = tmp_path / "body"
    body.write_bytes(BODY)
    with serving() as server:
        url = f"http://127.0.0.1:{server.port}/"

        assert run("nghttp", "--data", str(body), url) == BODY
        body.write_bytes(BODY[:100_000])
        seen = run("nghttp", "--null-out", "--stat", "--multiply=50", "--data", str(body), url)
        assert seen.count(b" 200 ") == 50


@pytest.mark.parametrize("options", [["--h1"], ["--max-concurrent-streams=10"], ["--window-bits=16"]])
def test_h2load_sees_no_failure(tmp_path, options):
    body = tmp_path / "body"
    body.write_bytes(BODY[:20_000])
    with serving() as server:
        url = f"http://127.0.0.1:{server.port}/later"
        report = run("h2load", "--requests=400", "--clients=4", f"--data={body}", *options, url).decode()

        assert "400 succeeded, 0 failed, 0 errored, 0 timeout" in report


NODE_CLIENT = """
const http2 = require("http2");
const client = http2.connect("http://127.0.0.1:" + process.argv[1]);
const body = Buffer.alloc(400000, "abc");
let open = 20;
const answers = [];
for (let i = 0; i < 20; i++) {
  const request = client.request({ ":path": "/later", ":method": "POST", "x-number": String(i) });
  const pieces = [];
  let status;
  request.on("response", (headers) => (status = headers[":status"]));
  request.on("data", (piece) => pieces.push(piece));
  request.on("end", () => {
    answers.push([status, Buffer.concat(pieces).equals(body.subarray(0, i * 20000))]);
    if (--open === 0) {
      client.ping((error, duration, payload) => {
        console.log(JSON.stringify([answers, error === null]));
        client.close();
      });
    }
  });
  request.end(body.subarray(0, i * 20000));
}
"""


@pytest.mark.slow
def test_node_speaks_http2_with_us():
    with serving() as server:
        answers, has_pinged = json.loads(run("node", "-e", NODE_CLIENT, str(server.port)))

        assert answers == [[200, True]] * 20
        assert has_pinged
